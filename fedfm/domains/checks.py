"""What is refused and what is only told of any source, whatever its format.

Refusals carry the place of each problem; what a reader alone can know (a broken line, an unknown tag) is checked there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fedfm.domains.examples import Examples
from fedfm.errors import DataError, Problem

if TYPE_CHECKING:
    from fedfm.domains.reading import RawSplit

MOST_LISTED = 10


def refuse(problems: Sequence[Problem]) -> None:
    """Raise one DataError with the first ten problems and the number of the others; do nothing for none."""
    if not problems:
        return
    listed = list(problems[:MOST_LISTED])
    # neighbours often share their advice: it is said once, after the last of them
    listed = [
        Problem(problem.what, problem.where) if problem.mend == after.mend else problem
        for problem, after in pairwise([*listed, Problem("")])
    ]
    if (more := len(problems) - MOST_LISTED) > 0:
        listed.append(Problem(f"and {more} more", count=more))
    raise DataError(listed)


def check_splits(splits: Mapping[str, RawSplit], source: str) -> list[Problem]:
    """Problems of the whole: nothing to learn in train, or labels elsewhere that train never shows."""
    train = splits["train"]
    if not len(train.labels):
        return [Problem("the training split is empty", source, "give it labelled examples")]
    known = {name for label in train.labels for name in names_in(label)}
    tagged = isinstance(train.labels[0], tuple)
    if found := nothing_to_tell_apart(known, tagged):
        if tagged:
            return [Problem(f"{found} in the training split", source, "check that the last column holds the tags")]
        return [
            Problem(f"the training split has {found}", source, "a classifier needs examples of two classes at least")
        ]
    return [problem for name in splits if name != "train" for problem in _unseen(name, splits[name], known)]


def check_part(splits: Mapping[str, RawSplit], source: str) -> list[Problem]:
    """As `check_splits` of one site's own source: what it lacks other sites of its domain may have."""
    empty = Problem("the training split is empty", source, "give it labelled examples")
    return [] if len(splits["train"].labels) else [empty]


def warn_part(splits: Mapping[str, RawSplit]) -> list[str]:
    """What a site's own source needs of the other sites of its domain, in sentences."""
    train = splits["train"]
    known = {name for label in train.labels for name in names_in(label)}
    found = nothing_to_tell_apart(known, isinstance(train.labels[0], tuple))
    warnings = [f"the training split has {found}: other sites of its domain must have more"] if found else []
    unseen = sorted({n for raw in splits.values() for label in raw.labels for n in names_in(label)} - known)
    if unseen and not found:
        warnings.append(f"not in its training split, only in others: {', '.join(unseen)}")
    return warnings


def nothing_to_tell_apart(known: Collection[str], tagged: bool) -> str:
    """Why nothing can be learned of training data with the classes, or entity types, of `known`; "" where it can."""
    if tagged:
        return "" if known else "no entity at all"
    return "" if len(known) > 1 else f'a single class, "{next(iter(known))}"'


def names_in(label: str | tuple[str, ...]) -> tuple[str, ...]:
    """The class of an example, or the entity types of a tagged sentence."""
    return (label,) if isinstance(label, str) else tuple(tag[2:] for tag in label if tag != "O")


def _unseen(split: str, raw: RawSplit, known: set[str]) -> list[Problem]:
    first: dict[str, int] = {}
    for index, label in enumerate(raw.labels):
        for name in names_in(label):
            first.setdefault(name, index)
    mend = f"add training examples of it, or take it out of the {split} split"
    return [
        Problem(f'"{name}" appears in {split} and never in train', raw.where(first[name]), mend)
        for name in sorted(first.keys() - known)
    ]


def warn_empty_texts(splits: Mapping[str, RawSplit]) -> list[str]:
    """One sentence when texts hold nothing but spaces."""
    places = [
        raw.where(index)
        for raw in splits.values()
        for index, text in enumerate(raw.inputs)
        if isinstance(text, str) and not text.strip()
    ]
    return [f"{_count(len(places), 'text')} empty (first: {places[0]})"] if places else []


def warn_single_class(splits: Mapping[str, Examples], labels: Sequence[str]) -> list[str]:
    """One sentence for each split of images, scored by auc, that has examples of one class only: auc ranks two."""
    warnings = []
    for split in ("validation", "test"):
        examples = splits[split]
        present = np.unique(examples.labels) if examples.task == "image-classification" else ()
        if len(present) == 1:
            warnings.append(single_class(f"the {split} split", labels[present[0]]))
    return warnings


def single_class(who: str, name: str) -> str:
    """The sentence about images, in the words of `who`, whose only class is `name`."""
    return f'a single class, "{name}", in {who}: auc is not defined there'


def warn_duplicates(splits: Mapping[str, Examples]) -> list[str]:
    """One sentence for each pair of splits that share exact copies of an input: scores on them flatter."""
    contents = {split: [_content(item) for item in examples.inputs] for split, examples in splits.items()}
    warnings = []
    for later, earlier in (("validation", "train"), ("test", "train"), ("test", "validation")):
        seen = set(contents[earlier])
        copies = sum(content in seen for content in contents[later])
        if copies:
            found = f"{_count(copies, f'{later} example')} found in {earlier} too, exactly equal"
            warnings.append(f"{found}: scores on {later} flatter")
    return warnings


def _content(item) -> bytes | str | tuple[str, ...]:
    if isinstance(item, np.ndarray):
        return hashlib.blake2b(item.tobytes(), digest_size=16).digest()
    return item


def _count(number: int, noun: str) -> str:
    return f"1 {noun} is" if number == 1 else f"{number} {noun}s are"
