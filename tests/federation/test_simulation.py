"""[simulation]: who drops out, straggles, joins, leaves or attacks, the same for every strategy; and its clock."""

from __future__ import annotations

import numpy as np
import pytest
from federation_helpers import TEXTS, WORDS, outcome, tiny, train_federation

from fedfm.engines.local import LocalGrid
from fedfm.errors import ConfigError, RunError
from fedfm.federation.client_app import app
from fedfm.federation.faults import attackers, collude, draw_faults, present, virtual_seconds
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder
from fedfm.strategies import Update, make_strategy

SITES = 6


def config_for(folder, *overrides: str):
    return tiny(folder, "rounds=2", *overrides, finance={**TEXTS, "sites": SITES, "max-examples": 36})


def run_together(config):
    folder = RunFolder.create(config)
    RoundLoop(LocalGrid(app), config, folder).run()
    return outcome(folder)


def faults(config, round: int = 1):
    return draw_faults(sorted(config.sites()), config, make_strategy(config.strategy), round)


def test_every_strategy_meets_the_same_stragglers_and_its_own_rule_says_what_becomes_of_them(tmp_path):
    dropped = faults(config_for(tmp_path, "simulation.stragglers=0.5"))
    kept = faults(config_for(tmp_path, "simulation.stragglers=0.5", "strategy.name=fedprox"))
    assert len(dropped.gone) == len(kept.shares) == 3
    assert set(dropped.gone) == set(kept.shares)
    assert not dropped.shares
    assert not kept.gone
    assert all(0 < share < 1 for share in kept.shares.values())
    forced = faults(config_for(tmp_path, "simulation.stragglers=0.5", "simulation.partial-work=keep"))
    assert forced.shares == kept.shares
    later = [set(faults(config_for(tmp_path, "simulation.stragglers=0.5"), round).gone) for round in range(1, 9)]
    assert len(set(map(frozenset, later))) > 1  # other rounds, other stragglers


def test_drop_out_is_as_frequent_as_it_says(tmp_path):
    config = config_for(tmp_path, "simulation.drop-out=0.3")
    gone = [len(faults(config, round).gone) for round in range(1, 301)]
    assert np.mean(gone) == pytest.approx(0.3 * SITES, abs=4 * np.sqrt(0.21 * SITES / 300))


