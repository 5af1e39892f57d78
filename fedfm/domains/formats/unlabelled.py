"""Texts and sentences that nobody has labelled, from a file of any format that a domain's data may have.

A table gives its text column, a CoNLL file the tokens of its sentences, whether or not labels or tags stand beside
them; any other file is taken as plain text, one text or sentence a line.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from fedfm.config import DomainConfig
from fedfm.domains.formats import conll, tables
from fedfm.domains.formats.tags import TAG
from fedfm.domains.reading import Reading
from fedfm.errors import DataError

LINE_END = re.compile(r"\r*\n|\r")  # not splitlines(): that also breaks at U+2028 and others, which texts may hold
COLUMNS = (".conll", ".bio", ".iob")
NOT_PLAIN = (*tables.SUFFIXES, *COLUMNS, ".tsv", ".json")
READ: dict[str, tuple[str, ...]] = {"text-classification": tables.SUFFIXES, "token-classification": COLUMNS}


def read_unlabelled(path: Path, settings: DomainConfig, labels: Collection[str]) -> list[str]:
    """Texts with single spaces, in the order of the file; words of a sentence with a space between them.

    `labels`: the tags of the model that is asked, which tell a .txt file of tagged tokens from one of sentences. An
    empty line of plain text is passed over; a row of a table without text stays, so that rows and predictions match.
    Raises DataError with every line that cannot be used.
    """
    reading, suffix, read = Reading(path), path.suffix.lower(), READ[settings.task]
    if suffix in NOT_PLAIN and suffix not in read:
        mend = f"give a {', '.join(read)} file, or plain text with one a line"
        raise DataError(f"a {suffix} file is not read for {settings.task}", where=str(path), mend=mend)
    if suffix in tables.SUFFIXES:
        found = [" ".join(text.split()) for text in tables.read_texts(path, settings, reading)]
    else:
        content = reading.text(path)
        tagged = suffix in COLUMNS or (settings.task == "token-classification" and _is_tagged(content, labels))
        found = _sentences(content) if tagged else _plain(content)
    reading.refuse()
    return found


def _plain(content: str) -> list[str]:
    lines = (" ".join(line.split()) for line in LINE_END.split(content))
    return [line for line in lines if line]


def _sentences(content: str) -> list[str]:
    """The tokens of each sentence; without a tag a line may hold the token alone."""
    sentences: list[list[str]] = [[]]
    for line in LINE_END.split(content):
        token = next(iter(conll.columns_of(line)), "")
        if token and token != "-DOCSTART-":
            sentences[-1].append(token)
        else:
            sentences.append([])
    return [" ".join(words) for words in sentences if words]


def _is_tagged(content: str, labels: Collection[str]) -> bool:
    """Is a .txt file one of tokens and tags, and not one of sentences?

    Sentences may end as tags look ("Vitamin B-12", "by E-mail.", "I love O"), and none of their words may be lost. So
    all lines must have the same number of columns, two at least, of which the last is O, or a prefix of any scheme
    before a type. One of the types must be of `labels`, where neither a -DOCSTART- line nor a tab in every line says
    that these are columns. If all are O and nothing is said, only the shape speaks for columns: then there must be two
    lines at least. Blank lines do not count. Columns that this does not find are tokens in a file named .conll.
    """
    lines = [line for line in LINE_END.split(content) if conll.columns_of(line)]
    rows = [conll.columns_of(line) for line in lines]
    said = any(columns[0] == "-DOCSTART-" for columns in rows) or all("\t" in line for line in lines)
    rows = [columns for columns in rows if columns[0] != "-DOCSTART-"]
    widths, tags = {len(columns) for columns in rows}, {columns[-1] for columns in rows}
    if len(widths) != 1 or widths == {1} or not all(map(TAG.fullmatch, tags)):
        return False
    types = {tag[2:] for tag in tags - {"O"}}
    known = not types.isdisjoint(label[2:] for label in labels)
    return said or (known if types else len(rows) > 1)
