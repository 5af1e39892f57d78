"""The round loop: sample, train, screen, aggregate, evaluate, save; and again.

Flower's own strategies refuse replies whose tensors differ, cannot stop early and cannot resume, so the loop is ours. It
knows a `Grid` and nothing of the engine below it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from flwr.serverapp import Grid
from safetensors.numpy import save_file

from fedfm.arrays import Arrays, sha256
from fedfm.config import BodyConfig, RunConfig
from fedfm.errors import TooFewSitesError
from fedfm.federation.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from fedfm.federation.enrolment import Roll, enrol, first_weights, save_cards
from fedfm.federation.exchange import exchange, in_order
from fedfm.federation.messages import Answer, Order, read_answer, to_record, write_order
from fedfm.federation.sampling import sample_sites
from fedfm.federation.screening import reason_to_leave_out
from fedfm.results.run_folder import RunFolder
from fedfm.strategies import Update, make_strategy
from fedfm.training.metrics import PRIMARY, Tally, classification_report, metrics

TRUNCATED_SHARE = 0.05
Listen = Callable[[dict[str, Any]], None]


@dataclass
class Count:
    """What is counted while the updates of one round stream by."""

    used: int = 0
    dropped: int = 0
    bytes_up: int = 0
    loss: float = 0.0
    examples: float = 0.0


def in_words(body: BodyConfig) -> str:
    """ "minilm, 3 layers, LoRA r=8"."""
    kept = {"none": "no layers (control)"}.get(body.weights, f"{body.layers} layers" if body.layers else "all layers")
    redrawn = ", random weights (control)" if body.weights == "random" else ""
    tuning = {"lora": f"LoRA r={body.lora_rank}", "layernorm": "LayerNorm", "head": "head only", "full": "full"}
    return f"{body.name}, {kept}{redrawn}, {tuning[body.tuning]}"


class RoundLoop:
    """One run over a Grid, from enrolment to the final test. `listen` hears every event that the run folder gets."""

    def __init__(self, grid: Grid, config: RunConfig, folder: RunFolder, listen: Listen = lambda event: None):
        self.grid, self.config, self.folder, self.listen = grid, config, folder, listen
        self.strategy = make_strategy(config.strategy)
        self.config_text = json.dumps(config.to_dict())
        self.domain_weights = {domain: settings.weight for domain, settings in config.domains.items()}
        self.file = folder.path / "checkpoint" / "state.safetensors"
        self.state_folder = str((folder.path / "checkpoint" / "sites").resolve())
        self.warned: set[str] = set()

    # ---- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, dict[str, float]]:
        """Train to the end (from the checkpoint, where there is one) and test once; returns {domain: metrics}."""
        self.roll: Roll = enrol(self.grid, self.config, self.config.engine.timeout)
        start, self.names = first_weights(self.config, self.roll)
        now = load_checkpoint(self.file)
        self._announce(start, resumed=now)
        if now is None:
            self.folder.truncate_after(-1)
            now = Checkpoint(start, self.strategy.start(start), start)
            now = self._finish_round(now, start, now.state, Count(), [], time.perf_counter(), 0, 0)
        self.folder.truncate_after(now.progress.round)
        status = "finished"
        while now.progress.round < self.config.rounds:
            if self._patience_is_over(now.progress):
                status = "early-stopped"
                break
            now = self._round(now)
        return self._finish(now, status)

    def _round(self, now: Checkpoint) -> Checkpoint:
        started, number = time.perf_counter(), now.progress.round + 1
        asked = sample_sites(self.roll.site_domains(), self.config.sampling, self.config.seed, number)
        count = Count()
        records = self._records(now.weights)
        updates = self._updates(asked, number, now.weights, records, count)
        weights, state = self.strategy.aggregate(now.weights, updates, now.state, self.domain_weights)
        if count.used < self.config.sampling.minimum_sites:
            what = f"round {number}: {count.used} usable updates, the minimum (sampling.minimum-sites) is "
            mend = f"see events.jsonl for the reasons; then `fedfm resume {self.folder.path}` goes on from round {number - 1}"
            raise TooFewSitesError(what + str(self.config.sampling.minimum_sites), mend=mend)
        down = sum(records[self.roll.cards[site].domain].count_bytes() for site in asked)
        return self._finish_round(now, weights, state, count, asked, started, number, down)

    def _updates(self, asked: list[str], number: int, weights: Arrays, records: dict, count: Count) -> Iterator[Update]:
        """The usable updates of a round in order of site name, one at a time."""
        for site, answer in self._ask("train", asked, number, records):
            domain = self.roll.cards[site].domain
            count.bytes_up += answer.num_bytes
            reason = str(answer.problem) if answer.problem else ""
            if not reason:
                expected = {name: weights[name] for name in self.names[domain]}
                examples = answer.metrics["num-examples"]
                reason = reason_to_leave_out(answer.arrays, expected, examples, self.config.screening.max_norm)
            if reason:
                count.dropped += 1
                self._tell("update-left-out", round=number, site=site, domain=domain, reason=reason)
                continue
            self._warn_truncated(site, domain, answer)
            self._write(number, "site", site, domain, "train", {"loss": answer.metrics["loss"]}, int(examples))
            count.used += 1
            count.loss += examples * answer.metrics["loss"]
            count.examples += examples
            yield Update(site, domain, int(examples), answer.arrays, answer.metrics)

    def _finish_round(
        self,
        now: Checkpoint,
        weights: Arrays,
        state,
        count: Count,
        asked: list[str],
        started: float,
        number: int,
        down: int,
    ) -> Checkpoint:
        """Evaluate the new weights, write the round's rows, then the checkpoint."""
        scores = self._evaluate(weights, number, "validation")
        watched = scores[self.config.early_stopping.metric]
        seconds = time.perf_counter() - started
        old = now.progress
        progress = replace(
            old, round=number, seconds=old.seconds + seconds,
            bytes_down=old.bytes_down + down, bytes_up=old.bytes_up + count.bytes_up,
        )  # fmt: skip
        best = now.best
        if number == 0 or watched > old.best_score:
            best, progress = weights, replace(progress, best_round=number, best_score=watched)
        loss = count.loss / count.examples if count.examples else None
        row = {
            "round": number, "seconds": round(seconds, 3), "bytes_down": down, "bytes_up": count.bytes_up,
            "sites_asked": len(asked), "sites_used": count.used, "sites_dropped": count.dropped, "loss": loss,
        }  # fmt: skip
        self.folder.add_round(row)
        by_domain = {domain: scores[domain] for domain in self.config.domains}
        self._tell("round-finished", **row, scores=by_domain, mean=scores["mean"], worst=scores["worst"])
        after = Checkpoint(weights, state, best, progress)
        save_checkpoint(self.file, after)
        return after

    def _finish(self, now: Checkpoint, status: str) -> dict[str, dict[str, float]]:
        """Test once, save the model, close the run folder."""
        stopping = self.config.early_stopping.patience > 0
        weights = now.best if stopping else now.weights
        number = now.progress.best_round if stopping else now.progress.round
        model = self.folder.path / "model"
        save_cards(model, self.roll)
        save_file(weights, model / "weights.safetensors")
        self.final: dict[str, dict[str, float]] = {}
        self._evaluate(weights, number, "test")
        self.folder.update(
            status=status, rounds=now.progress.round, best_round=now.progress.best_round, final_round=number,
            final=self.final, final_weights_sha256=sha256(weights), seconds=round(now.progress.seconds, 3),
            bytes_down=now.progress.bytes_down, bytes_up=now.progress.bytes_up, ended=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        self._tell(
            "run-finished", status=status, rounds=now.progress.round, seconds=now.progress.seconds, final=self.final,
            folder=str(self.folder.path),
        )  # fmt: skip
        return self.final

    # ---- asking the sites ------------------------------------------------------------------------------------------

    def _records(self, weights: Arrays) -> dict[str, Any]:
        """What is sent to the sites of each domain, packed once."""
        return {d: to_record({name: weights[name] for name in names}) for d, names in self.names.items()}

    def _ask(
        self, kind: str, sites: list[str], number: int, records: dict, split: str = ""
    ) -> Iterator[tuple[str, Answer]]:
        phase = split or kind
        self._tell("phase", round=number, phase=phase, sites=len(sites))
        orders = {site: self._order(kind, site, number, records, split) for site in sites}
        answers = self._answers(orders, number, phase)
        return in_order(answers, sites)

    def _answers(self, orders: dict, number: int, phase: str) -> Iterator[tuple[str, Answer]]:
        timeout = self.config.engine.timeout
        for site, reply in exchange(self.grid, orders, timeout):
            if reply is None:
                answer = Answer(site, {}, {}, 0, TooFewSitesError(f"no answer within {timeout:g} s"))
            else:
                answer = read_answer(reply)
            seconds = answer.metrics.get("seconds", math.nan)
            self._tell(
                "site-finished", round=number, phase=phase, site=site, domain=self.roll.cards[site].domain,
                seconds=None if math.isnan(seconds) else round(seconds, 3),
            )  # fmt: skip
            yield site, answer

    def _order(self, kind: str, site: str, number: int, records: dict, split: str):
        domain = self.roll.cards[site].domain
        order = Order(site, number, self.roll.domains[domain], self.config_text, split, self.state_folder)
        return write_order(kind, order, records[domain], self.roll.nodes[site])

    # ---- scores ----------------------------------------------------------------------------------------------------

    def _evaluate(self, weights: Arrays, number: int, split: str) -> dict[str, float]:
        """Score every site; write site, domain and federation rows; return primaries, their mean and their worst."""
        pooled: dict[str, Tally] = {}
        sites = sorted(self.roll.cards)
        for site, answer in self._ask("evaluate", sites, number, self._records(weights), split):
            domain = self.roll.cards[site].domain
            if answer.problem:
                self._tell("warning", message=f"round {number}: no {split} score of site {site}: {answer.problem}")
                continue
            tally = Tally.from_arrays(answer.arrays)
            self._write(number, "site", site, domain, split, self._metrics(domain, tally), tally.num_examples)
            pooled[domain] = pooled[domain] + tally if domain in pooled else tally
        scores: dict[str, float] = {}
        for domain in self.config.domains:
            scores[domain] = self._score_domain(domain, pooled.get(domain), number, split)
        known = [score for score in scores.values() if not math.isnan(score)]
        summary = {
            "mean": sum(known) / len(known) if known else math.nan,
            "worst": min(known, default=math.nan),
        }
        examples = sum(tally.num_examples for tally in pooled.values())
        self._write(number, "federation", "federation", "", split, summary, examples)
        return scores | summary

    def _score_domain(self, domain: str, tally: Tally | None, number: int, split: str) -> float:
        if tally is None or not tally.num_examples:
            return math.nan
        card, values = self.roll.domains[domain], self._metrics(domain, tally)
        self._write(number, "domain", domain, domain, split, values, tally.num_examples)
        if split == "test":
            self.final[domain] = values
            report = classification_report(card.task, tally, card.labels)
            target = self.folder.path / "reports" / f"{domain}.txt"
            target.parent.mkdir(exist_ok=True)
            target.write_text(report, encoding="utf-8")
        return values[PRIMARY[card.task]]

    def _metrics(self, domain: str, tally: Tally) -> dict[str, float]:
        card = self.roll.domains[domain]
        return metrics(card.task, tally, card.labels)

    # ---- telling ---------------------------------------------------------------------------------------------------

    def _announce(self, start: Arrays, resumed: Checkpoint | None) -> None:
        """The first event of a run, and what run.json says of its sites."""
        cards = self.roll.cards
        sites = {
            name: {"domain": c.domain, "source": c.source, "sha256": c.sha256, "label_counts": c.label_counts}
            for name, c in sorted(cards.items())
        }
        primary = {domain: PRIMARY[card.task] for domain, card in self.roll.domains.items()}
        generated = sorted({card.domain for card in cards.values() if card.source == "generated"})
        self.folder.update(status="running", sites=sites, primary=primary, generated=generated, reason=None)
        records = self._records(start)
        largest = max((record.count_bytes() for record in records.values()), default=0)
        self._tell(
            "run-started", run=self.folder.path.name, strategy=self.config.strategy.name, engine=self.config.engine.name,
            seed=self.config.seed, rounds=self.config.rounds, body=in_words(self.config.body),
            sites=self.roll.site_domains(), primary=primary, bytes_per_site={"down": largest, "up": largest},
            generated=generated, resumed_from=resumed.progress.round if resumed else None,
        )  # fmt: skip
        for name, card in sorted(cards.items()):
            for sentence in card.warnings:
                self._warn_once(
                    f"{card.domain}: {sentence}" if "site" in sentence else f"{card.domain}, {name}: {sentence}"
                )

    def _warn_truncated(self, site: str, domain: str, answer: Answer) -> None:
        share = answer.metrics.get("truncated", 0.0)
        if share > TRUNCATED_SHARE:
            length = self.config.local_for(domain).max_length
            self._warn_once(
                f"{domain}: {share:.0%} of the texts of site {site} are longer than max-length = {length} and are cut; "
                f"domains.{domain}.local.max-length=... mends it"
            )

    def _warn_once(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            self._tell("warning", message=message)

    def _tell(self, kind: str, **fields: Any) -> None:
        self.listen(self.folder.event(kind, **fields))

    def _write(self, number: int, scope: str, name: str, domain: str, split: str, values: dict, examples: int) -> None:
        self.folder.add_metrics(
            {
                "round": number,
                "scope": scope,
                "name": name,
                "domain": domain,
                "split": split,
                "metric": metric,
                "value": value,
                "num_examples": examples,
            }  # fmt: skip
            for metric, value in values.items()
        )

    def _patience_is_over(self, progress: Progress) -> bool:
        patience = self.config.early_stopping.patience
        return patience > 0 and progress.round - progress.best_round >= patience
