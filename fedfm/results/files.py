"""Files that survive a kill: replaced as a whole, or appended in whole lines; and values as strict JSON has them."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedfm.errors import UserError
from fedfm.profiling import phase


@phase("write")
def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path`; after a crash at any moment the file is the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":  # the new name itself must reach the disk
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def require_place(path: Path) -> None:
    """Raises UserError where no file can be written to `path`: to be asked before the work whose result it shall be."""
    folder = path.parent
    if path.is_dir():
        raise UserError("this is a folder, not a file", where=str(path), mend="give the name of a file in it")
    if not folder.is_dir():
        raise UserError("there is no such folder", where=str(folder), mend=f"mkdir -p {folder}, or another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError("this user may not write there", where=str(folder), mend="give another place")


def new_folder(path: Path) -> None:
    """Make an empty folder, and what is above it, where there is none. Raises UserError where that cannot be."""
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            what = "the destination is not empty" if path.is_dir() else "the destination is a file"
            raise UserError(what, where=str(path), mend="give a new folder")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"the destination cannot be made: {error.strerror}"
        raise UserError(what, where=str(path), mend="give a folder that you may write to") from None
    require_place(path / "file")


@phase("write")
def append_lines(path: Path, lines: str, header: str = "") -> None:
    """Append `lines` (each with its line end) in one write, after cutting off a torn last line.

    `header` goes before them where the file is new or empty.
    """
    with open(path, "ab+", buffering=0) as file:  # one site may append its rows alone, thousands of times a round
        size = file.seek(0, os.SEEK_END)
        whole = _end_of_whole_lines(file, size)
        if whole < size:
            file.truncate(whole)
        data = ((header if whole == 0 else "") + lines).encode()
        while data:  # a system may take a large write in parts
            data = data[file.write(data) :]


def whole_lines(path: Path) -> str:
    """The text of `path` without a torn last line; '' where there is no file."""
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1].decode("utf-8")


def json_lines(info: Mapping[str, Any]) -> str:
    """A mapping of plain values as strict JSON for people: a line for each key, and for each key of a mapping in it.

    What lies deeper stays on its line: a run of ten thousand sites has as many lines, not thirty times as many.
    """
    return _braces((f"{json.dumps(key)}: {_item(value)}" for key, value in info.items()), "  ") + "\n"


def _item(value: Any) -> str:
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value, allow_nan=False)
    return _braces((f"{json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in value.items()), "    ")


def _braces(lines: Iterable[str], indent: str) -> str:
    return "{\n" + ",\n".join(indent + line for line in lines) + "\n" + indent[2:] + "}"


_ALREADY = {type(None), str, bool, int}


def plain(value: Any) -> Any:
    """`value` in the types of strict JSON: numpy scalars and arrays unpacked, NaN and infinities None, keys texts."""
    if type(value) in _ALREADY or isinstance(value, str | int):  # the first is quick, and nearly always so
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # before float: a numpy float64 is one, and has a repr of its own
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def _end_of_whole_lines(file: io.FileIO, size: int, block: int = 4096) -> int:
    """Bytes up to and with the last line end."""
    file.seek(max(0, size - 1))
    if file.read(1) == b"\n":  # the usual case
        return size
    while size > 0:
        start = max(0, size - block)
        file.seek(start)
        found = file.read(size - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0
