"""What does all of this bring to a real configuration? three_domains.toml on a tenth of its data, bit by bit.

    python experiments/speed/three_domains.py --data-root ../shared/data         some 10 minutes on 2 quiet cores

Ways, each with what the one before it has: every text padded to max-length, one site at a time (what a plain loop
does; made here by padding anew what fedfm has trimmed); trimmed to the longest of a batch; length buckets; as many
sites at once as `auto` finds worth while; two Ray workers, as the file says. The ways take turns (A B A B), each time
in a process of its own, whose first round is dropped. Seconds of a round are wall seconds, which also hold for two
workers. Scores are those of the test split. Writes results/three_domains.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

HERE = Path(__file__).parent
FEW = {"medical": 220, "finance": 800, "ner": 540}  # about a tenth of each domain's training examples
ALONE = ["engine.name=local", "engine.workers=1"]
WAYS = {
    "padded to max-length": [*ALONE, "local.length-buckets=false"],
    "trimmed": [*ALONE, "local.length-buckets=false"],
    "length buckets": ALONE,
    "many at once (auto)": [*ALONE, "engine.sites-at-once=auto"],
    "two Ray workers": ["engine.sites-at-once=auto"],
}
MOST_TOKENS = {"text-classification": 64, "token-classification": 96}  # local.max-length of the file


def main() -> None:
    """Time every way, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="../shared/data")
    parser.add_argument("--rounds", type=int, default=3, help="of a process, the first one not counted")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help="run one way in this process and print what it took")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.data_root, arguments.rounds)))
        return
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in range(arguments.repetitions):
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--data-root", arguments.data_root]
            done = subprocess.run(
                [*command, "--rounds", str(arguments.rounds)], env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(way, found[way][-1], flush=True)
    text = markdown(found)
    print(text)
    (HERE / "results" / "three_domains.md").write_text(text + "\n", encoding="utf-8")


def measure(way: str, data_root: str, rounds: int) -> dict:
    """Wall seconds of each round of training but the first, and the scores."""
    import fedfm
    from fedfm.training import fit

    if way == "padded to max-length":
        fit.collate = padded(fit.collate)
    few = [f"domains.{domain}.max-examples={count}" for domain, count in FEW.items()]
    fixed = [f"data-root={data_root}", f"rounds={rounds}", "evaluation.every=100", *few, *WAYS[way]]
    ends = []

    def listen(event: dict) -> None:
        if event["event"] == "round-finished":
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as place:
        config = fedfm.load_config(HERE.parent / "three_domains.toml", *fixed, f"runs.folder={place}")
        info = fedfm.run(config, listen=listen).info
    # the last round ends with the scores
    seconds = np.diff(ends)[1:-1].tolist() if rounds > 2 else np.diff(ends).tolist()
    scores = {domain: round(values[info["primary"][domain]], 4) for domain, values in info["final"].items()}
    return {"seconds": seconds, "scores": scores, "at_once": info["sites_at_once"]}


def padded(collate):
    """`collate`, with texts padded on up to max-length."""
    import torch
    import torch.nn.functional as F

    from fedfm.models.features import IGNORED

    def to_most(rows, device, dtype, draws=()):
        batch, task = collate(rows, device, dtype, draws), rows[0][0].task
        if task not in MOST_TOKENS:
            return batch
        ids = batch.inputs["input_ids"]
        more = (0, MOST_TOKENS[task] - ids.shape[1])
        mask = batch.inputs.get("attention_mask", torch.ones_like(ids, dtype=torch.bool))
        inputs = {"input_ids": F.pad(ids, more), "attention_mask": F.pad(mask, more)}
        if task == "text-classification":
            return replace(batch, inputs=inputs)
        return replace(
            batch, inputs=inputs, labels=F.pad(batch.labels, more, value=IGNORED), weights=F.pad(batch.weights, more)
        )

    return to_most


def markdown(found: dict[str, list[dict]]) -> str:
    """A row a way: how many times faster than the first and than the one before, and the scores."""
    domains = list(next(iter(found.values()))[0]["scores"])
    lines = [
        "Made by `python experiments/speed/three_domains.py`: three_domains.toml on a tenth of its data.", "",
        f"| way | times the first | times the one before | sites at once | {' | '.join(domains)} |",
        f"|{'---|' * (4 + len(domains))}",
    ]  # fmt: skip
    first = before = None
    for way, runs in found.items():
        took = median(second for run in runs for second in run["seconds"])
        first, before = first or took, before or took
        rows = ", ".join(str(value) for value in runs[0]["at_once"].values())
        scores = " | ".join(f"{runs[0]['scores'][domain]:.3f}" for domain in domains)
        lines.append(f"| {way} | {first / took:.2f}x | {before / took:.2f}x | {rows} | {scores} |")
        before = took
    return "\n".join(lines)


if __name__ == "__main__":
    main()
