"""The floor: the plain loop that everything else is measured against. One process, one model, nothing federated.

The global state is copied into one model in place, a new optimiser takes the steps of a site, the sites' states are
averaged. Batches are tensors on the device before the clock starts, without a mask where nothing is padded; no value
of a tensor is asked for; the optimisers are torch's own. `tuned` (the engine floor-tuned) is the plain loop with what a
careful user adds: fused optimisers, and texts padded to the longest of their batch instead of the maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from peers import make_model, sites_batches
from turns import Turns
from workloads import Workload


def run(workload: Workload, start: Mapping[str, torch.Tensor], rounds: int, tuned: bool) -> tuple[Turns, dict]:
    """The turns that were taken, and the last state, by name in the model."""
    model = make_model(workload, start)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state = {name: p.detach().clone() for name, p in trained.items()}
    batches = [sites_batches(workload, number, tuned) for number in range(1, rounds + 1)]
    turns = Turns()
    for sites in batches:
        turns.begin()
        state = one_round(workload, model, trained, state, sites, tuned)
        turns.end()
    return turns, state


def one_round(workload: Workload, model, trained: Mapping, state: Mapping, sites: Sequence, tuned: bool) -> dict:
    """Every site from `state`, and the mean of where they came to, by examples."""
    total = sum(site.examples for site in sites)
    mean = {name: torch.zeros_like(value) for name, value in state.items()}
    for site in sites:
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(state[name])
        optimizer = make_optimizer(workload, list(trained.values()), tuned)
        for inputs, labels in site.batches:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(**inputs), labels).backward()
            optimizer.step()
        with torch.no_grad():
            for name, p in trained.items():
                mean[name].add_(p, alpha=site.examples / total)
    return mean


def make_optimizer(workload: Workload, parameters: list, fused: bool = False) -> torch.optim.Optimizer:
    if workload.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=workload.rate, fused=fused)
    return torch.optim.AdamW(parameters, lr=workload.rate, weight_decay=0.0, fused=fused)
