"""[sampling] and [screening]: whose updates a round takes."""

from __future__ import annotations

from pydantic import Field

from fedfm.config.section import Section


class SamplingConfig(Section):
    fraction: float = Field(1.0, gt=0, le=1)
    per_domain_minimum: int = Field(1, ge=0)
    minimum_sites: int = Field(1, ge=1, description="usable updates that a round needs")
    without: tuple[str, ...] = Field((), strict=False, description="sites that are scored, but never train")


class ScreeningConfig(Section):
    max_norm: float = Field(0.0, ge=0, description="an update of a larger Euclidean norm is left out; 0: no limit")
