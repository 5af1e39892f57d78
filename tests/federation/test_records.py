"""What a run writes down of its sites: what left them, how their updates point, how each test example came out."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from federation_helpers import IMAGES, TEXTS, WORDS, Recorder, tiny, train_federation

from fedfm.arrays import norm, sha256
from fedfm.federation import alignment
from fedfm.federation.alignment import Alignment
from fedfm.results.predictions import load_items
from fedfm.strategies import Update
from fedfm.strategies.base import two_level_mean

pytestmark = pytest.mark.usefixtures("small_data")


def test_every_message_from_a_site_is_in_sent_csv_with_its_digest(tmp_path):
    recorder = Recorder()
    done = train_federation(tiny(tmp_path, "rounds=2", finance={**TEXTS, "sites": 2}), recorder)
    rows = done.folder.sent
    assert rows["what"].value_counts().to_dict() == {"tally of validation": 6, "update": 4, "tally of test": 2}
    updates = rows.query("what == 'update'").set_index(["round", "site"])
    for order, _, up in recorder.of("train"):
        row = updates.loc[(order.round, order.sites[0])]
        assert row["sha256"] == sha256(up)
        assert row["tensors"] == len(up)
        assert row["together"] == 1
    assert updates["bytes"].sum() == done.folder.rounds["bytes_up"].sum()


def test_sites_of_a_pack_share_a_message(tmp_path):
    from fedfm.engines.local import LocalGrid
    from fedfm.federation.client_app import app
    from fedfm.federation.rounds import RoundLoop
    from fedfm.results.run_folder import RunFolder

    config = tiny(tmp_path, "engine.sites-at-once=3", finance={**TEXTS, "sites": 3})
    folder = RunFolder.create(config)
    RoundLoop(LocalGrid(app), config, folder).run()
    rows = folder.sent.query("what == 'update'")
    assert rows["together"].tolist() == [3, 3, 3]
    assert rows["sha256"].nunique() == 1


def test_the_norm_of_an_update_is_that_of_what_was_sent(tmp_path):
    recorder = Recorder()
    done = train_federation(tiny(tmp_path, 'sharing."head.*"=private', finance={**TEXTS, "sites": 2}), recorder)
    told = done.folder.metrics.query("metric == 'update_norm'").set_index("name")["value"]
    for order, _, up in recorder.of("train"):
        assert told[order.sites[0]] == pytest.approx(norm(up), rel=1e-5)


def cosines(updates: list[Update], **domain_weights: float) -> list[float]:
    with Alignment(domain_weights) as found:
        for update in updates:
            found.take(update)
        return [cosine for _, cosine in found.cosines()]


@pytest.mark.parametrize("in_memory", [2**22, 1], ids=["in memory", "in a file"])
def test_cosines_by_hand(monkeypatch, in_memory):
    """Two sites of one domain, 10 and 30 examples: the mean is (1, 3) / 4; over its own tensors only."""
    monkeypatch.setattr(alignment, "IN_MEMORY", in_memory)
    one = Update("a", "d", 10, {"shared/w": np.array([1.0, 0.0], np.float32)})
    other = Update("b", "d", 30, {"shared/w": np.array([0.0, 1.0], np.float32), "d/h": np.array([2.0])})
    found = cosines([one, other])
    assert found[0] == pytest.approx(0.25 / np.hypot(0.25, 0.75))
    assert found[1] == pytest.approx((0.75 + 4) / (np.sqrt(5) * np.sqrt(0.25**2 + 0.75**2 + 4)))
    assert np.isnan(cosines([Update("a", "d", 1, {"shared/w": np.zeros(2)})])[0])


def test_cosines_do_not_depend_on_the_order_of_tensors_nor_of_sites(monkeypatch):
    """Against the definition, site by site: two domains in turn, tensors in either order, one site without any."""
    draw = np.random.default_rng(0)
    tensors = [{"shared/w": draw.normal(size=(2, 3)), f"{d}/h": draw.normal(size=2)} for d in "dedde"]
    updates = [
        Update(f"s{i}", d, i + 1, dict(sorted(t.items(), reverse=i % 2 == 1)))
        for i, (d, t) in enumerate(zip("dedde", tensors, strict=True))
    ]
    mean = two_level_mean(updates, {"d": 2.0})
    wanted = []
    for update in updates:
        own = np.concatenate([update.delta[name].ravel() for name in sorted(update.delta)])
        other = np.concatenate([mean[name].ravel() for name in sorted(update.delta)])
        wanted.append(own @ other / np.linalg.norm(own) / np.linalg.norm(other))
    for in_memory in (1, 2**22):
        monkeypatch.setattr(alignment, "IN_MEMORY", in_memory)
        *found, of_nothing = cosines([*updates, Update("t", "d", 1, {})], d=2.0)
        assert found == pytest.approx(wanted, abs=1e-14)
        assert np.isnan(of_nothing)


def test_cosines_weigh_domains_as_the_mean_does():
    """Domains weigh 1 and 3, whatever their examples: the mean of (1, 0) and (0, 1) is (1, 3) / 4."""
    updates = [Update("a", "d", 90, {"shared/w": np.array([1.0, 0.0])})]
    updates += [Update("b", "e", 10, {"shared/w": np.array([0.0, 1.0])})]
    assert cosines(updates, d=1.0, e=3.0) == pytest.approx([0.25 / np.sqrt(0.625), 0.75 / np.sqrt(0.625)])
    assert cosines([*updates, Update("c+f", "e", 10, {"shared/w": np.array([0.0, 1.0])})]) == []  # a pack's mean


def test_the_outcomes_of_the_test_make_its_scores_again(tmp_path):
    domains = {"medical": IMAGES, "finance": TEXTS, "ner": WORDS}
    done = train_federation(tiny(tmp_path, "strategy.name=fedper", **domains))
    info = done.folder.info
    for model, final in (("global", info["final"]), ("personal", info["final_personal"])):
        for domain in ("medical", "finance"):
            items = load_items(done.folder.path, model, domain)
            hits = items["probabilities"].argmax(axis=1) == items["labels"]
            assert hits.mean() == pytest.approx(final[domain]["accuracy"])
        items = load_items(done.folder.path, model, "ner")
        correct, every = items["tokens"].sum(axis=0)
        assert correct / every == pytest.approx(final["ner"]["token_accuracy"])
    assert load_items(done.folder.path, "global", "nothing") == {}


def test_updates_wait_for_their_mean_without_being_held():
    """Memory must not grow with the sites of a round."""
    with Alignment({}) as found:
        update = Update("a", "d", 1, {"shared/w": np.ones(3)})
        gone = weakref.ref(update.delta["shared/w"])
        found.take(update)
        del update
        assert gone() is None
        assert [cosine for _, cosine in found.cosines()] == pytest.approx([1.0])


def test_nothing_is_said_of_a_round_of_very_large_updates(tmp_path, monkeypatch):
    config = tiny(tmp_path, finance={**TEXTS, "sites": 2})
    assert "cosine_to_mean" in set(train_federation(config).folder.metrics["metric"])
    monkeypatch.setattr(alignment, "MOST_BYTES", 1000)
    assert "cosine_to_mean" not in set(train_federation(config).folder.metrics["metric"])
