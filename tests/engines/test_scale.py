"""Ten thousand registered sites: training a thousand of them in a round takes the memory of training ten.

Sites that train at once take memory, each its own: so K is the same in both, and ten sites are at least one whole pack.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from engine_helpers import one_thread

REGISTERED = 10_000
MEASURE = """
import json, resource, sys
from pathlib import Path
from fedfm import load_config, run

folder, registered, sampled, rows = Path(sys.argv[1]), *map(int, sys.argv[2:])
config = load_config({
    "rounds": 3, "engine": {"sites-at-once": rows}, "runs": {"folder": str(folder)},
    "body": {"name": "tiny", "tuning": "lora"}, "local": {"batch-size": 4}, "evaluation": {"every": 100},
    "sampling": {"fraction": sampled / registered},
    "domains": {"news": {"task": "text-classification", "sites": registered, "max-examples": 4 * registered}},
})
peaks = {}
def listen(event):
    if event["event"] == "round-finished":
        peaks[event["round"]] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if event["round"] == 2:
            raise KeyboardInterrupt  # the scores of the last round, of all that are registered, are another matter
try:
    run(config, listen=listen)
except KeyboardInterrupt:
    pass
(place,) = folder.iterdir()
rows = (place / "rounds.csv").read_text().splitlines()
print(json.dumps({"peaks": peaks, "columns": rows[0], "last": rows[-1], "sites": len(
    json.loads((place / "run.json").read_text())["sites"])}))
"""


def measured(folder: Path, sampled: int, rows: int) -> dict:
    """Largest resident memory after each round, and the row of the last; in a process of its own."""
    environment = one_thread() | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", MEASURE, str(folder), str(REGISTERED), str(sampled), str(rows)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 10])
def test_a_thousand_of_ten_thousand_sites_take_the_memory_of_ten(tmp_path: Path, rows: int) -> None:
    """Within 5 %; every one of the thousand trains and is used."""
    seen = {}
    for sampled in (10, 1000):
        told = measured(tmp_path / str(sampled), sampled, rows)
        row = dict(zip(told["columns"].split(","), told["last"].split(","), strict=True))
        assert told["sites"] == REGISTERED
        assert (row["round"], row["sites_asked"], row["sites_used"]) == ("2", str(sampled), str(sampled))
        assert float(row["loss"]) > 0
        seen[sampled] = told["peaks"]["2"]
    print(f"K = {rows}, peak KiB of two rounds: {seen[10]} with 10 sites, {seen[1000]} with 1,000")
    assert seen[1000] < 1.05 * seen[10]
