"""The weights `w_d` between domains, as a policy: `[strategy] domain-weights = "..."` of strategies over FedAvg's mean.

    given           those of the configuration (domains.X.weight)
    uniform         1
    size            examples of the domain's sites in the round
    sqrt-size       their square root
    loss-adaptive   exp((L_d^{t-1} / L_d^{t-2}) / T) with T = 1: domains whose loss falls slowly count more (dynamic
                    weight average, Liu, Johns, Davison, CVPR 2019, https://arxiv.org/abs/1803.10704)
    uncertainty     exp(-s_d), s_d moved by gradient steps on exp(-s_d) L_d + s_d (Kendall, Gal, Cipolla, CVPR 2018,
                    https://arxiv.org/abs/1705.07115), here at the server, once a round, at rate 0.5

L_d is the domain's mean training loss in a round, divided by its first: unlike tasks have losses of unlike scale. All
but `uniform` multiply the configuration's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import exp, sqrt

from fedfm.strategies.base import State, Update


class Losses:
    """Examples and mean training loss of each domain, of updates that stream by."""

    def __init__(self) -> None:
        self.examples: dict[str, int] = {}
        self._sums: dict[str, float] = {}

    def watch(self, updates: Iterable[Update]) -> Iterator[Update]:
        """The updates, unchanged."""
        for update in updates:
            self.examples[update.domain] = self.examples.get(update.domain, 0) + update.num_examples
            loss = update.num_examples * update.metrics.get("loss", 0.0)
            self._sums[update.domain] = self._sums.get(update.domain, 0.0) + loss
            yield update

    def means(self) -> dict[str, float]:
        """Domain -> mean loss by examples."""
        return {domain: total / max(self.examples[domain], 1) for domain, total in self._sums.items()}


POLICIES = ("given", "uniform", "size", "sqrt-size", "loss-adaptive", "uncertainty")
RATE = 0.5


def weigh(
    policy: str, given: Mapping[str, float], examples: Mapping[str, int], losses: Mapping[str, float], state: State
) -> tuple[dict[str, float], State]:
    """Domain -> w_d for the domains in `examples`, and the policy's new state (empty for those without one)."""
    own = {domain: given.get(domain, 1.0) for domain in examples}
    if policy == "uniform":
        return dict.fromkeys(examples, 1.0), {}
    if policy in ("size", "sqrt-size"):
        return {d: w * (sqrt(examples[d]) if policy == "sqrt-size" else examples[d]) for d, w in own.items()}, {}
    if policy == "given":
        return own, {}
    first = {**{d: max(loss, 1e-12) for d, loss in losses.items()}, **state.get("first", {})}
    relative = {d: loss / first[d] for d, loss in losses.items()}
    if policy == "loss-adaptive":
        before = state.get("last", {})
        ratios = {d: relative[d] / max(before[d], 1e-12) if d in before else 1.0 for d in relative}
        return {d: w * exp(min(ratios[d], 50.0)) for d, w in own.items()}, {
            "first": first,
            "last": {**before, **relative},
        }
    logs = dict(state.get("logs", {}))
    for domain, loss in relative.items():
        s = logs.get(domain, 0.0)
        logs[domain] = min(max(s - RATE * (1 - exp(-s) * loss), -5.0), 5.0)
    return {d: w * exp(-logs[d]) for d, w in own.items()}, {"first": first, "logs": logs}
