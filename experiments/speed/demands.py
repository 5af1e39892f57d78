"""What is demanded, beside what was seen: met or missed, with the figure. Nothing here is rounded in our favour."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

FASTER = {  # (workload, engine, against): (number of the demand, at least so many times as fast)
    ("W2", "k1", "floor"): (1, 0.95), ("W1", "k1", "floor"): (1, 0.90), ("W2t", "k1", "floor"): (1, 1.2),
    ("W2t", "k8", "floor"): (2, 8), ("W2t", "k32", "floor"): (2, 25), ("W2", "auto", "floor"): (2, 1.0),
    ("W2s", "k8", "floor"): (2, 1.4), ("W2xs", "k32", "floor"): (2, 2.5),
    ("W1", "k1", "flower"): (3, 3), ("W1", "auto", "flower"): (3, 3), ("W2t", "k1", "flower"): (3, 3),
    ("W2t", "k32", "flower"): (3, 25), ("W2", "k1", "flower"): (3, 1.1),
    ("W4-0", "k8", "k8-uncached"): (5, 100), ("W4-1", "k8", "k8-uncached"): (5, 0.95 * 7 / 2),
    ("W4-2", "k8", "k8-uncached"): (5, 0.95 * 8 / 4), ("W4-3", "k8", "k8-uncached"): (5, 0.95 * 9 / 6),
    ("W3", "k1", "floor"): (5, 1.35), ("W2", "ray2", "ray1"): (6, 0.85 * 2),
}  # fmt: skip
SIDE_BY_SIDE = ("ray1", "ray2")  # their processes work at the same time: wall seconds count
OPERATORS = {"W2t k8": 45, "W2t k32": 12}
IDLE_COST = {"k1": 0.5, "auto": 0.5, "ray1": 2.0, "ray2": 2.0}  # milliseconds a site
EXACT = 1e-10
MEMORY_OF_FLOWER = 0.5
FLAT = 1.05
SAME = {("W2", "ray1", "ray2"): 4, **{(f"W4-{m}", "k8", "k8-uncached"): 5 for m in range(4)}}


def clock_of(*engines: str) -> str:
    """The seconds that decide between engines."""
    return "walls" if any(engine in SIDE_BY_SIDE for engine in engines) else "cpus"


def ratios(cells: list[dict], workload: str, engine: str, against: str, clock: str) -> list[float]:
    """How many times faster `engine` was than `against`: one number for each pair of rounds, void cells left out."""
    by = {(c["engine"], c["repetition"]): c for c in cells if c["workload"] == workload and "void" not in c}
    pairs = [
        pair
        for (name, repetition), cell in sorted(by.items())
        if name == engine and (other := by.get((against, repetition)))
        for pair in zip(other[clock], cell[clock], strict=True)
    ]
    return [slow / fast for slow, fast in pairs if fast > 0]


def best_ratio(cells: list[dict], workload: str, engine: str, against: str, clock: str) -> float | None:
    """The ratio of the best rounds, which what else the machine did has touched least."""
    fast, slow = (
        [s for c in cells if (c["workload"], c["engine"]) == (workload, name) and "void" not in c for s in c[clock]]
        for name in (engine, against)
    )
    return min(slow) / min(fast) if fast and slow and min(fast) > 0 else None


def milliseconds_a_site(cells: list[dict], clock: str) -> float | None:
    """Of the cells of one engine on S1; None where all are void."""
    found = [1e3 * median(c[clock]) * c["rounds"] / c["expected"] for c in cells if "void" not in c]
    return median(found) if found else None


def demand_rows(results: dict) -> list[dict]:
    """Every demand that this run can speak of: its number, what was wanted, what was seen, met or MISSED."""
    kinds = (_faster, _operators, _exact, _same, _idle, _memory)
    rows = [row for kind in kinds for row in kind(results)]
    return sorted(rows, key=lambda row: row["number"])


def _row(number: int, demand: str, wanted: str, seen: str, met: bool) -> dict:
    return {"number": number, "demand": demand, "wanted": wanted, "seen": seen, "met": "met" if met else "MISSED"}


def _faster(results: dict) -> Iterator[dict]:
    cells = results["cells"]
    for (workload, engine, against), (number, wanted) in FASTER.items():
        clock = clock_of(engine, against)
        ran = {c["engine"] for c in cells if c["workload"] == workload}
        if {engine, against} <= ran:
            found = ratios(cells, workload, engine, against, clock)
            seen = _beside(median(found), wanted) if found else "void"
            name = f"{workload}: {engine} over {against}, {'wall' if clock == 'walls' else 'CPU'} seconds"
            yield _row(number, name, f">= {wanted:.3g}x", seen, bool(found) and median(found) >= wanted)


def _beside(ratio: float, wanted: float) -> str:
    """With as many digits, at least three, as show on which side of `wanted` the ratio lies."""
    texts = (f"{ratio:.{digits}g}" for digits in range(3, 17))
    return next((text for text in texts if (float(text) >= wanted) == (ratio >= wanted)), repr(ratio)) + "x"


def _operators(results: dict) -> Iterator[dict]:
    for key, wanted in OPERATORS.items():
        if key in results["operators"]:
            seen = results["operators"][key]
            text = "void" if seen is None else f"{seen:.3g}"
            yield _row(
                2, f"{key}: operators of a site's step", f"<= {wanted}", text, seen is not None and seen <= wanted
            )


def _exact(results: dict) -> Iterator[dict]:
    for workload, found in results["exact"].items():
        for engine, seen in found.items():
            text = "void" if seen is None else f"{seen:.1e}"
            name = f"{workload}: {engine}, float64 difference to the floor"
            yield _row(4, name, f"<= {EXACT:.0e}", text, seen is not None and seen <= EXACT)


def _same(results: dict) -> Iterator[dict]:
    """Weights that must not differ in a single bit."""
    for (workload, one, other), number in SAME.items():
        found = {
            (c["engine"], c.get("sha256"))
            for c in results["cells"]
            if c["workload"] == workload and c["engine"] in (one, other)
        }
        if {engine for engine, _ in found} == {one, other}:
            hashes = {sha256 for _, sha256 in found}
            is_same = len(hashes) == 1 and None not in hashes
            yield _row(
                number, f"{workload}: weights of {one} and {other}", "equal", "equal" if is_same else "differ", is_same
            )


def _idle(results: dict) -> Iterator[dict]:
    for engine, wanted in IDLE_COST.items():
        own = [c for c in results["cells"] if (c["workload"], c["engine"]) == ("S1", engine)]
        if own:
            seen = milliseconds_a_site(own, clock_of(engine))
            text = "void" if seen is None else f"{seen:.3g} ms"
            yield _row(6, f"S1: {engine}, an idle site", f"<= {wanted} ms", text, seen is not None and seen <= wanted)


def _memory(results: dict) -> Iterator[dict]:
    peaks = {}
    for cell in results["cells"]:
        if "void" not in cell:
            key = cell["workload"], cell["engine"]
            peaks[key] = max(peaks.get(key, 0), cell["peak_mib"])
    for workload in ("W1", "W2", "W2t"):
        own, theirs = peaks.get((workload, "k1")), peaks.get((workload, "flower"))
        if own and theirs:
            share = own / theirs
            name = f"{workload}: peak memory of k1 over stock Flower's"
            yield _row(3, name, f"<= {MEMORY_OF_FLOWER}", f"{share:.2f}", share <= MEMORY_OF_FLOWER)
    for engine in ("auto", "ray2"):
        many, few = peaks.get(("S1", engine)), peaks.get(("S1-10", engine))
        if many and few:
            name = f"S1: {engine}, peak memory of 1,000 sampled sites over that of 10"
            yield _row(6, name, f"<= {FLAT}", f"{many / few:.3f}", many / few <= FLAT)
