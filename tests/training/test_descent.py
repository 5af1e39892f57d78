"""The local steps of many rows against torch.optim, a row at a time, on losses whose gradients are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from training_helpers import make_config

from fedfm.strategies import SiteRows
from fedfm.training.descent import descend
from fedfm.training.optimizers import clip_rows, make_optimizer, sgd

STEPS = (7, 4, 4, 1, 0)  # falling, as `descend` wants its rows; the last site has nothing to do
WIDTH = 6
RATES = torch.tensor([0.1, 0.1, 0.1, 0.02, 0.02, 0.02], dtype=torch.float64)  # a column has the rate of its tensor
LIMIT = 1.5


def draw(seed: int) -> Tensor:
    return torch.randn(len(STEPS), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


START, CURVES, CENTRES, CONTROLS = draw(0), draw(1).abs() + 0.1, draw(2), draw(3)


def gradient(point: Tensor, row: int | slice, t: int) -> Tensor:
    """Of `0.5 c (x - m)^2`, its centre moving with t: a row that misses or repeats a step ends elsewhere."""
    return CURVES[row] * (point - CENTRES[row] - 0.1 * t)


def scaffold(theta: Tensor, grad: Tensor, received: Tensor, rows: SiteRows) -> Tensor:
    """Karimireddy et al., 2020, with a pull to what was received: all four arguments matter."""
    return grad - rows.kept["control"] + 0.3 * (theta - received)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("clip", [0.0, LIMIT])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rows_of_unequal_steps_with_states_of_their_own_equal_torch(optimizer, clip, schedule):
    """Ragged steps, control variates as rows, clipping, half a cosine over each site's own steps: 1e-12."""
    local = make_config(f"local.optimizer={optimizer}", "local.momentum=0.9", "local.weight-decay=0.01").local
    theta, grad = START.clone(), torch.zeros_like(START)

    def backward(t: int, k: int) -> None:
        grad[:k] = gradient(theta[:k], slice(k), t)

    descend(
        theta, grad, backward, STEPS, RATES, make_optimizer(local), scaffold,
        SiteRows(START.clone(), {"control": CONTROLS}), clip_norm=clip,
        schedule=schedule,
    )  # fmt: skip
    for row, steps in enumerate(STEPS):
        expected = by_torch(row, steps, local, clip, schedule)
        assert (theta[row] - expected).abs().max() <= 1e-12
        assert torch.equal(theta[row], START[row]) == (steps == 0)


def by_torch(row: int, steps: int, local, clip: float, schedule: str) -> Tensor:
    """One row's last point; columns of one rate are one parameter."""
    parts = [torch.nn.Parameter(part.clone()) for part in START[row].split(WIDTH // 2)]
    groups = [{"params": [p], "lr": float(rate)} for p, rate in zip(parts, RATES[:: WIDTH // 2], strict=True)]
    if local.optimizer == "sgd":
        inner = torch.optim.SGD(groups, momentum=local.momentum)
    else:
        inner = torch.optim.AdamW(groups, weight_decay=local.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(inner, max(steps, 1))
    for t in range(steps):
        point = torch.cat([p.detach() for p in parts])
        direction = scaffold(
            point, gradient(point, row, t), START[row], SiteRows(START[row], {"control": CONTROLS[row]})
        )
        if clip:
            direction = direction * min(1.0, clip / float(direction.norm()))
        for p, own, group in zip(parts, direction.split(WIDTH // 2), inner.param_groups, strict=True):
            p.grad = own.clone()
            if local.optimizer == "sgd":  # torch's own decay goes through the momentum; ours is decoupled
                p.data *= 1 - group["lr"] * local.weight_decay
        inner.step()
        if schedule == "cosine":
            cosine.step()
    return torch.cat([p.detach() for p in parts])


def test_rows_in_the_wrong_order_are_refused():
    theta = START.clone()
    with pytest.raises(ValueError, match=r"falling number of steps, got \[1, 2\]"):
        descend(theta, theta, lambda t, k: None, [1, 2], RATES, make_optimizer(make_config().local))


def test_clipping_is_by_row_and_shortens_only_what_is_too_long():
    """Rows of length 5, 0.5 and 0 at a limit of 1: (3, 4) becomes (0.6, 0.8), the others stay."""
    grad = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    clip_rows(grad, 1.0)
    np.testing.assert_allclose(grad, [[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_of_the_first_rows_leaves_the_others_alone(optimizer):
    """The moments of a row that left early stay as they were; nothing of it moves."""
    steps = make_optimizer(make_config(f"local.optimizer={optimizer}", "local.momentum=0.5").local)
    theta = START.clone()
    state = steps.start(theta)
    steps.step(theta, CENTRES, state, RATES, 1)
    after, moments = theta.clone(), [moment.clone() for moment in state]
    steps.step(theta[:2], CENTRES[:2], state, RATES, 2)
    assert torch.equal(theta[2:], after[2:])
    assert all(torch.equal(now[2:], before[2:]) for now, before in zip(state, moments, strict=True))
    assert not torch.equal(theta[:2], after[:2])


def test_decay_leaves_what_does_not_train_where_it_is():
    theta = torch.ones(1, 2, dtype=torch.float64)
    rates, trains = torch.full((2,), 0.1, dtype=torch.float64), torch.tensor([True, False])
    descend(theta, torch.zeros_like(theta), lambda t, k: None, [3], rates, sgd(0.0, 0.5), mask=trains)
    assert theta[0].tolist() == pytest.approx([0.95**3, 1.0])
