"""Both ends of a run have the same fedfm: with another at a site a key, a message or a sum would mean something else.

The site looks first, before it reads the configuration, in which a key may be new to it. What came before versions were
told does not look, and says nothing of itself: the coordinator refuses it as unknown.
"""

from __future__ import annotations

from flwr.app import Message

from fedfm import __version__
from fedfm.errors import FedfmError, Problem, UserError

LONGEST = 40  # characters of another's version that are told


def version_of(message: Message) -> str:
    """The version of fedfm that a query or a refusal comes from; "" where it says none."""
    content = message.content
    return str(content["order" if "order" in content else "problem"].get("fedfm", ""))


def refuse_other_version(who: str, theirs: str, at_site: bool = False) -> None:
    """`theirs`: what the other end says that it has, "" where it says nothing; `at_site`: it is the coordinator that
    says so, to the site `who`. Raises UserError."""
    if theirs != __version__:
        ends = (__version__, theirs) if at_site else (theirs, __version__)
        raise UserError(_problem(who, *ends))


def with_unknown_version(error: FedfmError, who: str) -> FedfmError:
    """The refusal of a site that has not said which fedfm it has: that comes first, for the rest may follow from it."""
    return type(error)([_problem(who, "", __version__), *error.problems])


def _problem(who: str, site: str, coordinator: str) -> Problem:
    ends = [f"fedfm {said[:LONGEST]}" if said else "a fedfm of unknown version" for said in (site, coordinator)]
    return Problem(f"{who} has {ends[0]}, the coordinator {ends[1]}", mend="install the same fedfm on both sides")
