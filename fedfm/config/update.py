"""[update]: what is done to a site's change on its way to the server."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedfm.config.section import Section


class UpdateConfig(Section):
    """In this order: clip, noise, compress."""

    clip: float = Field(0.0, ge=0, description="largest norm of a change over all its tensors; 0: none")
    noise: float = Field(0.0, ge=0, description="deviation of Gaussian noise on every entry; alone no privacy")
    compress: Literal["none", "fp16", "qsgd8", "qsgd4", "qsgd2", "top-k", "sign"] = "none"
    top_k: float = Field(0.01, gt=0, le=1, description="the part of the entries that top-k sends")
    error_feedback: bool = Field(True, description="fp16, top-k, sign: a site keeps what was not sent")
