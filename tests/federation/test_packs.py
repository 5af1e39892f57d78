"""Packs: sites that share an order give what they give alone, whoever shares it, and bad ones stay out of the mean."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from federation_helpers import IMAGES, TEXTS, WORDS, outcome, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfm.engines.local import LocalGrid
from fedfm.federation import site_data
from fedfm.federation.client_app import app
from fedfm.federation.door import Roll
from fedfm.federation.messages import SiteCard
from fedfm.federation.packing import packs_to_score, packs_to_train, steps_of
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder
from fedfm.strategies.fedavg import FedAvg


def run_packed(config, node_app=app):
    """On one node that holds all sites, as the local engine has it."""
    folder = RunFolder.create(config)
    RoundLoop(LocalGrid(node_app), config, folder).run()
    return outcome(folder)


def unequal(tmp_path, *overrides: str):
    """Two, four and three sites of unequal sizes: unequal steps, ragged last batches."""
    sizes = {"max-examples": 24, "partition": "quantity"}
    domains = {
        "medical": {**IMAGES, **sizes, "sites": 2},
        "finance": {**TEXTS, **sizes, "sites": 4},
        "ner": {**WORDS, **sizes, "sites": 3},
    }
    return tiny(tmp_path, "engine.dtype=float64", *overrides, **domains)


@pytest.mark.parametrize(
    ("tuning", "rows"), [("head", "3"), ("layernorm", "3"), ("lora", "2"), ("lora", "auto"), ("full", "3")]
)
def test_any_number_of_sites_at_once_gives_the_same_weights(tmp_path, tuning, rows):
    """Float64 to 1e-10, with augmentation, FedProx and clipping."""
    more = (f"body.tuning={tuning}", "strategy.name=fedprox", "local.clip-norm=1.0", "local.augment=true")
    alone = run_packed(unequal(tmp_path, *more))
    packed = run_packed(unequal(tmp_path, *more, f"engine.sites-at-once={rows}"))
    assert alone.weights.keys() == packed.weights.keys()
    for name, value in alone.weights.items():
        np.testing.assert_allclose(packed.weights[name], value, rtol=0, atol=1e-10, err_msg=name)
    columns = ["bytes_down", "bytes_up", "sites_asked", "sites_used", "sites_dropped"]
    assert packed.folder.rounds[columns].equals(alone.folder.rounds[columns])
    left, right = (
        run.folder.metrics.query("metric != 'cosine_to_mean'").sort_values(
            ["round", "scope", "name", "split", "metric"]
        )  # of single updates, which a pack does not send
        for run in (alone, packed)
    )
    np.testing.assert_allclose(left["value"], right["value"], atol=1e-9)


def test_a_private_head_belongs_to_its_site_in_a_pack_too(tmp_path):
    more = ('sharing."head*"=private',)
    alone = run_packed(unequal(tmp_path, *more))
    packed = run_packed(unequal(tmp_path, *more, "engine.sites-at-once=3"))
    assert alone.private().keys() == packed.private().keys()
    for name, value in alone.weights.items():
        np.testing.assert_allclose(packed.weights[name], value, rtol=0, atol=1e-10, err_msg=name)


def test_a_pack_whose_sites_train_one_by_one_holds_one_change_at_a_time(tmp_path, monkeypatch):
    """Tuning `full`: a mean of many sites must not take the memory of many changes."""
    from fedfm.training import local_round

    real, made, alive = local_round.train_round, [], []

    def watching(*arguments, **more):
        alive.append(sum(gone() is not None for gone in made))
        done = real(*arguments, **more)
        made.append(weakref.ref(done.leaves["delta"]))
        return done

    monkeypatch.setattr(local_round, "train_round", watching)
    run_packed(unequal(tmp_path, "body.tuning=full", "engine.sites-at-once=3"))
    assert len(alive) > 6
    assert set(alive) == {0}


def test_a_strategy_that_must_see_each_update_gets_each(tmp_path, monkeypatch):
    """The mean of the sites' own updates is the mean of the packs' means."""
    seen = []
    real = FedAvg.aggregate

    def watching(self, weights, updates, state, round):
        updates = list(updates)
        seen.append([(update.site, update.num_examples) for update in updates])
        return real(self, weights, iter(updates), state, round)

    monkeypatch.setattr(FedAvg, "aggregate", watching)
    means = run_packed(unequal(tmp_path, "engine.sites-at-once=3"))
    assert any("+" in site for site, _ in seen[0])
    monkeypatch.setattr(FedAvg, "each", True)
    seen.clear()
    each = run_packed(unequal(tmp_path, "engine.sites-at-once=3"))
    assert sorted(site for site, _ in seen[0]) == sorted(each.folder.config.sites())
    for name, value in means.weights.items():
        np.testing.assert_allclose(each.weights[name], value, rtol=0, atol=1e-10, err_msg=name)


def test_a_site_whose_data_no_code_can_take_costs_the_others_of_its_pack_nothing(tmp_path, monkeypatch):
    """Whatever goes wrong at one site, all others train and are scored, and the reason is told."""
    from fedfm.federation import site

    make = site.site_features

    def breaks(order, name, *more):
        if name == "finance-2":
            raise UnicodeError("half a character")
        return make(order, name, *more)

    monkeypatch.setattr(site, "site_features", breaks)
    done = run_packed(unequal(tmp_path, "engine.sites-at-once=8"))
    own = done.folder.metrics.query("scope == 'site' and split == 'test'")
    assert set(own["name"]) == unequal(tmp_path).sites().keys() - {"finance-2"}
    reasons = {e["site"]: e["reason"] for e in done.events("update-left-out")}
    assert reasons == {"finance-2": "UnicodeError: half a character"}
    told = [e["message"] for e in done.events("warning") if "no test score of site finance-2" in e["message"]]
    assert told and told[0].endswith("UnicodeError: half a character")


@pytest.mark.parametrize("at_once", [1, 8])
@pytest.mark.parametrize("what", ["data", "work"])
def test_a_site_that_cannot_be_tuned_takes_no_score_from_the_others(tmp_path, monkeypatch, what, at_once):
    """Its test split can be read, its training split cannot, or it cannot be trained on: no score is lost but its."""
    from fedfm.federation import site
    from fedfm.strategies import Strategy
    from fedfm.training import local_round

    make, work = site.site_features, local_round.train_round

    def no_data(order, name, split, *more):
        if name == "finance-2" and split == "train":
            raise UnicodeError("half a character")
        return make(order, name, split, *more)

    def no_tuning(matrix, works, local, strategy, *more, **named):
        if type(strategy) is Strategy and works[0].site == "finance-2":
            raise UnicodeError("half a character")
        return work(matrix, works, local, strategy, *more, **named)

    if what == "data":
        monkeypatch.setattr(site, "site_features", no_data)
    else:
        monkeypatch.setattr(local_round, "train_round", no_tuning)
    config = unequal(tmp_path, f"engine.sites-at-once={at_once}", "strategy.name=fine-tune")
    done = run_packed(config)
    own = done.folder.metrics.query("scope == 'site' and split == 'test' and model == 'personal'")
    assert set(own["name"]) == config.sites().keys() - {"finance-2"}
    kept = {file.stem for file in (done.folder.path / "predictions" / "personal").rglob("*.npz")}
    assert kept == set(own["name"])
    assert done.folder.info["final_personal"].keys() == config.domains.keys()
    told = [e["message"] for e in done.events("warning") if "no test score of site finance-2" in e["message"]]
    assert told and told[0].endswith("UnicodeError: half a character")


def test_a_site_that_diverges_stays_out_of_the_mean_of_its_pack(tmp_path, monkeypatch):
    """Its row is poisoned after training; the others' mean is that of a federation without it."""
    from fedfm.training import local_round

    real = local_round.fit

    def poisoned(matrix, works, *rest):
        losses = real(matrix, works, *rest)
        for row, work in enumerate(works):
            if work.site == "finance-2":
                matrix.theta[row, 0] = float("nan")
        return losses

    monkeypatch.setattr(local_round, "fit", poisoned)
    done = run_packed(unequal(tmp_path, "engine.sites-at-once=8"))
    left_out = [(e["round"], e["site"], e["reason"]) for e in done.events("update-left-out")]
    assert [(number, site) for number, site, _ in left_out] == [(1, "finance-2")]
    assert all("not finite" in reason for *_, reason in left_out)
    assert all(np.isfinite(value).all() for value in done.weights.values())
    assert done.folder.rounds["sites_used"].tolist() == [0, 8]
    alone = run_packed(unequal(tmp_path))
    for name, value in alone.weights.items():
        np.testing.assert_allclose(done.weights[name], value, rtol=0, atol=1e-10, err_msg=name)


