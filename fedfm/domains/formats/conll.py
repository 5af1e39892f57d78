"""CoNLL column files: a token and its tag on each line, a blank line after each sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedfm.config import DomainConfig
from fedfm.domains.formats.tags import rewrite
from fedfm.domains.reading import RawSource, RawSplit, Reading, require_train, split_files

SUFFIXES = (".conll", ".txt", ".bio", ".iob")


def is_conll_file(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES


def is_conll_folder(path: Path) -> bool:
    return path.is_dir() and bool(split_files(SUFFIXES, Reading(path)))


def read_conll_file(path: Path, settings: DomainConfig, reading: Reading) -> RawSource:
    splits = {"train": parse(reading.text(path), path, reading)}
    return RawSource(rewrite(splits, settings.strict_tags, reading), whole=True)


def read_conll_folder(path: Path, settings: DomainConfig, reading: Reading) -> RawSource:
    files = split_files(SUFFIXES, reading)
    require_train(files, path)
    splits = {split: parse(reading.text(file), file, reading) for split, file in files.items()}
    return RawSource(rewrite(splits, settings.strict_tags, reading))


@dataclass
class _Sentences:
    words: list[tuple[str, ...]] = field(default_factory=list)
    tags: list[tuple[str, ...]] = field(default_factory=list)
    first_lines: list[int] = field(default_factory=list)

    def add(self, rows: list[tuple[str, str]], last_line: int) -> None:
        if rows:
            words, tags = zip(*rows, strict=True)
            self.words.append(words)
            self.tags.append(tags)
            self.first_lines.append(last_line - len(rows) + 1)


def parse(text: str, path: Path, reading: Reading) -> RawSplit:
    """Sentences of a column file: the first column is the token, the last the tag, as in CoNLL-2003.

    Columns are parted by tabs where a line has one, else by spaces. `-DOCSTART-` lines end a sentence and are skipped.
    """
    sentences, rows = _Sentences(), []
    lines = text.split("\n")  # not splitlines(): that also breaks at U+2028 and others, which tokens may hold
    for number, line in enumerate(lines, 1):
        columns = columns_of(line.rstrip("\r"))
        if not columns or columns[0] == "-DOCSTART-":
            sentences.add(rows, number - 1)
            rows = []
            continue
        if len(columns) < 2 or not columns[0]:
            what = "a token and no tag" if columns[0] else "a tag and no token"
            mend = "each line holds a token, a tab or space, and its tag; sentences are parted by a blank line"
            reading.problem(what, f"{path}, line {number}", mend)
            columns = [columns[0], "O"]
        rows.append((columns[0], columns[-1]))
    sentences.add(rows, len(lines))
    return RawSplit(sentences.words, sentences.tags, _places(path, sentences.first_lines))


def columns_of(line: str) -> list[str]:
    if not line.strip(" \t"):
        return []
    if "\t" not in line:
        return [column for column in line.split(" ") if column]
    columns = [column.strip(" ") for column in line.split("\t")]
    while len(columns) > 1 and not columns[-1]:  # a tab at the end of a line is no column
        columns.pop()
    return columns


def _places(path: Path, first_lines: list[int]) -> Callable[..., str]:
    return lambda index, word=0: f"{path}, line {first_lines[index] + word}"
