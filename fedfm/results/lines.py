"""Events of a run as lines of text; pure functions, no terminal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

Event = Mapping[str, Any]
NAMED_SITES = 12  # a header that names more sites than this is not read


def in_bytes(count: float | None) -> str:
    """`'312 kB'`: bytes in decimal units, three digits."""
    if count is None:
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def in_time(seconds: float | None) -> str:
    """`'2.1 s'`, `'42 s'`, `'3 min'`, `'1 h 10 min'`."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def time_left(seconds: float | None) -> str:
    """`'about 25 s left'`: steps of 5 s under a minute, as befits an estimate; '' where there is none."""
    if seconds is None:
        return ""
    return f"about {5 * max(1, math.ceil(seconds / 5))} s left" if seconds < 55 else f"about {in_time(seconds)} left"


def in_digits(value: float | None) -> str:
    """Three decimals; `-` for a value that is missing, as a reader of events.jsonl gets for NaN."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1e}"


def flow(parts: Iterable[str], width: int, gap: str = "   ", indent: str = "  ") -> list[str]:
    """`parts` joined by `gap`, with a new line, indented, before a part that would pass `width`."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(gap) + len(part) <= width:
            lines[-1] += gap + part
        else:
            lines.append(indent + part if lines else part)
    return lines


def header(started: Event, width: int) -> list[str]:
    """What runs where, what travels, and which data are not real."""
    rounds = started.get("rounds")
    first = [f"fedfm {metadata.version('fedfm')}", f"run {started.get('run', '-')}"]
    first += [f"{key} {started[key]}" for key in ("strategy", "engine", "seed") if key in started]
    first += [f"{rounds} round{'' if rounds == 1 else 's'}"] if rounds is not None else []
    lines = flow(first, width) + flow(_sites(started.get("sites") or {}), width, gap="  ")
    if started.get("body"):
        lines += [f"body {started['body']}"]
    if sent := started.get("bytes_per_site"):
        lines += [f"sent per site and round, at most: {in_bytes(sent.get('down'))} down, {in_bytes(sent.get('up'))} up"]
    return lines


def _sites(sites: Mapping[str, str]) -> list[str]:
    """`['3 sites:', 'clinic-a clinic-b (medical)', 'bank-a (finance)']`, or counts where there are many."""
    by_domain: dict[str, list[str]] = defaultdict(list)
    for site, domain in sites.items():
        by_domain[domain].append(site)
    if not sites:
        return []
    few = len(sites) <= NAMED_SITES
    groups = [f"{' '.join(names) if few else len(names)} ({domain})" for domain, names in by_domain.items()]
    count = f"{len(sites)} site{'' if len(sites) == 1 else 's'}:"
    return [f"{count} {groups[0]}", *groups[1:]]


@dataclass(frozen=True)
class Column:
    """A column of the table of rounds: right-aligned, as wide as its title or its widest usual value."""

    title: tuple[str, ...]
    values: int
    cell: Callable[[Event], str]

    @property
    def width(self) -> int:
        return max(self.values, *map(len, self.title))


FULL = ("loss", "domains", "worst", "sites", "sent", "time")
LAYOUTS = (  # the kinds of columns and how many lines their titles take, from the roomiest to the narrowest
    (1, FULL),
    (2, FULL),
    (2, ("loss", "domains", "worst", "sites", "time")),
    (2, ("domains", "worst", "sites", "time")),
    (2, ("domains", "worst")),
    (1, ("loss", "mean", "worst", "sites", "sent", "time")),
    (1, ("loss", "mean", "worst", "sites", "time")),
    (1, ("mean", "worst")),
)


def columns(primary: Mapping[str, str], width: int | None = None) -> list[Column]:
    """The table of rounds for `primary` {domain: metric}, with as much as goes into `width` characters.

    Where there is no room for the domains, the mean over them stands for them.
    """
    for height, kinds in LAYOUTS:
        chosen = _choose(primary, height, kinds)
        if width is None or sum(column.width + 2 for column in chosen) - 2 <= width:
            break
    return chosen


