"""The run's configuration: frozen models, TOML files and `key=value` overrides, every error at once.

    config = load_config("experiments/quickstart.toml", ["rounds=3", "strategy.name=fedprox"])

Keys are kebab-case in files and overrides; a Python attribute has underscores. Keys that are not known are errors.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from fedfm.errors import ConfigError, Problem, did_you_mean

Task = Literal["image-classification", "text-classification", "token-classification"]
Tuning = Literal["head", "layernorm", "lora", "full"]
GROUPS = ("shared", "domain", "private")


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Section(BaseModel):
    """A table of the configuration: frozen, kebab-case, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=_kebab, allow_inf_nan=False)


class EngineConfig(Section):
    name: Literal["local", "ray", "flower"] = "local"
    sites_at_once: int = Field(1, ge=1)
    workers: int = Field(1, ge=1)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    threads: int = Field(1, ge=1, description="compute threads of a process that trains")
    dtype: Literal["float32", "float64"] = "float32"
    timeout: float = Field(3600.0, gt=0, description="seconds that a phase waits for its sites")


class BodyConfig(Section):
    name: str = "tiny"
    tuning: Tuning = "lora"
    layers: int = Field(0, ge=0, description="keep the first n layers; 0 keeps all")
    weights: Literal["pretrained", "random", "none"] = "pretrained"
    lora_rank: int = Field(8, ge=1)
    lora_alpha: float = Field(16.0, gt=0)
    lora_targets: tuple[str, ...] = Field(("all-linear",), min_length=1)
    image_adapter: Literal["stem", "patch"] = "stem"
    image_tokens: int = Field(16, ge=4, le=256, description="an image becomes at most this many tokens")


