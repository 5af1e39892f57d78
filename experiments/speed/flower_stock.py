"""Stock Flower on the same work: Message API, FedAvg, its own Ray simulation, one actor with both cores."""

from __future__ import annotations

import os
import time
from itertools import pairwise

import psutil
from fedfm_engines import tree_cpu_seconds
from peers import fedfm_name, make_model, start_state
from workloads import Workload


def run(workload: Workload, variant: str, rounds: int) -> dict:
    """As `fedfm_engines.run`; `variant`: "flower" builds the model at every call, "flower-cached" keeps it."""
    os.environ |= {"FEDFM_SPEED_WORKLOAD": workload.name, "FEDFM_SPEED_VARIANT": variant}
    os.environ["PYTHONPATH"] = os.path.dirname(__file__) + os.pathsep + os.environ.get("PYTHONPATH", "")
    from flower_client import app
    from flwr.app import ArrayRecord, Context, MetricRecord
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    server, marks, found = ServerApp(), [], {}

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        model = make_model(workload, start_state(workload))
        state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

        def mark(number: int, arrays: ArrayRecord) -> MetricRecord:
            marks.append((time.perf_counter(), tree_cpu_seconds()))
            return MetricRecord({})

        strategy = FedAvg(
            fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=workload.sites,
            min_available_nodes=workload.sites,
        )  # fmt: skip
        result = strategy.start(grid, ArrayRecord(state), num_rounds=rounds, evaluate_fn=mark)
        found["weights"] = {fedfm_name(n): v.cpu().numpy() for n, v in result.arrays.to_torch_state_dict().items()}
        found["rounds"] = len(result.train_metrics_clientapp)

    resources = {"num_cpus": psutil.cpu_count() or 1, "num_gpus": 0.0}
    backend = {"client_resources": resources, "init_args": {"log_to_driver": False}}
    run_simulation(server, app, num_supernodes=workload.sites, backend_config=backend)
    spans = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks)]
    return {
        "walls": [wall for wall, _ in spans], "cpus": [cpu for _, cpu in spans],
        "updates": found["rounds"] * workload.sites, "expected": rounds * workload.sites, "weights": found["weights"],
    }  # fmt: skip
