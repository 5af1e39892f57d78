"""S1, the null client: what a round costs when its sites do nothing. Seconds for each of 1,000 sites."""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise

import numpy as np
from flwr.app import Context, Message

from fedfm.config import load_config
from fedfm.engines.local import LocalGrid
from fedfm.federation import client_app, messages
from fedfm.federation.messages import Answer
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder

CONFIG = {
    "rounds": 1,
    "body": {"name": "tiny", "tuning": "lora"},
    "evaluation": {"every": 10**6},
    "domains": {"idle": {"task": "text-classification", "sites": 1000}},
}


def idle(message: Message, context: Context) -> Message:
    """A client app whose sites answer at once: nothing has changed, nothing was scored."""
    if message.metadata.message_type == "query":
        return client_app.app(message, context)
    order, received = messages.read_order(message)
    arrays = {n: np.zeros(v.shape, v.dtype if len(order.sites) == 1 else np.float64) for n, v in received.items()}
    if message.metadata.message_type == "evaluate":
        return messages.write_answer(Answer(order.sites, left_out=dict.fromkeys(order.sites, "idle")), message)
    told = {name: [1.0] * len(order.sites) for name in ("num-examples", "loss", "seconds")}
    return messages.write_answer(Answer(order.sites, arrays, told), message)


def run(engine: str, rounds: int, sites: int) -> dict:
    """Wall and CPU seconds of the rounds; `engine`: k1, auto, ray1, ray2 (the last two with K = auto)."""
    overrides = [f"rounds={rounds}", f"domains.idle.sites={sites}", f"domains.idle.max-examples={4 * sites}"]
    overrides += [] if engine == "k1" else ["engine.sites-at-once=auto"]
    marks = []

    def listen(event: dict) -> None:
        if event["event"] == "round-finished":
            marks.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as place:
        config = load_config(CONFIG, [*overrides, f"runs.folder={place}"])
        folder = RunFolder.create(config)
        if engine.startswith("ray"):
            _on_ray(config.replace("engine.name=ray", f"engine.workers={engine[3:]}"), folder, listen)
        else:
            RoundLoop(LocalGrid(idle), config, folder, listen).run()
        used = folder.rounds["sites_used"].tolist()[1:]
    spans = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks)][:-1]
    return {
        "walls": [wall for wall, _ in spans], "cpus": [cpu for _, cpu in spans], "updates": sum(used),
        "expected": rounds * sites, "weights": {},
        "milliseconds_per_site": 1e3 * np.median([s[0] for s in spans[1:]]) / sites,
    }  # fmt: skip


def _on_ray(config, folder, listen) -> None:
    import ray

    from fedfm.engines.ray_engine import RayGrid, start_ray

    start_ray(config)
    try:
        RoundLoop(RayGrid(config, idle), config, folder, listen).run()
    finally:
        ray.shutdown()
