"""From the configuration to the data of a site, read once in a process."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

import numpy as np

from fedfm.config import DomainConfig, RunConfig
from fedfm.domains.draws import generator, limit
from fedfm.domains.examples import Dataset, Examples
from fedfm.domains.formats import read_source
from fedfm.domains.formats.hub import is_hub_id
from fedfm.domains.generated import generate_site
from fedfm.domains.partition import partition_dataset
from fedfm.errors import DataError
from fedfm.profiling import phase


@phase("load")
def load_site(config: RunConfig, domain: str, site: str, at_site: str = "") -> Dataset:
    """The data of one site of a domain.

    Generated, or a source of its own read whole, or its part of the domain's source. Relative sources are looked up
    under `data_root`. The labels of a cut source are those of the whole source, at every site. `at_site`: the absolute
    path of a real site's own source, or "generated"; what the configuration says of sources then counts nothing.
    Raises DataError when the source cannot be read or cut, or the domain has no such site.
    """
    settings = config.domains[domain]
    names = settings.site_names(domain)
    if site not in names:
        raise DataError(f'domain {domain} has no site "{site}"', mend=f"sites are {', '.join(names)}")
    own = at_site or next((table.source for table in settings.site if table.name == site), "")
    source = own or settings.source
    if source == "generated":
        return generate_site(config, domain, site)
    path = locate(source, config.data_root)
    if own:
        return _read_parts(path, settings, 1, config.seed, domain, len(names) > 1)[0]
    return _read_parts(path, settings, len(names), config.seed, domain)[names.index(site)]


def locate(source: str, data_root: str) -> Path:
    """`source` under `data_root`, or as it stands if it is absolute, or a hub id for which no file is there."""
    path = Path(data_root) / source
    return Path(source) if is_hub_id(source) and not path.exists() else path


@functools.lru_cache(maxsize=8)  # a source for each domain, but not one for each of hundreds of sites
def _read_parts(
    path: Path, settings: DomainConfig, num_sites: int, seed: int, domain: str, part: bool = False
) -> tuple[Dataset, ...]:
    """A source, limited to `max_examples` and cut; kept for the other sites that this process plays."""
    dataset = read_source(path, settings, seed, part)
    train = limit(dataset.train, settings.max_examples, generator(seed, "max-examples", domain))
    dataset = dataclasses.replace(dataset, train=train)
    if num_sites == 1:
        return (dataset,)
    return tuple(partition_dataset(dataset, num_sites, settings, generator(seed, "partition", domain)))


def forget_sources() -> None:
    """Read every source again when it is next asked for."""
    _read_parts.cache_clear()


def label_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Split -> label -> number of examples; for tags: entities of each type, and "sentences"."""
    if dataset.task == "token-classification":
        return {split: _entity_counts(examples, dataset.labels) for split, examples in dataset.splits().items()}
    counts = {}
    for split, examples in dataset.splits().items():
        numbers = np.bincount(np.asarray(examples.labels, np.int64), minlength=len(dataset.labels))
        counts[split] = dict(zip(dataset.labels, numbers.tolist(), strict=True))
    return counts


def _entity_counts(examples: Examples, labels: tuple[str, ...]) -> dict[str, int]:
    numbers = np.zeros(len(labels), np.int64)
    for tags in examples.labels:
        numbers += np.bincount(tags, minlength=len(labels))
    starts = {tag[2:]: int(number) for tag, number in zip(labels, numbers, strict=True) if tag.startswith("B-")}
    return {"sentences": len(examples), **starts}


def look(source: str) -> str:
    """A digest of names, sizes and times of change of the files of a source or a body, none of which is read."""
    root, digest = Path(source), hashlib.sha256()
    for file in sorted([root, *root.rglob("*")] if root.is_dir() else [root]):
        if file.is_file():
            stat = file.stat()
            digest.update(f"{file}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}\n".encode())
    return digest.hexdigest()
