"""What the robust strategies share: every update is seen, and groups that are too small for a rule are told of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedfm.arrays import Arrays, add_scaled
from fedfm.strategies.base import Round, State, Strategy, Update, key
from fedfm.strategies.reducers import by_group, median

if TYPE_CHECKING:
    from fedfm.config import RunConfig


@dataclass(frozen=True)
class Robust(Strategy):
    """w + eta_s * reduce(updates), group by group; `reduce` is the strategy."""

    each: ClassVar[bool] = True

    def reduce(self, rows: np.ndarray) -> np.ndarray:
        """`[n, P]` to `[P]`."""
        raise NotImplementedError

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        return add_scaled(
            weights, by_group(sorted(updates, key=lambda update: update.site), self.reduce), self.server_learning_rate
        ), state


@dataclass(frozen=True)
class ByDistance(Robust):
    """Rules that need n >= a f + 3 updates to bear f = `byzantine` bad ones.

    In a smaller group the largest f that it allows is used, and the median of two or one: no rule can tell who of two
    is wrong.
    """

    needs: ClassVar[int] = 2  # a
    byzantine: int = key(1)

    def bearable(self, count: int) -> int:
        """f in a group of `count` updates; negative where the rule cannot be used."""
        return min(self.byzantine, (count - 3) // self.needs)

    def reduce(self, rows: np.ndarray) -> np.ndarray:
        bad = self.bearable(len(rows))
        return median(rows) if bad < 0 else self.reduce_with(rows, bad)

    def reduce_with(self, rows: np.ndarray, byzantine: int) -> np.ndarray:
        """`reduce` where the group is large enough for `byzantine`."""
        raise NotImplementedError

    def advice(self, config: RunConfig) -> list[str]:
        sizes = Counter(config.sites().values()) | {"shared": len(config.sites())}
        wanted = self.needs * self.byzantine + 3
        return [
            f"{config.strategy.name}: with {count} sites the {group} tensors bear {max(self.bearable(count), 0)} bad "
            f"updates, not {self.byzantine} (that needs {wanted} sites)"
            for group, count in sorted(sizes.items())
            if count < wanted
        ]
