"""The configuration of a run as frozen, closed, strictly typed models; each key with its default and its limits."""

from __future__ import annotations

import hashlib
import json
import math
import re
from functools import lru_cache
from typing import Any, Literal

import tomli_w
from pydantic import ConfigDict, Field, create_model, model_validator

from fedfm.config.engine import EngineConfig
from fedfm.config.sampling import SamplingConfig, ScreeningConfig
from fedfm.config.section import Finding, Section
from fedfm.config.simulation import SimulationConfig
from fedfm.config.tracking import TrackingConfig
from fedfm.config.update import UpdateConfig
from fedfm.errors import did_you_mean

Task = Literal["image-classification", "text-classification", "token-classification"]
Tuning = Literal["head", "layernorm", "lora", "full"]
GROUPS = ("shared", "domain", "private")
MOST_RANK = 2**14


class BodyConfig(Section):
    name: str = "tiny"
    tuning: Tuning = "lora"
    layers: int = Field(0, ge=0, description="keep the first n layers; 0 keeps all")
    trainable_layers: int = Field(0, ge=0, description="tune the n layers next to the head only; 0: all")
    weights: Literal["pretrained", "random", "none"] = "pretrained"
    lora_rank: int = Field(8, ge=1, le=MOST_RANK)
    lora_alpha: float = Field(16.0, gt=0)
    domain_lora_rank: int = Field(0, ge=0, le=MOST_RANK, description="rank of each domain's own second LoRA; 0: none")
    lora_targets: tuple[str, ...] = Field(("all-linear",), min_length=1, strict=False)
    image_adapter: Literal["stem", "patch", "lenet"] = "stem"
    image_tokens: int = Field(16, ge=4, le=256, description="an image becomes at most this many tokens")


