"""aten operators of a site's step, counted: the one measure that no busy machine can change."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {  # not counted: they move no number
    "view", "_unsafe_view", "t", "transpose", "expand", "detach", "unsqueeze", "squeeze", "select", "slice", "reshape",
    "permute", "as_strided", "alias", "empty", "empty_like", "split", "unbind", "_reshape_alias", "lift_fresh",
}  # fmt: skip


class Count(TorchDispatchMode):
    """`with Count() as count:`, then `count.operators`: those that ran inside, forward and backward, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operators += function._schema.name.split("::")[1] not in VIEWS
        return function(*args, **(kwargs or {}))


def of_floor(workload, tuned: bool) -> float:
    """Of the plain loop, optimiser included, over one round."""
    import floor
    from peers import make_model, sites_batches, start_state

    model = make_model(workload, start_state(workload))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state, sites = {name: p.detach().clone() for name, p in trained.items()}, sites_batches(workload, 1, tuned)
    with Count() as count:
        floor.one_round(workload, model, trained, state, sites, tuned)
    return count.operators / sum(len(site.batches) for site in sites)


def of_fedfm(workload, engine: str) -> float:
    """Of fedfm's local training, over one round of an engine that works in this process."""
    import fedfm_engines

    from fedfm.training import local_round

    real, operators, steps = local_round.fit, [], []

    def counted(matrix, works, local, *rest):
        with Count() as count:
            losses = real(matrix, works, local, *rest)
        operators.append(count.operators)
        steps.extend(-(-len(work.features) // local.batch_size) * local.epochs for work in works)
        return losses

    local_round.fit = counted
    try:
        fedfm_engines.run(workload, engine, 1)
    finally:
        local_round.fit = real
    return sum(operators) / sum(steps)
