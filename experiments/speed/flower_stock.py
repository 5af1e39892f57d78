"""Stock Flower on the same work: Message API, FedAvg, its own Ray simulation, one actor with all cores."""

from __future__ import annotations

import os

import psutil
from peers import fedfm_name, make_model, start_state
from turns import Turns
from workloads import DEVICE, Workload


def run(workload: Workload, variant: str, rounds: int) -> dict:
    """As `fedfm_engines.run`; `variant`: "flower" builds the model at every call, "flower-cached" keeps it."""
    os.environ |= {
        "FEDFM_SPEED_WORKLOAD": workload.name, "FEDFM_SPEED_VARIANT": variant, "FEDFM_SPEED_DTYPE": workload.dtype,
    }  # fmt: skip
    os.environ["PYTHONPATH"] = os.path.dirname(__file__) + os.pathsep + os.environ.get("PYTHONPATH", "")
    from flower_client import app
    from flwr.app import ArrayRecord, Context, MetricRecord
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    server, turns, found = ServerApp(), Turns(), {}

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        model = make_model(workload, start_state(workload))
        state = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}

        def mark(number: int, arrays: ArrayRecord) -> MetricRecord:
            """Called with the start weights (number 0) and after every round."""
            if number:
                turns.end()
            if number < rounds:
                turns.begin()
            return MetricRecord({})

        strategy = FedAvg(
            fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=workload.sites,
            min_available_nodes=workload.sites,
            train_metrics_aggr_fn=lambda contents, key: MetricRecord({"arrived": len(contents)}),
        )  # fmt: skip
        result = strategy.start(grid, ArrayRecord(state), num_rounds=rounds, evaluate_fn=mark)
        found["weights"] = {fedfm_name(n): v.numpy() for n, v in result.arrays.to_torch_state_dict().items()}
        found["updates"] = sum(metrics["arrived"] for metrics in result.train_metrics_clientapp.values())

    gpus = 1.0 if DEVICE == "cuda" else 0.0
    resources = {"num_cpus": psutil.cpu_count() or 1, "num_gpus": gpus}
    backend = {"client_resources": resources, "init_args": {"log_to_driver": False}}
    run_simulation(server, app, num_supernodes=workload.sites, backend_config=backend)
    return {
        "walls": turns.walls, "cpus": turns.cpus, "updates": found["updates"],
        "expected": rounds * workload.sites, "weights": found["weights"],
    }  # fmt: skip
