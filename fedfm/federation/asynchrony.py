"""The timetable of an asynchronous run on the virtual clock: who works on which weights, and who is done next.

It lies in the strategy's state, so that a run goes on from a checkpoint as it would have gone on:

    schedule   now: virtual seconds; finish: site -> when it is done; version: site -> the step whose weights it has
    versions   step -> weights, for those that somebody still works on
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.federation.asking import Sites
from fedfm.federation.faults import virtual_seconds
from fedfm.federation.messages import to_record
from fedfm.federation.packing import steps_of
from fedfm.strategies.base import State


def begin(state: State, weights: Arrays, sites: Sites, there: Collection[str], number: int) -> State:
    """The state with a timetable for the sites that are there; who is new begins now, on the newest weights."""
    schedule = state.get("schedule", {"now": 0.0, "finish": {}, "version": {}})
    fresh = [site for site in sorted(there) if site not in schedule["finish"]]
    return _restarted(state, schedule, weights, sites, fresh, number - 1)


def next_done(state: State, there: Collection[str], count: int) -> list[str]:
    """Sorted names of the `count` sites that are done first, of those that are there; of a tie the first names."""
    finish = state["schedule"]["finish"]
    return sorted(sorted(there, key=lambda site: (finish[site], site))[:count])


def advance(state: State, weights: Arrays, sites: Sites, taken: Collection[str], number: int) -> tuple[State, float]:
    """The timetable after the step `number`, which `taken` have led to, and the virtual seconds that it took."""
    schedule = state["schedule"]
    now = max([schedule["now"], *(schedule["finish"][site] for site in taken)])
    after = _restarted(state, schedule | {"now": now}, weights, sites, taken, number)
    return after, now - schedule["now"]


def _restarted(
    state: State, schedule: Mapping, weights: Arrays, sites: Sites, who: Collection[str], version: int
) -> State:
    finish, begun = dict(schedule["finish"]), dict(schedule["version"])
    for site in who:
        finish[site] = schedule["now"] + _duration(site, sites, weights)
        begun[site] = version
    versions = {str(version): weights} | dict(state.get("versions", {})) if who else dict(state["versions"])
    needed = {str(number) for number in begun.values()}
    return state | {
        "schedule": {"now": schedule["now"], "finish": finish, "version": begun},
        "versions": {name: kept for name, kept in versions.items() if name in needed},
    }


def _duration(site: str, sites: Sites, weights: Arrays) -> float:
    config: RunConfig = sites.config
    steps = steps_of(site, sites.roll, config)
    if not config.simulation.has_clock:
        return float(steps)
    size = to_record(sites.expected(weights, site, 0)).count_bytes()
    return virtual_seconds(site, config, steps, size, size)
