"""What a site has not sent it keeps: the error of a transform and what feeding it back is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from transform_helpers import ENTRIES, draw_update, flat, generator

from fedfm.strategies.transforms import (
    fp16,
    qsgd,
    send_with_feedback,
    sign,
    top_k,
)  # fmt: skip


@pytest.mark.parametrize("transform", [top_k(0.1), sign(), fp16(), qsgd(8)], ids=["top-k", "sign", "fp16", "qsgd"])
def test_what_was_sent_and_what_is_kept_are_what_was_wanted(transform):
    """sum_t C(u_t) + e_T = sum_t v_t, to 1e-12 in float64."""
    draw, error, sent, wanted = generator(2), {}, np.zeros(ENTRIES), np.zeros(ENTRIES)
    for number in range(50):
        update = draw_update(number)
        before = {name: value.copy() for name, value in error.items()}
        encoded, fresh = send_with_feedback(transform, update, error, draw)
        assert all(np.array_equal(error[name], before[name]) for name in before)
        error = fresh
        sent += flat(transform.decode(encoded, update))
        wanted += flat(update)
    assert np.abs(sent + flat(error) - wanted).max() < 1e-12
    assert flat(error).any()


def test_the_error_of_a_narrow_update_is_what_the_server_did_not_get():
    """float32 at the site: e is the difference from what the server decodes in float32, not from something finer."""
    update = draw_update(dtype=np.float32)
    encoded, error = send_with_feedback(qsgd(8), update, {}, generator())
    arrived = qsgd(8).decode(encoded, update)
    assert all(value.dtype == np.float64 for value in error.values())
    assert np.array_equal(flat(arrived) + flat(error), flat(update))


@pytest.mark.parametrize("transform", [top_k(0.1), sign(), fp16()], ids=["top-k", "sign", "fp16"])
def test_a_broken_update_is_sent_as_such_and_leaves_the_error_alone(transform):
    _, error = send_with_feedback(transform, draw_update(), {}, generator())
    broken = draw_update(2) | {"shared/scalar": np.asarray(math.inf)}
    encoded, after = send_with_feedback(transform, broken, error, generator())
    assert after is error
    assert not np.isfinite(flat(transform.decode(encoded, broken))).all()


@pytest.mark.parametrize("transform", [top_k(0.1), sign()], ids=["top-k", "sign"])
def test_with_feedback_a_biased_form_reaches_the_optimum_and_without_it_does_not(transform):
    """1/2 ||x - c_k||^2 at two sites, whose gradients at the optimum are opposed and not zero."""
    draw = generator(6)
    centres = draw.standard_normal((2, 20)) * 3
    optimum, rate = centres.mean(axis=0), 0.01

    def descend(feedback: bool) -> float:
        x, errors = np.zeros(20), [{}, {}]
        for _ in range(6000):
            step = np.zeros(20)
            for k, centre in enumerate(centres):
                update = {"x": rate * (centre - x)}
                before = errors[k] if feedback else {}
                encoded, errors[k] = send_with_feedback(transform, update, before, draw)
                step += transform.decode(encoded, update)["x"] / 2
            x = x + step
        return float(np.abs(x - optimum).max())

    assert descend(True) < 0.15
    assert descend(False) > 2 * descend(True)
