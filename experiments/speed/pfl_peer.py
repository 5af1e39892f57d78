"""pfl-research on the same work; needs `pip install 'fedfm[bench]'`. ImportError where it is absent."""

from __future__ import annotations

import time
from itertools import pairwise

import torch
import torch.nn.functional as F
from floor import make_optimizer
from peers import fedfm_name, make_model, sites_batches, start_state
from workloads import Workload


def run(workload: Workload, rounds: int) -> dict:
    """As `fedfm_engines.run`. Every site's examples stand in the order of its first round."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    inner = make_model(workload, start_state(workload))
    sites = sites_batches(workload, 1)
    columns = [[torch.cat([b[0][name] for b in site.batches]) for name in site.batches[0][0]] for site in sites]
    data = [(*cols, torch.cat([b[1] for b in site.batches])) for cols, site in zip(columns, sites, strict=True)]
    names = list(sites[0].batches[0][0])

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def loss(self, *values, **_):
            return F.cross_entropy(self.inner(**dict(zip(names, values[:-1], strict=True))), values[-1])

        def metrics(self, *values, **_):
            return {"loss": Weighted(0.0, 1)}

    model, marks = Wrapped(), []
    arrived: list[int] = []

    class Mark(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            marks.append((time.perf_counter(), time.process_time()))
            arrived.append(workload.sites)
            return False, Metrics()

    def local(parameters, lr):
        return make_optimizer(workload, [p for p in parameters if p.requires_grad])

    trained = [p for p in model.parameters() if p.requires_grad]
    wrapped = PyTorchModel(model, local_optimizer_create=local, central_optimizer=torch.optim.SGD(trained, 1.0))
    users = get_user_sampler("minimize_reuse", list(range(workload.sites)))
    dataset = FederatedDataset(lambda user: PyTorchTensorDataset(data[user]), users)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds, evaluation_frequency=10**6, train_cohort_size=workload.sites,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=dataset, val_data=dataset), model=wrapped,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=workload.rate, local_batch_size=workload.batch
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=workload.batch), callbacks=[Mark()],
    )  # fmt: skip
    spans = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks)]
    named = {fedfm_name(n): p.detach().numpy() for n, p in inner.named_parameters() if p.requires_grad}
    return {
        "walls": [wall for wall, _ in spans], "cpus": [cpu for _, cpu in spans], "updates": sum(arrived),
        "expected": rounds * workload.sites, "weights": named,
    }  # fmt: skip
