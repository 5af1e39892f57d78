"""The command line. Exit codes: 0 done, 2 the user's input is wrong, 1 the run failed."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import click
import typer

from fedfm import __version__
from fedfm.commands.audit import audit_app
from fedfm.commands.complaints import misused, show_error
from fedfm.commands.data import data_app
from fedfm.commands.site import site_app
from fedfm.errors import FedfmError, RunError, UserError, did_you_mean

INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="fedfm", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    suggest_commands=False,  # click does
    help="Federated fine-tuning of foundation models across domains.",
    epilog="With --debug, anywhere, an error shows its traceback.",
)  # fmt: skip
app.add_typer(data_app, name="data")
app.add_typer(site_app, name="site")
app.add_typer(audit_app, name="audit")

# Arguments are told of in the docstrings: typer 0.20, the newest that flwr allows, loses their help under click 8.5.
ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", hidden=True)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", hidden=True)]
RunFolderPath = Annotated[Path, typer.Argument(metavar="RUN", hidden=True)]


def _option(name: str, words: str, *other_names: str) -> typer.models.OptionInfo:
    return typer.Option(name, *other_names, help=words, show_default=False)


Quiet = Annotated[bool, _option("--quiet", "print warnings and the folder, nothing else", "-q")]
PrivateOf = Annotated[str, _option("--site", "whose private part, where a domain has one")]
PrivateOfEach = Annotated[list[str] | None, _option("--site", "whose private part; once for each domain that has one")]
Jobs = Annotated[int, _option("--jobs", "runs at once, in processes of Ray; 0: as many as there are cores", "-j")]
DomainName = Annotated[str, _option("--domain", "whose model", "-d")]


def main(words: Sequence[str] | None = None) -> int:
    """The console script: run a command, turn errors into sentences; returns the exit code."""
    words = sys.argv[1:] if words is None else list(words)
    debug = "--debug" in words
    try:
        code = app([word for word in words if word != "--debug"], prog_name="fedfm", standalone_mode=False)
    except click.UsageError as error:
        return misused(error)
    except FedfmError as error:
        if debug:
            traceback.print_exc()
        show_error(error)
        return error.exit_code
    except BrokenPipeError:  # whoever reads what is printed has read enough: `fedfm predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return 1
    except OSError as error:  # a full disk, a file that went away: nothing that fedfm could have known
        if debug:
            traceback.print_exc()
        if error.errno == errno.ENAMETOOLONG:
            what, where = "a path longer than the file system knows", str(error.filename or "")
            show_error(UserError(what, where=where, mend="give a shorter one"))
            return UserError.exit_code
        mend = "make room or mend the path; a run goes on with: fedfm resume RUN"
        show_error(RunError(error.strerror or str(error), where=str(error.filename or ""), mend=mend))
        return 1
    except Exception as error:
        if debug:
            raise
        print(f"error[FM000] {type(error).__name__}: {error}\n  this is a fault of fedfm, not of your input; "
              "--debug shows where it happened", file=sys.stderr)  # fmt: skip
        return 1
    return 1 if code == INTERRUPTED else code or 0


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C ends a run with a sentence, not with a traceback."""
    try:
        yield
    except KeyboardInterrupt as stop:
        print("stopped", *getattr(stop, "__notes__", ()), sep="\n", file=sys.stderr)
        raise typer.Exit(1) from None


def _print_version(asked: bool) -> None:
    if asked:
        print(f"fedfm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None: ...


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    show: Annotated[bool, _option("--show", "print the whole configuration and stop")] = False,
    profile: Annotated[bool, _option("--profile", "write and print where the time went (local engine)")] = False,
    quiet: Quiet = False,
) -> None:
    """Run a federation; the last line printed is its folder.

    CONFIG is a TOML file. KEY=VALUE changes one of its keys, as in rounds=3 strategy.name=fedprox.
    """
    from fedfm import engines
    from fedfm.results.screen import Screen

    if show:
        print(engines.load_config(config, *(overrides or ())).to_toml(), end="")
        return
    with _stoppable(), Screen(quiet=quiet) as screen:
        if profile:
            done, taken = engines.run_profiled(config, *(overrides or ()), listen=screen.handle)
        else:
            done, taken = engines.run(config, *(overrides or ()), listen=screen.handle), {}
    for name, seconds in sorted(taken.get("seconds", {}).items(), key=lambda item: -item[1]):
        print(f"{name:10} {seconds:9.2f} s {seconds / taken['wall_seconds']:6.1%}")
    print(done.folder)


@app.command()
def resume(folder: RunFolderPath, quiet: Quiet = False) -> None:
    """Go on with a run from its last finished round.

    RUN is the folder of a run that was killed, interrupted or has failed. The last line printed is that folder.
    """
    from fedfm import engines
    from fedfm.results.screen import Screen

    with _stoppable(), Screen(quiet=quiet) as screen:
        done = engines.resume(folder, listen=screen.handle)
    print(done.folder)


