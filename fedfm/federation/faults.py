"""What goes wrong in a simulated round, and how long it takes: drawn by seed, round and site, whatever the strategy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np

from fedfm.config import RunConfig
from fedfm.config.simulation import SimulationConfig
from fedfm.strategies import Strategy, Update

MEGABYTE = 1e6


@dataclass(frozen=True)
class Faults:
    """Of one round. `gone`: site -> why its update never comes. `shares`: site -> the part of its steps it gets to."""

    gone: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)


def present(sites: Mapping[str, str], settings: SimulationConfig, round: int) -> dict[str, str]:
    """The sites (name -> domain) that have joined and not left."""
    return {
        site: domain
        for site, domain in sites.items()
        if settings.joins.get(site, 0) <= round < settings.leaves.get(site, round + 1)
    }


def draw_faults(asked: Sequence[str], config: RunConfig, strategy: Strategy, round: int) -> Faults:
    """Who drops out, and who gets to a part of the work only.

    A straggler's share is uniform between 0 and 1 (Li et al. 2020 draw whole epochs; with one epoch there is none to
    draw). The draws depend on nothing but seed, round and site, so that every strategy meets the same stragglers.
    """
    settings = config.simulation
    gone, shares = {}, {}
    keep = strategy.keeps_partial if settings.partial_work == "strategy" else settings.partial_work == "keep"
    if settings.stragglers:
        draw = np.random.default_rng([config.seed, round, *b"stragglers"])
        count = int(settings.stragglers * len(asked) + 0.5)
        for i in draw.choice(len(asked), size=count, replace=False):
            shares[asked[i]] = float(_keyed(config.seed, "share", round, asked[i]).uniform())
    for site in asked:
        if settings.drop_out and _keyed(config.seed, "drop-out", round, site).uniform() < settings.drop_out:
            gone[site] = "it dropped out (simulation)"
        elif site in shares and not keep:
            gone[site] = "it did not finish its work in time (simulation)"
    return Faults(gone, {site: share for site, share in shares.items() if site not in gone})


def virtual_seconds(site: str, config: RunConfig, steps: float, bytes_down: int, bytes_up: int) -> float:
    """Virtual time from the order to the answer of a site."""
    settings = config.simulation
    speed = settings.speeds.get(site) or _log_normal(config, "speed", site)
    seconds = 2 * settings.latency + steps * settings.seconds_per_step / speed
    bandwidth = settings.bandwidths.get(site) or settings.bandwidth * _log_normal(config, "bandwidth", site)
    return seconds + ((bytes_down + bytes_up) / MEGABYTE / bandwidth if bandwidth else 0.0)


def attackers(config: RunConfig) -> frozenset[str]:
    """The sites that attack, the same ones in every round."""
    if not config.simulation.attackers:
        return frozenset()
    names = sorted(config.sites())
    draw = np.random.default_rng([config.seed, *b"attackers"])
    return frozenset(names[i] for i in draw.choice(len(names), size=config.simulation.attackers, replace=False))


def attacked(change: np.ndarray, config: RunConfig, round: int, site: str) -> np.ndarray:
    """What an attacker sends in place of its change `[P]`."""
    settings = config.simulation
    if settings.attack == "nan":
        return np.full_like(change, np.nan)
    if settings.attack == "sign-flip":
        return -settings.attack_scale * change
    if settings.attack == "scale":
        return settings.attack_scale * change
    if settings.attack == "gaussian":
        deviation = settings.attack_scale * float(np.sqrt(np.mean(np.square(change, dtype=np.float64))))
        noise = _keyed(config.seed, "gaussian", round, site).standard_normal(len(change))
        return (deviation * noise).astype(change.dtype)
    return change  # label-flip has trained on other labels; alie is known when all attackers' changes are


def flip_labels(labels: np.ndarray, classes: int, ignored: int) -> np.ndarray:
    """y -> classes - 1 - y, for what a label-flip attacker trains on."""
    return np.where(labels == ignored, labels, classes - 1 - labels)


def collude(updates: Iterable[Update], config: RunConfig) -> Iterator[Update]:
    """ALIE: all attackers send mean - z deviation of their own honest changes, coordinate by coordinate.

    Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019,
    https://arxiv.org/abs/1902.06156: with n sites of which f attack, s = floor(n / 2) + 1 - f honest ones must be won
    over, and z is the largest number with Phi(z) < (n - f - s) / (n - f).
    """
    updates, bad = list(updates), attackers(config)
    own: dict[str, dict[str, list[np.ndarray]]] = {}
    for update in updates:
        for name, value in update.delta.items() if update.site in bad else ():
            own.setdefault(update.domain, {}).setdefault(name, []).append(value)
    honest = len(updates) - len(bad & {update.site for update in updates})
    supporters = len(updates) // 2 + 1 - (len(updates) - honest)
    level = min(max((honest - supporters) / max(honest, 1), 1e-3), 1 - 1e-3)
    z = NormalDist().inv_cdf(level)
    for update in updates:
        if update.site not in bad:
            yield update
            continue
        stacks = {name: np.stack(values) for name, values in own[update.domain].items()}
        delta = {
            name: (stack.mean(axis=0) - z * stack.std(axis=0)).astype(stack.dtype) for name, stack in stacks.items()
        }
        yield replace(update, delta=delta)


def _log_normal(config: RunConfig, what: str, site: str) -> float:
    spread = config.simulation.spread
    return float(np.exp(spread * _keyed(config.seed, what, 0, site).standard_normal())) if spread else 1.0


def _keyed(seed: int, purpose: str, round: int, site: str) -> np.random.Generator:
    return np.random.default_rng([seed, round, *f"simulation/{purpose}/{site}".encode()])
