"""The client side of stock Flower, as its quickstart is written; its own module, so that Ray's actors import it."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from floor import make_optimizer
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peers import make_model, site_batches, start_state
from workloads import chosen, site_names

from fedfm.models.devices import set_products

app = ClientApp()
_kept: dict = {}


def model_for_call(workload):
    """A model built for this call, or, in the variant for experts, one that the process keeps."""
    if os.environ["FEDFM_SPEED_VARIANT"] == "flower" or "model" not in _kept:
        _kept["model"] = make_model(workload, start_state(workload))
    return _kept["model"]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Local steps of one site."""
    torch.set_num_threads(1)
    set_products(os.environ["FEDFM_SPEED_DTYPE"])
    workload = chosen(os.environ["FEDFM_SPEED_WORKLOAD"], os.environ["FEDFM_SPEED_DTYPE"])
    model = model_for_call(workload)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    received = message.content["arrays"].to_torch_state_dict()
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(received[name])
    number = int(message.content["config"]["server-round"])
    site = site_names(workload)[int(context.node_config["partition-id"])]
    key = site, number
    if key not in _kept:
        _kept[key] = site_batches(workload, site, number)
    data = _kept[key]
    optimizer = make_optimizer(workload, list(trained.values()))
    for inputs, labels in data.batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(**inputs), labels).backward()
        optimizer.step()
    arrays = ArrayRecord({name: p.detach().cpu() for name, p in trained.items()})
    metrics = MetricRecord({"num-examples": data.examples})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