@app.command()
def compare(
    config: ConfigFile,
    grid: Overrides = None,
    jobs: Jobs = 0,
    address: Annotated[str, _option("--address", "of a Ray cluster that is there")] = "",
) -> None:
    """Run a grid of settings and compare them.

    CONFIG is a TOML file, KEY=A,B,C gives the values of a key, as in seed=0,1,2. Given again, the command runs what is
    missing. Bounds: local-only, per-domain, centralised, centralised-joint. The last line printed is the folder.
    """
    from fedfm.commands.compare import compare_words

    with _stoppable():
        done = compare_words(config, grid or (), jobs, address, print)
    print(done.folder)
    if done.failed:
        raise typer.Exit(1)


@app.command()
def contributions(
    config: ConfigFile,
    overrides: Overrides = None,
    shapley: Annotated[bool, _option("--shapley", "exact Shapley values, of up to six sites")] = False,
    metric: Annotated[str, _option("--metric", "mean, worst, or a domain, on validation")] = "mean",
    jobs: Jobs = 0,
) -> None:
    """Say what each site brings, by training without it.

    CONFIG and KEY=VALUE are those of a run. Given again, the command runs what is missing. The last line printed is the
    folder that contributions.csv lies in.
    """
    from fedfm.commands.contributions import contributions as value

    with _stoppable():
        root, table = value(config, *(overrides or ()), shapley=shapley, metric=metric, jobs=jobs, say=print)
    print(table.to_string(index=False))
    print(root)


@app.command()
def report(folder: RunFolderPath) -> None:
    """Write the page of a run.

    RUN is the folder of a run, however it has ended. The last line printed is the file, report.html in that folder.
    """
    from fedfm.commands.report import report as write

    print(write(folder))


@app.command()
def predict(
    folder: RunFolderPath,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", hidden=True)],
    domain: DomainName = "",
    site: PrivateOf = "",
) -> None:
    """Label new images, texts or sentences, one line each.

    RUN is the folder of a finished run. INPUT is an image file, a text, or a file with a text in each line.
    Printed are label, probability and input with tabs between them, or word/TAG word/TAG ... for each sentence.
    """
    from fedfm.engines.running import quiet_libraries

    quiet_libraries()
    from fedfm.commands.predict import predict_lines

    for line in predict_lines(folder, inputs, domain, site):
        print(line)


@app.command()
def explain(
    folder: RunFolderPath,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", hidden=True)],
    domain: DomainName,
    site: PrivateOf = "",
    steps: Annotated[int, typer.Option("--steps", min=2, help="points of the integral")] = 64,
    out: Annotated[Path, typer.Option("--out", help="the page")] = Path("explain.html"),
) -> None:
    """Show what in an input speaks for its prediction.

    By integrated gradients; needs the extra `explain`. RUN and INPUT are those of predict. The last line printed is the
    page, beside which its numbers lie as .csv; report.html of the run shows them too.
    """
    from fedfm.engines.running import quiet_libraries

    quiet_libraries()
    from fedfm.commands.explain import explain as write

    lines, warnings = write(folder, inputs, domain, site, steps, out)
    print(*lines, sep="\n")
    print(*(f"warning: {warning}" for warning in warnings), sep="\n", end="\n" if warnings else "", file=sys.stderr)
    print(out)


@app.command()
def export(
    folder: RunFolderPath,
    destination: Annotated[Path, typer.Argument(metavar="DEST", hidden=True)],
    site: PrivateOfEach = None,
) -> None:
    """Write the final model for use by other programs.

    RUN is the folder of a finished run, DEST a folder that is new or empty. Written are body, tokenizer, LoRA adapter
    (PEFT layout), heads and image adapters, lists of labels, and a model card.
    """
    from fedfm.engines.running import quiet_libraries

    quiet_libraries()
    from fedfm.commands.export import export as write

    print(write(folder, destination, site or ()))


@app.command()
def doctor() -> None:
    """Will fedfm run on this machine? Exit code 2 if not."""
    from fedfm.commands.complaints import show_findings
    from fedfm.doctor import examine
    from fedfm.engines.running import quiet_libraries

    quiet_libraries()
    if show_findings(examine()):
        raise typer.Exit(2)


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(metavar="[strategies|bodies|domains|engines]", hidden=True)] = "",
) -> None:
    """The names that a configuration may use."""
    from fedfm.commands.listing import TABLES, show_tables

    if what and what not in TABLES:
        raise UserError(
            f'nothing is listed as "{what}".{did_you_mean(what, TABLES)}', mend=f"fedfm list {' | '.join(TABLES)}"
        )
    show_tables([what] if what else list(TABLES))
