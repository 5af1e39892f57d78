"""What every reader shares: raw splits, the names of splits, and the bookkeeping of one source."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedfm.domains.checks import refuse
from fedfm.errors import DataError, Problem, did_you_mean

SPLIT_NAMES = {  # the words that `datasets` takes for them
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
EVALUATION = ("eval", "evaluation")  # of a source with a test split beside it: what is looked at while training


@dataclass(frozen=True)
class RawSplit:
    """One split as it was read: labels are names, tags are texts.

    `inputs` are as in `Examples`. `labels` holds N label names, or N tuples of tags. `where(i, word)` says where
    example `i` (and its `word`) stands: a file and a line or an index.
    """

    inputs: Sequence | np.ndarray
    labels: Sequence[str] | Sequence[tuple[str, ...]]
    where: Callable[..., str]


@dataclass(frozen=True)
class RawSource:
    """The splits that a source has, by split name; `label_order` where the source gives one.

    `whole` is true for a source that knows no splits (one file, a folder of labels): three are cut from it.
    """

    splits: dict[str, RawSplit]
    label_order: tuple[str, ...] | None = None
    whole: bool = False


class Reading:
    """The bookkeeping of one source while it is read: digests of its files, problems, warnings."""

    def __init__(self, root: Path):
        self.root = root
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self._digests: dict[str, str] = {}

    def problem(self, what: str, where: str, mend: str = "") -> None:
        self.problems.append(Problem(what, where, mend))

    def is_whole(self, text: str, where: str) -> bool:
        """Can a file hold the text? If not, that becomes a problem."""
        half = half_character(text)
        if half:
            mend = r"characters beyond U+FFFF are two halves in JSON, as in \ud83d\ude00: write both, or neither"
            self.problem(f"half a character, {half}, which no text can hold", where, mend)
        return not half

    def has_column(self, column: str, key: str, found: Collection[str], where: str, mend: str = "") -> bool:
        """Is the column that the configuration's `key` names there? If not, that becomes a problem."""
        if column not in found:
            what = f'no column "{column}".{did_you_mean(column, found)} Columns here: {", ".join(found)}'
            self.problem(what, where, mend or f'set {key} = "..." in the domain\'s table')
        return column in found

    def refuse(self) -> None:
        """Raise DataError if there was any problem so far; in the order of files and lines."""
        refuse(sorted(self.problems, key=lambda problem: _by_place(problem.where)))

    def digest(self, path: Path) -> None:
        """Enter a file that another library opens by its path."""
        with path.open("rb") as file:
            self._enter(path, hashlib.file_digest(file, "sha256").hexdigest())

    def bytes(self, path: Path) -> bytes:
        content = path.read_bytes()
        self._enter(path, hashlib.sha256(content).hexdigest())
        return content

    def text(self, path: Path) -> str:
        """The file as text, without byte-order mark. DataError names every line that is not UTF-8."""
        content = self.bytes(path)
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            refuse(_undecodable_lines(path, content))
            raise AssertionError("a text that cannot be decoded has a line that cannot") from None

    def _enter(self, path: Path, digest: str) -> None:
        name = path.name if path == self.root else path.relative_to(self.root).as_posix()
        if half_character(name):  # as Python shows what is not UTF-8
            where = os.fsencode(path).decode(errors="replace")
            raise DataError("the name of this file or of a folder above it is not UTF-8", where=where, mend="rename it")
        self._digests[name] = digest

    def sha256(self) -> str:
        """Of one file: its SHA-256. Of several: that of their listing as `sha256sum` prints it, sorted by name."""
        if len(self._digests) == 1:
            return next(iter(self._digests.values()))
        listing = "".join(f"{self._digests[name]}  {name}\n" for name in sorted(self._digests))
        return hashlib.sha256(listing.encode()).hexdigest()


def half_character(text: str) -> str:
    r"""The first half of a UTF-16 pair without its other half, as `\ud83d`: no file can hold it; "" where none is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ascii(text[error.start])[1:-1]
    return ""


def _by_place(where: str) -> list[str | int]:
    """Sorts "line 9" before "line 10"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", where)]


def _undecodable_lines(path: Path, content: bytes) -> list[Problem]:
    problems, start = [], 0
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"not UTF-8 text (byte {start + error.start} of the file)"
            problems.append(Problem(what, f"{path}, line {number}", "save the file as UTF-8"))
        start += len(line) + 1
    return problems


def mend_of_texts(column: str) -> str:
    """For who gives texts to a model that is there: the configuration of its run cannot be set any more."""
    return f'the texts must stand in a column "{column}"; or give them as .txt, one a line'


def split_of(name: str) -> str | None:
    """`"validation"` for `"dev"`; None when `name` is no split's name."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def split_files(suffixes: Sequence[str], reading: Reading) -> dict[str, Path]:
    """Split name -> file, train first, for the source's files such as `train.csv` and `dev.csv`. Raises DataError."""
    files = sorted(reading.root.iterdir())
    return by_split((path for path in files if path.suffix.lower() in suffixes and path.is_file()), reading)


def by_split(paths: Iterable[Path], reading: Reading) -> dict[str, Path]:
    """Split name -> path, train first, of the source's paths that are named as a split. Raises DataError."""
    names = {path.name: path for path in paths}
    stems = {name: name if path.is_dir() else path.stem for name, path in names.items()}
    return {split: names[name] for split, name in splits_among(stems, reading).items()}


def splits_among(names: Mapping[str, str] | Iterable[str], reading: Reading) -> dict[str, str]:
    """Split -> the name that is one's, train first; a mapping gives each name the word to look at.

    Of several for a split the one with the split's own name is taken, with a warning of the others; without such a one
    DataError is raised. `eval` beside `test` is the validation split, if nothing else is: so `datasets` and the Trainer
    of transformers are used.
    """
    words = names if isinstance(names, Mapping) else {name: name for name in names}
    looks_like = {split: [name for name, word in words.items() if split_of(word) == split] for split in SPLIT_NAMES}
    test = next((name for name in looks_like["test"] if words[name].lower() == "test"), None)
    evaluation = [name for name in looks_like["test"] if words[name].lower() in EVALUATION]
    if test is not None and evaluation and not looks_like["validation"]:
        looks_like["validation"] = evaluation
        looks_like["test"] = [name for name in looks_like["test"] if name not in evaluation]
        reading.warnings.append(f'"{evaluation[0]}", beside "{test}", is read as the validation split')
    return {split: _one_of(found, split, words, reading) for split, found in looks_like.items() if found}


def _one_of(names: Sequence[str], split: str, words: Mapping[str, str], reading: Reading) -> str:
    """The one of `names` to read as `split`; the others are told."""
    first, *others = [name for name in names if words[name].lower() == split] or names
    if others:
        what = f'"{first}" and "{others[0]}" both look like the {split} split'
        mend = "give a folder, or a copy of the dataset (save_to_disk), that has only one of them"
        raise DataError(what, where=str(reading.root), mend=mend)
    reading.warnings += [f'"{name}" is not used: "{first}" is the {split} split' for name in names if name != first]
    return first


def require_train(splits: dict[str, Path], folder: Path) -> None:
    """Raise DataError when a folder has validation or test, but nothing to train on."""
    if "train" not in splits:
        found = ", ".join(path.name for path in splits.values())
        raise DataError(f"no train split here; found: {found}", where=str(folder), mend="name a file or folder train")
