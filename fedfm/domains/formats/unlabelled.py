"""Texts and sentences that nobody has labelled, from a file of any format that a domain's data may have.

A table gives its text column, a CoNLL file the tokens of its sentences, whether or not labels or tags stand beside
them; any other file is taken as plain text, one text or sentence a line.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedfm.config import DomainConfig
from fedfm.domains.formats import conll, tables
from fedfm.domains.reading import Reading
from fedfm.errors import DataError

TAG = re.compile(r"O|[BIES]-\S+")
COLUMNS = (".conll", ".bio", ".iob")
NOT_PLAIN = (*tables.SUFFIXES, *COLUMNS, ".tsv", ".json")
READ: dict[str, tuple[str, ...]] = {"text-classification": tables.SUFFIXES, "token-classification": COLUMNS}


def read_unlabelled(path: Path, settings: DomainConfig) -> list[str]:
    """Texts with single spaces, in the order of the file; words of a sentence with a space between them.

    An empty line of plain text is passed over; a row of a table without text stays, so that rows and predictions
    match. Raises DataError with every line that cannot be used.
    """
    reading, suffix, read = Reading(path), path.suffix.lower(), READ[settings.task]
    if suffix in NOT_PLAIN and suffix not in read:
        mend = f"give a {', '.join(read)} file, or plain text with one a line"
        raise DataError(f"a {suffix} file is not read for {settings.task}", where=str(path), mend=mend)
    if suffix in tables.SUFFIXES:
        found = [" ".join(text.split()) for text in tables.read_texts(path, settings, reading)]
    else:
        content = reading.text(path)
        tagged = suffix in COLUMNS or (settings.task == "token-classification" and _is_tagged(content))
        found = _sentences(content) if tagged else _plain(content)
    reading.refuse()
    return found


def _plain(content: str) -> list[str]:
    lines = (" ".join(line.split()) for line in content.split("\n"))
    return [line for line in lines if line]


def _sentences(content: str) -> list[str]:
    """The tokens of each sentence; without a tag a line may hold the token alone."""
    sentences: list[list[str]] = [[]]
    for line in content.split("\n"):
        token = next(iter(conll.columns_of(line.rstrip("\r"))), "")
        if token and token != "-DOCSTART-":
            sentences[-1].append(token)
        else:
            sentences.append([])
    return [" ".join(words) for words in sentences if words]


def _is_tagged(content: str) -> bool:
    """Is a .txt file one of tokens and tags, and not one of sentences?"""
    rows = [columns for line in content.split("\n") if (columns := conll.columns_of(line.rstrip("\r")))]
    rows = [columns for columns in rows if columns[0] != "-DOCSTART-"]
    return bool(rows) and all(len(columns) > 1 and TAG.fullmatch(columns[-1]) for columns in rows)
