"""`fedfm export`: a finished run as files that other programs load.

DEST/README.md             model card
DEST/body/                 the body and its tokenizer, as `AutoModel.from_pretrained` takes it
DEST/adapter/              the LoRA of the body, as `PeftModel.from_pretrained` takes it (tuning `lora`)
DEST/domains/<domain>/     labels.json, tensors.safetensors (head, image adapter), adapter/ where LoRA is its own
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.errors import UserError
from fedfm.models.body import load_body
from fedfm.training.trained import TrainedModel, load_model, read_cards

PEFT_PREFIX = "base_model.model."


def export(run: str | Path, destination: str | Path, site: str = "") -> Path:
    """Write the final model of a run to `destination`, which must be new or empty. Raises UserError."""
    folder, target = Path(run), Path(destination)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("the destination is not empty", where=str(target), mend="give a new folder")
    models = {domain: load_model(folder, domain, site) for domain in read_cards(folder)}
    config = next(iter(models.values())).config
    _write_body(config, models, target / "body")
    loras = {domain: _lora(model.weights) for domain, model in models.items()}
    one_for_all = len({_digest(lora) for lora in loras.values()}) == 1
    for domain, model in models.items():
        place = target / "domains" / domain
        place.mkdir(parents=True)
        own = {name: value for name, value in model.weights.items() if name not in loras[domain]}
        if config.body.tuning == "full":  # the body folder holds them
            own = {name: value for name, value in own.items() if not name.startswith("body.")}
        save_file(own, place / "tensors.safetensors")
        card = {"domain": domain, "task": model.card.task, "labels": model.card.labels}
        card["image_shape"] = model.card.image_shape
        (place / "labels.json").write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")
        if loras[domain] and not one_for_all:
            _write_lora(config, loras[domain], place / "adapter")
    if one_for_all and next(iter(loras.values())):
        _write_lora(config, next(iter(loras.values())), target / "adapter")
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (target / "README.md").write_text(model_card(config, models, info, one_for_all), encoding="utf-8")
    return target


def _lora(weights: Arrays) -> Arrays:
    """The LoRA tensors under peft's names."""
    return {name: value for name, value in weights.items() if name.endswith((".lora_A", ".lora_B"))}


def _digest(tensors: Arrays) -> str:
    from fedfm.arrays import sha256

    return sha256(tensors)


def _write_lora(config: RunConfig, tensors: Arrays, place: Path) -> None:
    from peft import LoraConfig

    place.mkdir(parents=True)
    named = {
        f"{PEFT_PREFIX}{name.removeprefix('body.')}.weight": np.ascontiguousarray(v) for name, v in tensors.items()
    }
    save_file(named, place / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = sorted({name.removeprefix("body.").rpartition(".")[0] for name in tensors})
    LoraConfig(
        r=config.body.lora_rank, lora_alpha=config.body.lora_alpha, target_modules=modules, lora_dropout=0.0,
        bias="none", inference_mode=True, base_model_name_or_path="../body",
    ).save_pretrained(place)  # fmt: skip


def _write_body(config: RunConfig, models: dict[str, TrainedModel], place: Path) -> None:
    """The body as it was trained over: cut to its layers; with tuning `full` or `layernorm`, with trained values."""
    import torch

    body = load_body(config)
    state = dict(body.model.state_dict())
    for model in models.values():
        for name, value in model.weights.items():
            inner = name.removeprefix("body.")
            if inner in state:
                state[inner] = torch.from_numpy(value)
    place.mkdir(parents=True)
    body.model.save_pretrained(place, state_dict={name: value.clone() for name, value in state.items()})
    body.tokenizer.save_pretrained(place)


def model_card(config: RunConfig, models: dict[str, TrainedModel], info: dict, one_for_all: bool) -> str:
    """README.md of an export: what it is, how it scored, how to load it."""
    generated = set(info.get("generated") or ())
    rows = []
    for domain, model in models.items():
        scores = ", ".join(
            f"{name} {value:.3f}" for name, value in info["final"].get(domain, {}).items() if value is not None
        )
        origin = "generated" if domain in generated else config.domains[domain].source
        rows.append(f"| {domain} | {model.card.task} | {origin} | {len(model.card.labels)} | {scores} |")
    adapter = "adapter" if one_for_all else f"domains/{next(iter(models))}/adapter"
    if config.body.tuning == "lora":
        loading = f'model = PeftModel.from_pretrained(AutoModel.from_pretrained("body"), "{adapter}")'
    else:
        loading = 'model = AutoModel.from_pretrained("body")'
    return f"""---
library_name: peft
tags: [federated, fedfm]
---
# {config.body.name}, fine-tuned by federation over {", ".join(models)}

Trained by fedfm {info["versions"]["fedfm"]}: strategy {config.strategy.name}, {info["rounds"]} rounds, {len(info["sites"])} sites, tuning
{config.body.tuning}. sha256 of the weights: `{info["final_weights_sha256"]}`.

| domain | task | data | labels | scores on test |
|---|---|---|---|---|
{chr(10).join(rows)}

{"Scores on generated data say nothing about real data." if generated else "Not a medical device; not advice."}

```python
from transformers import AutoModel
from peft import PeftModel
from safetensors.torch import load_file
{loading}
tensors = load_file("domains/{next(iter(models))}/tensors.safetensors")   # head.weight, head.bias, adapter.*
```

Texts: the mean of the last hidden state over the text's tokens, then the head. Words: the head on the first token of
each word. Images: pixels / 255 through the image adapter, its tokens as `inputs_embeds` past the body's embedding, the
mean over tokens, then the head (`fedfm.load_model` does all of it from the run folder).
"""