def test_a_straggler_makes_a_part_of_its_steps_and_who_is_gone_is_counted_and_named(tmp_path):
    more = ("simulation.stragglers=0.5", "local.epochs=4", "local.batch-size=2", "simulation.seconds-per-step=1")
    whole = run_together(config_for(tmp_path / "a", "local.epochs=4", "local.batch-size=2"))
    kept = run_together(config_for(tmp_path / "b", *more, "simulation.partial-work=keep"))
    dropped = run_together(config_for(tmp_path / "c", *more))
    assert kept.folder.rounds["sites_used"].tolist() == [0, SITES, SITES]
    assert dropped.folder.rounds["sites_dropped"].tolist() == [0, 3, 3]
    reasons = {event["reason"] for event in dropped.events("update-left-out")}
    assert reasons == {"it did not finish its work in time (simulation)"}
    assert len({whole.sha256, kept.sha256, dropped.sha256}) == 3
    packed = run_together(config_for(tmp_path / "d", *more, "simulation.partial-work=keep", "engine.sites-at-once=4"))
    for name, value in kept.weights.items():
        np.testing.assert_allclose(packed.weights[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("epochs", [1, 3, 4])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_steps_of_a_straggler_are_those_that_it_was_due(tmp_path, epochs, rows):
    """FedNova is told them, and leaves out who says another number: of honest sites it leaves out none."""
    more = ("simulation.stragglers=0.5", f"local.epochs={epochs}", "local.batch-size=2", f"engine.sites-at-once={rows}")
    done = run_together(config_for(tmp_path, *more, "strategy.name=fednova", "local.optimizer=sgd"))
    assert done.folder.rounds["sites_used"].tolist() == [0, SITES, SITES]
    steps = done.folder.metrics.query("metric == 'steps' and round > 0")["value"]
    assert epochs == 1 or steps.nunique() > 1  # there were stragglers


def test_sites_join_and_leave(tmp_path):
    config = config_for(tmp_path, "simulation.joins.finance-2=2", "simulation.leaves.finance-3=2")
    assert sorted(present(config.sites(), config.simulation, 1)) == [f"finance-{n}" for n in (1, 3, 4, 5, 6)]
    assert sorted(present(config.sites(), config.simulation, 2)) == [f"finance-{n}" for n in (1, 2, 4, 5, 6)]
    done = run_together(config)
    trained = done.folder.metrics.query("split == 'train'")
    assert set(trained.query("round == 1")["name"]) == {f"finance-{n}" for n in (1, 3, 4, 5, 6)}
    assert set(trained.query("round == 2")["name"]) == {f"finance-{n}" for n in (1, 2, 4, 5, 6)}
    nobody = config_for(tmp_path, *(f"simulation.joins.finance-{n}=2" for n in range(1, SITES + 1)))
    with pytest.raises(RunError, match="round 1: no site takes part"):
        run_together(nobody)


def test_a_virtual_second_is_work_over_speed_and_bytes_over_bandwidth(tmp_path):
    """10 steps of 0.5 s at speed 2, 3 MB in all at 1.5 MB/s, two messages of 0.1 s: 2.5 + 2 + 0.2."""
    config = config_for(
        tmp_path, "simulation.seconds-per-step=0.5", "simulation.latency=0.1", "simulation.speeds.finance-1=2.0",
        "simulation.bandwidths.finance-1=1.5",
    )  # fmt: skip
    assert virtual_seconds("finance-1", config, 10, 1_000_000, 2_000_000) == pytest.approx(4.7)
    assert virtual_seconds("finance-2", config, 10, 1_000_000, 2_000_000) == pytest.approx(5.2)
    done = run_together(config)
    rounds = done.folder.rounds["virtual_seconds"].tolist()[1:]
    assert rounds == pytest.approx([2 * 0.5 + 0.2] * 2, abs=0.02)  # 6 texts, 4 a batch; finance-1 is faster
    plain = run_together(config_for(tmp_path / "plain"))
    assert plain.folder.rounds["virtual_seconds"].isna().all()
    assert plain.sha256 == done.sha256  # a clock changes no weight


def test_speeds_are_log_normal(tmp_path):
    config = config_for(tmp_path, "simulation.seconds-per-step=1", "simulation.spread=0.5").model_copy()
    logs = [np.log(virtual_seconds(f"site-{n}", config, 1, 0, 0)) for n in range(2000)]
    assert np.mean(logs) == pytest.approx(0, abs=4 * 0.5 / np.sqrt(2000))
    assert np.std(logs) == pytest.approx(0.5, rel=0.08)


@pytest.mark.parametrize("rows", [1, 3])
def test_an_attacker_that_sends_nan_is_left_out(tmp_path, rows):
    config = config_for(tmp_path, "simulation.attack=nan", "simulation.attackers=2", f"engine.sites-at-once={rows}")
    done = run_together(config)
    assert done.folder.rounds["sites_dropped"].tolist() == [0, 2, 2]
    assert {event["site"] for event in done.events("update-left-out")} == set(attackers(config))


def test_sign_flip_and_scale_are_the_honest_change_times_a_factor(tmp_path):
    """One round, one site, which attacks: the weights move by the factor times the honest move, to rounding."""

    def moved(*more: str):
        config = tiny(tmp_path, *more, finance={**TEXTS, "sites": 1})
        done, start = train_federation(config), train_federation(tiny(tmp_path, *more, "local.learning-rate=1e-30",
            "local.head-learning-rate=1e-30", finance={**TEXTS, "sites": 1}))  # fmt: skip
        return {name: value - start.weights[name] for name, value in done.weights.items()}

    honest = moved()
    for attack, factor in (("sign-flip", -3.0), ("scale", 3.0)):
        found = moved(f"simulation.attack={attack}", "simulation.attackers=1", "simulation.attack-scale=3")
        for name, value in honest.items():
            np.testing.assert_allclose(found[name], factor * value, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("attack", ["gaussian", "label-flip", "alie"])
def test_other_attacks_change_the_outcome_and_are_the_same_alone_and_in_packs(tmp_path, attack):
    more = (f"simulation.attack={attack}", "simulation.attackers=3", "engine.dtype=float64")
    data = {"finance": {**TEXTS, "sites": 4, "max-examples": 24}, "ner": {**WORDS, "sites": 2}}
    honest = run_together(tiny(tmp_path, "engine.dtype=float64", **data))
    alone = run_together(tiny(tmp_path, *more, **data))
    packed = run_together(tiny(tmp_path, *more, "engine.sites-at-once=4", **data))
    assert alone.sha256 != honest.sha256
    for name, value in alone.weights.items():
        np.testing.assert_allclose(packed.weights[name], value, rtol=0, atol=1e-10, err_msg=name)


def test_alie_is_the_mean_less_z_deviations_of_the_attackers_own_changes(tmp_path):
    """n = 6, f = 2: s = 6 // 2 + 1 - 2 = 2 of 4 honest sites to win over, Phi(z) = 2 / 4; f = 3: Phi(z) = 2 / 3."""
    for count, z in ((2, 0.0), (3, 0.4307272992954576)):
        config = config_for(tmp_path, "simulation.attack=alie", f"simulation.attackers={count}")
        bad = attackers(config)
        draw = np.random.default_rng(0)
        updates = [Update(s, "finance", 5, {"shared/x": draw.standard_normal(4)}) for s in sorted(config.sites())]
        own = np.stack([update.delta["shared/x"] for update in updates if update.site in bad])
        expected = own.mean(axis=0) - z * own.std(axis=0)
        for before, after in zip(updates, collude(updates, config), strict=True):
            wanted = expected if before.site in bad else before.delta["shared/x"]
            np.testing.assert_allclose(after.delta["shared/x"], wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("simulation.speeds.finance-9=2.0", 'simulation.speeds.finance-9: there is no site "finance-9".'),
        ("simulation.attackers=7", "there are only 6 sites, so that 7 of them cannot attack"),
        ("simulation.attackers=1", "sites attack, but simulation.attack does not say how"),
        ("simulation.attack=flip", "known: none, nan, sign-flip"),
        ("simulation.drop-out=1.0", "must be less than 1"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, override, what):
    with pytest.raises(ConfigError) as caught:
        config_for(tmp_path, override)
    assert what in str(caught.value)
