"""The model of a domain's sites: entrance -> shared body -> pooling -> head.

Every domain has its own modules over the *same* frozen weights: the body's structure is copied, its tensors are not.
Which tensors train is the tuning; which of them are averaged over whom is the group (`group_names`).
"""

from __future__ import annotations

import copy
import fnmatch
import inspect
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fedfm.config import BodyConfig, RunConfig
from fedfm.domains.card import DomainCard
from fedfm.errors import ModelError
from fedfm.models.adapters import ImageAdapter
from fedfm.models.body import Body, layer_stack, load_body
from fedfm.models.devices import float32_by_default
from fedfm.models.plain_layers import one_after_the_other, plain_embedding, simplify
from fedfm.models.row_lora import RowLoRA
from fedfm.models.rows import Active, RowLayerNorm, RowLinear, RowModule, Whole
from fedfm.profiling import phase


class SiteModel(nn.Module):
    """Logits `[k*B, C]`, or `[k*B, S, C]` for token classification, for `active.rows` = k sites at once."""

    def __init__(self, body: Body, settings: BodyConfig, card: DomainCard):
        super().__init__()
        self.active = Active()
        self.card = card
        self.body = _same_tensors(body.model)
        self.frozen_dtype = next(body.model.parameters()).dtype
        self.is_half = self.frozen_dtype == torch.bfloat16
        self.dtype = torch.float32 if self.is_half else self.frozen_dtype  # of inputs, of what trains, of logits
        norm = _embedding_norm(body)
        self.body.embeddings = _Entrance(self.body.embeddings)
        layer_types = set(getattr(body.model.config, "layer_types", None) or ["full_attention"])
        self.attends_alike = body.model.config._attn_implementation == "sdpa" and layer_types == {"full_attention"}
        if card.image_shape:
            kind, tokens = settings.image_adapter, settings.image_tokens
            (width,) = norm.normalized_shape  # of the embedding, which some bodies (ELECTRA) then project to H
            self.adapter = ImageAdapter(self.active, kind, card.image_shape, width, tokens, norm)
        self.head = RowLinear(self.active, body.width, len(card.labels))
        self.stack_name, self.stack = layer_stack(self.body)
        self.cut = first_tuned_layer(settings, len(self.stack))
        names = [name for name, _ in self.body.named_parameters()]
        self.is_bare = not len(self.stack) and all(name.startswith("embeddings.") for name in names)
        layers = list(self.stack)
        self.below, self.above = (
            {str(i): layer for i, layer in enumerate(part)} for part in (layers[: self.cut], layers[self.cut :])
        )
        _TUNINGS[settings.tuning](self, settings)
        whole = [module.inner[0] for module in self.rows().values() if isinstance(module, Whole)]
        self.is_plain = simplify(self.body, whole)
        self.embed = plain_embedding(self.body.embeddings.entrance, whole)
        self.eval()  # no dropout: a site's result may depend on nothing but its data, its orders and the seed

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits for `inputs` (see `logits`); a bfloat16 body computes under autocast, what trains stays float32."""
        if not self.is_half:
            return self.logits(inputs)
        with torch.autocast(self.head.weight.device.type, torch.bfloat16):
            return self.logits(inputs).float()

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """`inputs`: `images [k*B, C, h, w]` in [0, 1], or `input_ids [k*B, S]` and, with padding, `attention_mask`.

        In place of `input_ids`, what the layers below `cut` make of them: `hidden [k*B, S, H]`, or, where no layer
        trains, the `pooled [k*B, H]` texts.
        """
        if "images" in inputs:
            hidden = self.adapter.forward(inputs["images"]).to(self.frozen_dtype)
            if not self.is_bare:  # a body of nothing would hand back what it is given, at the price of a body
                tokens = hidden if hidden.dim() == 3 else hidden[:, None]
                hidden = self._through(self.stack._modules, tokens, None)
            return self.head(hidden if hidden.dim() == 2 else hidden.mean(dim=1))
        if "pooled" in inputs:
            return self.head(inputs["pooled"])
        mask = inputs.get("attention_mask")
        hidden = self.above_cut(inputs["hidden"], mask) if "hidden" in inputs else self.encode(inputs)
        return self.head(hidden if self.card.task == "token-classification" else mean_over_tokens(hidden, mask))

    def encode(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Texts through the whole body: `[N, S, H]`."""
        mask = self._for_body(inputs.get("attention_mask"))
        if self.is_plain:
            return self._through(self.stack._modules, self.embed(inputs["input_ids"]), mask)
        return self.body(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state

    def below_cut(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Texts through the layers below the cut, of a body that is plain: `[N, S, H]`."""
        mask = self._for_body(inputs.get("attention_mask"))
        return self._through(self.below, self.embed(inputs["input_ids"]), mask)

    def above_cut(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """The states at the cut `[N, S, H]` through the layers above it."""
        return self._through(self.above, hidden.to(self.frozen_dtype), self._for_body(mask)) if self.above else hidden

    def _through(self, layers: Mapping[str, nn.Module], hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Some of the layers, and what follows on them in the body's own forward pass, which is run with fewer."""
        if self.is_plain:  # there is nothing else in it; of a small batch its wrapping takes as long as a layer
            return one_after_the_other(layers.values(), hidden, mask)
        whole = self.stack._modules
        self.stack._modules = layers
        try:
            return self.body(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
        finally:
            self.stack._modules = whole

    def _for_body(self, mask: Tensor | None) -> Tensor | None:
        """The mask as the body wants it: ready made where its layers all attend alike.

        From a mask of two dimensions transformers makes that of four itself, for which it looks whether any token is
        padding: on a GPU the wait for that answer is longer than a layer.
        """
        if mask is None or not self.attends_alike:
            return mask if mask is None else mask.to(torch.int64)
        return mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)

    def merge(self, products: Mapping[str, np.ndarray]) -> None:
        """Put `merged/<module>.weight` into the frozen weights of LoRA modules, and out of those that are not named."""
        for name, module in self.rows().items():
            if isinstance(module, RowLoRA):
                product = products.get(f"merged/{name}.weight")
                is_some = product is not None and bool(product.any())
                module.merge(torch.from_numpy(product.astype(np.float64)) if is_some else None)

    def rows(self) -> dict[str, RowModule]:
        """Every module that trains, by its dotted name, in a fixed order."""
        found = {name.replace(".entrance.", "."): m for name, m in self.named_modules() if isinstance(m, RowModule)}
        return found | getattr(self, "whole", {})


def mean_over_tokens(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """`[N, S, H]` to `[N, H]`; mask: bool [N, S], None where every place holds a token."""
    if mask is None:
        return hidden.sum(dim=1) / hidden.shape[1]
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def first_tuned_layer(settings: BodyConfig, layers: int) -> int:
    """How many layers from below stay as they are. Raises ModelError where body.trainable-layers does not fit."""
    wanted, where = settings.trainable_layers, "body.trainable-layers"
    if wanted > layers:
        raise ModelError(f"the body has {layers} layers, not {wanted}", where=where, mend="0 tunes all of them")
    if wanted and settings.tuning == "head":
        mend = 'body.tuning = "lora", or trainable-layers = 0'
        raise ModelError('tuning "head" trains no layer', where=where, mend=mend)
    return layers if settings.tuning == "head" else layers - (wanted or layers)


@phase("load")
def build_model(config: RunConfig, card: DomainCard, device: str = "cpu") -> SiteModel:
    """The model of one domain over this process's body on `device`; its rows are bound by a ClientMatrix.

    Raises ModelError.
    """
    return SiteModel(load_body(config, device), config.body, card).to(device)


@float32_by_default()
def start_weights(model: SiteModel, seed: int) -> dict[str, np.ndarray]:
    """Start values of one row, name -> array, each drawn from a generator keyed by (seed, name)."""
    values = {}
    for name, module in model.rows().items():
        for attribute in module.shapes:
            full = f"{name}.{attribute}"
            # what belongs to a domain is drawn for that domain; what is shared is the same whichever model draws it
            key = full if full.startswith("body.") and ".domain_" not in full else f"{model.card.domain}/{full}"
            words = np.random.SeedSequence([seed, *key.encode()]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
            values[full] = module.start(attribute, generator).to(model.dtype).numpy().copy()
    return values


def group_names(names: Iterable[str], sharing: Mapping[str, str], domain: str) -> dict[str, str]:
    """Tensor name -> name with its group: `shared/...`, `<domain>/...` or `private/...`.

    What lies in the body is shared (a domain's own LoRA apart), the rest is the domain's, unless a pattern of [sharing]
    says otherwise; the first pattern that matches wins.
    """
    grouped = {}
    for name in names:
        is_shared = name.startswith("body.") and not name.endswith((".domain_A", ".domain_B"))
        default = "shared" if is_shared else "domain"
        group = next((g for pattern, g in sharing.items() if fnmatch.fnmatchcase(name, pattern)), default)
        grouped[name] = f"{domain if group == 'domain' else group}/{name}"
    return grouped


class _Entrance(nn.Module):
    """The body's embedding, except that ready image tokens pass through: they have their own positions and norm."""

    def __init__(self, embeddings: nn.Module):
        super().__init__()
        self.entrance = embeddings
        self.signature = inspect.signature(embeddings.forward)

    def forward(self, *args, **inputs) -> Tensor:
        ready = self.signature.bind_partial(*args, **inputs).arguments.get(
            "inputs_embeds"
        )  # DistilBERT's is positional
        return self.entrance(*args, **inputs) if ready is None else ready


def _same_tensors(model: nn.Module) -> nn.Module:
    """A copy of the module tree that holds the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _embedding_norm(body: Body) -> nn.LayerNorm:
    for module in body.model.embeddings.modules():
        if isinstance(module, nn.LayerNorm):
            return module
    return nn.LayerNorm(body.width).requires_grad_(False)


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)


def _is_tuned(model: SiteModel, name: str) -> bool:
    """Does the module of the body train? Not the embedding, and no layer below the cut."""
    layer = name.removeprefix(f"{model.stack_name}.").partition(".")[0]
    is_below = name.startswith(f"{model.stack_name}.") and int(layer) < model.cut
    return not name.startswith("embeddings") and not is_below


def _tune_head(model: SiteModel, settings: BodyConfig) -> None:
    """Nothing in the body trains."""


def _tune_layernorm(model: SiteModel, settings: BodyConfig) -> None:
    """Every LayerNorm of the layers trains (the embedding's stays: images do not pass it)."""
    for name, module in list(model.body.named_modules()):
        if isinstance(module, nn.LayerNorm) and _is_tuned(model, name):
            _replace(model.body, name, RowLayerNorm(model.active, module))


def _tune_lora(model: SiteModel, settings: BodyConfig) -> None:
    """Linear layers outside the embedding get a low-rank update: all of them, or those whose last name is given."""
    linears = [
        (name, module)
        for name, module in model.body.named_modules()
        if isinstance(module, nn.Linear) and _is_tuned(model, name)
    ]
    wanted = set(settings.lora_targets)
    chosen = [(n, m) for n, m in linears if "all-linear" in wanted or n.rpartition(".")[2] in wanted]
    unknown = wanted - {"all-linear"} - {n.rpartition(".")[2] for n, _ in linears}
    if linears and (unknown or not chosen):
        known = ", ".join(sorted({n.rpartition(".")[2] for n, _ in linears}))
        what = f"no linear layer of the body is called {', '.join(sorted(unknown))}"
        raise ModelError(what, where="body.lora-targets", mend=f"known: all-linear, {known}")
    ranks = settings.lora_rank, settings.lora_alpha, settings.domain_lora_rank
    for name, module in chosen:
        _replace(model.body, name, RowLoRA(model.active, module, *ranks))


def _tune_full(model: SiteModel, settings: BodyConfig) -> None:
    """All of the body trains, or what stands above the cut; the text embedding only where text passes it."""
    whole = {}
    for name, module in model.body.named_modules():
        is_entrance = name.startswith("embeddings")
        trains = model.card.image_shape is None and not model.cut if is_entrance else _is_tuned(model, name)
        if trains and next(module.parameters(recurse=False), None) is not None:
            whole[f"body.{name}".replace(".entrance.", ".")] = Whole(model.active, module)
    object.__setattr__(model, "whole", whole)  # a table beside the module tree: the parameters stay where they are


_TUNINGS = {"head": _tune_head, "layernorm": _tune_layernorm, "lora": _tune_lora, "full": _tune_full}
