"""The federations that the reproduction experiments are made of; small, without their results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedfm.config import load_config

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_fair_resource_makes_the_steps_of_every_site_and_weighs_all_alike_at_q_0(experiment):
    fair, softmax = experiment("fair_resource"), experiment("softmax_sites")
    sites = softmax.draw_sites(0, 12, largest=60, tests=5)
    assert all(len(site.test_y) == 5 for site in sites)
    short = [softmax.Site(s.name, s.x[:n], s.y[:n], s.test_x, s.test_y) for s, n in zip(sites, (20, 10), strict=False)]
    theta = np.random.default_rng(0).standard_normal(610)
    ends = fair.descend_together(short, theta, np.random.default_rng(1))
    _, gradient = softmax.loss_and_gradient(theta, short[1].x, short[1].y)
    assert np.abs(ends[1] - (theta - fair.RATE * gradient)).max() < 1e-12
    draw, wanted = np.random.default_rng(1), theta.copy()
    for rows in np.split(draw.permutation(20), 2):
        wanted -= fair.RATE * softmax.loss_and_gradient(wanted, short[0].x[rows], short[0].y[rows])[1]
    assert np.abs(ends[0] - wanted).max() < 1e-12
    assert fair.distance_to_unweighted(sites, 0, rounds=3) < 1e-10


def test_draws_for_other_experiments_do_not_depend_on_fresh_test_examples(experiment):
    softmax = experiment("softmax_sites")
    plain, fresh = softmax.draw_sites(3, 1)[0], softmax.draw_sites(3, 1, tests=7)[0]
    assert len(plain.y) + len(plain.test_y) == len(fresh.y)


def test_toy_of_rolora_moves_one_factor_a_round_and_ffa_never_moves_a(experiment):
    toy = experiment("lora_sites")
    network, digits = toy.draw_network(0, "mlp"), toy.draw_digits(0, "one-label")
    assert [set(digits.y[part]) for part in digits.parts] == [{label} for label in range(10)]
    ends = {(name, n): toy.play(name, network, digits, 4, 0.1, 0, n, 2, 8)[0]
            for name in ("rolora", "ffa-lora") for n in (1, 2)}  # fmt: skip
    one, two, ffa = ends["rolora", 1], ends["rolora", 2], ends["ffa-lora", 2]
    assert np.any(one[toy.B]) and np.array_equal(one[toy.A], ffa[toy.A])
    assert np.array_equal(one[toy.B], two[toy.B]) and not np.array_equal(one[toy.A], two[toy.A])
    assert toy.play("fedit", network, digits, 4, 1e9, 0, 3, 2, 8)[0] is None  # it left all bounds: told, not scored


def test_toy_of_aggregation_tells_exact_rules_from_others_and_bytes_are_counted(experiment):
    toy, script = experiment("lora_sites"), experiment("lora_aggregation")
    for name in script.TOY:
        found = toy.score("linear", "one-label", name, 4, 0.1, 0, 2)
        if name in script.EXACT:
            assert found["error_max"] < 1e-12, name
        elif name == "fedit":
            assert found["error_min"] > 1e-6
    pair, head = 4 * 4 * (4 * 768 + 2 * 1920), 4 * (384 * 3 + 3)
    assert script.expected_bytes("fedit") == (pair + head, pair + head)
    assert script.expected_bytes("fedex-lora")[1] == pair + head + 4 * (4 * 384 * 384 + 2 * 384 * 1536)


def test_the_preset_for_unlike_domains_differs_from_three_domains_in_its_strategy_only():
    """What `beat_separate.py` has measured as dual-lora is what the preset runs."""
    preset = load_config(EXPERIMENTS / "unlike_domains.toml")
    assert preset == load_config(EXPERIMENTS / "three_domains.toml", ["strategy.name=dual-lora"])


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda file: file.name)
def test_every_configuration_that_is_shipped_can_be_read(file):
    assert load_config(file).domains
