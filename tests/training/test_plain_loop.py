"""K sites as rows of one matrix against a plain loop a site: ordinary modules, peft, torch.optim; float64, 1e-10.

The oracle shares with fedfm what a site's batches are (`batch_plan`, `collate`) and nothing of how it trains.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from training_helpers import IMAGE, TAGS, TEXT, make_config, make_features, make_matrix

from fedfm.config import RunConfig
from fedfm.domains.card import DomainCard
from fedfm.models.body import load_body
from fedfm.models.features import Features, collate
from fedfm.strategies import make_strategy
from fedfm.training.fit import SiteWork, batch_plan, fit
from fedfm.training.matrix import ClientMatrix

LARGER_IMAGE = DomainCard("medical", "image-classification", ("a", "b", "c"), (1, 18, 16))
COUNTS = (7, 3, 10, 1)  # examples of the sites: in batches of 4 they take 2, 1, 3 and 1 steps an epoch, the last ragged

ADAMW = ("local.weight-decay=0.05", "local.learning-rate=3e-3")
SGD = ("local.optimizer=sgd", "local.momentum=0.9", "local.weight-decay=0.05", "local.learning-rate=2e-2")
CLIPPED = ("local.clip-norm=0.5", "local.schedule=cosine")
PROXIMAL = ("strategy.name=fedprox", "strategy.proximal-mu=0.7")
CASES = {
    "lora, texts, AdamW, FedProx": (TEXT, "lora", (*ADAMW, *PROXIMAL)),
    "lora, tags, SGD, clipped, cosine, FedProx": (TAGS, "lora", (*SGD, *CLIPPED, *PROXIMAL)),
    "two lora targets, texts, SGD": (TEXT, "lora", (*SGD, 'body.lora-targets=["query","value"]', "body.lora-rank=2")),
    "layernorm, tags, AdamW, cosine": (TAGS, "layernorm", (*ADAMW, "local.schedule=cosine")),
    "head, texts, SGD, clipped": (TEXT, "head", (*SGD, "local.clip-norm=0.5")),
    "top layer, texts, AdamW": (TEXT, "lora", (*ADAMW, "body.trainable-layers=1")),
    "full, tags, AdamW, clipped, FedProx": (TAGS, "full", (*ADAMW, *CLIPPED, *PROXIMAL)),
    "full, images, SGD": (IMAGE, "full", SGD),
    "lora, stem, AdamW, clipped, cosine": (IMAGE, "lora", (*ADAMW, *CLIPPED)),
    "layernorm, stem, SGD, FedProx": (IMAGE, "layernorm", (*SGD, *PROXIMAL)),
    "lora, patches, SGD": (IMAGE, "lora", (*SGD, "body.image-adapter=patch")),
    "lora, lenet, SGD": (LARGER_IMAGE, "lora", (*SGD, "body.image-adapter=lenet")),
}


@pytest.mark.parametrize("case", CASES)
def test_many_rows_equal_a_plain_loop_for_each_site(case):
    card, tuning, keys = CASES[case]
    config = make_config("local.epochs=2", "local.batch-size=4", "body.image-tokens=9", f"body.tuning={tuning}", *keys)
    works = [SiteWork(f"s{i}", make_features(config, card, n, i), config.seed, 1) for i, n in enumerate(COUNTS)]
    one = make_matrix(config, card)
    start = one.read(0)
    # a bias of the keys cannot change a softmax: its gradient is rounding, which Adam divides by epsilon
    is_full_adamw = (config.body.tuning, config.local.optimizer) == ("full", "adamw")
    ours = trained_together(ClientMatrix(one.model, len(works)), start, works, config)
    for work, (values, loss) in zip(works, ours, strict=True):
        plan = batch_plan(work.features.lengths(), config.local, work.generator("batches"))
        expected, losses = plain_loop(config, card, start, work.features, plan)
        assert values.keys() == expected.keys()
        compared = [name for name in values if not (is_full_adamw and name.endswith("key.bias"))]
        assert max(np.abs(values[name] - expected[name]).max() for name in compared) <= 1e-10
        assert loss == pytest.approx(np.mean(losses), abs=1e-10)
        assert max(np.abs(values[name] - start[name]).max() for name in values) > 1e-4  # it did learn


def trained_together(matrix: ClientMatrix, start: Mapping, works: Sequence[SiteWork], config: RunConfig) -> list:
    """(trained tensors, mean loss) of each site, as many at once as the matrix has rows."""
    results = []
    for first in range(0, len(works), matrix.rows):
        part = works[first : first + matrix.rows]
        matrix.load(0, start)
        matrix.theta[: len(part)] = matrix.theta[0].clone()
        losses = fit(matrix, part, config.local, make_strategy(config.strategy).correct)
        results += [(matrix.read(row), losses[row]) for row in range(len(part))]
    return results


def plain_loop(config: RunConfig, card: DomainCard, start: Mapping, features: Features, plan: Sequence) -> tuple:
    """One site's trained tensors by name, and the loss of each step without its proximal term."""
    model, local = PlainModel(config, card), config.local
    trained = model.trained(start)
    anchor = {name: p.detach().clone() for name, p in trained.items()}
    mu = config.strategy.own_keys.get("proximal-mu", 0.0)
    optimizer = make_optimizer(trained, local)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(plan))
    losses = []
    for indices in plan:
        batch = collate([(features, indices)], "cpu", torch.float64)
        loss = F.cross_entropy(model(batch.inputs).flatten(0, -2), batch.labels.flatten())
        losses.append(loss.item())
        proximal = sum(((p - anchor[name]) ** 2).sum() for name, p in trained.items())
        optimizer.zero_grad()
        (loss + mu / 2 * proximal).backward()
        norm = float(torch.cat([p.grad.flatten() for p in trained.values()]).norm())
        if local.clip_norm and norm > local.clip_norm:
            for p in trained.values():
                p.grad *= local.clip_norm / norm
        if local.optimizer == "sgd":  # torch's own decay goes through the momentum; ours is decoupled, as in AdamW
            with torch.no_grad():
                for group in optimizer.param_groups:
                    for p in group["params"]:
                        p *= 1 - group["lr"] * local.weight_decay
        optimizer.step()
        if local.schedule == "cosine":
            cosine.step()
    return {name: p.detach().numpy() for name, p in trained.items()}, losses


