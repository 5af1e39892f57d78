"""Scores of one set of weights: every site on its own split, every domain on its sites' examples pooled.

Where sites make part of the model, or a model beside it, their own, there are two scores, which are never mixed: of the
global model, as a site that is new would have it, and of the personal ones, each on its own site's examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from fedfm.arrays import Arrays
from fedfm.federation.asking import Aside, Packed, Sites
from fedfm.federation.messages import Answer, Scoring
from fedfm.federation.screening import reason_not_to_count
from fedfm.profiling import phase
from fedfm.strategies.base import State
from fedfm.training.metrics import PRIMARY, Tally, classification_report, metrics, pool, unstack


@dataclass
class Scores:
    """`by_domain`: domain -> all its metrics; `reports`: domain -> classification report, as text.

    `personal`: the same of the models that the sites have made their own; None where there are none.
    """

    by_domain: dict[str, dict[str, float]] = field(default_factory=dict)
    primary: dict[str, float] = field(default_factory=dict)
    reports: dict[str, str] = field(default_factory=dict)
    personal: Scores | None = None

    @property
    def shown(self) -> Scores:
        """The scores of the models that sites would use: their own, where they have such."""
        return self.personal or self

    @property
    def mean(self) -> float:
        """Mean of the domains' primary metrics; NaN where there is none."""
        known = self._known()
        return fmean(known) if known else math.nan

    @property
    def worst(self) -> float:
        """The lowest of the domains' primary metrics."""
        return min(self._known(), default=math.nan)

    def watched(self, name: str) -> float:
        """The score that early stopping watches: "mean", "worst", or a domain's primary."""
        return {"mean": self.mean, "worst": self.worst}.get(name, self.primary.get(name, math.nan))

    def _known(self) -> list[float]:
        return [score for score in self.primary.values() if not math.isnan(score)]


def score(sites: Sites, weights: Arrays, state: State, round: int, split: str) -> Scores:
    """Ask the sites for their tallies of a model on `split`; write site, domain and federation rows."""
    scores = _ask(sites, sites.pack(weights, state, along=False, own=False), round, (split, "global"))
    if model := sites.own_model(split):
        scores.personal = _ask(sites, sites.pack(weights, state, along=False), round, (split, model))
    return scores


def score_at_once(
    sites: Sites, weights: Arrays, state: State, round: int, splits: Sequence[str]
) -> dict[str, Scores]:  # fmt: skip
    """As `score` for each of `splits`, in one wave: for runs whose scores ride (`Sites.scores_ride`)."""
    (split, model), *rest = [scoring for split in splits for scoring in sites.scorings(split)]
    aside = Aside(round, tuple(rest))
    packed = sites.pack(weights, state, along=False)
    first = list(sites.evaluate(round, packed, split, model, aside))
    aside = replace(aside, answers={(split, model): first, **aside.answers})
    return {split: scores_of(sites, aside, split) for split in splits}


def scores_of(sites: Sites, aside: Aside, split: str) -> Scores:
    """The scores that have come aside, with their rows written."""
    scores, *personal = [_count(sites, aside.of(scoring), aside.round, scoring) for scoring in sites.scorings(split)]
    scores.personal = personal[0] if personal else None
    return scores


@phase("evaluate")
def _ask(sites: Sites, packed: Packed, round: int, scoring: Scoring) -> Scores:
    return _count(sites, sites.evaluate(round, packed, *scoring), round, scoring)


def _count(sites: Sites, answers: Iterable[Answer], round: int, scoring: Scoring) -> Scores:
    """Scores from the answers of sites, whose rows are written as they come."""
    journal, (split, model), counted = sites.journal, scoring, {}
    column = "global" if model == "global" else "personal"
    own = " with its own model" if column == "personal" else ""
    for answer in answers:
        domain = sites.domain_of(answer.sites[0])
        tallies, unscored = _tallies(answer)
        rows = []
        for site, tally in tallies.items():
            card = sites.roll.domains[domain]
            try:
                if reason := reason_not_to_count(tally, card, sites.roll.cards[site].num_examples(split)):
                    raise ValueError(reason)
                values = metrics(card.task, tally, card.labels)
                counted.setdefault(domain, []).append(tally)
            except Exception as error:  # a site that cannot score must not end the run of the others
                unscored[site] = str(error)
                continue
            rows.append((site, domain, split, values, tally.num_examples))
        journal.scores(round, "site", rows, column)
        for site, reason in unscored.items():
            journal.tell("warning", message=f"round {round}: no {split} score of site {site}{own}: {reason}")
    pooled = {domain: pool(tallies) for domain, tallies in counted.items()}
    scores = _pool(sites, pooled)
    rows = [(d, d, split, values, pooled[d].num_examples) for d, values in scores.by_domain.items()]
    journal.scores(round, "domain", rows, column)
    examples = sum(tally.num_examples for tally in pooled.values())
    summary = {"mean": scores.mean, "worst": scores.worst}
    journal.scores(round, "federation", [("federation", "", split, summary, examples)], column)
    return scores


def _tallies(answer: Answer) -> tuple[dict[str, Tally], dict[str, str]]:
    """Site -> tally, and site -> why it has none."""
    if answer.problem:
        return {}, dict.fromkeys(answer.sites, str(answer.problem))
    unscored = dict(answer.left_out)
    scored = [site for site in answer.sites if site not in unscored]
    try:
        return dict(zip(scored, unstack(answer.arrays) if scored else [], strict=True)), unscored
    except Exception as error:
        return {}, unscored | dict.fromkeys(scored, f"its tally cannot be read: {type(error).__name__}: {error}")


def _pool(sites: Sites, pooled: dict[str, Tally]) -> Scores:
    scores = Scores()
    for domain, card in sites.roll.domains.items():
        scores.primary[domain] = math.nan
        tally = pooled.get(domain)
        if tally is not None and tally.num_examples:
            values = metrics(card.task, tally, card.labels)
            scores.by_domain[domain] = values
            scores.primary[domain] = values[PRIMARY[card.task]]
            scores.reports[domain] = classification_report(card.task, tally, card.labels)
    return scores