class StrategyConfig(Section):
    """`name`, the server's rate, and the strategy's own keys (checked by the strategy table)."""

    model_config = ConfigDict(extra="allow")
    name: str = "fedavg"
    server_learning_rate: float = Field(1.0, gt=0)

    @property
    def own_keys(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class SamplingConfig(Section):
    fraction: float = Field(1.0, gt=0, le=1)
    per_domain_minimum: int = Field(1, ge=0)
    minimum_sites: int = Field(1, ge=1, description="usable updates that a round needs")


class ScreeningConfig(Section):
    max_norm: float = Field(0.0, ge=0, description="an update of a larger Euclidean norm is left out; 0: no limit")


class LocalConfig(Section):
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(5e-4, gt=0)
    head_learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm of a site; 0: no clipping")
    schedule: Literal["constant", "cosine"] = "constant"
    max_length: int = Field(64, ge=8)
    augment: bool = Field(False, description="images: random horizontal flip and shift")


LocalOverrides = create_model(  # the same keys, each of them optional
    "LocalOverrides",
    __base__=Section,
    **{name: (field.rebuild_annotation() | None, None) for name, field in LocalConfig.model_fields.items()},
)


class EarlyStoppingConfig(Section):
    patience: int = Field(0, ge=0, description="rounds without a better validation score; 0: off")
    metric: str = Field("mean", description='"mean", "worst", or a domain\'s name: its primary metric')


class SiteConfig(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    source: str = ""


class DomainConfig(Section):
    task: Task
    source: str = "generated"
    sites: int = Field(2, ge=1)
    partition: Literal["iid", "dirichlet", "pathological", "quantity"] = "iid"
    alpha: float = Field(0.5, gt=0, description="Dirichlet concentration")
    minimum_per_site: int = Field(2, ge=1, description="training examples that every site holds at least")
    classes_per_site: int = Field(2, ge=1)
    sigma: float = Field(1.0, ge=0, description="quantity: standard deviation of the log of the sizes")
    weight: float = Field(1.0, gt=0, description="w_d of the mean between domains")
    max_examples: int = Field(0, ge=0, description="training examples to keep, a seeded draw; 0: all")
    text_column: str = "text"
    label_column: str = "label"
    image_size: int = Field(0, ge=0, description="resize images to this many pixels a side; 0: as they are")
    strict_tags: bool = Field(False, description="refuse an I- tag that does not continue an entity")
    local: LocalOverrides = Field(default_factory=LocalOverrides)
    site: tuple[SiteConfig, ...] = ()

    @model_validator(mode="after")
    def _site_tables(self) -> DomainConfig:
        sources = [bool(site.source) for site in self.site]
        if any(sources) and not all(sources):
            raise ValueError("either every [[site]] table has its own source, or none has")
        if self.site and "sites" in self.model_fields_set and self.sites != len(self.site):
            raise ValueError(f"sites = {self.sites}, but there are {len(self.site)} [[site]] tables")
        return self

    def site_names(self, domain: str) -> tuple[str, ...]:
        """Names of the domain's sites, in order: given by [[site]] tables, or `<domain>-1`, `<domain>-2`, ..."""
        if self.site:
            return tuple(site.name for site in self.site)
        width = len(str(self.sites))
        return tuple(f"{domain}-{number:0{width}d}" for number in range(1, self.sites + 1))


class RunsConfig(Section):
    folder: str = "runs"


def _three_generated_domains() -> dict[str, DomainConfig]:
    return {
        "medical": DomainConfig(task="image-classification"),
        "finance": DomainConfig(task="text-classification"),
        "ner": DomainConfig(task="token-classification"),
    }


class RunConfig(Section):
    """All that a run depends on."""

    seed: int = Field(0, ge=0)
    rounds: int = Field(5, ge=1)
    data_root: str = "."
    engine: EngineConfig = EngineConfig()
    body: BodyConfig = BodyConfig()
    strategy: StrategyConfig = StrategyConfig()
    sharing: dict[str, Literal["shared", "domain", "private"]] = {}
    sampling: SamplingConfig = SamplingConfig()
    screening: ScreeningConfig = ScreeningConfig()
    local: LocalConfig = LocalConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    domains: dict[str, DomainConfig] = Field(default_factory=_three_generated_domains, min_length=1)
    runs: RunsConfig = RunsConfig()

    @model_validator(mode="after")
    def _names(self) -> RunConfig:
        owners: dict[str, str] = {}
        for domain, settings in self.domains.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", domain) or domain in (*GROUPS, "federation"):
                raise ValueError(f'"{domain}" cannot name a domain: letters, digits, - and _, and none of {GROUPS}')
            for name in settings.site_names(domain):
                if name in owners:
                    raise ValueError(f'two sites are named "{name}" (domains {owners[name]} and {domain})')
                owners[name] = domain
        watched = ("mean", "worst", *self.domains)
        if self.early_stopping.metric not in watched:
            raise ValueError(f'early-stopping.metric = "{self.early_stopping.metric}": known are {", ".join(watched)}')
        return self

    def local_for(self, domain: str) -> LocalConfig:
        """[local] with the overrides of [domains.<domain>.local]."""
        changes = self.domains[domain].local.model_dump(exclude_none=True)
        return self.local.model_copy(update=changes)

    def sites(self) -> dict[str, str]:
        """Site name -> domain, sorted by site name (the order of every sum)."""
        pairs = {name: d for d, settings in self.domains.items() for name in settings.site_names(d)}
        return dict(sorted(pairs.items()))

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_toml(self) -> str:
        """A file that runs again as this configuration; every key with its value."""
        data = self.to_dict()
        for domain in data["domains"].values():
            if domain["site"]:
                domain.pop("sites")  # the tables count themselves
            else:
                domain.pop("site")
        return tomli_w.dumps(data)

    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def replace(self, *overrides: str) -> RunConfig:
        """A copy with `key=value` overrides applied."""
        return load_config(self.to_dict(), overrides)


Check = Callable[[RunConfig], list[Problem]]


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), checks: Sequence[Check] = ()
) -> RunConfig:
    """Read a TOML file (or a mapping), apply `key=value` overrides, validate.

    `checks` look at the valid configuration from higher rooms (is the strategy known, can the body be had?).
    Raises ConfigError with every problem found, each with its place and, where one is close, the right name.
    """
    text, label, data = _read(source)
    problems = _apply(data, overrides)
    places = _Places(text, label, overrides)
    config = None
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        problems += [_explain(item, places) for item in error.errors()]
    if config is not None:
        problems += [places.locate(problem) for check in checks for problem in check(config)]
    if problems or config is None:
        raise ConfigError(problems)
    return config


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    if isinstance(source, Mapping):
        return "", "configuration", json.loads(json.dumps(source))  # a deep copy in plain types
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration: {error.strerror}", where=str(path), mend="give the path of a TOML file"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text (byte {error.start})", where=str(path)) from None
    try:
        return text, str(path), tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(path), mend='texts need quotes: name = "a"') from None


