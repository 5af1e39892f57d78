"""`fedfm audit`: is a record of messages whole, does it agree with the other side's, and what does it say?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedfm.errors import UserError
from fedfm.results.agreement import agree, tell_apart
from fedfm.results.audit import TORN, Chain, read_chain
from fedfm.results.files import require_place

audit_app = typer.Typer(no_args_is_help=True, help="Look at the record of what has crossed.")
RecordFile = Annotated[Path, typer.Argument(metavar="FILE", hidden=True)]
OtherFile = Annotated[Path | None, typer.Argument(metavar="[OTHER]", hidden=True)]
Heads = Annotated[
    list[str] | None, typer.Option("--head", help="a digest that FILE once ended with", show_default=False)
]


@audit_app.command("verify")
def verify(file: RecordFile, other: OtherFile = None, head: Heads = None) -> None:
    """Say whether a record is whole, and whether two agree.

    FILE is the audit.jsonl of a site or of a run folder, OTHER that of the other side. The digest in run.json beside a
    file counts as a --head of it. Exit code 1 where a record is broken, with its line, or where the two disagree.
    """
    chains = [_read(one, head if one == file else ()) for one in (file, other) if one is not None]
    is_whole = [_tell(one, chain) for one, chain in zip((file, other), chains, strict=False)]
    if not all(is_whole) or (len(chains) == 2 and not _compare(*chains)):
        raise typer.Exit(1)


@audit_app.command("report")
def report(
    file: RecordFile,
    out: Annotated[Path, typer.Option("--out", help="the page")] = Path("audit.html"),
    head: Heads = None,
) -> None:
    """Write what left a site as one page for printing.

    FILE is the site's own audit.jsonl. The last line printed is the page. Exit code 1 where the record is broken; the
    page then says where.
    """
    from fedfm.results.audit_page import write_site_page

    require_place(out)
    chain = _read(file, head)
    print(write_site_page(chain, out))
    if chain.broken:
        raise typer.Exit(1)


def _read(file: Path, heads: Sequence[str] | None) -> Chain:
    """The chain of a file, held against the heads that are known of it."""
    known = [digest.strip().lower() for digest in heads or ()]
    if wrong := next((digest for digest in known if len(digest) != 64), ""):
        raise UserError(f'"{wrong}" is no digest', where="--head", mend="it has 64 letters and digits")
    beside = file.parent / "run.json"
    if beside.is_file():
        try:
            known += filter(None, [json.loads(beside.read_text(encoding="utf-8")).get("audit_sha256")])
        except ValueError as error:
            raise UserError(f"damaged: {error}", where=str(beside), mend="restore the file from a copy") from None
    return read_chain(file, known)


def _tell(file: Path, chain: Chain) -> bool:
    """Print the state of a record; is it whole?"""
    if chain.broken:
        print(f"{file}: broken at {chain.broken}")
        return False
    print(f"{file}: {len(chain.entries)} lines, intact, head {chain.head}")
    for line, entry in chain.entries.items():
        if entry.kind == TORN:
            print(f"  line {line}: a killed writer left {entry.fields['bytes']} bytes before it, which are kept")
    return True


def _compare(first: Chain, second: Chain) -> bool:
    """Print on what two records agree and disagree; do they agree?"""
    found = agree(*tell_apart(first, second))
    for lost in found.lost:
        print(f"  lost: {lost}")
    for refusal in found.unrecorded:
        print(f"  without a record: {refusal}")
    for difference in found.differences:
        print(f"disagreement: {difference}")
    if found.differences:
        return False
    print(f"{found.crossed} messages crossed, and both records say the same of each")
    if found.unrecorded:
        many = len(found.unrecorded)
        print(f"{many} refusal{'s' if many > 1 else ''} of a site that could not write its record, which it may send")
    return True
