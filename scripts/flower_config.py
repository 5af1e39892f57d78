"""Keep [tool.flwr.app.config] in pyproject.toml equal to experiments/quickstart.toml.

    python scripts/flower_config.py            write the block between the two marker comments
    python scripts/flower_config.py --check    exit code 1 when it is not what would be written

`flwr run .` takes its defaults from that block, and only keys that stand in it can be overridden by `--run-config`; so
every key of the configuration stands there, with the value that `fedfm run experiments/quickstart.toml` uses.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fedfm.config import RunConfig, load_config

ROOT = Path(__file__).parents[1]
MARKER = "# experiments/quickstart.toml as Flower wants it: {} (written by scripts/flower_config.py)\n"
BEGIN, END = MARKER.format("begin"), MARKER.format("end")


def scalars(table: Mapping[str, Any], defaults: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Dotted TOML lines of all scalars below `table`.

    Flower takes texts, numbers and booleans, no lists: those of the configuration are left out where they are the
    defaults, and refused (ValueError) where they are not.
    """
    for name, value in table.items():
        here = (*path, name)
        default = defaults.get(name)
        if isinstance(value, Mapping):
            yield from scalars(value, default if isinstance(default, Mapping) else {}, here)
        elif not isinstance(value, list):
            yield dotted(here, value)
        elif value and value != default:
            raise ValueError(f"{'.'.join(here)} is a list, which Flower's run config cannot hold")


def dotted(path: Sequence[str], value: Any) -> str:
    """`a."b c".d = value` with a line end."""
    keys = [name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"' for name in path]
    return f"{'.'.join(keys)} = {tomli_w.dumps({'v': value}).removeprefix('v = ')}"


def block(config: RunConfig) -> str:
    """The lines between the markers."""
    return "".join(scalars(config.to_dict(), RunConfig().to_dict()))


def with_block(project: str, lines: str) -> str:
    """The text of pyproject.toml with `lines` between its markers. Raises ValueError when they are not there."""
    before, begin, rest = project.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"pyproject.toml lacks the two comments\n{BEGIN}{END}")
    return before + begin + lines + end + after


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when it would")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of pyproject.toml and experiments/")
    options = parser.parse_args(arguments)
    file = options.root / "pyproject.toml"
    old = file.read_text(encoding="utf-8")
    new = with_block(old, block(load_config(options.root / "experiments" / "quickstart.toml")))
    if new == old:
        return 0
    if options.check:
        print("pyproject.toml is behind experiments/quickstart.toml: python scripts/flower_config.py", file=sys.stderr)
        return 1
    file.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
