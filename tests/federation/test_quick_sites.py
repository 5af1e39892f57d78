"""Quick sites share orders where they train one at a time, and nothing that a run computes or writes down changes.

The oracle: a grid of as many nodes as sites. An order goes to one node, so that there every site has its own.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from federation_helpers import IMAGES, TEXTS, WORDS, Outcome, outcome, same, tiny, train_federation

from fedfm.engines.local import LocalGrid
from fedfm.federation import quick_sites
from fedfm.federation.client_app import app
from fedfm.federation.messages import order_of
from fedfm.federation.quick_sites import QuickSites
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder
from fedfm.training import fit, local_round

pytestmark = pytest.mark.usefixtures("small_data")
MANY = {**TEXTS, "sites": 5, "max-examples": 40, "partition": "quantity"}  # a sum in another order has other last bits


@pytest.fixture(autouse=True)
def time_enough(monkeypatch):
    """However busy the machine is, the sites of these tests are quick ones."""
    monkeypatch.setattr(quick_sites, "SECONDS_OF_AN_ORDER", 600.0)


def on_one_node(config, node_app=app) -> tuple[Outcome, list[tuple[str, ...]]]:
    """What a run leaves behind whose sites can share orders; the sites of its training orders, as they came."""
    seen = []

    def watching(message, context):
        if message.metadata.message_type == "train":
            seen.append(order_of(message).sites)
        return node_app(message, context)

    folder = RunFolder.create(config)
    RoundLoop(LocalGrid(watching), config, folder).run()
    return outcome(folder), seen


def updates_sent(done: Outcome):
    """The rows of sent.csv that are of updates; who scores together, and sends one tally, hangs on nodes too."""
    return done.folder.sent.query("what == 'update'").reset_index(drop=True)


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy.name=fedavg",),
        ("strategy.name=scaffold",),  # more goes both ways
        ("strategy.name=ditto",),  # sites keep models of their own
        ("strategy.name=krum",),  # each update alone, stacked anyway
        ("strategy.name=fednova", "simulation.stragglers=0.5"),
        ("strategy.name=fedavg", 'sharing."head.*"=private', "simulation.drop-out=0.3"),
        ("strategy.name=hetlora", "domains.ner.lora-rank=2"),
        ("strategy.name=fedavg", "simulation.attack=alie", "simulation.attackers=1"),
    ],
    ids=lambda overrides: " ".join(overrides).replace("strategy.name=", ""),
)
def test_a_shared_order_changes_nothing(tmp_path, overrides):
    config = tiny(tmp_path, "rounds=3", "engine.dtype=float64", *overrides, finance=MANY, ner=WORDS)
    alone = train_federation(config)
    together, orders = on_one_node(config)
    assert max(map(len, orders)) > 1
    assert together.sha256 == alone.sha256
    assert same(together.weights, alone.weights)
    assert together.folder.metrics.equals(alone.folder.metrics)
    assert together.private() == alone.private()
    assert updates_sent(together).equals(updates_sent(alone))
    counts = ["bytes_up", "bytes_down", "sites_asked", "sites_used", "sites_dropped", "loss"]
    assert together.folder.rounds[counts].equals(alone.folder.rounds[counts])


def test_the_batches_of_a_shared_order_are_drawn_before_its_first_training(tmp_path, monkeypatch):
    """Each once. One by one between trainings the draws took many times as long."""
    happened, draw, train = [], fit.batch_plan, local_round.fit
    monkeypatch.setattr(fit, "batch_plan", lambda *of: happened.append("drawn") or draw(*of))
    monkeypatch.setattr(local_round, "fit", lambda *of, **more: happened.append("trained") or train(*of, **more))
    _, orders = on_one_node(tiny(tmp_path, "rounds=2", finance=MANY))
    assert list(map(len, orders)) == [1, 1, 1, 1, 1, 5]
    assert happened == ["drawn", "trained"] * 5 + ["drawn"] * 5 + ["trained"] * 5


def test_a_site_whose_batches_cannot_be_drawn_leaves_the_others_of_its_order_in_the_round(tmp_path, monkeypatch):
    def drawn(work, local):
        if work.site == "finance-2" and work.round == 2:
            raise ValueError("no such draw")
        return plan_ahead(work, local)

    plan_ahead = fit.SiteWork.plan_ahead
    monkeypatch.setattr(fit.SiteWork, "plan_ahead", drawn)
    done, orders = on_one_node(tiny(tmp_path, "rounds=2", finance=MANY))
    assert len(orders[-1]) == 5
    assert done.folder.rounds["sites_used"].tolist()[1:] == [5, 4]
    assert "no such draw" in (done.folder.path / "events.jsonl").read_text(encoding="utf-8")


def test_a_first_round_has_an_order_for_each_site_and_the_next_share_them_by_domain(tmp_path):
    config = tiny(tmp_path, "rounds=2", medical=IMAGES, finance=TEXTS, ner=WORDS)
    _, orders = on_one_node(config)
    pairs = [(f"{domain}-1", f"{domain}-2") for domain in ("finance", "medical", "ner")]
    assert orders == [(site,) for pair in pairs for site in pair] + pairs


def test_compressed_updates_have_orders_of_their_own(tmp_path):
    _, orders = on_one_node(tiny(tmp_path, "rounds=2", "update.compress=qsgd8", finance=TEXTS))
    assert orders == [("finance-1",), ("finance-2",)] * 2


@pytest.mark.parametrize("error", [ValueError("a broken site"), MemoryError()])
def test_a_site_that_fails_does_not_take_its_neighbours_with_it(tmp_path, monkeypatch, error):
    from fedfm.training import local_round

    real = local_round.train_round

    def failing(matrix, works, *rest, **more):
        if works[0].site == "finance-2" and works[0].round == 2:
            raise error
        return real(matrix, works, *rest, **more)

    monkeypatch.setattr(local_round, "train_round", failing)
    done, orders = on_one_node(tiny(tmp_path, "rounds=3", finance=MANY))
    assert orders[5:] == [tuple(f"finance-{n}" for n in range(1, 6))] * 2
    assert done.folder.rounds["sites_used"].tolist()[1:] == [5, 4, 5]
    (left_out,) = done.events("update-left-out")
    assert (left_out["round"], left_out["site"]) == (2, "finance-2")
    assert type(error).__name__ in left_out["reason"]
    sent = done.folder.sent.query("what == 'update' and round == 2").set_index("site")["bytes"]
    assert sent.index[sent.eq(0)].tolist() == ["finance-2"]


def joined(seconds: dict[str, float], num_bytes=lambda site: 0, packs=None, **of) -> list[tuple[str, ...]]:
    """What `QuickSites` makes of sites of known seconds; `of`: overrides of the engine, of kinds and nodes."""
    workers = of.pop("workers", 0)
    engine = SimpleNamespace(name="ray" if workers else "local", workers=workers)
    quick = QuickSites(SimpleNamespace(engine=engine))
    for site, value in seconds.items():
        quick.learn((site,), [value])
    domains = of.get("domains", {})
    names = sorted(seconds)
    cards = {site: SimpleNamespace(domain=domains.get(site, "finance")) for site in [*names, "new"]}
    roll = SimpleNamespace(cards=cards, nodes=dict.fromkeys(cards, 1) | of.get("nodes", {}))
    return quick.join(packs or [(s,) for s in names], roll, lambda site: of.get("kinds", {}).get(site), num_bytes)


@pytest.mark.parametrize("other", ["domains", "nodes", "kinds"])
def test_only_neighbours_of_one_kind_share_an_order(monkeypatch, other):
    monkeypatch.setattr(quick_sites, "SECONDS_OF_AN_ORDER", 0.1)
    seconds = dict.fromkeys("abcde", 0.01)
    assert joined(seconds) == [tuple("abcde")]
    assert joined(seconds, **{other: {"c": "else"}}) == [("a", "b"), ("c",), ("d", "e")]


def test_an_order_ends_where_it_is_long_enough(monkeypatch):
    monkeypatch.setattr(quick_sites, "SECONDS_OF_AN_ORDER", 0.1)
    assert joined(dict.fromkeys("abcde", 0.04)) == [("a", "b"), ("c", "d"), ("e",)]
    assert joined({"a": 0.01, "b": 9.0, "c": 0.01, "d": 0.01}) == [("a",), ("b",), ("c", "d")]
    assert joined({"a": 0.0, "b": float("nan"), "c": 0.0}) == [("a",), ("b",), ("c",)]
    half = quick_sites.BYTES_OF_AN_ORDER // 2
    assert joined(dict.fromkeys("abc", 0.01), lambda site: half) == [("a", "b"), ("c",)]
    packs = [("a",), ("new",), ("b",), ("c", "d"), ("e",)]  # of one that has not trained; of several as rows
    assert joined(dict.fromkeys("abcde", 0.01), packs=packs) == packs


@pytest.mark.parametrize(("workers", "longest"), [(1, 5), (2, 3), (4, 2)])
def test_workers_do_not_wait_for_one_of_them(monkeypatch, workers, longest):
    """Twenty equal sites: at least four orders for each worker."""
    monkeypatch.setattr(quick_sites, "SECONDS_OF_AN_ORDER", 0.1)
    seconds = {f"{number:02d}": 2.0**-10 for number in range(20)}
    orders = joined(seconds, workers=workers)
    assert max(map(len, orders)) <= longest
    assert len(orders) >= min(4 * workers, 20)
    assert sum(orders, ()) == tuple(sorted(seconds))
    assert joined(dict.fromkeys("ab", 0.0), workers=workers) == [("a", "b")]  # what takes no time needs no worker
