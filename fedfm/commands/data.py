"""`fedfm data check`: what somebody types who has data and no run yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(no_args_is_help=True, help="Look at data before a run does.")


def _option(name: str, words: str, **limits: int) -> typer.models.OptionInfo:
    return typer.Option(name, help=words, show_default=False, **limits)


@data_app.command("check")
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", hidden=True)],
    task: Annotated[str, _option("--task", "image-, text- or token-classification; guessed when left out")] = "",
    text_column: Annotated[str, _option("--text-column", 'of a table; "text" when left out')] = "text",
    label_column: Annotated[str, _option("--label-column", 'of a table; "label" when left out')] = "label",
    image_size: Annotated[int, _option("--image-size", "resize images to a square of it", min=0, max=4096)] = 0,
    strict_tags: Annotated[bool, _option("--strict-tags", "refuse an I- without a start")] = False,
    part: Annotated[bool, _option("--part", "one site's source: others of its domain may bring what it lacks")] = False,
) -> None:
    """Read a source as a run would, and say what is found.

    PATH is a file or a folder. Printed are format, counts by label and split, problems and warnings; the exit code is 2
    where it cannot be used.
    """
    from rich.console import Console

    from fedfm.commands.data_check import report

    settings = {"text-column": text_column, "label-column": label_column, "image-size": image_size}
    report(path, task, settings | {"strict-tags": strict_tags}, part, Console())
