"""The data of a node's sites: who they are, what they hold, and their features, made once and kept in bounds."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Context

from fedfm import __version__
from fedfm.config import RunConfig, Task, load_config
from fedfm.domains import Dataset, forget_sources, label_counts, load_site
from fedfm.errors import ConfigError
from fedfm.federation.messages import Order, SiteCard
from fedfm.profiling import phase

if TYPE_CHECKING:  # torch takes seconds to import, and a site that only tells its card needs none
    from fedfm.models.body import Body
    from fedfm.models.features import Features
    from fedfm.models.site_model import SiteModel

MIB = 2**20
CACHE_BYTES = 16 * MIB  # features of recently used sites; the rest waits on disk


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


@phase("load")
def site_card(config: RunConfig, domain: str, site: str, source: str = "") -> SiteCard:
    """Read and check the site's data and describe them; `source` as in `load_site`. Raises DataError."""
    data = load_site(config, domain, site, source)
    shape, words = None, np.zeros(1)
    if data.task == "image-classification":
        _, height, width, channels = data.train.inputs.shape
        shape = (channels, height, width)
    elif len(data.train):
        split = data.task == "token-classification"
        words = np.array([len(text if split else text.split()) for text in data.train.inputs])
    counts = label_counts(data)
    return SiteCard(
        site, domain, data.task, data.labels, shape, counts, data.source, data.sha256, data.warnings,
        round(float(words.mean()), 1), round(float(words.std()), 1), __version__,
    )  # fmt: skip


class _FeatureCache:
    """Features of recently used splits, at most `limit` bytes of them in memory; what must go is written to its file.

    `on_disk`: the bytes of each file of frozen layers' activations that was used.
    """

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self.on_disk: dict[Path, int] = {}
        self.kept: OrderedDict[Hashable, tuple[Features, int, Path | None]] = OrderedDict()

    def get(
        self, key: Hashable, find_file: Callable[[], Path | None], task: Task, make: Callable[[], Features]
    ) -> Features:
        """`find_file`: where they may be written to; None keeps them in memory only."""
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key][0]
        from fedfm.models.feature_files import load_features, save_features

        file = find_file()
        value = load_features(file, task) if file is not None and file.exists() else make()
        size = num_bytes_of(value)
        self.kept[key] = value, size, file
        self.used += size
        while self.used > self.limit:
            old, size, place = self.kept.popitem(last=False)[1]
            self.used -= size
            if place is not None and not place.exists():
                with suppress(OSError):  # a full disk: it can be made again
                    save_features(place, old)
        return value

    def clear(self) -> None:
        self.kept.clear()
        self.on_disk.clear()
        self.used = 0


def num_bytes_of(features: Features) -> int:
    """Memory that features hold, what is mapped from a file apart."""
    parts = (features.inputs, features.labels, features.word_labels, features.word_starts)
    return sum(part.values.nbytes if hasattr(part, "values") else part.nbytes for part in parts if part is not None)


_CACHE = _FeatureCache(CACHE_BYTES)


def forget_data() -> None:
    """Start a run without what an earlier one in this process has read: its files may have changed since."""
    forget_sources()
    _CACHE.clear()


def site_features(order: Order, site: str, split: str, model: SiteModel, body: Body) -> Features:
    """One split of a site as Features, tokenised once in a run, with what frozen layers make of it.

    Raises DataError.
    """
    from fedfm.models.frozen import cache_key, freeze, frozen_below

    def find_file() -> Path | None:
        place = _cache_folder(order)
        return place and place / f"{site}-{split}.npz"

    config, domain = parse_config(order.config), order.card.domain
    key = order.folder, order.config, order.card, site, split
    features = _CACHE.get(key, find_file, order.card.task, lambda: _make(config, order, site, split, body.tokenizer))
    kind = frozen_below(model)
    if not kind:
        return features
    place = _cache_folder(order)
    if not place or not config.engine.feature_cache:
        return freeze(model, features)
    max_length = config.local_for(domain).max_length
    name = cache_key(body, config.body, kind, model.cut, max_length, config.engine.dtype)
    file = place / f"{site}-{split}-{name}.npy"
    limit = config.engine.feature_cache * MIB // config.engine.workers
    frozen = freeze(model, features, file, limit - sum(_CACHE.on_disk.values()))
    if file.exists():
        _CACHE.on_disk[file] = file.stat().st_size
    return frozen


def _cache_folder(order: Order) -> Path | None:
    """Where a run that has a folder on this machine keeps what can be made again."""
    is_here = order.folder and Path(order.folder).is_dir()
    return Path(order.folder) / "cache" / order.card.domain if is_here else None


def _make(config: RunConfig, order: Order, site: str, split: str, tokenizer) -> Features:
    from fedfm.models.features import featurize

    card = order.card
    data = load_site(config, card.domain, site, order.source)
    examples = data.splits()[split].relabel(_label_map(data, card.labels))
    return featurize(examples, tokenizer, config.local_for(card.domain).max_length)


def _label_map(data: Dataset, labels: tuple[str, ...]) -> np.ndarray:
    """The domain's number of each of the site's own labels (sites with sources of their own may lack some)."""
    return np.array([labels.index(label) for label in data.labels], np.int64)
