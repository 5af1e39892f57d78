"""Quick sites that train one at a time share orders: a message costs what the training of a small site costs.

The answer to such an order holds every site's own update, in the order in which they would come alone, so that no
number changes: who shares an order may hang on time and chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedfm.config import RunConfig
from fedfm.federation.door import Roll
from fedfm.federation.packing import Kind, Pack, needs

SECONDS_OF_AN_ORDER = 0.1  # often enough for whoever watches
ORDERS_OF_A_WORKER = 4  # at least, of a round: with fewer one worker waits for another
BYTES_OF_AN_ORDER = 2**24  # of the updates, which come back together


class QuickSites:
    """Learns how long the sites of a run train, and joins their orders."""

    def __init__(self, config: RunConfig):
        self._workers = config.engine.workers if config.engine.name == "ray" else 0
        self._seconds: dict[str, float] = {}

    def learn(self, pack: Pack, seconds: Sequence[float]) -> None:
        """Take in what the last training of each site has taken."""
        self._seconds |= zip(pack, seconds, strict=True)

    def join(
        self, packs: Sequence[Pack], roll: Roll, kind: Kind, num_bytes: Callable[[str], int]
    ) -> list[Pack]:  # fmt: skip
        """The packs of a round, neighbours among those of one joined where all of them are quick.

        num_bytes: of what a site sends. A site that has not trained yet is alone.
        """
        longest = self._longest(packs)
        orders: list[Pack] = []
        filled, last = math.inf, None
        for pack in packs:
            part = self._share(pack, longest, num_bytes)
            wanted = needs(pack[0], roll, kind)
            if filled + part <= 1 and wanted == last:
                orders[-1] += pack
                filled += part
            else:
                orders.append(pack)
                filled, last = part, wanted
        return orders

    def _longest(self, packs: Sequence[Pack]) -> float:
        """Seconds that an order may take."""
        if not self._workers:
            return SECONDS_OF_AN_ORDER
        known = sum(self._seconds.get(pack[0], 0.0) for pack in packs if len(pack) == 1)
        return min(SECONDS_OF_AN_ORDER, known / (ORDERS_OF_A_WORKER * self._workers))

    def _share(self, pack: Pack, longest: float, num_bytes: Callable[[str], int]) -> float:
        """The part of an order that a pack fills; more than all of it where it is to be alone."""
        seconds = self._seconds.get(pack[0], math.nan) if len(pack) == 1 else math.nan
        if not seconds <= longest:
            return math.inf
        return max(seconds / longest if seconds else 0.0, num_bytes(pack[0]) / BYTES_OF_AN_ORDER)