def _apply(data: dict[str, Any], overrides: Sequence[str]) -> list[Problem]:
    """Merge each override into `data`; what cannot be parsed comes back as problems."""
    problems = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            problems.append(Problem(f'"{override}" is not of the form key=value', "command line", "e.g. rounds=3"))
            continue
        try:
            _merge(data, _parse_override(key.strip(), value.strip()))
        except tomllib.TOMLDecodeError:
            mend = (
                "put quotes around a part with other signs than letters, digits, - and _: 'sharing.\"*lora_B*\"=domain'"
            )
            problems.append(Problem(f'cannot read the key of "{override}"', "command line", mend))
    return problems


def _parse_override(key: str, value: str) -> dict[str, Any]:
    try:
        return tomllib.loads(f"{key} = {value}")
    except tomllib.TOMLDecodeError:  # a bare word is a text
        return tomllib.loads(f"{key} = {json.dumps(value)}")


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


class _Places:
    """Where a key stands: line of the file, or the command line."""

    def __init__(self, text: str, label: str, overrides: Sequence[str]):
        self.label = label
        self.overridden = {override.partition("=")[0].strip().replace('"', "") for override in overrides}
        self.lines: dict[str, int] = {}
        table = ""
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*\[\[?([^\]]+)\]", line):
                table = header[1].replace('"', "").replace(" ", "") + "."
                self.lines.setdefault(table.rstrip("."), number)
            elif key := re.match(r"""\s*("[^"]+"|[\w.-]+)\s*=""", line):
                self.lines.setdefault(table + key[1].strip('"'), number)

    def of(self, key: str) -> str:
        if key in self.overridden:
            return f"command line, {key}"
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            line = self.lines.get(".".join(part for part in parts[:end] if not part.isdigit()))
            if line:
                return f"{self.label}, line {line}, {key}"
        return f"{self.label}, {key}"

    def locate(self, problem: Problem) -> Problem:
        return Problem(problem.what, self.of(problem.where), problem.mend)


def _explain(error: Mapping[str, Any], places: _Places) -> Problem:
    """One pydantic error in plain words."""
    location = [part for part in error["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in location)
    given = json.dumps(error["input"], default=str) if not isinstance(error["input"], dict) else "a table"
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return Problem(
            f"unknown key.{did_you_mean(str(location[-1]), known)}", places.of(key), f"known: {', '.join(known)}"
        )
    if error["type"] == "missing":
        return Problem(f'"{location[-1]}" is missing', places.of(key), f"add {location[-1]} = ...")
    if error["type"] == "literal_error":
        allowed = re.findall(r"'([^']+)'", error["ctx"]["expected"])
        what = f"{given} is not known here.{did_you_mean(str(error['input']), allowed)}"
        return Problem(what, places.of(key), f"known: {', '.join(allowed)}")
    if error["type"] == "value_error":
        return Problem(str(error["ctx"]["error"]), places.of(key) if key else places.label)
    message = error["msg"][0].lower() + error["msg"][1:]
    return Problem(f"{message}, got {given}", places.of(key))


def _known_keys(path: Sequence[Any]) -> list[str]:
    """The keys that the table at `path` takes."""
    model: Any = RunConfig
    for part in path:
        if isinstance(part, int):
            continue
        field = next((f for f in model.model_fields.values() if f.alias == part), None)
        if field is None:  # a free name, as in [domains.NAME]
            continue
        inner = {"domains": DomainConfig, "site": SiteConfig}.get(part, field.annotation)
        model = inner
    return [field.alias for field in model.model_fields.values()]
