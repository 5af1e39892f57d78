"""A site's round under a strategy: its passes, what it keeps, what leaves it. K sites at once, each in its row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedfm.config import LocalConfig
from fedfm.profiling import phase
from fedfm.strategies.base import ALL, Pass, SiteRows, Strategy
from fedfm.training.contrast import Contrast
from fedfm.training.descent import Correct
from fedfm.training.evaluation import predict
from fedfm.training.fit import SiteWork, fit
from fedfm.training.matrix import ClientMatrix

MODELS = ("personal", "previous")  # what is kept under these names is weights, and begins as those that were received


@dataclass
class RoundOfSites:
    """What a round made of K sites; tensors `[k, P]`, lists of one number a site.

    `leaves`: "delta", and what the strategy's `returns` names. `kept`: what each site keeps until its next round.
    """

    leaves: dict[str, Tensor]
    kept: dict[str, Tensor]
    metrics: list[dict[str, float]] = field(default_factory=list)


def train_round(
    matrix: ClientMatrix,
    works: Sequence[SiteWork],
    local: LocalConfig,
    strategy: Strategy,
    kept: Mapping[str, Tensor] | None = None,
    sent: Mapping[str, Tensor] | None = None,
    mask: Tensor | None = None,
    private: Tensor | None = None,
) -> RoundOfSites:
    """Train the sites of `works`, whose received weights lie in the first rows of `matrix`.

    kept: the strategy's `keeps`, each `[k, P]`. sent: its `sends`, each `[P]` or `[k, P]`. mask: True for the columns
    that a site's model has at all, `[k, P]` (sites of a smaller rank); None where all have all. private: True for the
    columns that never leave a site `[P]`; None where there are none. The server sends nothing for them, so that a
    strategy's correction does not concern them: they follow their own gradient.
    """
    k = len(works)
    theta = matrix.theta[:k]
    rows = SiteRows(theta.clone(), dict(kept or {}), {n: v.expand_as(theta) for n, v in (sent or {}).items()})
    metrics: list[dict[str, float]] = [{} for _ in works]
    if strategy.candidates:
        _choose(matrix, works, strategy, rows, metrics, private)
    if strategy.starts_with_loss:
        for told, loss in zip(metrics, start_losses(matrix, works), strict=True):
            told["start-loss"] = loss
    _run_passes(matrix, works, local, strategy, rows, mask, metrics, private)
    with phase("optimizer"), torch.no_grad():
        leaves = strategy.finish(theta, rows)
    return RoundOfSites(leaves, {n: v for n, v in rows.kept.items() if not n.startswith("_")}, metrics)


def _run_passes(
    matrix: ClientMatrix, works: Sequence[SiteWork], local: LocalConfig, strategy: Strategy, rows: SiteRows,
    mask: Tensor | None, metrics: list[dict[str, float]], private: Tensor | None,
) -> None:  # fmt: skip
    """Every pass in turn; "loss" and "steps" are those of the passes that train what is shared."""
    theta, plain = matrix.theta[: len(works)], type(strategy).correct is Strategy.correct
    contrast = Contrast(strategy, matrix) if strategy.views else None
    for number, which in enumerate(strategy.passes(works[0].round)):
        shared = theta.clone() if which.personal else None
        if which.personal:
            theta.copy_(rows.kept["personal"])
        rows.which = which
        settings = local.model_copy(update={"epochs": which.epochs}) if which.epochs else local
        trains = _both(columns_of(matrix, which), mask)
        correct = None if plain else _of_shared(strategy.correct, private)
        with contrast or nullcontext():
            losses = fit(matrix, works, settings, correct, rows, trains, contrast, f"/{number}" if number else "")
        if shared is not None:
            rows.kept["personal"] = theta.clone()
            theta.copy_(shared)
            continue
        for told, loss, steps in zip(metrics, losses, rows.steps.flatten().tolist(), strict=True):
            before = told.get("steps", 0.0)
            told["loss"] = (told.get("loss", 0.0) * before + loss * steps) / max(before + steps, 1.0)
            told["steps"] = before + steps


def columns_of(matrix: ClientMatrix, which: Pass) -> Tensor | None:
    """True for the columns that a pass trains `[P]`; None where that is all of them."""
    if which.only == ALL.only and not which.frozen:
        return None
    trained = [name for name in matrix.columns if which.trains(name)]
    if len(trained) == len(matrix.columns):
        return None
    mask = torch.zeros(matrix.theta.shape[1], dtype=torch.bool, device=matrix.theta.device)
    for name in trained:
        first, count, _ = matrix.columns[name]
        mask[first : first + count] = True
    return mask


def _of_shared(correct: Correct, private: Tensor | None) -> Correct:
    """The correction, of what is not private."""
    if private is None:
        return correct

    def corrected(theta: Tensor, grad: Tensor, received: Tensor, rows: SiteRows) -> Tensor:
        return torch.where(private, grad, correct(theta, grad, received, rows))

    return corrected


def _both(columns: Tensor | None, mask: Tensor | None) -> Tensor | None:
    if columns is None or mask is None:
        return mask if columns is None else columns
    return columns & mask


@torch.no_grad()
def start_losses(matrix: ClientMatrix, works: Sequence[SiteWork]) -> list[float]:
    """Mean loss of the weights in each site's row on its training examples."""
    own = matrix.theta[: len(works)].clone()
    losses = []
    for row, work in enumerate(works):
        matrix.theta[0] = own[row]
        ((_, found),) = predict(matrix.model, [work.features])
        losses.append(float(found.mean()))
    matrix.theta[: len(works)] = own
    return losses


def _choose(
    matrix: ClientMatrix, works: Sequence[SiteWork], strategy: Strategy, rows: SiteRows,
    metrics: list[dict[str, float]], private: Tensor | None,
) -> None:  # fmt: skip
    """Every site begins from that of the candidate models which fits its training data best; "choice": its number."""
    theta, tried = matrix.theta[: len(works)], []
    candidates = [rows.sent[name] for name in strategy.candidates]
    if private is not None:  # the server sent nothing for it
        candidates = [torch.where(private, rows.received, candidate) for candidate in candidates]
    for candidate in candidates:
        theta.copy_(candidate)
        tried.append(start_losses(matrix, works))
    best = torch.tensor(tried).argmin(dim=0).tolist()
    for row, choice in enumerate(best):
        theta[row] = candidates[choice][row]
        metrics[row]["choice"] = float(choice)
    rows.received = theta.clone()
