"""Where the time of a run goes: a timeline of named phases, of which the inner stops the clock of the outer.

    load       data and bodies are read            optimizer  a step of the local optimiser, corrections, clipping
    tokenise   texts become token ids              aggregate  updates become weights
    move       batches, messages, rows are copied  evaluate   a model is scored
    forward    the model and its loss              write      tables, events, checkpoints, figures
    backward   its gradient                        other      what is in none of these

Without a profile that is being taken a phase costs one comparison. One run of one process is profiled at a time.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

PHASES = ("load", "tokenise", "move", "forward", "backward", "optimizer", "aggregate", "evaluate", "write", "other")
MOST_SPANS = 200_000  # of the timeline; the sums count on

_taken: Profile | None = None


class Profile:
    """Exclusive seconds of each phase since it was made, and the spans of the timeline."""

    def __init__(self) -> None:
        self.started = self._switched = perf_counter()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.spans: list[tuple[str, float, float]] = []
        self._stack = ["other"]

    def enter(self, name: str) -> float:
        """Start a phase inside the present one; the time of the start."""
        now = _now()
        self.seconds[self._stack[-1]] += now - self._switched
        self._switched = now
        self._stack.append(name)
        return now

    def leave(self, began: float) -> None:
        """End the innermost phase, which `enter` began."""
        now = _now()
        name = self._stack.pop()
        self.seconds[name] += now - self._switched
        self._switched = now
        if len(self.spans) < MOST_SPANS:
            self.spans.append((name, began, now))

    def summary(self) -> dict[str, Any]:
        """`wall_seconds`, `seconds` of each phase (they add up to the wall time), and the `share` of what is named."""
        now = _now()
        seconds = dict(self.seconds)
        seconds[self._stack[-1]] += now - self._switched
        wall = now - self.started
        rounded = {name: round(value, 6) for name, value in seconds.items()}
        share = round(1 - seconds["other"] / wall, 4)
        return {"wall_seconds": round(wall, 6), "seconds": rounded, "share_named": share}

    def write(self, folder: Path) -> None:
        """`profile.json`, the summary, and `timeline.json`, the trace-event format that Perfetto and Chrome open."""
        (folder / "profile.json").write_text(json.dumps(self.summary(), indent=2) + "\n", encoding="utf-8")
        trace = [
            {"name": name, "ph": "X", "pid": 1, "tid": 1, "ts": (a - self.started) * 1e6, "dur": (b - a) * 1e6}
            for name, a, b in self.spans
        ]
        (folder / "timeline.json").write_text(json.dumps({"traceEvents": trace}), encoding="utf-8")


def _now() -> float:
    """The time when what was launched on a GPU has ended."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


@contextmanager
def profile() -> Iterator[Profile]:
    """Take the profile of what happens inside."""
    global _taken
    _taken = taken = Profile()
    try:
        yield taken
    finally:
        _taken = None


class phase:  # noqa: N801 (it reads as the keyword that it is used as)
    """`with phase("forward"): ...`, or `@phase("load")` on a function."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self.began = None if _taken is None else _taken.enter(self.name)

    def __exit__(self, *_: object) -> None:
        if self.began is not None and _taken is not None:
            _taken.leave(self.began)

    def __call__(self, function: Callable) -> Callable:
        name = self.name

        @functools.wraps(function)
        def timed(*args, **kwargs):
            if _taken is None:
                return function(*args, **kwargs)
            with phase(name):
                return function(*args, **kwargs)

        return timed
