"""[simulation]: a virtual clock, and what goes wrong at sites, as parts of an experiment."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fedfm.config.section import Finding, Section
from fedfm.errors import did_you_mean

Attack = Literal["none", "nan", "sign-flip", "scale", "gaussian", "alie", "label-flip"]
Positive = Annotated[float, Field(gt=0)]
Number = Annotated[int, Field(ge=1)]


class SimulationConfig(Section):
    """Everything is off by default. What is drawn is drawn by seed, round and site: the same for every strategy."""

    seconds_per_step: float = Field(0.0, ge=0, description="virtual seconds of a local step at a site of speed 1")
    bandwidth: float = Field(0.0, ge=0, description="megabytes a virtual second, each way; 0: transfers take no time")
    latency: float = Field(0.0, ge=0, description="virtual seconds of a message, each way")
    spread: float = Field(0.0, ge=0, description="standard deviation of the log of sites' speeds and bandwidths")
    speeds: dict[str, Positive] = Field({}, description="site -> speed, in place of a draw")
    bandwidths: dict[str, Positive] = Field({}, description="site -> megabytes a second, in place of a draw")
    drop_out: float = Field(0.0, ge=0, lt=1, description="probability that a site which is asked never answers")
    stragglers: float = Field(0.0, ge=0, le=1, description="part of a round's sites that get to a part of their steps")
    partial_work: Literal["strategy", "keep", "drop"] = Field(
        "strategy", description="what becomes of it; strategy: as in its paper"
    )
    joins: dict[str, Number] = Field({}, description="site -> the first round that it can take part in")
    leaves: dict[str, Number] = Field({}, description="site -> the first round that it is gone")
    attack: Attack = Field("none", description="what attackers send, or, label-flip, train on")
    attackers: int = Field(0, ge=0, description="how many sites attack, drawn by the seed")
    attack_scale: float = Field(
        10.0, gt=0, description="sign-flip, scale: the factor; gaussian: times the update's own"
    )

    @field_validator("attack", mode="before")
    @classmethod
    def _not_a_number(cls, value: Any) -> Any:
        return "nan" if isinstance(value, float) and math.isnan(value) else value  # which TOML reads as a number

    @property
    def has_clock(self) -> bool:
        """Is there anything that takes virtual time?"""
        return bool(self.seconds_per_step or self.bandwidth or self.latency or self.bandwidths)

    def unknown_sites(self, sites: Collection[str]) -> list[Finding]:
        """Names of sites that the configuration does not have, and more attackers than sites."""
        tables = {"speeds": self.speeds, "bandwidths": self.bandwidths, "joins": self.joins, "leaves": self.leaves}
        findings: list[Finding] = [
            (("simulation", table, name), f'there is no site "{name}".{did_you_mean(name, sites)}')
            for table, values in tables.items()
            for name in values
            if name not in sites
        ]
        if self.attackers > len(sites):
            what = f"there are only {len(sites)} sites, so that {self.attackers} of them cannot attack"
            findings.append((("simulation", "attackers"), what))
        if self.attackers and self.attack == "none":
            findings.append((("simulation", "attackers"), "sites attack, but simulation.attack does not say how"))
        return findings
