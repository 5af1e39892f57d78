"""What a process does where the data of sites are pooled (the bounds `centralised` and `centralised-joint`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedfm.arrays import Arrays
from fedfm.federation.messages import Answer, Order
from fedfm.federation.site import Told, works_of
from fedfm.federation.site_data import parse_config
from fedfm.federation.workbench import Workbench, workbench


def train_pooled(order: Order, received: Mapping[str, np.ndarray]) -> Answer:
    """Training on the pooled data of the order's sites, each domain of `order.cards` a pool.

    The answer holds one change for all of them, float64 where they are several.
    """
    from fedfm.training.pool import Pool, fit_pools

    config, told = parse_config(order.config), Told(order)
    domains, pools, benches = config.sites(), [], []
    for card in order.cards:
        sites = tuple(sorted(site for site in order.sites if domains[site] == card.domain))
        own = replace(order, card=card, sites=sites, cards=(), rows=1, shares=_shares(order, sites), used=())
        bench = workbench(own)
        works = works_of(own, bench, told)
        if works:
            bench.load(own, received, [card.domain])
            benches.append(bench)
            pools.append(Pool(card.domain, works, bench.matrix, config.local_for(card.domain), shared_columns(bench)))
    starts = [bench.matrix.read(0) for bench in benches]
    for pool, loss in zip(pools, fit_pools(pools), strict=True):
        for work, steps in zip(pool.works, pool.steps(), strict=True):
            told.say(work.site, truncated=work.features.truncated, loss=loss, steps=float(steps))
            told.say(work.site, **{"num-examples": float(len(work.features))})
    wide = np.float64 if len(order.sites) > 1 else None
    return told.answer(_changes(order, benches, starts, wide))


def _changes(order: Order, benches: list[Workbench], starts: list[Arrays], dtype) -> Arrays:
    """Trained minus received of every tensor; of a shared one all pools hold the same."""
    found: Arrays = {}
    for bench, start in zip(benches, starts, strict=True):
        trained, names = bench.matrix.read(0), bench.sent_up(order.round)
        found |= {
            full: (trained[name] - start[name]).astype(dtype or start[name].dtype) for name, full in names.items()
        }
    return found


def shared_columns(bench: Workbench):
    """The columns of shared tensors, in order of their names."""
    import torch

    shared = sorted(name for name, full in bench.grouped.items() if full.startswith("shared/"))
    parts = [torch.arange(first, first + count) for first, count, _ in (bench.matrix.columns[name] for name in shared)]
    columns = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
    return columns.to(bench.matrix.theta.device)


def _shares(order: Order, sites: tuple[str, ...]) -> tuple[float, ...]:
    of = dict(zip(order.sites, order.shares, strict=False))
    return tuple(of.get(site, 1.0) for site in sites) if of else ()
