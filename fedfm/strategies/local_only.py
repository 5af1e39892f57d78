"""Every site for itself: the bound from below that a federation has to beat.

    site k:   w_k <- local steps on F_k from its own w_k;   nothing leaves it

Each site begins with the same weights as in a federation and takes the same steps on the same batches. Its scores are
those of the sites' own models (`personal`), each on its own site's examples; the "global" model is the untrained start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedfm.strategies.base import Summary
from fedfm.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class LocalOnly(FedAvg):
    """No federation: each site trains alone."""

    summary: ClassVar[Summary] = Summary("bounds", "", "nobody", "site", "1x")
    sets: ClassVar[Mapping[str, Any]] = {"sharing": {"*": "private"}}
