"""[tracking]: programs that a run also tells its scores."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedfm.config.section import Section

TrackerName = Literal["tensorboard", "mlflow", "wandb"]


class TrackingConfig(Section):
    to: tuple[TrackerName, ...] = Field((), strict=False, description="tensorboard, mlflow, wandb; none by default")
    project: str = Field("fedfm", min_length=1, description="name of the experiment (mlflow) or project (wandb)")
