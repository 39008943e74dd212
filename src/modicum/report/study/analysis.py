"""`analysis.json` of a study as dataclasses: what its arms reached, cost and amount to.

Shares and accuracies are fractions, sizes bytes, times seconds; None where something does
not exist. Keys that are not known here are left out.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, TypeVar

from modicum.spec import check
from modicum.stats import Difference, Interval
from modicum.types import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Test:
    """A test: its p-value, the same adjusted by Holm, and whether it holds."""

    p: float | None = None
    holm: float | None = None
    holds: bool = False


@dataclass(frozen=True)
class Try:
    """A tuning run at one learning rate and the accuracy it reached on the tuning split."""

    rate: float
    accuracy: float | None = None
    failed: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Level:
    """Accuracy on the problems of one difficulty."""

    level: str
    problems: int
    accuracy: float
    base: float | None = None


@dataclass(frozen=True)
class Cost:
    """What an arm cost: parameters, memory, time, tokens; ratios are to the control."""

    parameters: int | None = None
    active_parameters_mean: float | None = None
    total_parameters: int | None = None
    share: float | None = None
    seconds: float | None = None
    time_ratio: float | None = None
    step_seconds: float | None = None
    memory_bytes: int | None = None
    memory_ratio: float | None = None
    peak_memory_bytes: int | None = None
    optimizer_bytes: int | None = None
    generated_tokens: float | None = None
    steps: float | None = None
    flops: float | None = None
    flops_ratio: float | None = None
    tuning_runs: int | None = None


@dataclass(frozen=True)
class Arm:
    """One arm: its settings, what it reached over its seeds, its verdict and its cost."""

    name: str
    slug: str
    verdict: str
    sentence: str = ""
    placebo: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    """Of its update; empty where it sets other things, or where the file does not say."""
    learning_rate: float | None = None
    rate_at_edge: bool = False
    tries: tuple[Try, ...] = ()
    by_seed: Mapping[str, float] = field(default_factory=dict)
    accuracy: Interval | None = None
    gain: Interval | None = None
    difference: Difference | None = None
    tests: Mapping[str, Test] | None = None
    retention: Interval | None = None
    retention_note: str = ""
    seeds_needed: int | None = None
    difficulty: tuple[Level, ...] = ()
    cost: Cost = Cost()
    folders: Mapping[str, str] = field(default_factory=dict)
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """What every run may use: an amount of a unit (`tokens`, `steps`, `seconds`, ...)."""

    unit: str
    amount: float


@dataclass(frozen=True)
class Variance:
    """Variance components of the control's scores."""

    seed: float | None = None
    problem: float | None = None
    residual: float | None = None


@dataclass(frozen=True)
class Analysis:
    """The study; `arms` has the control first, then the order of study.toml."""

    question: str
    control: str
    arms: tuple[Arm, ...]
    model: str = ""
    task: str = ""
    primary: str = "accuracy"
    margin: float = 0.02
    seeds: tuple[int, ...] = ()
    budget: Budget | None = None
    num_problems: int | None = None
    samples_per_problem: int | None = None
    split: str = "test"
    base: Interval | None = None
    control_gain: Interval | None = None
    variance: Variance | None = None
    conclusion: str = ""
    notes: tuple[str, ...] = ()
    repeat: tuple[str, ...] = ()


def parse(data: Mapping[str, Any], where: str) -> Analysis:
    """The analysis from an object of JSON; what is missing or of a wrong type is a UserError."""
    found = fill(Analysis, data, where)
    names = [arm.name for arm in found.arms]
    if found.control not in names:
        raise UserError(f"{where}: the control {found.control!r} is not among the arms")
    if len(set(names)) < len(names) or len({arm.slug for arm in found.arms}) < len(names):
        raise UserError(f"{where}: two arms have the same name")
    return found


def fill(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """A dataclass from an object of JSON, those within it too; unknown keys are left out."""
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(typing.cast(Any, cls)):
        if item.name in data:
            values[item.name] = _value(data[item.name], hints[item.name], f"{where}: {item.name}")
        elif item.default is item.default_factory is MISSING:
            raise UserError(f"{where}: {item.name!r} is missing")
    return cls(**values)


def _value(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [arg for arg in args if arg is not type(None)]
        return _value(value, rest[0], where) if len(rest) == 1 else check(where, value, hint)
    if origin is tuple:
        return tuple(
            _value(item, args[0], f"{where}[{number}]")
            for number, item in enumerate(check(where, value, list))
        )
    if origin is Mapping:
        table = check(where, value, dict)
        return {str(k): _value(v, args[1], f"{where}: {k}") for k, v in table.items()}
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return fill(typing.cast(type, hint), check(where, value, dict), where)
    return check(where, value, hint)
