"""Keep the table of strategies in README.md equal to fedfm.strategies.STRATEGIES.

    python scripts/strategy_table.py            write the block between the two marker comments
    python scripts/strategy_table.py --check    exit code 1 when it is not what would be written

A row is the name, the first sentence of the class, its paper, and its own keys with their defaults.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

from fedfm.strategies import STRATEGIES, Strategy

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- strategies: begin (written by scripts/strategy_table.py) -->\n", "<!-- strategies: end -->\n"
COMMON = {"server_learning_rate", "domain_weights"}  # told of once, in the text


def row(name: str, strategy: type[Strategy]) -> str:
    """A line of the table."""
    sentence = re.split(r"(?<=[.;])\s", " ".join((strategy.__doc__ or "").split()))[0].rstrip(".;")
    fields = [field for field in dataclasses.fields(strategy) if field.name not in COMMON]
    keys = ", ".join(f"`{f.name.replace('_', '-')}` = {json.dumps(f.default)}" for f in fields)
    return f"| `{name}` | {sentence} | {strategy.summary.paper} | {keys} |"


def table() -> str:
    """The block, a heading row for each family."""
    lines, family = ["| `strategy.name` | what it does | paper | own keys |", "|---|---|---|---|"], ""
    for name, strategy in STRATEGIES.items():
        if strategy.summary.family != family:
            family = strategy.summary.family
            lines.append(f"| **{family}** | | | |")
        lines.append(row(name, strategy))
    return BEGIN + "\n".join(lines) + "\n" + END


def main() -> int:
    old = README.read_text(encoding="utf-8")
    before, rest = old.split(BEGIN)
    new = before + table() + rest.split(END)[1]
    if "--check" in sys.argv:
        if new != old:
            print("README.md is behind STRATEGIES: python scripts/strategy_table.py", file=sys.stderr)
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
