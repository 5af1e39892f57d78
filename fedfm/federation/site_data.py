"""The data of a node's sites: who they are, what they hold, and their features, made once and kept in bounds."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from flwr.app import Context

from fedfm.config import RunConfig, load_config
from fedfm.domains import Dataset, forget_sources, label_counts, load_site
from fedfm.domains.card import DomainCard
from fedfm.errors import ConfigError
from fedfm.federation.messages import SiteCard

CACHE_BYTES = 16 * 2**20  # features of recently used sites; the rest is made again when needed


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
    shape, words = None, 0.0
    if data.task == "image-classification":
        _, height, width, channels = data.train.inputs.shape
        shape = (channels, height, width)
    elif len(data.train):
        split = data.task == "token-classification"
        words = float(np.mean([len(text if split else text.split()) for text in data.train.inputs]))
    counts = label_counts(data)
    return SiteCard(
        site, domain, data.task, data.labels, shape, counts, data.source, data.sha256, data.warnings, round(words, 1)
    )


class _FeatureCache:
    """Features of recently used splits, at most `limit` bytes of them."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self.kept: OrderedDict = OrderedDict()

    def get(self, key, make: Callable):
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


def site_features(config: str, card: DomainCard, site: str, split: str, tokenizer):
    """One split of a site as Features, tokenised once. `config`: the run's configuration as JSON text."""
    return _CACHE.get((config, card, site, split), lambda: _make(parse_config(config), card, site, split, tokenizer))


def _make(config: RunConfig, card: DomainCard, site: str, split: str, tokenizer):
    from fedfm.models.features import featurize

    data = load_site(config, card.domain, site)
    examples = data.splits()[split].relabel(_label_map(data, card.labels))
    return featurize(examples, tokenizer, config.local_for(card.domain).max_length)


def _label_map(data: Dataset, labels: tuple[str, ...]) -> np.ndarray:
    """The domain's number of each of the site's own labels (sites with sources of their own may lack some)."""
    return np.array([labels.index(label) for label in data.labels], np.int64)
