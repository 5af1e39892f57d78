"""The round loop: sample, train, screen, aggregate, evaluate, save; and again.

Flower's own strategies refuse replies whose tensors differ, cannot stop early and cannot resume, so the loop is ours.
It knows a `Grid` and nothing of the engine below it.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime

from flwr.serverapp import Grid
from safetensors.numpy import save_file

from fedfm.arrays import Arrays, non_finite, sha256
from fedfm.config import RunConfig
from fedfm.errors import RunError, TooFewSitesError
from fedfm.federation.asking import Sites
from fedfm.federation.asynchrony import advance, begin, next_done
from fedfm.federation.auditing import CoordinatorRecord
from fedfm.federation.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from fedfm.federation.enrolment import enrol, first_weights, idle_patterns, refuse_changed_data, save_cards
from fedfm.federation.faults import draw_faults, present
from fedfm.federation.intake import Count, Intake
from fedfm.federation.journal import Journal
from fedfm.federation.packing import rows_of_domains
from fedfm.federation.sampling import sample_sites
from fedfm.federation.scoring import Scores, score
from fedfm.profiling import phase
from fedfm.results.audit import Audit
from fedfm.results.run_folder import Listen, RunFolder
from fedfm.strategies import Round, Strategy, make_strategy
from fedfm.strategies.base import State


class RoundLoop:
    """One run over a Grid, from enrolment to the final test. `listen` hears every event that the run folder gets."""

    def __init__(
        self, grid: Grid, config: RunConfig, folder: RunFolder, listen: Listen = lambda event: None,
        strategy: Strategy | None = None,
    ):  # fmt: skip
        self.grid, self.config, self.folder = grid, config, folder
        audit = Audit(folder.path / "audit.jsonl") if config.engine.superlink else None
        self.journal = Journal(folder, listen, CoordinatorRecord(audit, grid))
        self.strategy = strategy or make_strategy(config.strategy)
        self.file = folder.path / "checkpoint" / "state.safetensors"

    def run(self) -> Scores:
        """Train to the end (from the checkpoint, where there is one), test once, and close the run folder.

        Raises UserError where the configuration, a site's data or a second process on this folder forbid it, RunError
        where the run cannot go on.
        """
        with self.folder.lock():
            try:
                return self._run()
            finally:
                self.journal.flush()
                shutil.rmtree(self.folder.path / "cache", ignore_errors=True)  # what the sites' processes kept there

    def _run(self) -> Scores:
        roll = enrol(self.grid, self.config, self.config.engine.timeout, audit=self.journal.audit)
        start, names = first_weights(self.config, roll)
        now = load_checkpoint(self.file)
        if now is not None:
            refuse_changed_data(roll, self.folder.info["sites"])
        rows = rows_of_domains(self.config, roll, self.folder.info.get("sites_at_once"))
        self.folder.update(sites_at_once=rows)
        self.sites = Sites(self.grid, self.config, roll, names, self.journal, rows, self.strategy)
        packed = self.sites.pack(start, self.strategy.start(start))
        largest = max((record.count_bytes() for record in packed.records.values()), default=0)
        shown = "personal" if self.sites.own_model("validation") else "global"
        self.journal.announce(self.config, roll, largest, now.progress.round if now else None, shown)
        for sentence in self.strategy.advice(self.config):
            self.journal.warn_once(sentence)
        for pattern in idle_patterns(self.config, roll):
            self.journal.warn_once(f'the pattern "{pattern}" of [sharing] matches no tensor, and does nothing')
        self.folder.truncate_after(now.progress.round if now else -1)
        if now is None:
            count = Count(number=0, started=time.perf_counter())
            now = self._evaluate(Checkpoint(start, self.strategy.start(start), start), count)
        status = "finished"
        while now.progress.round < self.config.rounds and status == "finished":
            if self._patience_is_over(now.progress):
                status = "early-stopped"
            else:
                now = self._round(now)
        return self._finish(now, status)

    def _round(self, now: Checkpoint) -> Checkpoint:
        count = Count(number=now.progress.round + 1, started=time.perf_counter())
        now, asked = self._who(now, count.number)
        faults = draw_faults(asked, self.config, self.strategy, count.number)
        packed = self.sites.pack(now.weights, now.state)
        updates = Intake(self.sites, self.config, now.weights, packed, count).updates(asked, faults)
        with phase("aggregate"):  # which takes the updates as they come: their own phases stop its clock
            weights, state = self.strategy.aggregate(now.weights, updates, now.state, self._about(count.number))
        if self.strategy.asynchronous:
            state, count.virtual_seconds = advance(state, weights, self.sites, asked, count.number)
        minimum = self.config.sampling.minimum_sites
        if count.used < minimum:
            what = (
                f"round {count.number}: {count.used} usable updates, the minimum is {minimum} (sampling.minimum-sites)"
            )
            last = now.progress.round
            mend = f"events.jsonl has the reasons; `fedfm resume {self.folder.path}` goes on after round {last}"
            raise TooFewSitesError(what, mend=mend)
        if broken := non_finite(weights):
            what = f"round {count.number}: the new weights are not finite, first in {next(iter(broken))}"
            mend = "run again with a lower strategy.server-learning-rate or local.learning-rate"
            raise RunError(what, mend=mend)
        return self._evaluate(replace(now, weights=weights, state=state), count)

    def _who(self, now: Checkpoint, number: int) -> tuple[Checkpoint, list[str]]:
        """The sites of a round: a draw, or, where nobody waits for others, those that are done first."""
        train = {s: d for s, d in self.sites.roll.site_domains().items() if s not in self.config.sampling.without}
        there = present(train, self.config.simulation, number)
        if not there:
            raise RunError(f"round {number}: no site takes part", where="simulation.joins, simulation.leaves")
        if not self.strategy.asynchronous:
            return now, sample_sites(there, self.config.sampling, self.config.seed, number)
        now = replace(now, state=begin(now.state, now.weights, self.sites, there, number))
        return now, next_done(now.state, there, self.strategy.buffer)

    def _about(self, number: int) -> Round:
        """What the server half is told of a round."""
        cards = self.sites.roll.cards
        examples = {site: cards[site].num_examples("train") for site in sorted(cards)}
        domain_weights = {domain: settings.weight for domain, settings in self.config.domains.items()}
        return Round(number, self.config.seed, self.sites.roll.site_domains(), examples, domain_weights)

    def _evaluate(self, new: Checkpoint, count: Count) -> Checkpoint:
        """Score the new weights if they are due, write the round's row, keep the best weights, save the checkpoint."""
        is_due = count.number % self.config.evaluation.every == 0 or count.number == self.config.rounds
        scores = self._score(new.weights, new.state, count.number, "validation") if is_due else Scores()
        row, old = count.row() | new.state.get("told", {}), new.progress
        progress = replace(
            old, round=count.number, seconds=old.seconds + row["seconds"],
            bytes_down=old.bytes_down + count.bytes_down, bytes_up=old.bytes_up + count.bytes_up,
        )  # fmt: skip
        best, watched = new.best, scores.shown.watched(self.config.early_stopping.metric)
        if count.number == 0 or watched > old.best_score:
            known = -math.inf if math.isnan(watched) else watched  # no score at all is beaten by any
            best, progress = new.weights, replace(progress, best_round=count.number, best_score=known)
        self.journal.flush()
        self.folder.add_round(row)
        after = Checkpoint(new.weights, new.state, best, progress)
        save_checkpoint(self.file, after)
        shown = scores.shown
        self.journal.tell("round-finished", **row, scores=shown.primary, mean=shown.mean, worst=shown.worst)
        return after

    def _score(self, weights: Arrays, state: State, number: int, split: str) -> Scores:
        return score(self.sites, weights, state, number, split)

    def _finish(self, now: Checkpoint, status: str) -> Scores:
        """Test once, save the model, close the run folder. With early stopping the best round's weights are final."""
        stopping, progress = self.config.early_stopping.patience > 0, now.progress
        weights = now.best if stopping else now.weights
        number = progress.best_round if stopping else progress.round
        model = self.folder.path / "model"
        save_cards(model, self.sites.roll)
        save_file(weights, model / "weights.safetensors")
        scores = self._score(weights, now.state, number, "test")
        personal = scores.personal and scores.personal.by_domain
        reports = self.folder.path / "reports"
        reports.mkdir(exist_ok=True)
        for domain, text in scores.shown.reports.items():
            origin = "generated data\n" if domain in self.folder.info["generated"] else ""
            (reports / f"{domain}.txt").write_text(origin + text, encoding="utf-8")
        self.folder.update(
            status=status, rounds=progress.round, best_round=progress.best_round, final_round=number,
            final=scores.by_domain, final_personal=personal, final_weights_sha256=sha256(weights),
            seconds=round(progress.seconds, 3), bytes_down=progress.bytes_down, bytes_up=progress.bytes_up,
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        self.journal.tell(
            "run-finished", status=status, rounds=progress.round, seconds=progress.seconds, final=scores.by_domain,
            personal=personal, folder=str(self.folder.path),
        )  # fmt: skip
        return scores

    def _patience_is_over(self, progress: Progress) -> bool:
        patience = self.config.early_stopping.patience
        return patience > 0 and progress.round - progress.best_round >= patience
