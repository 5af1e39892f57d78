"""What the rest of a federation knows of a domain."""

from __future__ import annotations

from dataclasses import dataclass

from fedfm.config import Task


@dataclass(frozen=True)
class DomainCard:
    """A domain's task, its labels, and for images their shape (C, h, w)."""

    domain: str
    task: Task
    labels: tuple[str, ...]
    image_shape: tuple[int, int, int] | None = None

    @classmethod
    def from_dict(cls, row: dict) -> DomainCard:
        """Back from JSON, where tuples are lists."""
        shape = row["image_shape"]
        return cls(row["domain"], row["task"], tuple(row["labels"]), tuple(shape) if shape else None)
