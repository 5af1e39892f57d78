"""`fedfm export`: a finished run as files that other programs load.

DEST/README.md             model card
DEST/body/                 the body and its tokenizer, as `AutoModel.from_pretrained` takes it
DEST/adapter/              the LoRA of the body, as `PeftModel.from_pretrained` takes it (tuning `lora`)
DEST/domains/<domain>/     labels.json, tensors.safetensors (head, image adapter), adapter/ where LoRA is its own

What was trained in the body without LoRA lies in DEST/body where all domains agree on it, and where they do not, with
`body.` before its name, in the domain's tensors.safetensors, to be loaded over the body.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from fedfm.arrays import Arrays, sha256
from fedfm.commands.model_card import model_card
from fedfm.config import RunConfig
from fedfm.errors import UserError, did_you_mean
from fedfm.models.body import load_body
from fedfm.results.files import new_folder
from fedfm.training.trained import TrainedModel, load_model, read_cards, read_info

if TYPE_CHECKING:
    from torch import Tensor

PEFT_PREFIX = "base_model.model."


def export(run: str | Path, destination: str | Path, sites: Sequence[str] = ()) -> Path:
    """Write the final model of a run to `destination`, which must be new or empty; returns it.

    `sites`: of each domain whose model is private in part, the site whose part it shall be. Raises UserError.
    """
    folder, target = Path(run), Path(destination)
    cards, info = read_cards(folder), read_info(folder)
    if "final" not in info:
        what = "the test of this run has not been scored, and the model card of an export tells the scores"
        raise UserError(what, where=str(folder), mend=f"fedfm resume {folder}")
    site_of = _site_of(folder, info["sites"], sites)
    models = {domain: load_model(folder, domain, site_of.get(domain, "")) for domain in cards}
    new_folder(target)  # after all that may be refused of the run: no empty folder stays behind
    config = next(iter(models.values())).config
    loras = {domain: _lora(model.weights) for domain, model in models.items()}
    common = _agreed({d: _body_tensors(model.weights) for d, model in models.items()})
    adapter_for_all = len({sha256(lora) for lora in loras.values()}) == 1
    first = next(iter(models.values()))
    _write_body(config, common, _merged(first), target / "body")
    for domain, model in models.items():
        _write_domain(model, loras[domain].keys() | common.keys(), target / "domains" / domain)
        if loras[domain] and not adapter_for_all:
            _write_lora(config, loras[domain], target / "domains" / domain / "adapter")
    lora = next(iter(loras.values()))
    if adapter_for_all and lora:
        _write_lora(config, lora, target / "adapter")
    (target / "README.md").write_text(model_card(target, config, models, info), encoding="utf-8")
    return target


def _site_of(folder: Path, known: Mapping[str, Any], sites: Sequence[str]) -> dict[str, str]:
    """Domain -> which of `sites` is its. `known`: the sites of the run. Raises UserError."""
    found: dict[str, str] = {}
    for site in dict.fromkeys(sites):
        if site not in known:
            what = f'the run has no site "{site}".{did_you_mean(site, known)}'
            raise UserError(what, where=str(folder), mend=f"its sites: {', '.join(known)}")
        domain = known[site]["domain"]
        if domain in found:
            what = f"{found[domain]} and {site} are both sites of domain {domain}"
            raise UserError(what, where=str(folder), mend="an export holds the part of one site of a domain")
        found[domain] = site
    return found


def _lora(weights: Arrays) -> Arrays:
    """The factors; those of a domain's own pair beside them in one of the sum of both ranks."""
    found = {}
    for name, value in weights.items():
        if name.endswith((".lora_A", ".lora_B")):
            second = weights.get(name.replace(".lora_", ".domain_"))
            axis = 0 if name.endswith("A") else 1
            found[name] = value if second is None else np.concatenate([value, second], axis=axis)
    return found


def _is_factor(name: str) -> bool:
    return name.endswith((".lora_A", ".lora_B", ".domain_A", ".domain_B"))


