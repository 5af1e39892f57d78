"""Generated data: what a run trains on when nobody has given it a file.

Nothing here was photographed, written or measured by anybody, and every `Dataset` says so (`source = "generated"`).
A domain is drawn in two steps, as a federation meets it: one pool of recipes (which class, which kind of sentence) is
cut over the sites by the domain's partition, then each site renders its share in a *style* of its own (stain and noise;
house style and company names; people and places), so that sites differ in their labels and in their features.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from types import ModuleType

import numpy as np

from fedfm.config import DomainConfig, RunConfig
from fedfm.domains import draws
from fedfm.domains.examples import Dataset, Examples
from fedfm.domains.generated import entities, images, sentences
from fedfm.domains.partition import partition_dataset

# Each has LABELS, SHARES (of the recipes in a domain), draw_style(rng) and render(recipes, style, rng).
GENERATORS: dict[str, ModuleType] = {
    "image-classification": images,
    "text-classification": sentences,
    "token-classification": entities,
}
EXAMPLES_PER_SITE = {"train": 400, "validation": 60, "test": 80}


def generate_site(config: RunConfig, domain: str, site: str) -> Dataset:
    """What `site` of `domain` holds; the same for the same seed, domain and settings, in every process.

    A domain holds 400 training, 60 validation and 80 test examples for each of its sites, cut by its `partition` as a
    source that is read would be; `max-examples` caps the training pool of the domain. Names come from Faker: another
    version of it may give other names, and with them another `sha256`.

    Raises ValueError if the domain has no such site, DataError when there are too few examples for its sites.
    """
    settings = config.domains[domain]
    return _generate(config.seed, domain, settings, settings.site_names(domain).index(site))


@functools.lru_cache(maxsize=8)  # a process may play hundreds of sites, one after the other
def _generate(seed: int, domain: str, settings: DomainConfig, index: int) -> Dataset:
    maker = GENERATORS[settings.task]
    part = _cut(seed, domain, settings)[index]
    key = ("generated", domain, str(index))
    style = maker.draw_style(draws.generator(seed, *key, "style"))
    splits = {
        split: maker.render(recipes.labels, style, draws.generator(seed, *key, split))
        for split, recipes in part.splits().items()
    }
    return dataclasses.replace(part, **splits, sha256=_sha256(splits))


@functools.lru_cache(maxsize=32)
def _cut(seed: int, domain: str, settings: DomainConfig) -> list[Dataset]:
    """The recipes of each site: datasets whose inputs and labels are recipes (int64 [N]), not yet examples."""
    maker, num_sites = GENERATORS[settings.task], len(settings.site_names(domain))
    rng = draws.generator(seed, "generated", domain, "recipes")
    pools = {}
    for split, size in EXAMPLES_PER_SITE.items():
        sizes = draws.apportion(np.array(maker.SHARES), size * num_sites, rng)
        recipes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        pools[split] = Examples(settings.task, recipes, recipes)
    pools["train"] = draws.limit(pools["train"], settings.max_examples, rng)
    domain_pool = Dataset(settings.task, maker.LABELS, **pools, source="generated", sha256="")
    return partition_dataset(domain_pool, num_sites, settings, rng)


def _sha256(splits: dict[str, Examples]) -> str:
    """Digest of inputs and labels, split by split."""
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
