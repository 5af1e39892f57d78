"""All data of all domains in one place, one body: what sharing a body between domains can give at best.

    in turn, each domain's steps evenly spread over the round:   (w, w_d) <- step on the pooled examples of domain d

The body's shared tensors w have one optimiser for all domains, each domain's own w_d one for itself. Every domain takes
the steps that its sites would take together. See `centralised` for what else holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedfm.errors import Problem
from fedfm.strategies.base import Summary
from fedfm.strategies.centralised import Centralised

if TYPE_CHECKING:
    from fedfm.config import RunConfig


@dataclass(frozen=True)
class CentralisedJoint(Centralised):
    """No federation: one body for all domains, trained on all data, the domains' steps in turn."""

    summary: ClassVar[Summary] = Summary("bounds", "", "all sites", "none", "1x")
    sets: ClassVar[Mapping[str, Any]] = {}
    pools: ClassVar[str] = "all"

    def problems(self, config: RunConfig) -> list[Problem]:
        kinds = {(own.optimizer, own.momentum) for own in map(config.local_for, config.domains)}
        if len(kinds) == 1:
            return super().problems(config)
        what = "the domains train one body with one optimiser, but theirs differ"
        return [Problem(what, "local.optimizer, local.momentum", "the same for all domains")]
