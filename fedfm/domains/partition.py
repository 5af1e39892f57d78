"""How one source is cut into sites: `iid`, `dirichlet`, `pathological`, `quantity`.

Each rule is a matrix P [classes, sites], drawn once: row c says which share of class c each site gets. All three splits
are dealt by the same P, so that a site is validated and tested on the mix of classes that it trains on. `iid` and
`quantity` do not look at classes: their P has one row, for all examples together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from fedfm.config import DomainConfig
from fedfm.domains.draws import apportion, strata
from fedfm.domains.examples import Dataset
from fedfm.errors import DataError

MOST_REDRAWS = 100
Shares = Callable[[np.ndarray, int, int, DomainConfig, np.random.Generator], np.ndarray]


def partition_dataset(
    dataset: Dataset, num_sites: int, settings: DomainConfig, rng: np.random.Generator
) -> list[Dataset]:
    """One dataset for each site, each example of each split in exactly one of them.

    Every site gets `minimum_per_site` training examples, and one of validation and test where there are enough for all.
    Raises DataError when the training examples do not suffice.
    """
    classes = {split: strata(examples.labels) for split, examples in dataset.splits().items()}
    num_classes = 1 + max(int(found.max(initial=0)) for found in classes.values())
    classes = {split: _as_the_rule_sees(found, settings) for split, found in classes.items()}
    shares, train = _draw(classes["train"], num_classes, num_sites, settings, rng, dataset.source)
    parts = {"train": _indices(train, num_sites)}
    for split in ("validation", "test"):
        owners = _deal(classes[split], shares, rng)
        minimum = 1 if len(owners) >= num_sites else 0
        parts[split] = _indices(_fill(owners, classes[split], shares, minimum, rng), num_sites)
    sites = []
    for site in range(num_sites):
        cut = {split: examples.take(parts[split][site]) for split, examples in dataset.splits().items()}
        empty = [f"no {split} example falls to this site" for split in cut if not len(cut[split])]
        sites.append(dataclasses.replace(dataset, **cut, warnings=(*dataset.warnings, *empty)))
    return sites


def partition(
    labels: Sequence, num_sites: int, settings: DomainConfig, rng: np.random.Generator, source: str = "the source"
) -> list[np.ndarray]:
    """Indices (int64, sorted) of each site's examples, by the rule of `settings`.

    `labels` are class numbers, or a tag array for each sentence, whose class is its most frequent entity type. Every
    index is at exactly one site, `minimum_per_site` at least at each. Raises DataError when there are too few.
    """
    classes = strata(labels if isinstance(labels, np.ndarray) else _as_labels(labels))
    num_classes = 1 + int(classes.max(initial=0))
    _, owners = _draw(_as_the_rule_sees(classes, settings), num_classes, num_sites, settings, rng, source)
    return _indices(owners, num_sites)


def _as_labels(labels: Sequence) -> np.ndarray | Sequence[np.ndarray]:
    return np.asarray(labels, np.int64) if all(np.ndim(label) == 0 for label in labels) else labels


def _as_the_rule_sees(classes: np.ndarray, settings: DomainConfig) -> np.ndarray:
    return classes if settings.partition in ("dirichlet", "pathological") else np.zeros_like(classes)


def _draw(
    classes: np.ndarray,
    num_classes: int,
    num_sites: int,
    settings: DomainConfig,
    rng: np.random.Generator,
    source: str,
) -> tuple[np.ndarray, np.ndarray]:
    """P and the owner of each training example; drawn again while a site falls short, in the end filled up."""
    minimum = settings.minimum_per_site
    if len(classes) < num_sites * minimum:
        what = f"{len(classes)} training examples cannot give {num_sites} sites {minimum} each"
        raise DataError(what, where=source, mend="lower sites or minimum-per-site, or bring more examples")
    draw_shares = SHARES[settings.partition]
    for _ in range(MOST_REDRAWS):
        shares = draw_shares(classes, num_classes, num_sites, settings, rng)
        owners = _deal(classes, shares, rng)
        if np.bincount(owners, minlength=num_sites).min() >= minimum:
            break
    return shares, _fill(owners, classes, shares, minimum, rng)


def _iid(classes, num_classes, num_sites, settings, rng) -> np.ndarray:
    """Equal sizes, members by lot."""
    return np.full((1, num_sites), 1 / num_sites)


def _dirichlet(classes, num_classes, num_sites, settings, rng) -> np.ndarray:
    """Row c ~ Dirichlet(alpha, ..., alpha): Hsu, Qi, Brown 2019, https://arxiv.org/abs/1909.06335, with the roles of
    classes and sites as in Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022."""
    return rng.dirichlet(np.full(num_sites, settings.alpha), size=num_classes)


def _pathological(classes, num_classes, num_sites, settings, rng) -> np.ndarray:
    """`classes_per_site` classes at each site, a class in equal parts at its sites: McMahan et al. 2017,
    https://arxiv.org/abs/1602.05629. Classes are dealt evenly: no class has two sites more than another."""
    found = np.unique(classes)
    each = min(settings.classes_per_site, len(found))
    if num_sites * each < len(found):
        what = f"{num_sites} sites with {each} classes each cannot hold all {len(found)} classes"
        mend = f"set classes-per-site = {-(-len(found) // num_sites)} or more, or have more sites"
        raise DataError(what, where=f"partition of {len(classes)} training examples", mend=mend)
    holds = np.zeros((len(found), num_sites))
    for site in rng.permutation(num_sites):
        lot = rng.permutation(len(found))
        rarest = lot[np.argsort(holds.sum(1)[lot], kind="stable")][:each]
        holds[rarest, site] = 1
    shares = np.full((num_classes, num_sites), 1 / num_sites)
    shares[found] = holds / holds.sum(1, keepdims=True)
    return shares


def _quantity(classes, num_classes, num_sites, settings, rng) -> np.ndarray:
    """Log-normal sizes: their logarithms have standard deviation `sigma`."""
    logs = settings.sigma * rng.standard_normal(num_sites)
    sizes = np.exp(logs - logs.max())  # the largest is 1: no overflow however large sigma is
    return (sizes / sizes.sum())[None, :]


SHARES: dict[str, Shares] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "pathological": _pathological,
    "quantity": _quantity,
}


def _deal(classes: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Owner of each example (int64 [N]): class c in whole numbers proportional to `shares[c]`, members by lot."""
    owners = np.empty(len(classes), np.int64)
    for name in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == name))
        sizes = apportion(shares[name], len(members), rng)
        owners[members] = np.repeat(np.arange(shares.shape[1]), sizes)
    return owners


def _fill(
    owners: np.ndarray, classes: np.ndarray, shares: np.ndarray, minimum: int, rng: np.random.Generator
) -> np.ndarray:
    """Give every site `minimum` examples: one at a time from the largest site that can spare one.

    An example whose class the receiver has a share of is preferred, so that few sites see a class that is not theirs.
    """
    owners, num_sites = owners.copy(), shares.shape[1]
    while (sizes := np.bincount(owners, minlength=num_sites)).min() < minimum:
        receiver = int(sizes.argmin())
        spare = np.flatnonzero(sizes[owners] > minimum)
        fitting = spare[shares[classes[spare], receiver] > 0]
        pool = fitting if fitting.size else spare
        pool = pool[sizes[owners[pool]] == sizes[owners[pool]].max()]
        owners[rng.choice(pool)] = receiver
    return owners


def _indices(owners: np.ndarray, num_sites: int) -> list[np.ndarray]:
    return [np.flatnonzero(owners == site) for site in range(num_sites)]
