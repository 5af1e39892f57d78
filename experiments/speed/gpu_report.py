"""From the cells of gpu.py to what people read: times the plain loop, the goals, the GPU's memory, what is void."""

from __future__ import annotations

from statistics import median

from demands import EXACT
from report import table

OURS = ("k1", "k8", "k32", "k128", "auto")
DTYPES = ("float32", "tf32", "bfloat16")
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
    rows = []
    for workload, dtype in ran:
        known = next((sites_of(c) for c in results["cells"] if c["workload"] == workload and "expected" in c), "")
        found = {engine: _short(times(results, workload, dtype, engine)) for engine in (*OURS, "flower")}
        rows.append({"workload": workload, "sites": known, "dtype": dtype} | found)
    return table(rows, _titles("workload", "sites", "dtype", *OURS, "flower"))


def _goals(results: dict) -> list[str]:
    rows = []
    for (workload, engine, against), wanted in GOALS.items():
        row = {"goal": f"{workload}: {engine} over {against}", "wanted": f"at least {wanted}"}
        for dtype in DTYPES:
            seen = times(results, workload, dtype, engine, against)
            row[dtype] = f"{_short(seen)} {'met' if seen >= wanted else 'MISSED'}" if seen else ""
        rows.append(row)
    return table(rows, _titles("goal", "wanted", *DTYPES))


def _memory(results: dict, ran: list[tuple[str, str]]) -> list[str]:
    rows = []
    for workload, dtype in ran:
        own = {engine: cell_of(results, workload, dtype, engine) for engine in ("floor", *OURS)}
        taken = {engine: cell.get("gpu_mib", "") for engine, cell in own.items()}
        at_once = ", ".join(str(count) for count in own["auto"].get("rows", {}).values())
        rows.append({"workload": workload, "dtype": dtype} | taken | {"at once": at_once})
    titles = {"workload": "MiB of the GPU", "at once": "sites that `auto` takes at once"}
    return table(rows, _titles("workload", "dtype", "floor", *OURS, "at once") | titles)


def _titles(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
