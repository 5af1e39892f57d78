"""Tag schemes of named entities: IOB1, IOB2, BIOES and BILOU are told apart and rewritten as IOB2.

    words    Anna  Maria  met   Bob   Eve
    IOB1     I-PER I-PER  O     I-PER B-PER     B- only where an entity follows one of the same type
    IOB2     B-PER I-PER  O     B-PER B-PER     every entity starts with B-
    BIOES    B-PER E-PER  O     S-PER S-PER     E- ends, S- is an entity of one word (BILOU: L-, U-)

How a source's scheme is found, over all its splits: any E-, S-, L- or U- makes it BIOES (BILOU). Otherwise, if some I-
starts an entity and no B- stands where IOB1 would write I-, it is IOB1; else IOB2. In every scheme a tag that continues
an entity which never began is read as its start (with a warning, except in IOB1, where it is the rule).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from fedfm.domains.reading import RawSplit, Reading

TAG = re.compile(r"O|[BIESLU]-.+")
_MEND = "tags are O, or B-, I-, E-, S-, L-, U- before the type of an entity, e.g. B-PER"
CONTINUING, SINGLE, CLOSING = "IEL", "SU", "ESLU"


def to_iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """One sentence's tags, of any of the schemes, in IOB2."""
    starts = set(entity_starts(tags))
    return tuple("O" if tag == "O" else f"{'B' if i in starts else 'I'}-{tag[2:]}" for i, tag in enumerate(tags))


def entity_starts(tags: Sequence[str]) -> list[int]:
    """Positions where an entity starts, whatever its prefix says."""
    starts, inside = [], ""  # `inside`: the type of the entity that is still open
    for position, tag in enumerate(tags):
        prefix, kind = tag[0], tag[2:]
        if prefix != "O" and not (prefix in CONTINUING and kind == inside):
            starts.append(position)
        inside = "" if prefix in CLOSING else kind
    return starts


def orphans(tags: Sequence[str]) -> list[int]:
    """Positions of I-, E-, L- tags that continue an entity which never began."""
    return [position for position in entity_starts(tags) if tags[position][0] in CONTINUING]


def scheme_of(sentences: Iterable[Sequence[str]]) -> str:
    """`"IOB1"`, `"IOB2"`, `"BIOES"` or `"BILOU"`, by the rule at the top of this file."""
    sentences = list(sentences)
    prefixes = {tag[0] for tags in sentences for tag in tags}
    if prefixes & set("ES"):
        return "BIOES"
    if prefixes & set("LU"):
        return "BILOU"
    if any(map(orphans, sentences)) and not any(map(_has_iob2_start, sentences)):
        return "IOB1"
    return "IOB2"


def _has_iob2_start(tags: Sequence[str]) -> bool:
    """Is there a B- that does not follow an entity of its own type?"""
    return any(tag[0] == "B" and before[2:] != tag[2:] for before, tag in zip(["O", *tags], tags, strict=False))


def rewrite(splits: Mapping[str, RawSplit], strict: bool, reading: Reading) -> dict[str, RawSplit]:
    """The splits of a source with IOB2 tags; unknown tags, and with `strict` all but plain IOB2, become problems."""
    for raw in splits.values():
        _check_tags(raw, strict, reading)
    if reading.problems:
        return dict(splits)
    scheme = scheme_of(tags for raw in splits.values() for tags in raw.labels)
    if scheme != "IOB1":
        reading.warnings += _warn_orphans(splits)
    return {
        name: RawSplit(raw.inputs, [to_iob2(tags) for tags in raw.labels], raw.where) for name, raw in splits.items()
    }


def _check_tags(raw: RawSplit, strict: bool, reading: Reading) -> None:
    for index, tags in enumerate(raw.labels):
        wrong = [position for position, tag in enumerate(tags) if not TAG.fullmatch(tag)]
        for position in wrong:
            reading.problem(f'unknown tag "{tags[position]}"', raw.where(index, position), _MEND)
        if wrong or not strict:
            continue
        for position, tag in enumerate(tags):
            if tag[0] in "ESLU":
                mend = "write IOB2 (B-, I-, O), or set strict-tags = false"
                reading.problem(f'"{tag}" is no tag of IOB2', raw.where(index, position), mend)
        for position in orphans(tags):
            what = f'"{tags[position]}" does not continue an entity'
            reading.problem(what, raw.where(index, position), "start an entity with B-, or set strict-tags = false")


def _warn_orphans(splits: Mapping[str, RawSplit]) -> list[str]:
    places = [
        raw.where(index, position)
        for raw in splits.values()
        for index, tags in enumerate(raw.labels)
        for position in orphans(tags)
    ]
    if not places:
        return []
    first = f"(first: {places[0]})"
    if len(places) == 1:
        return [f"1 tag continues an entity that never began and was read as its start {first}"]
    return [f"{len(places)} tags continue an entity that never began and were read as its start {first}"]
