"""How many sites train at once when engine.sites-at-once = "auto": as many as fill the device, as memory holds.

A step of K sites costs one round of kernels, however many rows they have, until the rows fill the device; from there on
more rows only take memory. So K is a budget of tokens, divided by the tokens of one site's step. Measured on one core
(MiniLM, 6 layers; ratio of the plain loop's time to that of K rows): 8 x 64 tokens 1.00 to 1.06 at any K; 2 x 32 tokens
1.4 at K = 8, 1.55 at 16 and 32; 1 x 16 tokens 2.6 at K = 8, 3.0 at 32, no more at 128. So 512 tokens of MiniLM fill a
core, and a step of them is one site of 8 x 64. That is 5e9 multiply-adds; of a smaller body as many are more tokens.
The budget of a GPU is an estimate, not a measurement.
"""

from __future__ import annotations

import psutil
import torch

from fedfm.config import LocalConfig
from fedfm.models.rows import Whole
from fedfm.models.site_model import SiteModel

TOKENS_THAT_FILL = {"cpu": 512, "cuda": 32768, "mps": 8192}
PRODUCTS_THAT_FILL = 5e9  # multiply-adds of a step's forward pass that fill a core
MOST_TOKENS = 2048  # on a core: of more, even those of a narrow body leave its cache
PIXELS_OF_A_TOKEN = {True: 64, False: 32}  # by is_grid: pixels that cost a stem, or lenet, what a token costs a layer
SHARE_OF_MEMORY = 0.5  # of what is free; the rest is for optimiser states, gradients and fragmentation
MOST_ROWS = 128


def sites_at_once(
    model: SiteModel, local: LocalConfig, mean_words: float, mean_examples: float, free_bytes: float
) -> int:
    """K of a domain; 1 where its model knows no rows. The same for the same arguments.

    mean_words: of a training text. mean_examples: of a site. free_bytes: what the process may take on its device.
    """
    if any(isinstance(module, Whole) for module in model.rows().values()):
        return 1
    of_a_text = min(local.max_length, 1.5 * mean_words + 2)  # words fall into pieces, and the longest text counts
    length = _tokens_of_an_image(model) if model.card.image_shape else of_a_text
    tokens = min(local.batch_size, max(mean_examples, 1.0)) * length
    fill = tokens_that_fill(model)
    held = SHARE_OF_MEMORY * free_bytes / bytes_of_a_token(model)
    return int(max(1, min(MOST_ROWS, fill // tokens, held // tokens)))


def tokens_that_fill(model: SiteModel) -> float:
    """Tokens of a step from which on more rows only take memory."""
    device = model.head.weight.device.type
    if device in ("cuda", "mps"):
        return TOKENS_THAT_FILL[device]
    trained = list(model.stack)[min(model.cut, len(model.stack)) :]  # what lies below the cut is computed once
    products = sum(p.numel() for layer in trained for p in layer.parameters() if p.dim() == 2)
    return min(MOST_TOKENS, max(TOKENS_THAT_FILL["cpu"], PRODUCTS_THAT_FILL / max(products, 1)))


def bytes_of_a_token(model: SiteModel) -> float:
    """Bytes that a training step keeps for its backward pass, for each token: counted in one small step."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs, tokens = _probe(model)
    model.active.rows = 1
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(inputs).sum()
    return max(1.0, sum(kept.values()) / tokens)


def _probe(model: SiteModel) -> tuple[dict[str, torch.Tensor], float]:
    """Inputs of a small step, and how many tokens they count for."""
    example = model.head.weight
    if model.card.image_shape:
        images = torch.zeros(2, *model.card.image_shape, dtype=example.dtype, device=example.device)
        return {"images": images}, 2 * _tokens_of_an_image(model)
    ids = torch.ones(2, 16, dtype=torch.int64, device=example.device)
    return {"input_ids": ids}, ids.numel()


def _tokens_of_an_image(model: SiteModel) -> float:
    _, height, width = model.card.image_shape
    return max(1.0, height * width / PIXELS_OF_A_TOKEN[model.adapter.is_grid])


def free_bytes(device: str, workers: int) -> float:
    """Memory that one of `workers` processes of this machine may take on its device."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] / workers
    return psutil.virtual_memory().available / workers
