"""A trained federation, used without its sites: load it, predict with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from fedfm.arrays import Arrays
from fedfm.config import RunConfig, load_config
from fedfm.domains.card import DomainCard
from fedfm.domains.examples import Examples
from fedfm.errors import ModelError, UserError, did_you_mean
from fedfm.models.body import load_body, refuse_other_body
from fedfm.models.features import featurize
from fedfm.models.site_model import SiteModel, build_model, group_names, start_weights
from fedfm.training.evaluation import predict, softmax
from fedfm.training.matrix import ClientMatrix


@dataclass(frozen=True)
class TrainedModel:
    """One domain's model with the weights of a finished run."""

    config: RunConfig
    card: DomainCard
    model: SiteModel
    weights: Arrays  # name in the model -> value
    merged: Arrays = field(default_factory=dict)  # what the frozen weights are changed by (SiteModel.merge)

    def probabilities(self, inputs) -> list[np.ndarray]:
        """Class probabilities `[C]` of images (uint8 [N, H, W, C]) or texts; `[words, C]` of sentences of words.

        A sentence that is one text is parted at its spaces. Raises UserError for anything else.
        """
        inputs = read_inputs(inputs, self.card)
        if self.card.task == "token-classification":
            labels = tuple(np.zeros(len(words), np.int64) for words in inputs)
        else:
            labels = np.zeros(len(inputs), np.int64)
        local = self.config.local_for(self.card.domain)
        features = featurize(
            Examples(self.card.task, inputs, labels), load_body(self.config).tokenizer, local.max_length
        )
        ((logits, _),) = predict(self.model, [features])
        tables = [softmax(row) for row in logits]
        if self.card.task != "token-classification":
            return tables
        outside = np.eye(len(self.card.labels))[self.card.labels.index("O")]
        return [
            np.where(starts[:, None] < 0, outside, table[np.maximum(starts, 0)])
            for table, starts in zip(tables, features.word_starts, strict=True)
        ]

    def predict(self, inputs) -> list:
        """The label of each image or text, or the tags of each sentence's words."""
        names = np.array(self.card.labels)
        return [names[table.argmax(-1)].tolist() for table in self.probabilities(inputs)]


def read_inputs(inputs, card: DomainCard):
    """What is to be predicted, as a model takes it. Raises UserError where it is something else."""
    if card.image_shape:
        return _images(inputs, card.image_shape)
    if isinstance(inputs, str | bytes):
        raise UserError("one text was given, where a list of them belongs", where="inputs", mend="predict([text])")
    items = tuple(inputs)
    if card.task == "token-classification":
        items = tuple(tuple(item.split()) if isinstance(item, str) else tuple(item) for item in items)
    for number, item in enumerate(items):
        if not all(isinstance(part, str) for part in (item if isinstance(item, tuple) else (item,))):
            raise UserError(f"number {number} is no text: {item!r:.60}", where="inputs", mend="give a list of texts")
    return items


def _images(inputs, shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    wanted = f"uint8 of shape [N, {height}, {width}, {channels}]"
    mend = f"give {wanted}; `fedfm predict` reads image files of any size"
    try:
        images = np.asarray(inputs)
    except ValueError:  # a list of unequal ones
        raise UserError(f"the images are not of one size, {wanted} is needed", where="inputs", mend=mend) from None
    if channels == 1 and images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.shape[1:] != (height, width, channels):
        found = f"{images.dtype} of shape {list(images.shape)}"
        raise UserError(f"the images are {found}, the model was trained on {wanted}", where="inputs", mend=mend)
    return images


def load_model(run: str | Path, domain: str, site: str = "") -> TrainedModel:
    """The model of `domain` from a run folder; `site` is needed where part of it is private to sites.

    Raises UserError when the run has no final model, no such domain, or no such site.
    """
    folder = Path(run)
    cards = read_cards(folder)
    if domain not in cards:
        what = f'the run has no domain "{domain}".{did_you_mean(domain, cards)}'
        raise UserError(what, where=str(folder), mend=f"its domains: {', '.join(cards)}")
    config = load_config(folder / "config.toml")
    refuse_other_body(config, read_info(folder).get("body_sha256"))
    model = build_model(config, cards[domain])
    matrix = ClientMatrix(model)
    grouped = group_names(matrix.columns, config.sharing, domain)
    stored = load_file(folder / "model" / "weights.safetensors")
    private: Arrays = {}
    if any(full.startswith("private/") for full in grouped.values()):
        private = _private(folder, domain, site) or start_weights(model, config.seed)
    weights = {name: stored[full] if full in stored else private[name] for name, full in grouped.items()}
    matrix.load(0, weights)
    merged = {name: value for name, value in stored.items() if name.startswith("merged/")}
    model.merge(merged)
    return TrainedModel(config, cards[domain], model, weights, merged)


def read_cards(folder: Path) -> dict[str, DomainCard]:
    """Domain -> card of a run that has its final model. Raises UserError."""
    file, info = folder / "model" / "domains.json", read_info(folder)
    is_there = file.exists() and (folder / "model" / "weights.safetensors").exists()
    if not (is_there and "final_round" in info):
        raise UserError("this run has not reached its end", where=str(folder), mend=f"fedfm resume {folder}")
    rows = json.loads(file.read_text(encoding="utf-8"))
    return {domain: DomainCard.from_dict(row) for domain, row in rows.items()}


def read_info(folder: Path) -> dict[str, Any]:
    """run.json of a run. Raises UserError."""
    file = folder / "run.json"
    if not file.is_file():
        raise UserError("not a run folder", where=str(folder), mend="give the folder that `fedfm run` printed last")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"damaged: {error}", where=str(file), mend="restore the file from a copy") from None


def _private(folder: Path, domain: str, site: str) -> Arrays:
    """What a site kept to itself, of the round of the final weights. In a simulation it lies in the run folder.

    Empty for a site that had not trained by then: it was scored with its start values.
    """
    info = read_info(folder)
    names = [name for name, row in info["sites"].items() if row["domain"] == domain]
    last = int(info["final_round"])
    mend = f"name one: --site {' | '.join(names)}"
    if site not in names:
        what = f'domain {domain} has no site "{site}".{did_you_mean(site, names)}' if site else (
            f"part of the model of domain {domain} is private to its sites"
        )  # fmt: skip
        raise UserError(what, where=str(folder), mend=mend)
    sites = folder / "checkpoint" / "sites"
    if not sites.is_dir():
        what = f"what site {site} kept to itself is not in this folder"
        raise ModelError(what, where=str(folder), mend="bring its checkpoint folder from where it ran")
    kept = [file for file in sorted((sites / site).glob("*.safetensors")) if int(file.stem) <= last]
    return load_file(kept[-1]) if kept else {}