def make_optimizer(trained: Mapping[str, nn.Parameter], local) -> torch.optim.Optimizer:
    body = [p for name, p in trained.items() if name.startswith("body.")]
    others = [p for name, p in trained.items() if not name.startswith("body.")]
    groups = [{"params": body, "lr": local.learning_rate}, {"params": others, "lr": local.head_learning_rate}]
    if local.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=local.momentum)
    return torch.optim.AdamW(groups, weight_decay=local.weight_decay)


class PlainModel(nn.Module):
    """A body of its own with peft's LoRA where it is wanted, ordinary modules around it, fedfm's names."""

    def __init__(self, config: RunConfig, card: DomainCard):
        super().__init__()
        self.card, body = card, load_body(config)
        self.body = copy.deepcopy(body.model)
        if config.body.tuning == "lora":
            self._adapt(config)
        if card.image_shape:
            self.adapter = PlainAdapter(config.body.image_adapter, card.image_shape[0], body)
        self.head = nn.Linear(body.width, len(card.labels))
        self.eval().double()

    def _adapt(self, config: RunConfig) -> None:
        """LoRA into the layers of the body, in place."""
        settings, layers = config.body, len(self.body.encoder.layer)
        every = ("query", "key", "value", "dense")
        targets = every if settings.lora_targets == ("all-linear",) else settings.lora_targets
        lora = LoraConfig(
            r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=list(targets),
            layers_to_transform=list(range(layers - (settings.trainable_layers or layers), layers)),
        )  # fmt: skip
        get_peft_model(self.body, lora)

    def trained(self, start: Mapping[str, np.ndarray]) -> dict[str, nn.Parameter]:
        """The parameters that `start` names, set to it; the others are frozen."""
        named = {name.removesuffix(".default.weight"): p for name, p in self.requires_grad_(False).named_parameters()}
        chosen = {name: named[name].requires_grad_() for name in start}
        with torch.no_grad():
            for name, p in chosen.items():
                p.copy_(torch.from_numpy(start[name]))
        return chosen

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        if "images" in inputs:
            hidden = self.body.encoder(self.adapter((inputs["images"] - 0.5) * 4))[0]
            return self.head(hidden.mean(dim=1))
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids)).long()
        hidden = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.card.task == "token-classification":
            return self.head(hidden)
        return self.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class PlainAdapter(nn.Module):
    """The entrances for images of 12x10 (stem and patches: a grid of 3x3) and 18x16 pixels (lenet)."""

    def __init__(self, kind: str, channels: int, body):
        super().__init__()
        self.kind, width = kind, body.width
        if kind == "lenet":  # 18x16 -> 14x12 -> 7x6 -> 3x2 -> 1x1
            self.embed = nn.Sequential(
                nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(),
                nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 120), nn.ReLU(), nn.Linear(120, width), nn.ReLU(),
            )  # fmt: skip
            return
        stem = (
            nn.Conv2d(channels, 32, 3, 2, 1), nn.GroupNorm(8, 32), nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1), nn.GroupNorm(8, 64), nn.GELU(), nn.Conv2d(64, width, 1),
        )  # fmt: skip
        patches = nn.ZeroPad2d((0, 2, 0, 0)), nn.Conv2d(channels, width, 4, 4)
        self.embed = nn.Sequential(*(stem if kind == "stem" else patches))
        self.positions = nn.Module()
        self.positions.rows = nn.Parameter(torch.empty(3, width))
        self.positions.columns = nn.Parameter(torch.empty(3, width))
        self.norm = nn.LayerNorm(width, eps=body.model.config.layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.embed(images)
        if self.kind == "lenet":
            return seen[:, None]
        grid = seen.movedim(1, -1) + self.positions.rows[:, None] + self.positions.columns
        return self.norm(grid.flatten(1, 2))
