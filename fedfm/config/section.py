"""What every table of the configuration is: frozen, closed, strictly typed."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Finding = tuple[tuple[str, ...], str]  # path below the model that found it, sentence


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Section(BaseModel):
    """A table of the configuration: frozen, kebab-case, closed, and strict (the text "5" is no number)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=_kebab, allow_inf_nan=False)

    def _refuse(self, findings: Sequence[Finding]) -> None:
        """Raise all that a look over several keys has found, each at its own place."""
        if findings:
            errors = [
                InitErrorDetails(type=PydanticCustomError("finding", "{what}", {"what": what}), loc=path, input=None)
                for path, what in findings
            ]
            raise ValidationError.from_exception_data(type(self).__name__, errors)
