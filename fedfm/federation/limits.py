"""How large an answer may be, by what was asked for: what is larger is refused before any of it is decoded.

An update has the tensors that its site was sent, and for each word of the strategy's `returns` as many again. It may
be four times as large as those: a mean of float16 tensors travels in float64, and `top-k` of all entries sends a place
of four bytes with each. A tally has counts over the labels, and of images a float32 probability of every class for
every example. Whole numbers and reasons are small; there is room for them whatever was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedfm.federation.messages import SiteCard

WIDER = 4
ROOM = 2**20  # bytes


def most_of_update(bytes_sent: int, returns: int, updates: int) -> int:
    """Bytes of an answer to training. `bytes_sent`: of the tensors of one site; `updates`: how many are stacked."""
    return ROOM + WIDER * bytes_sent * (1 + returns) * updates


def most_of_tally(cards: Iterable[SiteCard], labels: int, split: str) -> int:
    """Bytes of the tallies of a split, of sites whose domain has so many `labels`."""
    counts = labels * labels + 8 * labels
    return ROOM + sum(8 * (counts + labels * card.num_examples(split)) for card in cards)
