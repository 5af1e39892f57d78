"""Generated data: what a run trains on when nobody has given it a file.

Nothing here was photographed, written or measured by anybody, and every `Dataset` says so (`source = "generated"`).
A domain is drawn in two steps, as a federation meets it: one pool of recipes (which class, which kind of sentence) is
cut over the sites by the domain's partition, then each site renders its share in a *style* of its own (stain and noise;
house style and company names; people and places), so that sites differ in their labels and in their features.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from types import ModuleType

import numpy as np

from fedfm.config import DomainConfig, RunConfig
from fedfm.domains.examples import Dataset, Examples
from fedfm.domains.generated import entities, images, sentences

GENERATORS: dict[str, ModuleType] = {
    "image-classification": images,
    "text-classification": sentences,
    "token-classification": entities,
}
EXAMPLES_PER_SITE = {"train": 400, "validation": 60, "test": 80}


def generate_site(config: RunConfig, domain: str, site: str) -> Dataset:
    """What `site` of `domain` holds; the same for the same seed, domain and settings, in every process.

    The domain's training pool holds 240 examples for each of its sites (`max-examples` caps the pool) and is cut by
    `partition`; validation (60) and test (80 a site) keep the domain's own shares of classes at every site. Names come
    from Faker: another version of it may give other names, and with them another `sha256`.

    Raises ValueError if the domain has no such site, and what `fedfm.domains.partition` raises.
    """
    settings = config.domains[domain]
    return _generate(config.seed, domain, settings, settings.site_names(domain).index(site))


@lru_cache(maxsize=256)
def _generate(seed: int, domain: str, settings: DomainConfig, index: int) -> Dataset:
    generator = GENERATORS[settings.task]
    style = generator.draw_style(_random(seed, domain, "style", index))
    splits = {}
    for split, size in EXAMPLES_PER_SITE.items():
        if split == "train":
            recipes = _share_of_pool(generator.SHARES, settings, index, _random(seed, domain, "pool"))
        else:
            recipes = _pool(generator.SHARES, size, _random(seed, domain, "pool", split, index))
        splits[split] = generator.render(recipes, style, _random(seed, domain, split, index))
    return Dataset(settings.task, generator.LABELS, **splits, source="generated", sha256=_sha256(splits))


def _share_of_pool(
    shares: tuple[float, ...], settings: DomainConfig, index: int, rng: np.random.Generator
) -> np.ndarray:
    """The training recipes of site number `index`; every site draws the same pool and the same cut."""
    from fedfm.domains.partition import partition

    num_sites = len(settings.site) or settings.sites
    pool = _pool(shares, EXAMPLES_PER_SITE["train"] * num_sites, rng)
    if settings.max_examples:
        pool = pool[: settings.max_examples]
    return pool[partition(pool, num_sites, settings, rng)[index]]


def _pool(shares: tuple[float, ...], size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` recipes in the given shares, rounded rather than drawn: every class is there; in random order."""
    quantiles = (np.arange(size) + 0.5) / size
    return rng.permutation(np.searchsorted(np.cumsum(shares)[:-1], quantiles))


def _random(seed: int, *words: str | int) -> np.random.Generator:
    return np.random.default_rng([seed, *"/".join(map(str, words)).encode()])


def _sha256(splits: dict[str, Examples]) -> str:
    digest = hashlib.sha256()
    for split, examples in splits.items():
        digest.update(f"{split}|{len(examples)}|".encode())
        if isinstance(examples.inputs, np.ndarray):
            digest.update(examples.inputs.tobytes())
        else:
            digest.update(json.dumps(examples.inputs).encode())
        for labels in examples.labels:
            digest.update(np.asarray(labels, "<i8").tobytes() + b"|")
    return digest.hexdigest()
