"""What a federation is compared with: each site alone, each domain alone, all data in one place; float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedfm.config import load_config
from fedfm.domains.card import DomainCard
from fedfm.errors import ConfigError
from fedfm.federation.pooling import shared_columns
from fedfm.federation.workbench import Workbench
from fedfm.models.features import Features, Ragged, collate, join
from fedfm.strategies import check_strategy
from fedfm.training.fit import SiteWork, site_losses
from fedfm.training.pool import Pool, fit_pools

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from federation_helpers import IMAGES, TEXTS, WORDS, Recorder, tiny, train_federation

pytestmark = pytest.mark.usefixtures("small_data")

EXACT = "engine.dtype=float64"
UNEVEN = {"partition": "quantity", "sites": 3, "max-examples": 26}  # sites whose last batches are not full
BOUNDS = ("local-only", "per-domain", "centralised", "centralised-joint")


def test_per_domain_is_fedavg_on_each_domain_alone(tmp_path):
    domains = {"finance": TEXTS, "ner": WORDS}
    together = train_federation(tiny(tmp_path, "strategy.name=per-domain", "rounds=2", EXACT, **domains))
    for domain, settings in domains.items():
        alone = train_federation(tiny(tmp_path, "strategy.name=fedavg", "rounds=2", EXACT, **{domain: settings}))
        for name, value in alone.weights.items():
            there = together.weights[f"{domain}/{name.partition('/')[2]}"]
            assert np.abs(there - value).max() < 1e-12


def test_local_only_is_a_federation_of_one_and_nothing_leaves_a_site(tmp_path):
    recorder = Recorder()
    config = tiny(tmp_path, "strategy.name=local-only", "rounds=2", EXACT, finance={**TEXTS, "sites": 2})
    done = train_federation(config, recorder)
    assert all(not down and not up for _, down, up in recorder.of("train"))
    assert done.weights == {}
    assert done.folder.rounds[["bytes_down", "bytes_up"]].to_numpy().sum() == 0
    assert not all(np.isnan(value) for value in done.folder.info["final_personal"]["finance"].values())
    other = train_federation(tiny(tmp_path, "strategy.name=ditto", "rounds=2", EXACT, finance={**TEXTS, "sites": 2}))
    assert other.folder.rounds["bytes_up"].sum() > 0  # which the first assertion would miss, did nobody ever send


def steps_of(done) -> dict[str, float]:
    rows = done.folder.metrics.query("metric == 'steps' and split == 'train'")
    return rows.groupby("domain")["value"].sum().to_dict()


def test_every_bound_takes_as_many_steps_on_as_many_examples(tmp_path):
    domains = {"medical": IMAGES | UNEVEN, "finance": TEXTS | UNEVEN, "ner": WORDS | UNEVEN}
    names = ("fedavg", *BOUNDS)
    runs = {n: train_federation(tiny(tmp_path, f"strategy.name={n}", "local.epochs=2", **domains)) for n in names}
    budgets = {name: steps_of(done) for name, done in runs.items()}
    assert budgets["fedavg"] == budgets["local-only"] == budgets["per-domain"]
    assert budgets["fedavg"] == budgets["centralised"] == budgets["centralised-joint"]
    assert min(budgets["fedavg"].values()) >= 2 * 3
    for done in runs.values():
        trained = done.folder.metrics.query("split == 'train' and metric == 'loss'")
        assert trained.groupby("domain")["num_examples"].sum().to_dict() == dict.fromkeys(domains, 26)


def test_a_pool_of_one_site_with_one_batch_takes_the_step_of_that_site(tmp_path):
    """The batch is all that the site has, whatever order the draw puts it in."""
    settings = (EXACT, "local.batch-size=64", "rounds=2", "local.epochs=2")
    domains = {"finance": {**TEXTS, "sites": 1}, "ner": {**WORDS, "sites": 1}}
    pooled = train_federation(tiny(tmp_path, "strategy.name=centralised", *settings, **domains))
    alone = train_federation(tiny(tmp_path, "strategy.name=per-domain", *settings, **domains))
    assert max(np.abs(pooled.weights[name] - alone.weights[name]).max() for name in alone.weights) < 1e-12


def test_of_one_domain_the_joint_pool_is_the_pool(tmp_path):
    ends = [
        train_federation(tiny(tmp_path, f"strategy.name={name}", "rounds=2", EXACT, finance=TEXTS | UNEVEN)).weights
        for name in ("centralised", "centralised-joint")
    ]
    inner = [{name.partition("/")[2]: value for name, value in weights.items()} for weights in ends]
    assert all(np.array_equal(inner[0][name], inner[1][name]) for name in inner[0])


def texts(seed: int, count: int) -> Features:
    draw = np.random.default_rng(seed)
    ids = Ragged.of([draw.integers(5, 60, draw.integers(4, 9)) for _ in range(count)])
    return Features("text-classification", ids, draw.integers(0, 3, count))


@pytest.mark.parametrize("overrides", [("local.weight-decay=0.1",), ("local.optimizer=sgd", "local.momentum=0.9")])
def test_the_joint_pool_is_one_torch_optimiser_over_two_models_that_share_a_body(overrides):
    """torch.optim skips tensors without a gradient, and counts the steps of each: what the docstring promises."""
    config = load_config({"body": {"layers": 1}, "local": {"batch-size": 4}}, [EXACT, *overrides])
    pools, benches = [], []
    for number, domain in enumerate(("a", "b")):
        card = DomainCard(domain, "text-classification", ("x", "y", "z"))
        bench = Workbench(config, card, 1)
        bench.matrix.load(0, bench.start)
        works = [SiteWork(f"{domain}{k}", texts(10 * number + k, 5 + 4 * k), 0, 1) for k in range(2)]
        pools.append(Pool(domain, works, bench.matrix, config.local, shared_columns(bench)))
        benches.append(bench)
    expected = by_torch(config, pools, benches)
    losses = fit_pools(pools)
    for bench in benches:
        for name, value in bench.matrix.read(0).items():
            assert np.abs(value - expected[bench.grouped[name]]).max() < 1e-11, name
    assert all(0.5 < loss < 2 for loss in losses)
    assert [len(pool.plan()) for pool in pools] == [5, 5]


def by_torch(config, pools, benches) -> dict[str, np.ndarray]:
    names = [(bench.grouped, bench.matrix) for bench in benches]
    values = {full: torch.tensor(m.read(0)[n]) for grouped, m in names for n, full in grouped.items()}
    parameters = {full: nn.Parameter(value) for full, value in values.items()}
    body = [p for full, p in parameters.items() if full.startswith("shared/")]
    rest = [p for full, p in parameters.items() if not full.startswith("shared/")]
    local = config.local
    groups = [{"params": body, "lr": local.learning_rate}, {"params": rest, "lr": local.head_learning_rate}]
    optimizer = (
        torch.optim.AdamW(groups, weight_decay=local.weight_decay)
        if local.optimizer == "adamw"
        else torch.optim.SGD(groups, momentum=local.momentum)
    )
    plans = [pool.plan() for pool in pools]
    turns = sorted(((s + 0.5) / len(plan), d, s) for d, plan in enumerate(plans) for s in range(len(plan)))
    for _, d, step in turns:
        bench, features = benches[d], join([work.features for work in pools[d].works])
        current = {name: parameters[full].detach().numpy() for name, full in bench.grouped.items()}
        bench.matrix.load(0, current)
        bench.matrix.grad.zero_()
        batch = collate([(features, plans[d][step])], "cpu", torch.float64)
        bench.model.active.rows = 1
        site_losses(bench.model(batch.inputs), batch, 1).sum().backward()
        gradient = bench.matrix.unflatten(bench.matrix.grad[0].numpy())
        optimizer.zero_grad(set_to_none=True)
        for name, full in bench.grouped.items():
            parameters[full].grad = torch.from_numpy(gradient[name].copy())
        optimizer.step()
    for bench in benches:
        bench.matrix.load(0, bench.start)
    return {full: parameter.detach().numpy() for full, parameter in parameters.items()}


def test_all_domains_in_a_joint_pool_change_the_shared_body(tmp_path):
    domains = {"medical": IMAGES, "finance": TEXTS, "ner": WORDS}
    done = train_federation(tiny(tmp_path, "strategy.name=centralised-joint", "rounds=2", **domains))
    groups = {name.partition("/")[0] for name in done.weights}
    assert groups == {"shared", *domains}
    assert done.folder.rounds[["bytes_down", "bytes_up"]].to_numpy().sum() == 0
    assert done.folder.rounds["sites_used"].tolist()[1:] == [6, 6]


@pytest.mark.parametrize("name", ["centralised", "centralised-joint"])
def test_pools_are_refused_where_sites_are_real(name):
    with pytest.raises(ConfigError, match=f"{name} pools the data of sites, which real sites do not hand over"):
        load_config({"strategy": {"name": name}}, ["engine.name=flower"], (check_strategy,))


def test_domains_with_unlike_optimisers_have_no_joint_pool():
    data = {
        "strategy": {"name": "centralised-joint"},
        "domains": {"a": TEXTS | {"local": {"optimizer": "sgd"}}, "b": TEXTS},
    }
    with pytest.raises(ConfigError, match="the domains train one body with one optimiser, but theirs differ"):
        load_config(data, (), (check_strategy,))
