"""S1, the null client: what a round costs when its sites do nothing. Seconds for each of 1,000 sites."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import numpy as np
from flwr.app import Context, Message
from turns import Turns, of_rounds

from fedfm.config import load_config
from fedfm.engines.local import LocalGrid
from fedfm.federation import client_app, messages, site
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
    """A client app whose sites answer at once that nothing has changed. Of each order to score one site obeys."""
    if message.metadata.message_type == "query":
        return client_app.app(message, context)
    order, received = messages.read_order(message)
    if message.metadata.message_type == "evaluate":
        first, *others = order.sites
        scored = site.evaluate(replace(order, sites=(first,)), received)
        answer = Answer(order.sites, scored.arrays, left_out=dict.fromkeys(others, "idle"))
        return messages.write_answer(answer, message)
    many = len(order.sites)
    if order.each:
        arrays = {n: np.zeros((many, *v.shape), v.dtype) for n, v in received.items()}
    else:
        arrays = {n: np.zeros(v.shape, v.dtype if many == 1 else np.float64) for n, v in received.items()}
    told = {"num-examples": [1.0] * many, "loss": [1.0] * many, "seconds": [0.0] * many}
    return messages.write_answer(Answer(order.sites, arrays, told), message)


def run(engine: str, rounds: int, sites: int, sampled: int) -> dict:
    """Rounds in which `sampled` of `sites` answer; `engine`: k1, auto, ray1, ray2 (the last two with K = auto)."""
    overrides = [f"rounds={rounds}", f"domains.idle.sites={sites}", f"domains.idle.max-examples={4 * sites}"]
    overrides += [f"sampling.fraction={sampled / sites}"]
    overrides += [] if engine == "k1" else ["engine.sites-at-once=auto"]
    turns = Turns()
    listen = of_rounds(turns, rounds)

    with tempfile.TemporaryDirectory() as place:
        config = load_config(CONFIG, [*overrides, f"runs.folder={place}"])
        folder = RunFolder.create(config)
        if engine.startswith("ray"):
            _on_ray(config.replace("engine.name=ray", f"engine.workers={engine[3:]}"), folder, listen)
        else:
            RoundLoop(LocalGrid(idle), config, folder, listen).run()
        used = folder.rounds["sites_used"].tolist()[1:]
    return {"walls": turns.walls, "cpus": turns.cpus, "updates": sum(used), "expected": rounds * sampled}


def _on_ray(config, folder, listen) -> None:
    import ray

    from fedfm.engines.ray_engine import RayGrid, start_ray

    start_ray(config)
    try:
        RoundLoop(RayGrid(config, idle), config, folder, listen).run()
    finally:
        ray.shutdown()
