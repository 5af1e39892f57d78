"""The strategies: a table, and nothing else. A new one is a file beside this one and a row here."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from fedfm.config import RunConfig, StrategyConfig
from fedfm.errors import ConfigError, Problem, did_you_mean
from fedfm.strategies.afl import AFL
from fedfm.strategies.base import Pass, Round, SiteRows, Strategy, Summary, Update
from fedfm.strategies.bulyan import Bulyan
from fedfm.strategies.cagrad import CAGrad
from fedfm.strategies.centralised import Centralised
from fedfm.strategies.centralised_joint import CentralisedJoint
from fedfm.strategies.cfl import CFL
from fedfm.strategies.dare import Dare
from fedfm.strategies.ditto import Ditto
from fedfm.strategies.domain_sum import DomainSum
from fedfm.strategies.dual_lora import DualLoRA
from fedfm.strategies.fedadagrad import FedAdagrad
from fedfm.strategies.fedadam import FedAdam
from fedfm.strategies.fedavg import FedAvg
from fedfm.strategies.fedavgm import FedAvgM
from fedfm.strategies.fedbabu import FedBABU
from fedfm.strategies.fedbuff import FedBuff
from fedfm.strategies.feddyn import FedDyn
from fedfm.strategies.fedex_lora import FedExLoRA
from fedfm.strategies.fedit import FedIT
from fedfm.strategies.fednova import FedNova
from fedfm.strategies.fedper import FedPer
from fedfm.strategies.fedprox import FedProx
from fedfm.strategies.fedrep import FedRep
from fedfm.strategies.fedsa_lora import FedSALoRA
from fedfm.strategies.fedyogi import FedYogi
from fedfm.strategies.ffa_lora import FFALoRA
from fedfm.strategies.fine_tune import FineTune
from fedfm.strategies.flexlora import FlexLoRA
from fedfm.strategies.flora import FLoRA
from fedfm.strategies.hetlora import HetLoRA
from fedfm.strategies.ifca import IFCA
from fedfm.strategies.krum import Krum
from fedfm.strategies.local_norm import LocalNorm
from fedfm.strategies.local_only import LocalOnly
from fedfm.strategies.median import Median
from fedfm.strategies.mgda import MGDA
from fedfm.strategies.moon import Moon
from fedfm.strategies.multi_krum import MultiKrum
from fedfm.strategies.norm_bound import NormBound
from fedfm.strategies.pcgrad import PCGrad
from fedfm.strategies.per_domain import PerDomain
from fedfm.strategies.pfedme import PFedMe
from fedfm.strategies.q_fedavg import QFedAvg
from fedfm.strategies.rolora import RoLoRA
from fedfm.strategies.scaffold import Scaffold
from fedfm.strategies.task_arithmetic import TaskArithmetic
from fedfm.strategies.ties import Ties
from fedfm.strategies.trimmed_mean import TrimmedMean

STRATEGIES: dict[str, type[Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "scaffold": Scaffold,
    "fednova": FedNova,
    "feddyn": FedDyn,
    "moon": Moon,
    "q-fedavg": QFedAvg,
    "afl": AFL,
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "krum": Krum,
    "multi-krum": MultiKrum,
    "bulyan": Bulyan,
    "norm-bound": NormBound,
    "fedper": FedPer,
    "fedrep": FedRep,
    "fedbabu": FedBABU,
    "local-norm": LocalNorm,
    "ditto": Ditto,
    "pfedme": PFedMe,
    "fine-tune": FineTune,
    "fedit": FedIT,
    "ffa-lora": FFALoRA,
    "fedsa-lora": FedSALoRA,
    "rolora": RoLoRA,
    "flora": FLoRA,
    "fedex-lora": FedExLoRA,
    "flexlora": FlexLoRA,
    "hetlora": HetLoRA,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
    "mgda": MGDA,
    "ifca": IFCA,
    "cfl": CFL,
    "task-arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare": Dare,
    "dual-lora": DualLoRA,
    "domain-sum": DomainSum,
    "fedbuff": FedBuff,
    "local-only": LocalOnly,
    "per-domain": PerDomain,
    "centralised": Centralised,
    "centralised-joint": CentralisedJoint,
}

__all__ = [
    "STRATEGIES", "Pass", "Round", "SiteRows", "Strategy", "Summary", "Update", "check_strategy", "make_strategy",
    "prepared",
]  # fmt: skip


def make_strategy(settings: StrategyConfig) -> Strategy:
    """The strategy that [strategy] names, with its settings. Raises ConfigError."""
    problems = _problems(settings)
    if problems:
        raise ConfigError(problems)
    own = {key.replace("-", "_"): value for key, value in settings.own_keys.items()}
    return STRATEGIES[settings.name](server_learning_rate=settings.server_learning_rate, **own)


def prepared(config: RunConfig) -> RunConfig:
    """The configuration with what its strategy brings (`sets`), where the user has not set it himself.

    Of the result every key counts as set: prepared once more it stays as it is.
    """
    if config.strategy.name not in STRATEGIES:
        return config
    strategy, data = STRATEGIES[config.strategy.name], config.to_dict()
    rate = {"server-learning-rate": strategy.server_learning_rate}
    for section, values in {"strategy": rate, **strategy.sets}.items():
        if section == "sharing":
            data[section] = {**values, **data[section]}
            continue
        given = getattr(config, section).model_fields_set
        data[section] |= {name: value for name, value in values.items() if name.replace("-", "_") not in given}
    return type(config).model_validate(data)


def check_strategy(config: RunConfig) -> list[Problem]:
    """What is wrong with [strategy]: a check for `load_config`."""
    if problems := _problems(config.strategy):
        return problems
    strategy = make_strategy(config.strategy)
    if strategy.groups_sites and config.early_stopping.patience:
        what = f"{config.strategy.name} has a model for each group of sites; only the last round's can be kept"
        return [Problem(what, "early-stopping.patience", "0: train all rounds")]
    return [*_mixed_ranks(config, strategy), *strategy.problems(prepared(config))]


def _mixed_ranks(config: RunConfig, strategy: Strategy) -> list[Problem]:
    """Ranks of LoRA that the strategy cannot bring together, or that no LoRA has."""
    whole, ranks = config.body.lora_rank, config.ranks()
    smaller = next((site for site, rank in ranks.items() if rank != whole), "")
    if not smaller:
        return []
    domain = config.sites()[smaller]
    where = f"domains.{domain}.lora-rank" if config.domains[domain].lora_rank else f"domains.{domain}.site"
    if config.body.tuning != "lora":
        return [Problem(f'ranks of LoRA, but body.tuning = "{config.body.tuning}"', where, 'body.tuning = "lora"')]
    if strategy.mixes_ranks:
        return []
    what = (
        f"different ranks of LoRA ({smaller}: {ranks[smaller]}, the server: {whole}), but {config.strategy.name} "
        "averages factors of one rank"
    )
    able = ", ".join(name for name, known in STRATEGIES.items() if known.mixes_ranks)
    return [Problem(what, where, f"one rank for all (body.lora-rank = {ranks[smaller]}), or strategy.name = {able}")]


def _problems(settings: StrategyConfig) -> list[Problem]:
    if settings.name not in STRATEGIES:
        what = f'unknown strategy "{settings.name}".{did_you_mean(settings.name, STRATEGIES)}'
        return [Problem(what, "strategy.name", f"known: {', '.join(STRATEGIES)}")]
    fields = _keys(STRATEGIES[settings.name])
    problems = []
    for name, value in settings.own_keys.items():
        where = f"strategy.{name}"
        if name not in fields:
            what = f'strategy "{settings.name}" has no such key.{did_you_mean(name, fields) or _owners(name)}'
            problems.append(Problem(what, where, f"its keys: {', '.join(fields)}"))
        elif what := _unfit(fields[name], value):
            problems.append(Problem(what, where))
    return problems


def _unfit(field: dataclasses.Field, value: Any) -> str:
    """Why a value cannot be that of the setting; '' where it can."""
    choices, low, high = (field.metadata.get(n) for n in ("choices", "low", "high"))
    if choices:
        return "" if value in choices else f"must be one of {', '.join(choices)}, got {value!r}"
    if isinstance(field.default, bool):
        return "" if isinstance(value, bool) else f"must be true or false, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number, got {value!r}"
    if isinstance(field.default, int) and not isinstance(value, int):
        return f"must be a whole number, got {value!r}"
    if not math.isfinite(value) or not low <= value <= high:
        limits = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        return f"must be a finite number, {limits}, got {value}"
    return ""


def _keys(strategy: type[Strategy]) -> dict[str, dataclasses.Field]:
    """The keys that [strategy] may hold for it, besides `name`."""
    return {field.name.replace("_", "-"): field for field in dataclasses.fields(strategy)}


def _owners(key: str) -> str:
    """' "fedprox" has it.' for a key of other strategies."""
    owners = [f'"{name}"' for name, strategy in STRATEGIES.items() if key in _keys(strategy)]
    return f" {', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it." if owners else ""
