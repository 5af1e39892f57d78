"""pfl-research on the same work; needs `pip install 'fedfm[bench]'`. ImportError where it is absent."""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from floor import make_optimizer
from peers import SiteBatches, fedfm_name, make_model, sites_batches, start_state
from turns import Turns
from workloads import Workload


class Wrapped(torch.nn.Module):
    """The model as pfl asks for it: with `loss` and `metrics`."""

    def __init__(self, inner: torch.nn.Module, names: list[str]):
        super().__init__()
        self.inner, self.names = inner, names

    def loss(self, *values, **_):
        return F.cross_entropy(self.inner(**dict(zip(self.names, values[:-1], strict=True))), values[-1])

    def metrics(self, *values, **_):
        from pfl.metrics import Weighted

        return {"loss": Weighted(0.0, 1)}


def run(workload: Workload, rounds: int) -> dict:
    """As `fedfm_engines.run`; for sites with equal numbers of examples."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    given: Counter = Counter()
    data = datasets(workload, rounds, given)
    model = Wrapped(make_model(workload, start_state(workload)), input_names(workload))
    trained = [p for p in model.parameters() if p.requires_grad]

    def local(parameters, lr):
        return make_optimizer(workload, [p for p in parameters if p.requires_grad])

    turns = Turns()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds, evaluation_frequency=10**6, train_cohort_size=workload.sites,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=PyTorchModel(model, local_optimizer_create=local, central_optimizer=torch.optim.SGD(trained, 1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=workload.rate, local_batch_size=workload.batch
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=workload.batch), callbacks=[marks(turns, rounds)],
    )  # fmt: skip
    named = {fedfm_name(n): p.detach().numpy() for n, p in model.inner.named_parameters() if p.requires_grad}
    return {
        "walls": turns.walls, "cpus": turns.cpus, "updates": given.total(), "expected": rounds * workload.sites,
        "weights": named,
    }  # fmt: skip


def datasets(workload: Workload, rounds: int, given: Counter):
    """pfl's users: the n-th time that one is asked it gives the batches of round n. `given` counts."""
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler

    tables = [[columns(site) for site in sites_batches(workload, number)] for number in range(1, rounds + 1)]

    def dataset(user: int):
        given[user] += 1
        return PyTorchTensorDataset(tables[given[user] - 1][user])

    return FederatedDataset(dataset, get_user_sampler("minimize_reuse", list(range(workload.sites))))


def input_names(workload: Workload) -> list[str]:
    return ["images"] if workload.is_image else ["input_ids"]


def columns(site: SiteBatches) -> tuple[torch.Tensor, ...]:
    """A site's round as one table a column, which pfl cuts into batches again."""
    inputs = [torch.cat([batch[name] for batch, _ in site.batches]) for name in site.batches[0][0]]
    return (*inputs, torch.cat([labels for _, labels in site.batches]))


def marks(turns: Turns, rounds: int):
    """A callback that takes the turns."""
    from pfl.callback.base import TrainingProcessCallback
    from pfl.metrics import Metrics

    class Marks(TrainingProcessCallback):
        def on_train_begin(self, *, model):
            turns.begin()
            return Metrics()

        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            turns.end()
            if len(turns.walls) < rounds:
                turns.begin()
            return False, Metrics()

    return Marks()
