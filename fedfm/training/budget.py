"""How many sites train at once when engine.sites-at-once = "auto": the fewest that are about as fast as any number.

A step of K sites launches the kernels of one, whatever K: each site pays a K-th of that. But texts are padded to the
longest of the step, and of more texts the longest is longer. In tokens of arithmetic a site's step costs

    cost(K) = overhead / K + B * longest(K * B)

Measured on one core (MiniLM, 6 layers; ratio of the plain loop's time to that of K rows): 8 x 64 tokens 1.00 to 1.06 at
any K; 2 x 32 tokens 1.4 at K = 8, 1.55 at 16 and 32; 1 x 16 tokens 2.6 at K = 8, 3.0 at 32, no more at 128. An overhead
of 35 tokens gives all of them; of a layer, whose kernels are as many in every body, it is 6e7 multiply-adds.
The budget of a GPU is an estimate: as many as fill it. On one H100 128 sites were 1.1 times as fast as 32 (float32) and
2.1 times (bfloat16) at 8 x 64 tokens of MiniLM, 1.02 and 1.1 times at 8 x 128 of BERT-base's size
(experiments/speed/results/gpu.md).
"""

from __future__ import annotations

from statistics import NormalDist

import psutil
import torch

from fedfm.config import LocalConfig
from fedfm.models.rows import Whole
from fedfm.models.site_model import SiteModel

OVERHEAD_OF_A_LAYER = 6e7  # multiply-adds that take a core as long as launching the kernels of a layer's step
MOST_TOKENS = {"cpu": 2048, "cuda": 32768, "mps": 8192}  # of a step; on a core more of them leave its cache
ABOUT_AS_FAST = 1.05
PIECES_OF_A_WORD = 1.3
PIXELS_OF_A_TOKEN = {True: 64, False: 32}  # by is_grid: pixels that cost a stem, or lenet, what a token costs a layer
SHARE_OF_MEMORY = 0.5  # of what is free; the rest is for optimiser states, gradients and fragmentation
MOST_ROWS = 128


def sites_at_once(
    model: SiteModel, local: LocalConfig, words: tuple[float, float], mean_examples: float, free_bytes: float
) -> int:
    """K of a domain; 1 where its model knows no rows. The same for the same arguments.

    words: of a training text, mean and standard deviation. mean_examples: of a site. free_bytes: what the process may
    take on its device.
    """
    if any(isinstance(module, Whole) for module in model.rows().values()):
        return 1
    device = model.head.weight.device.type
    batch = max(1.0, min(local.batch_size, mean_examples))
    most = min(MOST_TOKENS.get(device, MOST_TOKENS["cpu"]), SHARE_OF_MEMORY * free_bytes / bytes_of_a_token(model))

    def tokens(rows: int) -> float:
        """Of one site's step, where so many train at once."""
        if model.card.image_shape:
            return batch * _tokens_of_an_image(model)
        return batch * min(local.max_length, _longest(*words, rows * batch))

    fitting = [rows for rows in range(1, MOST_ROWS + 1) if rows == 1 or rows * tokens(rows) <= most]
    if device in ("cuda", "mps"):
        return fitting[-1]
    overhead = overhead_tokens(model)
    costs = {rows: overhead / rows + tokens(rows) for rows in fitting}
    return min(rows for rows, cost in costs.items() if cost <= ABOUT_AS_FAST * min(costs.values()))


def overhead_tokens(model: SiteModel) -> float:
    """Tokens whose arithmetic in a layer takes a core as long as launching its kernels."""
    trained = list(model.stack)[min(model.cut, len(model.stack)) :]  # what lies below the cut is computed once
    products = sum(p.numel() for layer in trained for p in layer.parameters() if p.dim() == 2)
    return OVERHEAD_OF_A_LAYER * max(len(trained), 1) / max(products, 1)


def _longest(mean: float, deviation: float, texts: float) -> float:
    """About how many tokens the longest of so many texts has, as of normal numbers.

    Blom, "Statistical Estimates and Transformed Beta-Variables", 1958: E[max of n] = Phi^-1((n - 3/8) / (n + 1/4)).
    """
    above = NormalDist().inv_cdf((texts - 0.375) / (texts + 0.25))
    return PIECES_OF_A_WORD * (mean + deviation * above) + 2


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
