"""`fedfm site check` and `fedfm site run`: what the administrator of a real site types."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

site_app = typer.Typer(no_args_is_help=True, help="Take part in a federation, with this machine's own data.")
SiteFile = Annotated[Path, typer.Argument(metavar="SITE.TOML", hidden=True)]
Offline = Annotated[bool, typer.Option("--offline", help="leave out what needs the coordinator", show_default=False)]


@site_app.command("check")
def check(file: SiteFile, offline: Offline = False) -> None:
    """Will this site be able to take part? Exit code 2 if not.

    SITE.TOML names the site, its data, the coordinator, and what the site allows. Nothing leaves the site.
    """
    from fedfm.commands.complaints import show_findings
    from fedfm.commands.site_check import examine_site

    if show_findings(examine_site(file, offline)):
        raise typer.Exit(2)


@site_app.command("run")
def run(file: SiteFile) -> None:
    """Take part in the coordinator's runs until SIGTERM or Ctrl-C.

    SITE.TOML is that of check. A coordinator that does not answer is waited for; what no waiting mends ends the command
    with a sentence and exit code 2, an end that a later start may mend with exit code 1.
    """
    from fedfm.commands.site_check import check_before_run
    from fedfm.config.site import load_site_settings
    from fedfm.engines.supernode import run_site

    settings = load_site_settings(file)
    check_before_run(settings)
    run_site(settings, file, lambda words: print(f"fedfm: {words}", file=sys.stderr, flush=True))
