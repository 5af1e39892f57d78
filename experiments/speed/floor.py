"""The floor: the plain loop that everything else is measured against. One process, one model, nothing federated.

The global state is copied into one model in place, a new optimiser takes the steps of a site, the sites' states are
averaged. Batches are tensors that were made before the clock starts; no value of a tensor is asked for; the optimisers
are torch's own with their defaults.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from peers import make_model, sites_batches
from workloads import Workload


def run(workload: Workload, start: Mapping[str, torch.Tensor], rounds: int) -> tuple[list[float], list[float], dict]:
    """(wall, CPU) seconds of every round, and the last state, by name in the model."""
    model = make_model(workload, start)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state = {name: p.detach().clone() for name, p in trained.items()}
    batches = [sites_batches(workload, number) for number in range(1, rounds + 1)]
    walls, cpus = [], []
    for sites in batches:
        wall, cpu = time.perf_counter(), time.process_time()
        state = one_round(workload, model, trained, state, sites)
        if next(iter(state.values())).is_cuda:  # what was launched must have ended
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return walls, cpus, state


def one_round(workload: Workload, model, trained: Mapping, state: Mapping, sites: Sequence) -> dict:
    """Every site from `state`, and the mean of where they came to, by examples."""
    total = sum(site.examples for site in sites)
    mean = {name: torch.zeros_like(value) for name, value in state.items()}
    for site in sites:
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(state[name])
        optimizer = make_optimizer(workload, list(trained.values()))
        for inputs, labels in site.batches:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(**inputs), labels).backward()
            optimizer.step()
        with torch.no_grad():
            for name, p in trained.items():
                mean[name].add_(p, alpha=site.examples / total)
    return mean


def make_optimizer(workload: Workload, parameters: list) -> torch.optim.Optimizer:
    if workload.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=workload.rate)
    return torch.optim.AdamW(parameters, lr=workload.rate, weight_decay=0.0)