def _choose(primary: Mapping[str, str], height: int, kinds: Sequence[str]) -> list[Column]:
    table = {
        "loss": [Column(("loss",), 7, lambda event: in_digits(event.get("loss")))],
        "domains": [Column(_title(name, metric, height), 5, _score(name)) for name, metric in primary.items()],
        "mean": [Column(("mean",), 5, lambda event: in_digits(event.get("mean")))],
        "worst": [Column(("worst",), 5, lambda event: in_digits(event.get("worst")))],
        "sites": [Column(("sites",), 5, _used)],
        "sent": [Column(("sent",), 7, _sent)],
        "time": [Column(("time",), 6, lambda event: in_time(event.get("seconds")))],
    }
    first = Column(("round",), 5, lambda event: str(event.get("round", "-")))
    return [first, *(column for kind in kinds for column in table[kind])]


def _title(domain: str, metric: str, height: int) -> tuple[str, ...]:
    if height == 1:
        return (f"{shorten(domain, 24)} {metric}",)
    return shorten(domain, 14), shorten(metric, 14)


def shorten(name: str, longest: int) -> str:
    """At most `longest` characters of `name`; what goes is in the middle, for names often differ at their ends."""
    if len(name) <= longest:
        return name
    end = longest // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def _score(domain: str) -> Callable[[Event], str]:
    return lambda event: in_digits((event.get("scores") or {}).get(domain))


def _sent(event: Event) -> str:
    return in_bytes((event.get("bytes_down") or 0) + (event.get("bytes_up") or 0))


def _used(event: Event) -> str:
    return f"{event.get('sites_used', '-')}/{event.get('sites_asked', '-')}"


def title_lines(chosen: Sequence[Column]) -> list[str]:
    """The titles, standing on a common last line."""
    height = max(len(column.title) for column in chosen)
    padded = [("",) * (height - len(column.title)) + column.title for column in chosen]
    return [
        "  ".join(title[line].rjust(column.width) for title, column in zip(padded, chosen, strict=True)).rstrip()
        for line in range(height)
    ]


def round_line(chosen: Sequence[Column], event: Event) -> str:
    """One finished round, aligned under `title_lines`."""
    return "  ".join(column.cell(event).rjust(column.width) for column in chosen)


def outcome(finished: Event, rounds: int | None) -> str:
    """`'interrupted after 3 of 6 rounds, 12 s'`."""
    status = finished.get("status", "finished")
    done = finished.get("rounds")
    all_of_them = rounds is None or done == rounds
    amount = f"{done} round{'' if done == 1 else 's'}" if all_of_them else f"{done} of {rounds} rounds"
    words = {"early-stopped": "stopped early"}.get(status, status)
    return f"{words} after {amount}, {in_time(finished.get('seconds'))}"


def final_lines(
    final: Mapping[str, Mapping[str, float | None]], primary: Mapping[str, str], width: int, title: str = "test score"
) -> list[str]:
    """A table of test scores: one domain a row (more where it is narrow), its primary metric first."""
    first = {domain: primary.get(domain, next(iter(scores), "")) for domain, scores in final.items()}
    main = {domain: f"{first[domain]} {in_digits(scores.get(first[domain]))}" for domain, scores in final.items()}
    wide = max([len("domain"), *(len(shorten(domain, 24)) for domain in final)])
    wide_main = max([len(title), *map(len, main.values())])
    table = ["  ".join(("domain".ljust(wide), title.ljust(wide_main), "other test scores"))]
    for domain, scores in final.items():
        start = f"{shorten(domain, 24).ljust(wide)}  {main[domain].ljust(wide_main)}  "
        others = [f"{name} {in_digits(value)}" for name, value in scores.items() if name != first[domain]]
        rows = flow(others, max(20, width - len(start)), gap="  ", indent="") or [""]
        table += [((start if number == 0 else " " * len(start)) + row).rstrip() for number, row in enumerate(rows)]
    return table


def warning(event: Event) -> str:
    """The sentence of a "warning" or "update-left-out" event."""
    if event.get("event") == "update-left-out":
        site = f"{event.get('site', '?')} ({event.get('domain', '?')})"
        return (
            f"warning: round {event.get('round', '?')}: update of {site} left out: {event.get('reason', 'no reason')}"
        )
    return f"warning: {event.get('message', '')}"
