"""Update transforms: unbiased, near, small, and honest about what is not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfm.arrays import Arrays, norm, num_bytes
from fedfm.strategies.transforms import (
    TRANSFORMS,
    Transform,
    chain,
    clip,
    fp16,
    gaussian,
    pack,
    qsgd,
    send_with_feedback,
    sign,
    top_k,
    unpack,
)  # fmt: skip

SHAPES = {"shared/b": (3, 5), "finance/head": (7,), "shared/scalar": (), "shared/empty": (0, 4), "ner/one": (1,)}
ENTRIES = 24
MADE: dict[str, Transform] = {
    "fp16": fp16(),
    "qsgd 8": qsgd(8),
    "qsgd 4": qsgd(4),
    "qsgd 2": qsgd(2),
    "top-k": top_k(0.1),
    "top-k all": top_k(1.0),
    "sign": sign(),
    "clip": clip(0.5),
    "gaussian": gaussian(0.1),
    "chain": chain(clip(1.0), gaussian(0.1), qsgd(4)),
}
NOISY = ("gaussian", "chain")
every = pytest.mark.parametrize("transform", MADE.values(), ids=MADE)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw_update(seed: int = 1, dtype=np.float64) -> Arrays:
    draw = generator(seed)
    return {name: np.asarray(draw.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def through(transform: Transform, arrays: Arrays, seed: int = 0) -> Arrays:
    return transform.decode(transform.encode(arrays, generator(seed)), arrays)


def flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([np.asarray(arrays[name], np.float64).ravel() for name in sorted(arrays)])


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
