"""The model card of an export: what it is, how it scored, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fedfm.config import DomainConfig, RunConfig
from fedfm.training.trained import TrainedModel

CARD = """\
---
library_name: {library}
tags: [federated, fedfm]
---
# {body}, fine-tuned by federation over {domains}

Trained by fedfm {version}. Strategy: {strategy}; rounds: {rounds}; sites: {sites}; tuning: {tuning};
sha256 of the weights: `{sha256}`.

| domain | task | data | labels | scores on test |
|---|---|---|---|---|
{rows}

Not a medical device, and no advice.{caution}

```python
{loading}
```

Texts: the mean of the last hidden state over the text's tokens, then the head. Words: the head on the first token of
each word. Images: pixels / 255 through the image adapter, its tokens past the body's embedding into its layers, the
mean over tokens, then the head (`fedfm.load_model` does all of it from the run folder). The pooler, where the body's
class has one, is not used and holds zeros.
"""


def model_card(target: Path, config: RunConfig, models: Mapping[str, TrainedModel], info: Mapping[str, Any]) -> str:
    """README.md of the export in `target`, all other files of which are written."""
    generated = set(info.get("generated") or ())
    rows = [_row(domain, model, config.domains[domain], info, generated) for domain, model in models.items()]
    words = ", ".join(sorted(generated))
    return CARD.format(
        library="peft" if config.body.tuning == "lora" else "transformers",
        body=Path(config.body.name).name,
        domains=", ".join(models),
        version=info["versions"]["fedfm"],
        strategy=config.strategy.name,
        rounds=info["rounds"],
        sites=len(info["sites"]),
        tuning=config.body.tuning,
        sha256=info["final_weights_sha256"],
        rows="\n".join(rows),
        caution=f" Generated data: {words}; these scores say nothing about real data." if generated else "",
        loading="\n".join(_loading(target, next(iter(models)))),
    )


def _row(domain: str, model: TrainedModel, settings: DomainConfig, info: Mapping[str, Any], generated: set[str]) -> str:
    scores = info["final"].get(domain, {}).items()
    words = ", ".join(f"{name} {value:.3f}" for name, value in scores if value is not None)
    sources = [site.source for site in settings.site if site.source] or [settings.source]
    origin = "generated" if domain in generated else ", ".join(Path(source).name for source in sources)
    return f"| {domain} | {model.card.task} | {origin} | {len(model.card.labels)} | {words} |"


def _loading(target: Path, domain: str) -> list[str]:
    """Python that loads the body as one domain uses it, and the domain's own tensors."""
    places = ["adapter", f"domains/{domain}/adapter"]
    adapter = next((place for place in places if (target / place).is_dir()), None)
    lines = ["from safetensors.torch import load_file", "from transformers import AutoModel", ""]
    if adapter:
        lines.insert(0, "from peft import PeftModel")
    lines.append('model = AutoModel.from_pretrained("body")')
    if adapter:
        lines.append(f'model = PeftModel.from_pretrained(model, "{adapter}")')
    lines.append(f'tensors = load_file("domains/{domain}/tensors.safetensors")  # head.weight, head.bias, ...')
    if any(name.startswith("body.") for name in _tensor_names(target / "domains" / domain / "tensors.safetensors")):
        lines.append('own = {name[5:]: value for name, value in tensors.items() if name.startswith("body.")}')
        lines.append("model.load_state_dict(own, strict=False)  # what this domain has for itself in the body")
    return lines


def _tensor_names(file: Path) -> list[str]:
    with safe_open(file, framework="numpy") as stored:
        return list(stored.keys())
