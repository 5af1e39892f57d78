"""Update transforms: unbiased, near, small, and honest about what is not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transform_helpers import ENTRIES, MADE, NOISY, SHAPES, draw_update, every, flat, generator, through

from fedfm.arrays import norm, num_bytes
from fedfm.strategies.transforms import (
    TRANSFORMS,
    chain,
    clip,
    fp16,
    gaussian,
    pack,
    qsgd,
    sign,
    top_k,
    unpack,
)  # fmt: skip


def test_the_table_names_every_transform():
    assert set(TRANSFORMS) == {"fp16", "qsgd", "top-k", "sign", "clip", "gaussian"}
    encoded = TRANSFORMS["qsgd"](4).encode(draw_update(), generator())
    assert encoded.keys() == qsgd(4).encode(draw_update(), generator()).keys()


@every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_names_shapes_and_dtypes_come_back_and_nothing_given_is_changed(transform, dtype):
    update = draw_update(dtype=dtype)
    before = {name: value.copy() for name, value in update.items()}
    back = through(transform, update)
    assert {n: (v.shape, v.dtype) for n, v in back.items()} == {n: (s, np.dtype(dtype)) for n, s in SHAPES.items()}
    assert all(np.array_equal(update[name], before[name]) for name in before)
    turned = dict(reversed(update.items()))
    assert np.array_equal(flat(through(transform, turned)), flat(back))  # the order of the dictionary is no matter
    assert all(isinstance(v, np.ndarray) for v in transform.encode(update, generator()).values())


@pytest.mark.parametrize("name", MADE)
def test_zeros_stay_zeros_and_an_update_may_be_empty(name):
    transform, zeros = MADE[name], {name: np.zeros(shape) for name, shape in SHAPES.items()}
    assert name in NOISY or not flat(through(transform, zeros)).any()
    assert through(transform, {}) == {}


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["finance/head", "shared/scalar"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_finite_is_not_hidden(transform, bad, where, dtype):
    update = draw_update(dtype=dtype)
    update[where] = np.full(SHAPES[where], bad, dtype)
    assert not np.isfinite(flat(through(transform, update))).all()
    assert not np.isfinite(through(transform, {where: update[where]})[where]).all()


@pytest.mark.parametrize("transform", [MADE["qsgd 4"], MADE["sign"], MADE["top-k"], MADE["clip"]])
def test_one_bad_value_among_many_large_ones_is_seen(transform):
    update = {"shared/x": np.full(50, 1e30)}
    update["shared/x"][17] = math.nan
    assert not np.isfinite(through(transform, update)["shared/x"]).all()


@every
@pytest.mark.parametrize("value", [1e-300, 1e300])
def test_no_warning_at_the_ends_of_the_range(transform, value):
    """Finite in float64 and too large for the form: not finite after it, never a wrong finite number."""
    update = {"shared/x": np.array([value, -value])}
    back = through(transform, update)["shared/x"]
    assert (~np.isfinite(back) | (np.abs(back) < 1.5 * value + 1)).all()


# Bytes


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (fp16(), 2 * ENTRIES),
        (qsgd(8), 15 + 7 + 1 + 0 + 1 + 5 * 4),
        (qsgd(4), 8 + 4 + 1 + 0 + 1 + 5 * 4),
        (qsgd(2), 4 + 2 + 1 + 0 + 1 + 5 * 4),
        (sign(), 2 + 1 + 1 + 0 + 1 + 5 * 4),
        (top_k(0.1), 3 * (4 + 4)),
        (clip(1.0), 8 * ENTRIES),
        (gaussian(1.0), 8 * ENTRIES),
    ],
)
def test_bytes_by_hand(transform, expected):
    """Tensors of 15, 7, 1, 0 and 1 entries: levels or bits rounded up to bytes, a float32 of each tensor beside."""
    encoded = transform.encode(draw_update(), generator())
    assert num_bytes(encoded) == sum(len(value.tobytes()) for value in encoded.values()) == expected


@settings(max_examples=60)
@given(bits=st.sampled_from([1, 2, 4, 8]), codes=st.lists(st.integers(0, 255), max_size=37))
def test_packing_is_exact_at_every_size(bits, codes):
    numbers = np.array(codes, np.uint8) & (2**bits - 1)
    packed = pack(numbers, bits)
    assert packed.dtype == np.uint8
    assert packed.size == math.ceil(len(codes) * bits / 8)
    assert np.array_equal(unpack(packed, bits, len(codes)), numbers)


def test_packing_by_hand():
    assert pack(np.array([1, 2, 3, 0, 2], np.uint8), 2).tolist() == [1 + 2 * 4 + 3 * 16, 2]
    assert pack(np.array([15, 1, 7], np.uint8), 4).tolist() == [15 + 16, 7]


# QSGD


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_qsgd_is_unbiased_and_its_variance_is_below_the_papers_bound(bits):
    """20,000 draws of one vector; means within 4 standard errors, of the levels' own Bernoulli law."""
    size, draws, steps = 20, 20_000, 2 ** (bits - 1) - 1
    vector = generator(3).standard_normal(size)
    vector[4] = 0.0
    transform, draw = qsgd(bits), generator(5)
    like = {"v": vector}
    found = np.array([transform.decode(transform.encode(like, draw), like)["v"] for _ in range(draws)])
    length = np.linalg.norm(vector)
    exact = steps * np.abs(vector) / length
    part = exact - np.floor(exact)
    deviation = length / steps * np.sqrt(part * (1 - part))
    errors = np.abs(found.mean(axis=0) - vector)
    assert (errors <= 4 * deviation / math.sqrt(draws) + 1e-6 * length).all()
    spread = np.square(found - vector).sum(axis=1).mean()
    assert spread == pytest.approx(np.square(deviation).sum(), rel=0.05)
    assert spread <= min(size / steps**2, math.sqrt(size) / steps) * length**2
    levels = found * steps / length
    assert np.abs(levels - np.rint(levels)).max() < 1e-5
    assert np.abs(levels).max() <= steps + 1e-5
    assert not found[:, 4].any()


