"""From the trained rows of a pack to what its answer carries: one site's change, the mean of many, or each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedfm.arrays import Arrays
from fedfm.federation.compression import ENCODED
from fedfm.federation.messages import Order, join_more
from fedfm.federation.screening import reason_to_leave_out
from fedfm.profiling import phase

if TYPE_CHECKING:
    from torch import Tensor

    from fedfm.training.matrix import ClientMatrix


class Reduction:
    """Collects the changes of a pack's sites, in the order of the pack.

    An order that asks for a mean gets `sum_k n_k delta_k / sum_k n_k` in float64, of a pack of one the change itself;
    the server weights a mean by `sum_k n_k`, so that packs change nothing but the last digits. Unusable rows must stay
    out of a mean: they are screened here, as the server screens the update of a single site.
    """

    def __init__(self, order: Order, matrix: ClientMatrix, names: Mapping[str, str], max_norm: float):
        self.matrix, self.names, self.max_norm = matrix, names, max_norm  # names: in the model -> in the message
        self.is_mean = not order.each and len(order.sites) > 1
        self.stacks = order.each
        self.is_alone = len(order.sites) == 1 and not order.each
        self.left_out: dict[str, str] = {}
        self._changes: list[Arrays] = []
        self._sum: np.ndarray | None = None
        self._examples = 0

    @phase("move")
    def add(
        self, sites: Sequence[tuple[str, int, float, float]], leaves: Mapping[str, Tensor],
        encoded: Sequence[Arrays] = (),
    ) -> dict[str, int]:  # fmt: skip
        """Take in what leaves the first rows of the matrix, for each (site, examples, loss, norm of its change).

        `leaves`: "delta" `[k, P]`, and what else the strategy returns, which goes up where every site's own is wanted.
        `encoded`: the changes in the form in which a site that is alone in its order sends them.
        Returns site -> row of those whose round counts, so that they may keep what is private.
        """
        change = leaves["delta"]
        unfit = self._unfit(sites, change)
        kept = {site: row for row, (site, *_) in enumerate(sites) if row not in unfit}
        if not self.is_mean:  # the server will say the same of those that are unfit
            more = {what: rows.cpu().numpy() for what, rows in leaves.items() if what != "delta"}
            for row, vector in enumerate(change.cpu().numpy()):
                beside = {what: self._arrays(rows[row]) for what, rows in more.items()}
                if encoded and self.is_alone:
                    self._changes.append(join_more({}, {ENCODED: encoded[row], **beside}))
                else:
                    self._changes.append(join_more(self._arrays(vector), beside))
            return kept
        self.left_out |= {sites[row][0]: reason for row, reason in unfit.items()}
        used = list(kept.values())
        self._add_to_mean(change[used], [sites[row][1] for row in used])
        return kept

    def _unfit(self, sites: Sequence[tuple[str, int, float, float]], change: Tensor) -> dict[int, str]:
        """Row -> why its change must not be used. A change is looked at where its norm is not that of finite values."""
        found = {}
        for row, (_, examples, loss, norm) in enumerate(sites):
            if self.max_norm or not math.isfinite(norm) or not math.isfinite(loss):
                arrays = self._arrays(change[row].cpu().numpy())
                if reason := reason_to_leave_out(arrays, arrays, examples, loss, self.max_norm):
                    found[row] = reason
        return found

    def _add_to_mean(self, change: Tensor, examples: list[int]) -> None:
        wide = (change.cpu() if change.device.type == "mps" else change).double()  # Apple's GPUs know no float64
        part = (wide.new_tensor(examples) @ wide).cpu().numpy()
        self._sum = part if self._sum is None else self._sum + part
        self._examples += sum(examples)

    def _arrays(self, row: np.ndarray) -> Arrays:
        values = self.matrix.unflatten(row)
        return {full: values[name] for name, full in self.names.items()}

    def arrays(self) -> Arrays:
        """What the answer carries; nothing where no site's change can be used."""
        if self._examples:
            return self._arrays(self._sum / self._examples)
        if self.stacks and self._changes:
            return {full: np.stack([change[full] for change in self._changes]) for full in self._changes[0]}
        return self._changes[0] if self._changes else {}
