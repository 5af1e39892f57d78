"""What a process has at hand to play a domain's sites: the model, its client matrix, and what each site keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.domains.card import DomainCard
from fedfm.errors import ModelError
from fedfm.federation.compression import keeps_error
from fedfm.federation.messages import MORE, Order, split_more
from fedfm.federation.site_data import parse_config
from fedfm.federation.site_store import read_private, save_private
from fedfm.profiling import phase
from fedfm.strategies import make_strategy

if TYPE_CHECKING:
    from torch import Tensor


ERROR = "error"  # what a site has not sent of its changes so far


class Workbench:
    """The model of a domain in this process, with its client matrix. `grouped`: name in the model -> in the message."""

    def __init__(self, config: RunConfig, card: DomainCard, rows: int, rank: int = 0):
        from fedfm.models.body import load_body
        from fedfm.models.devices import pick_device
        from fedfm.models.site_model import build_model, group_names
        from fedfm.training.matrix import ClientMatrix

        self.seed = config.seed
        self.strategy = make_strategy(config.strategy)
        self.keeps = (*self.strategy.keeps, *((ERROR,) if keeps_error(config.update) else ()))
        device = pick_device(config.engine.device)
        self.model = build_model(_with_rank(config, rank), card, device)
        self.matrix = ClientMatrix(self.model, rows)
        self.body = load_body(config, device)
        self.grouped = group_names(self.matrix.columns, config.sharing, card.domain)
        self._merged: Arrays = {}
        self._received: tuple[Arrays, Tensor | None] = ({}, None)
        self._sent_up: dict[int, dict[str, str]] = {}
        self.private = [name for name, full in self.grouped.items() if full.startswith("private/")]

    @cached_property
    def private_columns(self) -> Tensor | None:
        """True for the columns of the matrix that never leave a site `[P]`; None where there are none."""
        import torch

        if not self.private:
            return None
        table = torch.zeros_like(self.matrix.theta[0], dtype=torch.bool)
        for name in self.private:
            first, count, _ = self.matrix.columns[name]
            table[first : first + count] = True
        return table

    @cached_property
    def start(self) -> Arrays:
        """The start values: of what is private at a new site, and of what no round trains and so no message holds."""
        from fedfm.models.site_model import start_weights

        return start_weights(self.model, self.seed)

    def sent_up(self, round: int) -> dict[str, str]:
        """Name in the model -> in the message, of the tensors whose change leaves a site in this round."""
        if round not in self._sent_up:  # patterns of names, asked for at every site
            self._sent_up = {round: {
                name: full
                for name, full in self.grouped.items()
                if name not in self.private and self.strategy.shares(full, round)
            }}  # fmt: skip
        return self._sent_up[round]

    def norms(self, change: Tensor, round: int) -> list[float]:
        """The Euclidean norm, in float64, of what leaves each site of its `change [k, P]` in this round."""
        import torch

        from fedfm.models.devices import widest

        runs = self.matrix.runs(self.sent_up(round))
        if not runs:
            return [0.0] * len(change)
        parts = [torch.linalg.vector_norm(change[:, a:b], dim=1, dtype=widest(change.device)) for a, b, _ in runs]
        return (parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts), dim=0)).tolist()

    @phase("move")
    def load(self, order: Order, received: Mapping[str, np.ndarray], sites: Sequence[str]) -> None:
        """Put what was received, and what each site keeps of the model, into the first rows."""
        own = {name: received[full] for name, full in self.grouped.items() if full in received}
        missing = {name: self.start[name] for name in self.grouped.keys() - own.keys()}
        self._start_from(own | missing, len(sites))
        self._merge({name: value for name, value in received.items() if name.startswith("merged/")})
        if order.split and order.model == "global":  # private parts as a new site has them
            return
        for row, site in enumerate(sites if self.private else ()):
            stored = self._read(order, site)
            self.matrix.load(row, {name: stored[name] for name in self.private if name in stored})

    def _start_from(self, values: Arrays, rows: int) -> None:
        """The same values in the first rows. In one process the sites of a round are sent the same arrays, which are
        put in order once."""
        before, row = self._received
        if row is None or before.keys() != values.keys() or any(before[n] is not v for n, v in values.items()):
            self.matrix.load(0, values)
            row = self.matrix.theta[0].clone()
            self._received = values, row
        self.matrix.theta[:rows] = row

    def _merge(self, products: Arrays) -> None:
        """Only where they have changed: a round sends the same to every pack."""
        same = products.keys() == self._merged.keys()
        if not same or any(not np.array_equal(value, self._merged[name]) for name, value in products.items()):
            self.model.merge(products)
            self._merged = {name: value.copy() for name, value in products.items()}

    def kept(self, order: Order, sites: Sequence[str]) -> dict[str, Tensor]:
        """What the strategy's site half kept of each site, `[k, P]`; of a new site zeros, or the weights loaded."""
        import torch

        from fedfm.training.local_round import MODELS

        theta, kept = self.matrix.theta[: len(sites)], {}
        for name in self.keeps:
            kept[name] = theta.clone() if name in MODELS else torch.zeros_like(theta)
        for row, site in enumerate(sites if self.keeps else ()):
            stored = self._read(order, site)
            for name in self.keeps:
                if (full := f"{name}{MORE}") in stored:
                    kept[name][row] = torch.from_numpy(stored[full]).to(theta)
        return kept

    def sent_along(self, received: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """What the server sent beside the weights, each as one row `[P]`."""
        if not self.strategy.sends:
            return {}
        names = {full: name for name, full in self.grouped.items()}
        _, more = split_more(received)
        arrays = {what: {names[full]: value for full, value in inner.items()} for what, inner in more.items()}
        return {what: self.matrix.flatten(arrays.get(what, {})) for what in self.strategy.sends}

    def keep(
        self, order: Order, rows: Mapping[str, int], kept: Mapping[str, Tensor], theta: Tensor | None = None
    ) -> None:
        """Save what sites keep whose updates are used; a site must not keep half of a round left out.

        theta: the rows as trained `[k, P]`, which are wanted where parts of them are private.
        """
        for site, row in rows.items() if self.private or kept else ():
            trained = self.matrix.unflatten(theta[row].cpu().numpy()) if self.private else {}
            tensors = {name: trained[name] for name in self.private}
            tensors |= {f"{name}{MORE}": value[row].cpu().numpy() for name, value in kept.items()}
            save_private(_store(order), site, order.round, tensors)

    def _read(self, order: Order, site: str) -> Arrays:
        last = order.round if order.split else order.round - 1
        used = dict(zip(order.sites, order.used, strict=False)).get(site, last)
        return read_private(_store(order), site, last, used) or {}


def _with_rank(config: RunConfig, rank: int) -> RunConfig:
    """With a LoRA of `rank` (0: as it is) at the same scale alpha / r, so that products B A mean the same."""
    body = config.body
    if rank in (0, body.lora_rank):
        return config
    alpha = body.lora_alpha * rank / body.lora_rank
    return config.model_copy(update={"body": body.model_copy(update={"lora_rank": rank, "lora_alpha": alpha})})


def _store(order: Order) -> Path:
    return Path(order.folder) / "checkpoint" / "sites"


def workbench(order: Order) -> Workbench:
    """The workbench for an order; its model is built once in a process. Raises ModelError."""
    import torch

    from fedfm.models.devices import set_products

    # The default, all cores, is slow where cores are shared. Set for every piece of work: sums depend on it, and
    # another run in this process may have set another number.
    engine = parse_config(order.config).engine
    torch.set_num_threads(engine.threads)
    set_products(engine.dtype)
    bench = _cached_workbench(order.config, order.card, order.rows, order.rank)
    if order.body not in ("", bench.body.sha256):  # whose digest was made when it was loaded
        _refuse_body(order, bench.body.sha256)
    return bench


def _refuse_body(order: Order, sha256: str) -> None:
    """The changes of weights that sit on other frozen ones must not be averaged. Raises ModelError."""
    from fedfm.models.body import may_differ

    config = parse_config(order.config)
    if may_differ(config):
        whose = f'{"site" if len(order.sites) == 1 else "sites"} "{", ".join(order.sites)}"'
        said = f"sha256 {sha256[:12]}..., the coordinator's {order.body[:12]}..."
        what = f'the body "{config.body.name}" of {whose} has other weights than the coordinator\'s ({said})'
        raise ModelError(what, where="body.name", mend="give the site the coordinator's files of the body")


def forget_workbenches() -> None:
    """Start a run without what an earlier one in this process has built: the files of its body may have changed."""
    _cached_workbench.cache_clear()


@lru_cache(maxsize=8)
def _cached_workbench(config: str, card: DomainCard, rows: int, rank: int) -> Workbench:
    return Workbench(parse_config(config), card, rows, rank)