def test_qsgd_keeps_the_sign_and_an_entry_that_is_the_whole_norm():
    update = {"v": np.array([0.0, -3.7, 0.0])}
    for bits in (8, 4, 2):
        assert np.allclose(through(qsgd(bits), update)["v"], update["v"], rtol=1e-6)
    with pytest.raises(ValueError, match="8, 4 or 2"):
        qsgd(3)


@pytest.mark.parametrize("value", [0.1, 0.3, 1e-300, 1 / 3])
def test_the_norm_of_qsgd_is_rounded_up_so_that_no_level_is_cut(value):
    """A lone entry is its own norm: rounded down to float32 it would be cut at the top level, and biased."""
    encoded = qsgd(4).encode({"v": np.array([value])}, generator())
    assert float(encoded["v#norm"]) >= value
    assert unpack(encoded["v#levels"], 4, 1)[0] in ((13, 14) if value > 1e-40 else (7, 8))


# Top-k, sign, fp16


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), share=st.sampled_from([0.001, 0.1, 0.25, 0.5, 1.0]))
def test_top_k_keeps_the_largest_of_the_whole_update(seed, share):
    update = draw_update(seed, np.float32)
    given_values, back = flat(update), flat(through(top_k(share), update))
    count = max(math.ceil(share * ENTRIES - 1e-9), 1)
    kept = back != 0
    assert kept.sum() == count
    assert np.array_equal(back[kept], given_values[kept])
    assert count == ENTRIES or np.abs(given_values[kept]).min() >= np.abs(given_values[~kept]).max()


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="share of top-k"):
        top_k(share)


def test_sign_by_hand_and_the_sign_of_zero_is_plus():
    """mean |v| = (2 + 0 + 1 + 0) / 4; both zeros count as +."""
    update = {"v": np.array([[-2.0, 0.0], [1.0, -0.0]])}
    assert through(sign(), update)["v"].tolist() == [[-0.75, 0.75], [0.75, 0.75]]


def test_fp16_is_the_nearest_and_overflow_is_seen():
    update = {"v": np.array([0.1, -1e-9, 70000.0])}
    back = through(fp16(), update)["v"]
    assert back[0] == np.float64(np.float16(0.1)) and back[1] == 0 and math.isinf(back[2])


# Clip and noise


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_is_joint_keeps_the_direction_and_leaves_the_small_alone(dtype):
    update = draw_update(dtype=dtype)
    length = norm(update)
    back = through(clip(length / 4), update)
    assert norm(back) == pytest.approx(length / 4, rel=1e-6)
    assert np.allclose(flat(back), flat(update) / 4, rtol=1e-6)
    same = through(clip(length * 1.001), update)
    assert all(np.array_equal(same[name], update[name]) for name in update)
    assert norm({"x": clip(1.0).encode({"x": np.full(4, 1e200)}, generator())["x"]}) == pytest.approx(1.0)


def test_noise_has_the_deviation_that_was_asked_for_and_comes_from_the_generator():
    """100,000 draws: the deviation within 4 / sqrt(2 n) of sigma, the mean within 4 sigma / sqrt(n)."""
    update = {"v": np.full(100_000, 3.0)}
    noise = through(gaussian(0.7), update)["v"] - 3.0
    assert noise.std() == pytest.approx(0.7, rel=4 / math.sqrt(200_000))
    assert abs(noise.mean()) < 4 * 0.7 / math.sqrt(100_000)
    assert np.array_equal(through(gaussian(0.7), update)["v"] - 3.0, noise)
    assert not np.array_equal(through(gaussian(0.7), update, seed=1)["v"] - 3.0, noise)


def test_a_chain_keeps_its_order_and_refuses_what_cannot_follow():
    update = draw_update()
    assert norm(through(chain(clip(0.25), fp16()), update)) == pytest.approx(0.25, rel=1e-3)
    for steps in ((), (qsgd(8), clip(1.0)), (top_k(0.1), qsgd(4))):
        with pytest.raises(ValueError, match="only the last"):
            chain(*steps)


# Error feedback
