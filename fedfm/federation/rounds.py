"""The round loop: sample, train, screen, aggregate, evaluate, save; and again.

Flower's own strategies refuse replies whose tensors differ, cannot stop early and cannot resume, so the loop is ours.
It knows a `Grid` and nothing of the engine below it.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from flwr.serverapp import Grid
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from fedfm.arrays import Arrays, non_finite, sha256
from fedfm.config import RunConfig, refuse_other_config
from fedfm.errors import RunError, TooFewSitesError
from fedfm.federation.asking import Aside, Sites
from fedfm.federation.asynchrony import advance, begin, next_done
from fedfm.federation.attendance import Attendance
from fedfm.federation.auditing import CoordinatorRecord
from fedfm.federation.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from fedfm.federation.door import Door, Roll
from fedfm.federation.enrolment import enrol, first_weights, idle_patterns, load_cards, refuse_changed_data, save_cards
from fedfm.federation.faults import draw_faults, present
from fedfm.federation.intake import Count, Intake
from fedfm.federation.journal import Journal
from fedfm.federation.packing import rows_of_domains
from fedfm.federation.sampling import sample_sites
from fedfm.federation.scoring import Scores, score, score_at_once, scores_of
from fedfm.models.body import load_body, refuse_other_body
from fedfm.profiling import phase
from fedfm.results.audit import Audit
from fedfm.results.files import replace_text
from fedfm.results.run_folder import Listen, RunFolder
from fedfm.strategies import Round, Strategy, make_strategy


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
        # numpy's own threads, as many as cores, wait for one another where cores are shared; their number also decides
        # the last digits of products
        with self.folder.lock(), threadpool_limits(self.config.engine.threads, "blas"):
            cache = self.folder.path / "cache"  # what the sites' processes keep there
            shutil.rmtree(cache, ignore_errors=True)  # of a run that was killed: its texts may be others by now
            try:
                return self._run()
            finally:
                self.journal.flush()
                shutil.rmtree(cache, ignore_errors=True)

    def _run(self) -> Scores:
        now = load_checkpoint(self.file)
        began = self.file.with_name("config.json")
        if now is not None and began.exists():
            refuse_other_config(self.config, json.loads(began.read_text(encoding="utf-8")))
        self.door = self._open_door(now)
        roll = enrol(self.door, self.config.engine.wait, self.journal.warn_once)
        start, names = first_weights(self.config, roll)
        if now is not None:
            refuse_changed_data(roll, self.folder.info["sites"])
            refuse_other_body(self.config, self.folder.info.get("body_sha256"))
        save_cards(self.file.parent, roll)
        if now is None:
            replace_text(began, json.dumps(self.config.to_dict()))
        rows = rows_of_domains(self.config, roll, self.folder.info.get("sites_at_once"))
        self.folder.update(sites_at_once=rows, body_sha256=load_body(self.config).sha256)
        self.sites = Sites(self.grid, self.config, roll, names, self.journal, rows, self.strategy)
        self._announce(start, roll, now)
        self.attendance = Attendance(self.door, self.journal)
        if self.config.engine.superlink:
            self.sites.meanwhile = self.attendance.meanwhile
        if now is None:
            self.folder.truncate_after(-1)
            count = Count(number=0, started=time.perf_counter())
            now = self._close(Checkpoint(start, self.strategy.start(start), start), count)
        else:
            self.folder.truncate_after(now.progress.round, now.progress.is_unscored)
            self.sites.used |= now.used or {}
            self.sites.used_before = now.progress.round if now.used is None else 0
        status = "finished"
        while now.progress.round < self.config.rounds and status == "finished":
            if self._patience_is_over(now.progress):
                status = "early-stopped"
            else:
                now = self._round(now)
        return self._finish(now, status)

    def _open_door(self, now: Checkpoint | None) -> Door:
        """A run that goes on keeps to the labels that it began with, and to the data of each of its sites."""
        before = self.folder.info.get("sites", {}) if now else {}
        roll = Roll(domains=load_cards(self.file.parent) if now else {})
        return Door(self.grid, self.config, roll, self.config.engine.timeout, before, self.journal.audit)

    def _announce(self, start: Arrays, roll: Roll, now: Checkpoint | None) -> None:
        packed = self.sites.pack(start, self.strategy.start(start))
        largest = max((record.count_bytes() for record in packed.records.values()), default=0)
        shown = "personal" if self.sites.own_model("validation") else "global"
        self.journal.announce(self.config, roll, largest, now.progress.round if now else None, shown)
        for sentence in self.strategy.advice(self.config):
            self.journal.warn_once(sentence)
        for pattern in idle_patterns(self.config, roll):
            self.journal.warn_once(f'the pattern "{pattern}" of [sharing] matches no tensor, and does nothing')

    def _round(self, now: Checkpoint) -> Checkpoint:
        count = Count(number=now.progress.round + 1, started=time.perf_counter())
        now, asked = self._who(now, count.number)
        faults = draw_faults(asked, self.config, self.strategy, count.number)
        packed = self.sites.pack(now.weights, now.state)
        is_due = now.progress.is_unscored and self._is_due(now.progress.round)
        aside = Aside(now.progress.round, self.sites.scorings("validation")) if is_due else None
        updates = Intake(self.sites, self.config, now.weights, packed, count, aside).updates(asked, faults)
        with phase("aggregate"):  # which takes the updates as they come: their own phases stop its clock
            weights, state = self.strategy.aggregate(now.weights, updates, now.state, self._about(count.number))
        for _ in updates:  # a strategy may stop early, but whoever only scores answers after those who train
            pass
        if self.strategy.asynchronous:
            state, count.virtual_seconds = advance(state, weights, self.sites, asked, count.number)
        if now.progress.is_unscored:
            now = self._judge(now, scores_of(self.sites, aside, "validation") if aside else Scores())
        self._refuse_too_few(count, now.progress.round)
        if broken := non_finite(weights):
            what = f"round {count.number}: the new weights are not finite, first in {next(iter(broken))}"
            mend = "run again with a lower strategy.server-learning-rate or local.learning-rate"
            raise RunError(what, mend=mend)
        return self._close(replace(now, weights=weights, state=state), count)

    def _refuse_too_few(self, count: Count, last: int) -> None:
        """Raises TooFewSitesError where a round has fewer usable updates than it needs, of all or of a domain."""
        needed = {domain: settings.minimum_sites for domain, settings in self.config.domains.items()}
        short = [
            f"{count.used_of[domain]} usable updates of domain {domain}, the minimum is {minimum} "
            f"(domains.{domain}.minimum-sites)"
            for domain, minimum in needed.items()
            if count.used_of[domain] < minimum
        ]
        minimum = self.config.sampling.minimum_sites
        if count.used < minimum:
            short.insert(0, f"{count.used} usable updates, the minimum is {minimum} (sampling.minimum-sites)")
        if short:
            short += [count.refusal] if count.refusal else []
            mend = f"events.jsonl has all reasons; `fedfm resume {self.folder.path}` goes on after round {last}"
            raise TooFewSitesError(f"round {count.number}: {'; '.join(short)}", mend=mend)

    def _who(self, now: Checkpoint, number: int) -> tuple[Checkpoint, list[str]]:
        """The sites of a round: a draw, or, where nobody waits for others, those that are done first."""
        without = self.config.sampling.without
        if self.config.engine.superlink:
            there = self.attendance.gather(number, without)
        else:
            train = {s: d for s, d in self.sites.roll.site_domains().items() if s not in without}
            there = present(train, self.config.simulation, number)
        if not there:
            raise RunError(f"round {number}: no site takes part", where="simulation.joins, simulation.leaves")
        if not self.strategy.asynchronous:
            needed = {domain: settings.minimum_sites for domain, settings in self.config.domains.items()}
            return now, sample_sites(there, self.config.sampling, self.config.seed, number, needed)
        now = replace(now, state=begin(now.state, now.weights, self.sites, there, number))
        return now, next_done(now.state, there, self.strategy.buffer)

    def _about(self, number: int) -> Round:
        """What the server half is told of a round."""
        cards = self.sites.roll.cards
        without = self.config.sampling.without  # registered, and in no round
        domains = {site: domain for site, domain in self.sites.roll.site_domains().items() if site not in without}
        examples = {site: cards[site].num_examples("train") for site in sorted(domains)}
        domain_weights = {domain: settings.weight for domain, settings in self.config.domains.items()}
        holds = {domain: frozenset(names) for domain, names in self.sites.names.items()}
        return Round(number, self.config.seed, domains, examples, domain_weights, holds)

    def _is_due(self, number: int) -> bool:
        """Is the round one that is validated?"""
        return number % self.config.evaluation.every == 0 or number == self.config.rounds

    def _close(self, new: Checkpoint, count: Count) -> Checkpoint:
        """Score the new weights, or leave that to the next wave; write the round's row, save the checkpoint."""
        scores = None
        if not self.sites.scores_ride:
            is_due = self._is_due(count.number)
            scores = score(self.sites, new.weights, new.state, count.number, "validation") if is_due else Scores()
        row, old = count.row() | new.state.get("told", {}), new.progress
        progress = replace(
            old, round=count.number, seconds=old.seconds + row["seconds"], is_unscored=True,
            bytes_down=old.bytes_down + count.bytes_down, bytes_up=old.bytes_up + count.bytes_up,
        )  # fmt: skip
        self.journal.flush()
        self.folder.add_round(row)
        used = dict(self.sites.used) if not self.sites.used_before else None
        is_best_wanted = self.config.early_stopping.patience > 0 and count.number > 0
        best = new.best if is_best_wanted else new.weights  # which the checkpoint need not hold a second time
        after = replace(new, best=best, progress=progress, used=used)
        if scores is None:
            save_checkpoint(self.file, after)
            return after
        after = self._best_of(after, scores)
        save_checkpoint(self.file, after)
        self._tell_round(row, scores)
        return after

    def _judge(self, now: Checkpoint, scores: Scores) -> Checkpoint:
        """Take in the scores of a round's weights that have come after its row was written."""
        self._tell_round(self.folder.rounds.to_dict("records")[-1], scores)
        return self._best_of(now, scores)

    def _best_of(self, now: Checkpoint, scores: Scores) -> Checkpoint:
        """With the weights as the best ones so far, where their scores say so."""
        progress = replace(now.progress, is_unscored=False)
        watched = scores.shown.watched(self.config.early_stopping.metric)
        if progress.round > 0 and not watched > progress.best_score:
            return replace(now, progress=progress)
        known = -math.inf if math.isnan(watched) else watched  # no score at all is beaten by any
        return replace(now, best=now.weights, progress=replace(progress, best_round=progress.round, best_score=known))

    def _tell_round(self, row: Mapping[str, float | int | None], scores: Scores) -> None:
        shown = scores.shown
        self.journal.tell("round-finished", **row, scores=shown.primary, mean=shown.mean, worst=shown.worst)

    def _finish(self, now: Checkpoint, status: str) -> Scores:
        """Test once, save the model, close the run folder. With early stopping the best round's weights are final."""
        progress = now.progress
        stopping = self.config.early_stopping.patience > 0 and progress.best_score > -math.inf  # something was scored
        weights = now.best if stopping else now.weights
        number = progress.best_round if stopping else progress.round
        model = self.folder.path / "model"
        save_cards(model, self.sites.roll)
        save_file(weights, model / "weights.tmp")
        (model / "weights.tmp").replace(model / "weights.safetensors")  # a kill leaves the whole file or none
        known = {"rounds": progress.round, "final_round": number, "final_weights_sha256": sha256(weights)}
        self.folder.update(**known, best_round=progress.best_round)  # the test may fail: the model can be used
        if self.sites.scores_ride:
            self.attendance.look()
            now, scores = self._last_scores(now)
            progress = now.progress
        else:
            scores = score(self.sites, weights, now.state, number, "test")
        self._refuse_unscored(scores)
        personal = scores.personal and scores.personal.by_domain
        reports = self.folder.path / "reports"
        reports.mkdir(exist_ok=True)
        for domain, text in scores.shown.reports.items():
            origin = "generated data\n" if domain in self.folder.info["generated"] else ""
            (reports / f"{domain}.txt").write_text(origin + text, encoding="utf-8")
        self.journal.flush()  # a run that has ended is not taken up again: its rows are on disk before it says so
        self.folder.update(
            **known, status=status, best_round=progress.best_round, final=scores.by_domain, final_personal=personal,
            seconds=round(progress.seconds, 3), bytes_down=progress.bytes_down, bytes_up=progress.bytes_up,
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        self.journal.tell(
            "run-finished", status=status, rounds=progress.round, seconds=progress.seconds, final=scores.by_domain,
            personal=personal, folder=str(self.folder.path),
        )  # fmt: skip
        return scores

    def _refuse_unscored(self, scores: Scores) -> None:
        """A run whose test nobody has answered has not reached its end. Raises RunError."""
        testable = any(card.num_examples("test") for card in self.sites.roll.cards.values())
        if testable and not scores.by_domain and not (scores.personal and scores.personal.by_domain):
            mend = f"events.jsonl has the reasons; `fedfm resume {self.folder.path}` asks for the test again"
            raise RunError("the rounds are done and the model is saved, but no site has scored its test", mend=mend)

    def _last_scores(self, now: Checkpoint) -> tuple[Checkpoint, Scores]:
        """The test of the last weights, and, in the same wave, their validation where that is still to come."""
        splits = ("validation", "test") if now.progress.is_unscored else ("test",)
        scores = score_at_once(self.sites, now.weights, now.state, now.progress.round, splits)
        if "validation" in scores:
            now = self._judge(now, scores["validation"])
        return now, scores["test"]

    def _patience_is_over(self, progress: Progress) -> bool:
        patience = self.config.early_stopping.patience  # runs out where a score could have come and was no better
        return 0 < patience <= progress.round - progress.best_round and self._is_due(progress.round)
