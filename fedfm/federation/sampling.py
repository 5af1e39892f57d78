"""Which sites take part in a round: by name, by seed, never by node id (those are new in every run)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedfm.config import SamplingConfig

NOTHING: Mapping[str, int] = {}


def sample_sites(
    sites: Mapping[str, str], settings: SamplingConfig, seed: int, round: int, needed: Mapping[str, int] = NOTHING
) -> list[str]:  # fmt: skip
    """Sorted names of the sites of a round. `sites`: name -> domain.

    Of each domain `fraction` of its sites, rounded to the nearest, at least `per_domain_minimum` and what the domain
    needs (as far as it has so many); at least one site altogether.
    """
    chosen: list[str] = []
    for domain in sorted(set(sites.values())):
        names = sorted(name for name, d in sites.items() if d == domain)
        least = min(max(settings.per_domain_minimum, needed.get(domain, 0)), len(names))
        count = max(int(settings.fraction * len(names) + 0.5), least)
        if count < len(names):  # to draw all of them would only order them
            draw = np.random.default_rng([seed, round, *f"sampling/{domain}".encode()])
            names = [names[i] for i in draw.choice(len(names), size=count, replace=False)]
        chosen += names
    if not chosen:
        names = sorted(sites)
        chosen = [names[np.random.default_rng([seed, round, *b"sampling"]).integers(len(names))]]
    return sorted(chosen)
