"""The live screen of a run, driven by its events alone, here or in another process.

    with Screen() as screen:
        for event in follow(folder.path / "events.jsonl", stop=finished.is_set):
            screen.handle(event)

Finished rounds are lines that scroll away upwards; only the bar under them moves. So a long run stays readable, the
same lines go to a log file, and whatever ends the run leaves a whole table behind.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from fedfm.results import lines

SENTENCES = ("warning", "update-left-out", "site-joined", "site-left", "site-refused", "late-reply")


class Pace:
    """How long the rest of a run will take, in seconds, from its last three rounds."""

    def __init__(self, rounds: int):
        self.rounds = rounds
        self.recent: deque[float] = deque(maxlen=3)

    def left(self, round: int, share: float, elapsed: float) -> float | None:
        """`share` (0 to 1) of `round` is done, in `elapsed` seconds; None while there is nothing to judge by."""
        if self.recent:
            whole = fmean(self.recent)
        elif share > 0:
            whole = elapsed / share
        else:
            return None
        return max(0.0, whole * (self.rounds - round + 1 - share))


class Screen:
    """Shows a run: a moving display on a terminal, plain lines elsewhere, nothing but warnings when `quiet`.

    Warnings go to standard error when quiet, and between the lines otherwise. The folder is not printed: the caller
    prints it, as its last line.
    """

    def __init__(
        self, console: Console | None = None, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ):
        self.console = console or Console()
        self.quiet = quiet
        self.moving = self.console.is_terminal and not self.console.is_dumb_terminal and not quiet
        self._clock = clock
        self._started: dict[str, Any] = {}
        self._columns: list[lines.Column] = []
        self._pace = Pace(0)
        self._phase: dict[str, Any] = {}
        self._phase_began = self._sites_done = 0.0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=max(4, min(24, self.console.width - 48))),
            TextColumn("{task.completed:.0f}/{task.total:.0f} sites"),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
            refresh_per_second=4,
            disable=not self.moving,
        )
        self._task = self._bar.add_task("", total=None, visible=False, left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def handle(self, event: dict[str, Any]) -> None:
        """Show one event; kinds that are not for the screen are passed over."""
        kind = event.get("event")
        if kind in SENTENCES:
            self._warn(lines.warning(event))
        elif not self.quiet and kind in _SHOW:
            _SHOW[kind](self, event)

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=not self.moving, highlight=False)  # a log: one line an event

    def _warn(self, text: str) -> None:
        if self.quiet:
            Console(stderr=True).print(Text(text), soft_wrap=True, highlight=False)
        else:
            self._print(text, "yellow")

    def _run_started(self, event: dict[str, Any]) -> None:
        self._started = event
        self._pace = Pace(event.get("rounds") or 0)
        for line in lines.header(event, self.console.width):
            self._print(line)
        if generated := event.get("generated"):
            self._print(f"generated data: {', '.join(generated)} (scores say nothing about real data)", "yellow")
        if event.get("shown") == "personal":
            self._print("scores: of the sites' own models, each on its own site's examples")
        self._set_columns(event.get("primary") or {})

    def _set_columns(self, primary: dict[str, str]) -> None:
        self._columns = lines.columns(primary, self.console.width if self.moving else None)
        self._print("")
        for line in lines.title_lines(self._columns):
            self._print(line, "bold")

    def _phase_started(self, event: dict[str, Any]) -> None:
        self._phase, self._sites_done = event, 0
        if event.get("phase") == "train":
            self._phase_began = self._clock()
        self._bar.reset(self._task, total=event.get("sites") or 0, visible=True)
        self._show_progress()

    def _site_finished(self, event: dict[str, Any]) -> None:
        self._sites_done += 1
        self._show_progress()

    def _show_progress(self) -> None:
        round, phase = self._phase.get("round", 0), self._phase.get("phase", "")
        sites = self._phase.get("sites") or 1
        share = min(1.0, self._sites_done / sites) if phase == "train" else 1.0
        left = None
        if phase != "test" and round >= 1:
            left = self._pace.left(round, share, self._clock() - self._phase_began)
        self._bar.update(
            self._task,
            completed=self._sites_done,
            description="test" if phase == "test" else f"round {round}/{self._started.get('rounds', '?')} {phase}",
            left=lines.time_left(left),
        )

    def _round_finished(self, event: dict[str, Any]) -> None:
        if not self._columns:  # a reader who came late
            self._set_columns(dict.fromkeys(event.get("scores") or {}, "score"))
        if event.get("round", 0) >= 1 and event.get("seconds") is not None:  # round 0 only scores the first weights
            self._pace.recent.append(event["seconds"])
        self._print(lines.round_line(self._columns, event))

    def _run_finished(self, event: dict[str, Any]) -> None:
        self._bar.update(self._task, visible=False)
        whole = event.get("status") in ("finished", "early-stopped")
        self._print("")
        self._print(lines.outcome(event, self._started.get("rounds")), "bold" if whole else "bold red")
        if event.get("reason"):
            self._print(event["reason"], "red")
        if not whole and event.get("folder"):
            self._print(f"to go on: fedfm resume {event['folder']}")
        own = event.get("personal")  # what such a strategy is for; its global model lacks what sites keep to themselves
        for final, title in (
            (own, "test score, sites' own models"),
            (event.get("final"), "test score, as a new site has the model" if own else "test score"),
        ):
            if final:
                table = lines.final_lines(final, self._started.get("primary") or {}, self.console.width, title)
                for number, line in enumerate(["", *table]):
                    self._print(line, "bold" if number == 1 else "")


_SHOW: dict[str, Callable[[Screen, dict[str, Any]], None]] = {
    "run-started": Screen._run_started,
    "phase": Screen._phase_started,
    "site-finished": Screen._site_finished,
    "round-finished": Screen._round_finished,
    "run-finished": Screen._run_finished,
}


class EventTail:
    """The events that another process writes to `path`, from byte `position` on; a torn line waits for its end."""

    def __init__(self, path: Path, position: int = 0):
        self.path, self.position = path, position

    def read(self) -> list[dict[str, Any]]:
        """What was written since the last call; a damaged line is skipped."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.position)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data.rfind(b"\n") + 1
        self.position += whole
        return [event for line in data[:whole].splitlines() if (event := _event(line))]

    def last(self, kind: str) -> dict[str, Any] | None:
        """The last event of a kind before `position`; None where there is none. What `read` gives is the same after."""
        found = None
        with open(self.path, "rb") as file:
            for line in file.read(self.position).splitlines():
                if f'"{kind}"'.encode() in line and (event := _event(line)) and event.get("event") == kind:
                    found = event
        return found


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def follow(path: Path, stop: Callable[[], bool], pause: float = 0.2) -> Iterator[dict[str, Any]]:
    """Events of a run in another process, as they are written to its events.jsonl at `path`.

    Waits `pause` seconds between looks, also for a file that is not there yet. Ends once `stop()` is true and all
    that was written before it became true has been yielded.
    """
    tail = EventTail(path)
    while True:
        stopping = stop()  # asked before the look, so that nothing written before it is missed
        yield from tail.read()
        if stopping:
            return
        time.sleep(pause)