def _body_tensors(weights: Arrays) -> Arrays:
    """What stands in place of the body's own tensors."""
    return {name: v for name, v in weights.items() if name.startswith("body.") and not _is_factor(name)}


def _merged(model: TrainedModel) -> dict[str, Tensor]:
    """The frozen weights into which a strategy has merged something, with it, as `RowLoRA.merge` computes them."""
    import torch

    frozen = load_body(model.config).model.state_dict()
    scale = model.config.body.lora_alpha / model.config.body.lora_rank
    found = {}
    for full, product in model.merged.items():
        name = full.removeprefix("merged/")
        own = frozen[name.removeprefix("body.")]
        found[name] = (own.double() + scale * torch.from_numpy(product).double()).to(own.dtype)  # numpy: no bfloat16
    return found


def _agreed(domains: Mapping[str, Arrays]) -> Arrays:
    """The tensors that are alike in every domain that has them (an image domain, say, trains no text embedding)."""
    together: Arrays = {}
    apart = set()
    for tensors in domains.values():
        for name, value in tensors.items():
            if not np.array_equal(together.setdefault(name, value), value):
                apart.add(name)
    return {name: value for name, value in together.items() if name not in apart}


def _write_domain(model: TrainedModel, elsewhere: set[str], place: Path) -> None:
    """Labels, and the tensors that lie in no other file."""
    place.mkdir(parents=True)
    kept = {name: v for name, v in model.weights.items() if name not in elsewhere and not _is_factor(name)}
    own = {name: np.ascontiguousarray(v) for name, v in kept.items()}
    save_file(own, place / "tensors.safetensors", metadata={"format": "pt"})
    card = {"domain": model.card.domain, "task": model.card.task, "labels": model.card.labels}
    if model.card.image_shape:
        card |= {"image_shape": model.card.image_shape, "image_adapter": model.config.body.image_adapter}
    else:
        card["max_length"] = model.config.local_for(model.card.domain).max_length
    (place / "labels.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_lora(config: RunConfig, tensors: Arrays, place: Path) -> None:
    """The LoRA tensors under peft's names, with the configuration that peft reads."""
    from peft import LoraConfig

    place.mkdir(parents=True)
    named = {
        f"{PEFT_PREFIX}{name.removeprefix('body.')}.weight": np.ascontiguousarray(v) for name, v in tensors.items()
    }
    save_file(named, place / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = sorted({name.removeprefix("body.").rpartition(".")[0] for name in tensors})
    rank = next(len(value) for name, value in tensors.items() if name.endswith("_A"))
    LoraConfig(
        r=rank, lora_alpha=config.body.lora_alpha * rank / config.body.lora_rank, target_modules=modules,
        lora_dropout=0.0, bias="none",
        inference_mode=True,  # and no name of a base model: peft would look for it on the hub
    ).save_pretrained(place)  # fmt: skip
    file = place / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["target_modules"].sort()  # a set in peft: without this no two exports are equal
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _write_body(config: RunConfig, trained: Arrays, merged: Mapping[str, Tensor], place: Path) -> None:
    """The body as it was trained over, cut to its layers, with the values of `trained` and `merged`; its tokenizer.

    A part that the class has but fedfm does without (BERT's pooler) is written as zeros, so that loading finds every
    tensor it looks for.
    """
    import torch
    from transformers import AutoModel

    body = load_body(config)
    state = {name: value.clone() for name, value in body.model.state_dict().items()}
    dtype = next(body.model.parameters()).dtype
    with torch.device("meta"):
        whole = AutoModel.from_config(body.model.config).state_dict()
    state |= {name: torch.zeros(value.shape, dtype=dtype) for name, value in whole.items() if name not in state}
    state |= {name.removeprefix("body."): torch.from_numpy(value.copy()) for name, value in trained.items()}
    state |= {name.removeprefix("body."): value for name, value in merged.items()}
    place.mkdir(parents=True)
    body.model.save_pretrained(place, state_dict=state)
    body.tokenizer.save_pretrained(place)
