"""[engine]: where a run runs."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from fedfm.config.section import Section


class EngineConfig(Section):
    name: Literal["local", "ray", "flower"] = "local"
    sites_at_once: int | Literal["auto"] = Field(1, description="rows of the client matrix: a number, or auto")
    workers: int = Field(1, ge=1, description="processes that train (engine ray)")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs of a worker, or the part of one (engine ray)")
    address: str = Field("", description="a Ray cluster that is already there; empty: one is started here")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:1 or mps")
    threads: int = Field(1, ge=1, le=1024, description="compute threads of a process that trains")
    dtype: Literal["float32", "float64", "bfloat16", "tf32"] = "float32"
    feature_cache: int = Field(1024, ge=0, description="MiB on disk for what frozen layers make of the data")
    timeout: float = Field(3600.0, gt=0, description="seconds without any reply after which missing sites are left out")
    train_timeout: float = Field(0.0, ge=0, description="the same of training alone; 0: engine.timeout")
    evaluate_timeout: float = Field(0.0, ge=0, description="the same of scoring alone; 0: engine.timeout")
    wait: float = Field(120.0, ge=0, description="seconds that the start of a run waits for its sites")
    superlink: str = Field(
        "", description="sites across machines: a connection of Flower's config.toml (engine flower)"
    )

    @field_validator("sites_at_once", mode="before")
    @classmethod
    def _auto_or_number(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and value >= 1):
            return value
        what = f'must be "auto" or a whole number of at least 1, got {json.dumps(value, default=str)}'
        raise PydanticCustomError("finding", "{what}", {"what": what})

    def timeout_of(self, kind: str) -> float:
        """Seconds of silence that end the wait for messages of a kind: "train", "evaluate" or "query"."""
        return {"train": self.train_timeout, "evaluate": self.evaluate_timeout}.get(kind, 0.0) or self.timeout
