"""From the cells of gpu.py to what people read: times the plain loop, the goals, the GPU's memory, what is void."""

from __future__ import annotations

from statistics import median

from demands import EXACT

OURS = ("k1", "k8", "k32", "k128", "auto")
OF_MANY = {"W2h": "W2g", "W5h": "W5"}  # workload of 128 sites -> the one whose plain loop it is compared with
GOALS = {("W2g", "k32", "floor"): 15, ("W2g", "k32", "flower"): 40, ("W5", "k32", "floor"): 4}


def cell_of(results: dict, workload: str, dtype: str, engine: str) -> dict:
    """A cell; {} where it was not run or is void."""
    for cell in results["cells"]:
        if (cell["workload"], cell["dtype"], cell["engine"]) == (workload, dtype, engine) and "void" not in cell:
            return cell
    return {}


def times(results: dict, workload: str, dtype: str, engine: str, against: str = "floor") -> float | None:
    """How many times as fast, by wall seconds a site; None where either is void or was not run."""
    other = OF_MANY.get(workload, workload)
    fast, slow = cell_of(results, workload, dtype, engine), cell_of(results, other, dtype, against)
    if not fast or not slow:
        return None
    found = [theirs / own for own, theirs in zip(fast["walls"], slow["walls"], strict=True)]
    return sites_of(fast) / sites_of(slow) * median(found)


def sites_of(cell: dict) -> int:
    """Sites that took part in each round."""
    return cell["expected"] // cell["rounds"]


def tables(results: dict) -> str:
    """The whole report, Markdown."""
    ran = list(dict.fromkeys((c["workload"], c["dtype"]) for c in results["cells"] if c["dtype"] != "float64"))
    versions = results["environment"]["versions"]
    lines = [
        f"Made by `experiments/speed/gpu.sh` on one {results['device']}, torch {versions['torch']}. Generated data.",
        "Times as fast as the plain loop of the same precision: wall seconds a site, median of "
        f"{results['rounds']} rounds taken in turn.", "",
        *(["QUICK RUN: these figures measure nothing.", ""] if results["quick"] else []),
    ]  # fmt: skip
    lines += [*_speed(results, ran), "", *_goals(results), "", *_memory(results, ran)]
    exact = {c["engine"]: c.get("difference") for c in results["cells"] if c["dtype"] == "float64"}
    if exact.pop("floor", None) is None and exact:
        worst = "not all compared" if None in exact.values() else f"at most {max(exact.values()):.1e} apart"
        lines += ["", f"Weights of W2 in float64, plain loop and {', '.join(exact)}: {worst} (wanted {EXACT:.0e})."]
    void = [cell for cell in results["cells"] if "void" in cell]
    voids = [f"{c['workload']} {c['dtype']} {c['engine']} is void: {c['void']}" for c in void]
    return "\n".join([*lines, *(["", *voids] if voids else [])])


def _speed(results: dict, ran: list[tuple[str, str]]) -> list[str]:
    shown = (*OURS, "flower")
    rows = [["workload", "sites", "dtype", *shown]]
    for workload, dtype in ran:
        found = [times(results, workload, dtype, engine) for engine in shown]
        sites = next((str(sites_of(c)) for c in results["cells"] if c["workload"] == workload and "expected" in c), "")
        rows.append([workload, sites, dtype, *map(_short, found)])
    return _table(rows)


def _goals(results: dict) -> list[str]:
    dtypes = ("float32", "tf32", "bfloat16")
    rows = [["goal", "wanted", *dtypes]]
    for (workload, engine, against), wanted in GOALS.items():
        found = [times(results, workload, dtype, engine, against) for dtype in dtypes]
        seen = [f"{_short(f)} {'met' if f >= wanted else 'MISSED'}" if f else "" for f in found]
        rows.append([f"{workload}: {engine} over {against}", f"at least {wanted}", *seen])
    return _table(rows)


def _memory(results: dict, ran: list[tuple[str, str]]) -> list[str]:
    rows = [["MiB of the GPU", "dtype", "floor", *OURS, "sites that `auto` takes at once"]]
    for workload, dtype in ran:
        memory = [str(cell_of(results, workload, dtype, e).get("gpu_mib", "")) for e in ("floor", *OURS)]
        rows_of_auto = cell_of(results, workload, dtype, "auto").get("rows", {})
        rows.append([workload, dtype, *memory, *(map(str, rows_of_auto.values()) if rows_of_auto else [""])])
    return _table(rows)


def _table(rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
