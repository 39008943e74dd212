"""What is written to disk and read again, typed once: `fill` reads, `dataclasses.asdict` writes.

Unknown keys are left out, what has a default may be missing or null. Units: fractions, bytes, seconds."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, field
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from modicum.spec import HALF, check
from modicum.stats import Difference, Interval
from modicum.types import Frozen, UserError

T = TypeVar("T")
Column = NDArray[np.float64]


class Evaluation(Frozen, kw_only=True):
    """What an evaluation found, with 95 % limits; `format` is the share in the form asked for."""

    task: str = ""
    split: str = ""
    num_problems: int = 0
    samples_per_problem: int = 0
    temperature: float = math.nan
    accuracy: float  # mean strict verdict of the samples: avg@n
    low: float = math.nan
    high: float = math.nan
    standard_error: float | None = None
    lenient: float = math.nan
    lenient_low: float = math.nan
    lenient_high: float = math.nan
    greedy: float = math.nan
    greedy_low: float = math.nan
    greedy_high: float = math.nan
    greedy_lenient: float = math.nan
    format: float = math.nan
    truncated: float = math.nan
    length: float = math.nan
    pass_at: dict[str, list[float]] = field(default_factory=dict)
    maj_at: dict[str, list[float]] = field(default_factory=dict)  # k -> estimate, low, high
    ids: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    lenient_scores: list[float] = field(default_factory=list)
    greedy_scores: list[float] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "this") -> Self:
        """A whole evaluation from what `asdict` gave; other keys are left out."""
        if lacking := [item.name for item in dataclasses.fields(cls) if item.name not in values]:
            raise UserError(f"{where} is not an evaluation: it has no {lacking[0]!r}")
        return fill(cls, values, "the evaluation")


class AnatomyPart(Frozen):
    """What changed in one part of the model (attention, mlp, ...); None: no such number."""

    relative_norm: float | None = None
    effective_rank: float | None = None
    rank_share: float | None = None
    participation_ratio: float | None = None
    directions_90: float | None = None


class Anatomy(Frozen):
    """What training changed in the weights (docs/anatomy.md); shares are of all entries."""

    dtype: str
    tensors: int
    tensors_changed: int
    entries: int
    entries_in_changed: int
    changed: Mapping[str, float]  # by threshold, and `bf16`
    parts: Mapping[str, AnatomyPart]
    map: Mapping[str, tuple[float | None, ...]]  # part -> relative norm in every layer
    relative_norm: float | None = None
    alarm: str = ""  # that few directions changed while the reward fell
    seed: str = ""


class RunResult(Frozen):
    """What a finished run wrote about itself (`result.json`; docs/metrics.md explains it)."""

    update: str
    model: str = ""
    task: str = ""
    reward: str = ""
    objective: str = ""
    seed: int | None = None
    steps: int | None = None
    stopped: str = ""  # why it ended before its steps, where a condition or its patience did that
    base: Evaluation | None = None
    trained: Evaluation | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    trainable_tensors: int | None = None
    active_parameters_mean: float | None = None
    optimizer_bytes: int | None = None
    decisions: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    start_memory_bytes: int | None = None
    generated_tokens: int | None = None
    ledger: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # by purpose
    empty_steps: int | None = None
    flops: float | None = None
    skipped_steps: int | None = None
    change_proof: str | None = None
    agreement_proof: str | None = None
    base_hash: str = ""
    agreement_max: float | None = None
    nothing_trained: str = ""  # why, if no optimizer step was taken
    anatomy: Anatomy | None = None


class ClaimTest(Frozen):
    """A test: its p-value, the same adjusted by Holm, and whether the claim holds."""

    p: float | None = None
    holm: float | None = None
    holds: bool = False


class TuningRun(Frozen):
    """A tuning run: `accuracy` on the tuning split; None: it has not run, or failed."""

    rate: float
    share: float = 1.0  # of the budget of a run
    folder: str = ""  # under the study's
    accuracy: float | None = None
    failed: str = ""


class DifficultyLevel(Frozen):
    """Accuracy on the problems of one difficulty; None where no run finished."""

    level: str
    problems: int
    accuracy: float | None = None
    base: float | None = None


class ArmCost(Frozen):
    """What an arm cost in means over its seeds; ratios are to the control."""

    parameters: int | None = None
    active_parameters_mean: float | None = None
    total_parameters: int | None = None
    share: float | None = None
    seconds: float | None = None
    step_seconds: float | None = None
    memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    optimizer_bytes: int | None = None
    generated_tokens: float | None = None
    steps: float | None = None
    flops: float | None = None
    time_ratio: float | None = None
    memory_ratio: float | None = None
    flops_ratio: float | None = None
    tuning_runs: int | None = None


class ArmResult(Frozen):
    """One arm: its settings, what it reached over its seeds, its verdict and its cost."""

    name: str
    slug: str
    verdict: str
    placebo: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""  # of its update; empty where it sets other things or the file does not say
    learning_rate: float | None = None
    rate_at_edge: bool = False
    tries: tuple[TuningRun, ...] = ()
    by_seed: Mapping[str, float] = field(default_factory=dict)
    accuracy: Interval | None = None
    gain: Interval | None = None
    beside: Mapping[str, Interval] = field(default_factory=dict)  # by the readings not primary
    below_base: Interval | None = None  # the share of seeds with a negative gain
    difference: Difference | None = None
    tests: Mapping[str, ClaimTest] | None = None
    retention: Interval | None = None
    retention_note: str = ""
    seeds_needed: int | None = None
    difficulty: tuple[DifficultyLevel, ...] = ()
    cost: ArmCost = ArmCost()
    folders: Mapping[str, str] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    sentence: str = ""


class RunBudget(Frozen):
    """What every run may use: an amount of a unit (`tokens`, `steps`, `seconds`, ...)."""

    unit: str
    amount: float


class Variance(Frozen):
    """Variances: of a seed's effect, of a problem's, and of what is left of one score."""

    seed: float
    problem: float
    residual: float


class Analysis(Frozen):
    """A study (`analysis.json`); `arms` has the control first, then the order of study.toml."""

    question: str
    control: str
    arms: tuple[ArmResult, ...]
    model: str = ""
    task: str = ""
    primary: str = "accuracy"
    margin: float = 0.02
    seeds: tuple[int, ...] = ()
    budget: RunBudget | None = None
    num_problems: int | None = None
    samples_per_problem: int | None = None
    split: str = "test"
    base: Interval | None = None
    beside: Mapping[str, Interval] = field(default_factory=dict)  # the base, as an arm's
    control_gain: Interval | None = None
    variance: Variance | None = None
    conclusion: str = ""
    notes: tuple[str, ...] = ()
    repeat: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """The analysis; what is missing, wrong, or an arm named twice is a UserError."""
        found = fill(cls, data, where)
        if found.control not in (names := [arm.name for arm in found.arms]):
            raise UserError(f"{where}: the control {found.control!r} is not among the arms")
        if len(set(names)) < len(names) or len({arm.slug for arm in found.arms}) < len(names):
            raise UserError(f"{where}: two arms have the same name")
        return found


def fill(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """A dataclass from an object of JSON, those within it too; a UserError begins with `where`."""
    hints, values = typing.get_type_hints(cls), dict[str, Any]()
    for item in dataclasses.fields(typing.cast(Any, cls)):
        optional = not item.default is item.default_factory is MISSING
        if data.get(item.name) is not None or (item.name in data and not optional):
            values[item.name] = _value(data[item.name], hints[item.name], where, item.name)
        elif not optional:
            raise UserError(f"{where}: {item.name!r} is missing")
    return cls(**values)


def _value(value: Any, hint: Any, where: str, name: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    what, inside = f"{where}: {name!r}", f"{where}: {name}"
    if origin in (typing.Union, types.UnionType):
        kinds = [kind for kind in args if kind is not type(None)]
        one = len(kinds) == 1 and value is not None
        return _value(value, kinds[0], where, name) if one else check(what, value, hint)
    if origin is np.ndarray:
        return np.array(check(what, value, tuple[float | None, ...]), dtype=float)
    if origin in (tuple, list):
        items = enumerate(check(what, value, list))
        return origin(_value(item, args[0], where, f"{name}[{n}]") for n, item in items)
    if origin in (Mapping, dict):
        pairs = check(what, value, dict).items()
        return {str(key): _value(item, args[1], inside, str(key)) for key, item in pairs}
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return fill(typing.cast(type, hint), check(what, value, dict), inside)
    return check(what, HALF.sub("\ufffd", value) if type(value) is str else value, hint)
