"""Chains of entries to do something to."""

from __future__ import annotations

from pathlib import Path

from fedfm.results.audit import seal


def sealed(count: int, site: str) -> list[bytes]:
    entries = []
    for number in range(count):
        tensors = [["shared/a", [2, 3], "float32", 24]]
        entries.append(seal(entries[-1] if entries else None, "update-out", round=number, site=site, tensors=tensors))
    return [entry.text.encode() + b"\n" for entry in entries]


LINES = sealed(6, "st-märy")
OTHER = sealed(6, "st-luke")


def chain_of(path: Path, count: int = 6) -> list[bytes]:
    """Make `path` a file of `count` entries, as `Audit.add` writes them; its lines with their ends."""
    path.write_bytes(b"".join(LINES[:count]))
    return LINES[:count]
