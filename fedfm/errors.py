"""Every error that fedfm raises on purpose.

    FedfmError
    ├── UserError                 exit code 2: the input is wrong, nothing was lost
    │   ├── ConfigError           a key, a value, a combination in the run's configuration
    │   ├── DataError             a file, a label, a tag, an image that cannot be used
    │   ├── ModelError            a body that is missing, damaged or unfit
    │   └── PolicyError           an order that a site's own settings do not allow
    └── RunError                  exit code 1: the run started and could not go on
        ├── TooFewSitesError      fewer usable updates than the minimum
        ├── EngineError           the engine below the run failed
        └── AuditError            the record of messages cannot be kept, and without it none leaves

An error carries one or more `Problem`s, each of which says what is wrong, where, and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `what` in a sentence, `where` it stands, how to `mend` it.

    count: how many problems it stands for, which is more than one in a line such as "and 140 more".
    """

    what: str
    where: str = ""
    mend: str = ""
    count: int = 1

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n    mend: {self.mend}" if self.mend else ""
        return f"{place}{self.what}{advice}"


class FedfmError(Exception):
    """Base of all errors of fedfm; `code` is stable and documented, `exit_code` is the process's."""

    code = "FM000"
    exit_code = 1

    def __init__(self, problems: str | Problem | Sequence[Problem], *, where: str = "", mend: str = ""):
        if isinstance(problems, str):
            problems = Problem(problems, where, mend)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(str(self))

    @property
    def count(self) -> int:
        """How many problems there are, those that are not listed among them."""
        return sum(problem.count for problem in self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    def __reduce__(self):  # crosses process borders (Ray, multiprocessing) unchanged
        return type(self), (self.problems,)


class UserError(FedfmError):
    code = "FM100"
    exit_code = 2


class ConfigError(UserError):
    code = "FM101"


class DataError(UserError):
    code = "FM201"


class ModelError(UserError):
    code = "FM301"


class PolicyError(UserError):
    code = "FM401"


class RunError(FedfmError):
    code = "FM500"


class TooFewSitesError(RunError):
    code = "FM501"


class EngineError(RunError):
    code = "FM502"


class AuditError(RunError):
    code = "FM503"


def reason_of(error: Exception) -> str:
    """Why a site is left out: a sentence of ours, or the kind of any other error and its words."""
    return str(error) if isinstance(error, FedfmError) else f"{type(error).__name__}: {error}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' did you mean "fedprox"?', or '' when nothing known is close to `word`."""
    known = list(known)
    folded = {name.lower().replace("_", "-"): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("_", "-"), folded, n=1, cutoff=0.6)
    return f' did you mean "{folded[close[0]]}"?' if close else ""