class StrategyConfig(Section):
    """`name`, the server's rate, and the strategy's own keys (checked by the strategy table)."""

    model_config = ConfigDict(extra="allow")
    name: str = "fedavg"
    server_learning_rate: float = Field(1.0, gt=0)

    @property
    def own_keys(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


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
    length_buckets: bool = Field(False, description="texts: batches of like length; faster, but other batches")

    def steps(self, examples: int, share: float = 1.0) -> int:
        """Local steps of a round; of a straggler, who gets to `share` of them, at least one."""
        steps = self.epochs * math.ceil(examples / self.batch_size)
        return steps if share == 1 else min(steps, max(1, round(share * steps)))


LocalOverrides = create_model(  # the same keys, each of them optional
    "LocalOverrides",
    __base__=Section,
    **{name: (field.rebuild_annotation() | None, None) for name, field in LocalConfig.model_fields.items()},
)


class EvaluationConfig(Section):
    every: int = Field(1, ge=1, description="rounds from one validation to the next; the last round has one anyway")


class EarlyStoppingConfig(Section):
    patience: int = Field(0, ge=0, description="rounds without a better validation score; 0: off")
    metric: str = Field("mean", description='"mean", "worst", or a domain\'s name: its primary metric')


SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # names become those of files
KEY = r"^(SHA256:[A-Za-z0-9+/]{43})?$"


class SiteConfig(Section):
    name: str = Field(pattern=SITE_NAME, description="a word of up to 64 letters, digits, ., - and _")
    source: str = ""
    lora_rank: int = Field(0, ge=0, description="rank of its LoRA, at most body.lora-rank; 0: as its domain")
    key: str = Field("", pattern=KEY, description="SHA256:... as ssh-keygen -lf prints it: who else comes is refused")


class DomainConfig(Section):
    task: Task
    source: str = "generated"
    sites: int = Field(2, ge=1, le=10**5)
    partition: Literal["iid", "dirichlet", "pathological", "quantity"] = "iid"
    alpha: float = Field(0.5, gt=0, description="Dirichlet concentration")
    minimum_per_site: int = Field(2, ge=1, description="training examples that every site holds at least")
    classes_per_site: int = Field(2, ge=1)
    sigma: float = Field(1.0, ge=0, description="quantity: standard deviation of the log of the sizes")
    weight: float = Field(1.0, gt=0, le=1e6, description="w_d of the mean between domains")
    max_examples: int = Field(0, ge=0, description="training examples to keep, a seeded draw; 0: all")
    text_column: str = "text"
    label_column: str = "label"
    image_size: int = Field(0, ge=0, le=4096, description="resize images to this many pixels a side; 0: as they are")
    lora_rank: int = Field(0, ge=0, description="rank of its sites' LoRA, at most body.lora-rank; 0: body.lora-rank")
    minimum_sites: int = Field(0, ge=0, description="sites that a run and a round need of it; 0: all to begin")
    strict_tags: bool = Field(False, description="refuse an I- tag that does not continue an entity")
    local: LocalOverrides = Field(default_factory=LocalOverrides)
    site: tuple[SiteConfig, ...] = Field((), strict=False, description="names, and sources of their own")

    @model_validator(mode="after")
    def _site_tables(self) -> DomainConfig:
        findings: list[Finding] = []
        sources = [bool(site.source) for site in self.site]
        if any(sources) and not all(sources):
            bare = next(site.name for site in self.site if not site.source)
            what = f'site "{bare}" has no source: either every [[site]] table has its own, or none has'
            findings.append((("site",), what))
        if self.site and "sites" in self.model_fields_set and self.sites != len(self.site):
            findings.append((("sites",), f"sites = {self.sites}, but there are {len(self.site)} [[site]] tables"))
        self._refuse(findings)
        return self

    def site_names(self, domain: str) -> tuple[str, ...]:
        """Sorted names of the domain's sites: given by [[site]] tables, or `<domain>-1`, `<domain>-2`, ...

        Sorted, because the place of a name here says which part of a cut source is its own: the order of the tables
        in a file must not.
        """
        if self.site:
            return tuple(sorted(site.name for site in self.site))
        return _numbered(domain, self.sites)


@lru_cache(maxsize=64)
def _numbered(domain: str, sites: int) -> tuple[str, ...]:
    """Made once: with ten thousand sites each of them asks for the names of all."""
    width = len(str(sites))
    return tuple(f"{domain}-{number:0{width}d}" for number in range(1, sites + 1))


class RunsConfig(Section):
    folder: str = Field("runs", min_length=1)


def generated_domains() -> dict[str, DomainConfig]:
    """The domains of a configuration that names none: one for each task."""
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
    sharing: dict[str, Literal["shared", "domain", "private"]] = Field({})
    sampling: SamplingConfig = SamplingConfig()
    screening: ScreeningConfig = ScreeningConfig()
    local: LocalConfig = LocalConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    update: UpdateConfig = UpdateConfig()
    simulation: SimulationConfig = SimulationConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    domains: dict[str, DomainConfig] = Field(default_factory=generated_domains, min_length=1)
    tracking: TrackingConfig = TrackingConfig()
    runs: RunsConfig = RunsConfig()

    @model_validator(mode="after")
    def _names(self) -> RunConfig:
        self._refuse(
            [
                *self._unfit_domain_names(),
                *self._doubled_sites(),
                *self._unknown_metric(),
                *self._unknown_left_out(),
                *self._too_many_asked(),
                *self._too_many_needed(),
                *self._unfit_ranks(),
                *self.simulation.unknown_sites(self.sites()),
            ]
        )
        return self

    def _too_many_asked(self) -> list[Finding]:
        train = self.sites().keys() - set(self.sampling.without)
        most, asked = len(train), self.sampling.minimum_sites
        what = f"a round needs {asked} usable updates, but only {most} sites train"
        return [(("sampling", "minimum-sites"), what)] if asked > most else []

    def _too_many_needed(self) -> list[Finding]:
        findings: list[Finding] = []
        for domain, settings in self.domains.items():
            train = [site for site in settings.site_names(domain) if site not in self.sampling.without]
            what = f"minimum-sites = {settings.minimum_sites}, but only {len(train)} sites of the domain train"
            findings += [(("domains", domain, "minimum-sites"), what)] if settings.minimum_sites > len(train) else []
        return findings

    def _unknown_left_out(self) -> list[Finding]:
        names = self.sites()
        unknown = [site for site in self.sampling.without if site not in names]
        known = f"Sites: {', '.join(sorted(names)[:10])}{', ...' if len(names) > 10 else ''}"
        what = 'no site "{}".{} {}'
        return [(("sampling", "without"), what.format(site, did_you_mean(site, names), known)) for site in unknown]

    def _unfit_ranks(self) -> list[Finding]:
        given = {("domains", d, "lora-rank"): s.lora_rank for d, s in self.domains.items()}
        for domain, settings in self.domains.items():
            tables = enumerate(settings.site)
            given |= {("domains", domain, "site", place, "lora-rank"): site.lora_rank for place, site in tables}
        most = self.body.lora_rank
        what = "is more than body.lora-rank = {}, which the server's LoRA has"
        return [(path, f"lora-rank = {rank} {what.format(most)}") for path, rank in given.items() if rank > most]

    def _unfit_domain_names(self) -> list[Finding]:
        reserved = (*GROUPS, "federation", "mean", "worst")  # the last two are what early stopping may watch
        what = f"cannot name a domain: up to 64 letters, digits, - and _, and none of {', '.join(reserved)}"
        unfit = (d for d in self.domains if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", d) or d in reserved)
        return [(("domains", domain), f'"{domain}" {what}') for domain in unfit]

    def _doubled_sites(self) -> list[Finding]:
        owners: dict[str, str] = {}
        findings: list[Finding] = []
        for domain, settings in self.domains.items():
            for name in settings.site_names(domain):
                if name in owners:
                    place = ("domains", domain, "site") if settings.site else ("domains", domain)
                    findings.append((place, f'two sites are named "{name}" (domains {owners[name]} and {domain})'))
                owners.setdefault(name, domain)
        return findings

    def _unknown_metric(self) -> list[Finding]:
        watched, given = ("mean", "worst", *self.domains), self.early_stopping.metric
        if given in watched:
            return []
        what = f'"{given}" is not known here.{did_you_mean(given, watched)} Known: {", ".join(watched)}'
        return [(("early-stopping", "metric"), what)]

    def local_for(self, domain: str) -> LocalConfig:
        """[local] with the overrides of [domains.<domain>.local]."""
        changes = self.domains[domain].local.model_dump(exclude_none=True)
        return self.local.model_copy(update=changes)

    def sites(self) -> dict[str, str]:
        """Site name -> domain, sorted by site name (the order of every sum)."""
        pairs = {name: d for d, settings in self.domains.items() for name in settings.site_names(d)}
        return dict(sorted(pairs.items()))

    def ranks(self) -> dict[str, int]:
        """Site name -> rank of its LoRA: its own, or its domain's, or body.lora-rank."""
        found = {}
        for domain, settings in self.domains.items():
            common = settings.lora_rank or self.body.lora_rank
            found |= dict.fromkeys(settings.site_names(domain), common)
            found |= {site.name: site.lora_rank for site in settings.site if site.lora_rank}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values by kebab-case key, which `load_config` takes for this same configuration."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for domain in data["domains"].values():
            if domain["site"]:
                domain.pop("sites")  # the tables count themselves; the default number would contradict them
        return data

    def to_toml(self) -> str:
        """A file that runs again as this configuration; every key with its value."""
        data = self.to_dict()
        for domain in data["domains"].values():
            if not domain["site"]:
                domain.pop("site")
        return tomli_w.dumps(data)

    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def replace(self, *overrides: str) -> RunConfig:
        """A copy with `key=value` overrides applied."""
        from fedfm.config.reading import load_config  # which imports this module

        return load_config(self.to_dict(), overrides)
