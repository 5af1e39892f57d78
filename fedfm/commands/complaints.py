"""Errors and findings as a user sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedfm.errors import FedfmError, UserError

if TYPE_CHECKING:
    from fedfm.doctor import Finding


def show_error(error: FedfmError) -> None:
    """What, where, how to mend, for each problem; on standard error."""
    console = Console(stderr=True, highlight=False)
    count = error.count
    title = {2: "wrong input", 1: "the run failed"}[error.exit_code]
    console.print(Text(f"error[{error.code}] {title}" + (f": {count} problems" if count > 1 else ""), "bold red"))
    for problem in error.problems:
        for number, line in enumerate(problem.what.splitlines()):
            where = f"{problem.where}: " if problem.where and number == 0 else ""
            console.print(Text(f"  {where}{line}"), soft_wrap=True)
        if problem.mend:
            console.print(Text(f"    mend: {problem.mend}"), soft_wrap=True)


def misused(error: click.UsageError) -> int:
    """A wrong command, option or argument, in the form of all other errors."""
    if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and newer
        error.show()
        return error.exit_code
    mend = f"{error.ctx.command_path if error.ctx else 'fedfm'} --help"
    if isinstance(error, click.NoSuchOption) and error.ctx and error.ctx.info_name == "run":
        mend = f"settings have no dashes: rounds=3; for the options: {mend}"
    show_error(UserError(error.format_message(), mend=mend))
    return error.exit_code


def show_findings(findings: Sequence[Finding]) -> int:
    """A table of what `doctor` has found; returns how many problems there are."""
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        style = {"ok": "green", "note": "yellow", "problem": "bold red"}[finding.state]
        table.add_row(finding.check, Text(finding.state, style), Text(finding.found))
        if finding.mend:
            table.add_row("", "", Text(f"mend: {finding.mend}"))
    Console().print(table)
    problems = sum(finding.state == "problem" for finding in findings)
    print(f"{len(findings)} checks, {problems} {'problem' if problems == 1 else 'problems'}")
    return problems