def roll_of(sizes: dict[str, int], words: dict[str, float], nodes: dict[str, int]) -> Roll:
    roll = Roll(nodes=nodes)
    for site, size in sizes.items():
        counts = {split: {"x": size} for split in ("train", "validation", "test")}
        card = SiteCard(site, "finance", "text-classification", ("x",), None, counts, "s", "0", (), words[site])
        roll.cards[site] = card
    return roll


@settings(max_examples=60)
@given(
    st.dictionaries(st.integers(0, 400), st.tuples(st.integers(1, 90), st.integers(1, 3)), min_size=1),
    st.integers(1, 9),
)
def test_packs_hold_every_site_once_and_none_is_too_large(tmp_path_factory, drawn, rows):
    config = tiny(tmp_path_factory.getbasetemp(), finance=TEXTS)
    sizes = {f"s{number:03d}": size for number, (size, _) in drawn.items()}
    nodes = {f"s{number:03d}": node for number, (_, node) in drawn.items()}
    roll = roll_of(sizes, dict.fromkeys(sizes, 5.0), nodes)
    packs = packs_to_train(sizes, roll, config, {"finance": rows})
    assert sorted(site for pack in packs for site in pack) == sorted(sizes)
    assert all(len(pack) <= rows and len({nodes[site] for site in pack}) == 1 for pack in packs)
    for pack in packs:  # whoever has most steps stands first
        steps = [steps_of(site, roll, config) for site in pack]
        assert steps == sorted(steps, reverse=True)
    assert packs == packs_to_train(reversed(list(sizes)), roll, config, {"finance": rows})
    scored = packs_to_score(sizes, roll, "test", together=True)
    assert sorted(site for pack in scored for site in pack) == sorted(sizes)
    assert packs_to_score(sizes, roll, "test", together=False) == [(site,) for site in sorted(sizes)]


def test_texts_of_like_length_share_a_pack(tmp_path):
    config = tiny(tmp_path, finance=TEXTS)
    words = {"a": 5.0, "b": 40.0, "c": 6.0, "d": 41.0}
    roll = roll_of(dict.fromkeys(words, 8), words, dict.fromkeys(words, 1))
    assert packs_to_train(words, roll, config, {"finance": 2}) == [("c", "a"), ("d", "b")]


def test_a_full_feature_cache_costs_no_digit(tmp_path, monkeypatch):
    """Ragged texts in float32, whose states depend on padding: all kept, some kept, none kept."""
    found, kept = set(), []
    for limit in (1024, 0, 1):
        more = ("body.layers=2", "body.trainable-layers=1", "engine.dtype=float32", f"engine.feature-cache={limit}")
        # a MiB of 128 KiB, so that there is room for some sites and not for others
        monkeypatch.setattr(site_data, "MIB", 2**17 if limit == 1 else 2**20)
        site_data.forget_data()
        found.add(run_packed(unequal(tmp_path, *more)).sha256)
        kept.append(len(site_data._CACHE.on_disk))
    assert len(found) == 1
    assert kept[0] > kept[2] > kept[1] == 0
