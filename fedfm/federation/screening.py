"""Is what a site sends fit to be used? One NaN in one tensor of one site would make the mean NaN for all."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedfm.arrays import non_finite, norm
from fedfm.domains.card import DomainCard
from fedfm.strategies import Strategy
from fedfm.training.metrics import Tally, tally_classification, tally_tags

COUNTS = ("steps", "seconds", "truncated", "update-norm", "update-bytes")
LARGEST_COUNT = 1e12


def reason_to_leave_out(
    delta: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    num_examples: float,
    loss: float,
    max_norm: float,
    dtype: np.dtype | None = None,
) -> str:
    """Why an update must not be used, in a sentence; '' when it may.

    `expected`: the tensors that the site was sent. `dtype`: what the values must have; by default what was sent.
    """
    missing, foreign = sorted(expected.keys() - delta.keys()), sorted(delta.keys() - expected.keys())
    if missing:
        return f"{len(missing)} of {len(expected)} tensors are missing, the first is {missing[0]}"
    if foreign:
        return f"it holds {len(foreign)} tensors that the site was not sent, the first is {foreign[0]}"
    for name, value in delta.items():
        want = expected[name]
        if value.shape != want.shape or value.dtype != (dtype or want.dtype):
            return f"{name} has shape {value.shape} {value.dtype}, expected {want.shape} {dtype or want.dtype}"
    bad = non_finite(delta)
    if bad:
        name, count = next(iter(bad.items()))
        total = sum(value.size for value in delta.values())
        return f"{sum(bad.values())} of {total} values are not finite, {count} of them in {name}"
    if not num_examples >= 1 or not math.isfinite(num_examples) or num_examples != int(num_examples):
        return f"it says that it was trained on {num_examples:g} examples"
    if max_norm and (size := norm(delta)) > max_norm:
        return f"its norm is {size:.4g}, the limit (screening.max-norm) is {max_norm:g}"
    if not math.isfinite(loss):
        return "its training loss is not finite"
    return ""


def reason_not_to_believe(told: Mapping[str, float], strategy: Strategy, steps: int) -> str:
    """What a site tells beside its update that cannot be so, in a sentence; '' where all can.

    `steps`: those that it was due. Of a strategy's own numbers: "start-loss"; "choice", a place among its candidates.
    """
    for name in COUNTS:
        if name in told and not 0 <= told[name] <= LARGEST_COUNT:  # NaN is not
            return f"it says that {name} is {told[name]:g}"
    if strategy.counts_steps and told.get("steps") != steps:  # divided by too few, its change would rule the others'
        said = f"it says that it took {told['steps']:g} steps" if "steps" in told else "it does not say its steps"
        return f"{said}, where its examples make {steps}"
    if strategy.starts_with_loss and not math.isfinite(told.get("start-loss", math.nan)):
        return "it does not say its loss at the start, or not as a finite number"
    if strategy.candidates and told.get("choice", math.nan) not in range(len(strategy.candidates)):
        return f"it says that it chose model {told.get('choice', math.nan):g} of {len(strategy.candidates)}"
    return ""


def reason_not_to_count(tally: Tally, card: DomainCard, held: int) -> str:
    """Why a tally must not be added to those of the other sites, in a sentence; '' when it may.

    `held`: how many examples of the split the site has said that it holds.
    """
    blank = _blank(card)
    want = {name: (array.shape, array.dtype) for name, array in blank.counts.items()}
    got = {name: (array.shape, array.dtype) for name, array in tally.counts.items()}
    if got != want:
        return f"it counts {_shapes(got)}, expected {_shapes(want)}"
    if tally.scores.keys() != blank.scores.keys():
        return f"its probabilities are of {len(tally.scores)} classes, expected {len(blank.scores)}"
    rows = 0
    for name, scores in tally.scores.items():
        if scores.ndim != 2 or scores.shape[1] != len(card.labels) or scores.dtype != np.float32:
            return f"its probabilities of {name} have shape {scores.shape} {scores.dtype}"
        rows += len(scores)
    if not 0 <= tally.num_examples <= held:
        return f"it says that it scored {tally.num_examples} examples, but the site holds {held}"
    if tally.scores and rows != tally.num_examples:
        return f"it has probabilities of {rows} examples, and says that it scored {tally.num_examples}"
    if any((array < 0).any() for array in tally.counts.values()):
        return "it holds negative counts"
    if "confusion" in tally.counts and int(tally.counts["confusion"].sum()) != tally.num_examples:
        return f"it counts {tally.counts['confusion'].sum()} examples, and says that it scored {tally.num_examples}"
    return ""


def _blank(card: DomainCard) -> Tally:
    """The tally of no examples: which counts there are, over how many labels."""
    if card.task == "token-classification":
        return tally_tags([], [], card.labels, 0.0)
    labels = len(card.labels)
    none = np.zeros((0, labels)), np.zeros(0, np.int64)
    return tally_classification(*none, 0.0, with_scores=card.task == "image-classification")


def _shapes(counts: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"{name} {shape} {dtype}" for name, (shape, dtype) in sorted(counts.items())) or "nothing"
