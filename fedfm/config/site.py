"""site.toml: who a real site is, where its data lie, whom it answers, and what it allows.

    settings = load_site_settings("site.toml")

Written by the site and read at the site only; no part of it is ever in a message.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from fedfm.config.explaining import explain
from fedfm.config.models import SITE_NAME, Tuning
from fedfm.config.places import Places
from fedfm.config.reading import by_line, read_toml
from fedfm.config.section import Section
from fedfm.errors import ConfigError

FEW_LABELS = 20  # up to so many no rule of examples a label: a site may be small
ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})")


class CoordinatorConfig(Section):
    address: str = Field(description='host:port of the SuperLink, as in "coordinator.example.org:8000"')
    root_certificates: str = Field(description="PEM file of the authority that signed the coordinator's certificate")
    private_key: str = Field(description="this site's EC key, whose public half the coordinator has registered")

    @field_validator("address")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        found = ADDRESS.fullmatch(value)
        if found is None or not 0 < int(found["port"]) < 2**16:
            what = f'must be host:port, without https:// before and without a path behind it, got "{value}"'
            raise PydanticCustomError("finding", "{what}", {"what": what})
        return value

    @property
    def host_and_port(self) -> tuple[str, int]:
        """As sockets want them: an IPv6 address without its brackets."""
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)


class AllowConfig(Section):
    """What an order may ask for; one outside it is refused, and the coordinator told why."""

    strategies: tuple[str, ...] = Field((), strict=False, description="names; empty: all")
    tunings: tuple[Tuning, ...] = Field(("head", "layernorm", "lora"), strict=False)
    max_rounds: int = Field(100, ge=1, description="rounds of a run")
    min_examples: int = Field(10, ge=1, description="training examples that must stand behind an update")
    groups: tuple[Literal["shared", "domain"], ...] = Field(
        ("shared", "domain"), strict=False, min_length=1, description="groups whose tensors may leave"
    )
    max_releases: int = Field(0, ge=0, description="updates that may ever leave, over all runs; 0: no limit")
    require_noise: bool = Field(False, description="only orders whose [update] clips and noises all that leaves")
    min_examples_per_label: Annotated[float, Field(ge=0)] = Field(
        2.0, description="training examples a label, on average, that data with more than 20 labels need; 0: no rule"
    )
    max_message_mib: Annotated[float, Field(gt=0)] = Field(256.0, description="largest message, each way, in MiB")

    def finds_free_labels(self, task: str, labels: int, examples: int) -> bool:
        """Are labels so many that they look like names, numbers or whole texts? Tags have a form of their own."""
        return (
            task != "token-classification" and labels > FEW_LABELS and examples < self.min_examples_per_label * labels
        )


class SiteSettings(Section):
    """All that a real site says of itself. Paths are absolute once `load_site_settings` has read them."""

    site: str = Field(pattern=SITE_NAME, description="a word of up to 64 letters, digits, ., - and _")
    domain: str = Field(pattern=SITE_NAME, description="a word of up to 64 letters, digits, ., - and _")
    source: str = Field(min_length=1, description='file or folder of the data; "generated" for a trial')
    text_column: str = Field("text", min_length=1, description="of a table: its texts")
    label_column: str = Field("label", min_length=1, description="of a table: its labels, whose names leave the site")
    state: str = Field("state", min_length=1, description="folder on this site's disk for what it keeps")
    coordinator: CoordinatorConfig
    allow: AllowConfig = AllowConfig()


def load_site_settings(path: str | Path) -> SiteSettings:
    """Read site.toml; relative paths in it start at its folder. Raises ConfigError with all that is wrong with it."""
    path = Path(path).expanduser()
    if odd := next((sign for sign in str(path.resolve()) if sign in '"\\' or not sign.isprintable()), ""):
        what = f"the path holds {odd!a}, which cannot be told to Flower's SuperNode"
        raise ConfigError(what, where=str(path), mend="put the file into a folder without it")
    text, data = read_toml(path)
    places = Places(str(path), text)
    try:
        settings = SiteSettings.model_validate(data)
    except ValidationError as error:
        problems = dict.fromkeys(explain(item, places, SiteSettings) for item in error.errors())
        raise ConfigError(sorted(problems, key=by_line)) from None
    return _located(settings, path.resolve().parent)


def _located(settings: SiteSettings, folder: Path) -> SiteSettings:
    def at(value: str) -> str:
        return str(folder / Path(value).expanduser())

    link = settings.coordinator
    found: dict[str, Any] = {
        "coordinator": link.model_copy(
            update={"root_certificates": at(link.root_certificates), "private_key": at(link.private_key)}
        ),
        "state": at(settings.state),
    }
    if settings.source != "generated":
        found["source"] = at(settings.source)
    return settings.model_copy(update=found)
