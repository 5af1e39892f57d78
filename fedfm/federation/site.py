"""A node's sites and their work.

A node holds one site (deployment: `--node-config 'site="st-mary" domain="medical"'`) or several (simulation: every
`num-partitions`-th site of the configuration). What a site computes depends on its name, its data and its orders,
never on the node that computes it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context

from fedfm.arrays import Arrays, non_finite
from fedfm.config import RunConfig, load_config
from fedfm.domains import Dataset, forget_sources, label_counts, load_site
from fedfm.domains.card import DomainCard
from fedfm.errors import ConfigError
from fedfm.federation.messages import Order, SiteCard

CACHE_BYTES = 16 * 2**20  # features of recently used sites; the rest is read again when needed


@lru_cache(maxsize=4)
def parse_config(text: str) -> RunConfig:
    return load_config(json.loads(text))


def sites_of_node(config: RunConfig, context: Context) -> list[tuple[str, str]]:
    """(site, domain) pairs that this node holds, by its node configuration."""
    sites = config.sites()
    if "site" in context.node_config:
        name = str(context.node_config["site"])
        if name not in sites:
            mend = "start the node with the name that the coordinator's configuration gives this site"
            raise ConfigError(f'the configuration has no site "{name}"; it has {", ".join(sites)}', mend=mend)
        return [(name, sites[name])]
    part, parts = (int(context.node_config[key]) for key in ("partition-id", "num-partitions"))
    return list(sites.items())[part::parts]


def site_card(config: RunConfig, domain: str, site: str) -> SiteCard:
    """Read and check the site's data and describe them. Raises DataError."""
    data = load_site(config, domain, site)
    shape = None
    if data.task == "image-classification":
        _, height, width, channels = data.train.inputs.shape
        shape = (channels, height, width)
    return SiteCard(
        site, domain, data.task, data.labels, shape, label_counts(data), data.source, data.sha256, data.warnings
    )


def train(order: Order, received: Mapping[str, np.ndarray]) -> tuple[Arrays, dict[str, float]]:
    """Local training: the change of every tensor that was received, and what is told about it."""
    from fedfm.strategies import make_strategy
    from fedfm.training.fit import SiteWork, fit

    config = parse_config(order.config)
    bench = _workbench(order)
    features = _features(order, "train")
    grouped, start = _load(order, received)
    works = [SiteWork(order.site, features, config.seed, order.round)]
    strategy = make_strategy(config.strategy)
    (loss,) = fit(bench.matrix, works, config.local_for(order.card.domain), strategy.correct)
    trained = bench.matrix.read(0)
    private = {name: value for name, value in trained.items() if grouped[name].startswith("private/")}
    if private and not non_finite(trained):  # the server leaves such an update out; the site must not keep its half
        _save_private(order, private)
    delta = {grouped[n]: value - start[n] for n, value in trained.items() if n not in private}
    told = {"num-examples": len(features), "loss": loss, "truncated": features.truncated}
    return delta, told


def evaluate(order: Order, received: Mapping[str, np.ndarray]) -> tuple[Arrays, dict[str, float]]:
    """The tally of the received model, with what is private at this site, on one of its splits."""
    from fedfm.training.evaluation import evaluate as tally_of

    bench = _workbench(order)
    _load(order, received)
    tally = tally_of(bench.model, _features(order, order.split))
    return tally.to_arrays(), {"num-examples": tally.num_examples}


def _load(order: Order, received: Mapping[str, np.ndarray]) -> tuple[dict[str, str], Arrays]:
    """Put what was received, and what the site keeps to itself, into row 0; returns names with groups, and values."""
    from fedfm.models.site_model import group_names, start_weights

    config, bench = parse_config(order.config), _workbench(order)
    grouped = group_names(bench.matrix.columns, config.sharing, order.card.domain)
    values = {name: received[full] for name, full in grouped.items() if not full.startswith("private/")}
    if len(values) < len(grouped):
        kept = _read_private(order) or start_weights(bench.model, config.seed)
        values |= {name: kept[name] for name in grouped if name not in values}
    bench.matrix.load(0, values)
    return grouped, values


class _Workbench:
    """The model of a domain in this process, with its client matrix."""

    def __init__(self, config: RunConfig, card: DomainCard):
        from fedfm.models.body import load_body
        from fedfm.models.site_model import build_model
        from fedfm.training.matrix import ClientMatrix

        self.model = build_model(config, card, pick_device(config))
        self.matrix = ClientMatrix(self.model)
        self.tokenizer = load_body(config).tokenizer


def pick_device(config: RunConfig) -> str:
    """The device that `engine.device` means on this machine."""
    import torch

    if config.engine.device != "auto":
        return config.engine.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _workbench(order: Order) -> _Workbench:
    import torch

    # The default, all cores, is slow where cores are shared. Set for every piece of work: sums depend on it, and
    # another run in this process may have set another number.
    torch.set_num_threads(parse_config(order.config).engine.threads)
    return _cached_workbench(order.config, order.card)


@lru_cache(maxsize=8)
def _cached_workbench(config: str, card: DomainCard) -> _Workbench:
    return _Workbench(parse_config(config), card)


class _FeatureCache:
    """Features of recently used splits, at most `limit` bytes of them."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self.kept: OrderedDict = OrderedDict()

    def get(self, key, make):
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key][0]
        value = make()
        size = int(getattr(value.inputs, "nbytes", 0)) or int(value.lengths().sum()) * 32
        if size <= self.limit:
            self.kept[key] = value, size
            self.used += size
        while self.used > self.limit:
            self.used -= self.kept.popitem(last=False)[1][1]
        return value

    def clear(self) -> None:
        self.kept.clear()
        self.used = 0


_CACHE = _FeatureCache(CACHE_BYTES)


def forget_data() -> None:
    """Start a run without what an earlier one in this process has read: its files may have changed since."""
    forget_sources()
    _CACHE.clear()


def _features(order: Order, split: str):
    config = parse_config(order.config)
    return _CACHE.get((order.config, order.card, order.site, split), lambda: _make_features(config, order, split))


def _make_features(config: RunConfig, order: Order, split: str):
    from fedfm.models.features import featurize

    data = load_site(config, order.card.domain, order.site)
    examples = data.splits()[split].relabel(_label_map(data, order.card.labels))
    return featurize(examples, _workbench(order).tokenizer, config.local_for(order.card.domain).max_length)


def _label_map(data: Dataset, labels: tuple[str, ...]) -> np.ndarray:
    """The domain's number of each of the site's own labels (sites with sources of their own may lack some)."""
    return np.array([labels.index(label) for label in data.labels], np.int64)


def _save_private(order: Order, tensors: Arrays) -> None:
    from safetensors.numpy import save_file

    folder = Path(order.state_folder) / order.site
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{order.round:06d}.tmp"
    save_file(tensors, fresh)
    fresh.replace(folder / f"{order.round:06d}.safetensors")


def _read_private(order: Order) -> Arrays | None:
    """What the site kept in the last round before this one (train) or up to it (evaluate)."""
    from safetensors.numpy import load_file

    limit = order.round if order.split else order.round - 1
    files = sorted((Path(order.state_folder) / order.site).glob("*.safetensors"))
    files = [file for file in files if int(file.stem) <= limit]
    return load_file(files[-1]) if files else None
