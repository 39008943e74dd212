"""What a study compares, as `study.toml` (docs/study.md) says it: arms, seeds, budget, tuning, margin.

An arm is a set of settings over the common ones: those of its expression in `arms`, and those
of a table `[arm."NAME"]`."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from modicum.config import PROBE_EVERY, Budget, TrainConfig, from_mapping, read_toml
from modicum.limits import Between, Limits, Natural, Positive, check_limits
from modicum.options import merge
from modicum.settings import Settings, elsewhere, places, settings, to_toml, toml_value
from modicum.spec import nearest
from modicum.types import Frozen, UserError

Unit = Literal["tokens", "steps", "flops", "seconds"]
Kind = Literal["study", "scan"]
LOOSE = ("free", "digits")  # kinds of settings (`modicum.settings`) that a scan may change
FREE = ("arms", "seeds")  # what may change in a study that has begun: by additions
TRIES = (1 / 9, 1 / 3, 1.0, 3.0, 9.0)
PROBED = 1.75  # the rate of a KL of 0.03 over that of 0.01 (docs/rates.md)
LATER_STEPS = 1000  # the limit where the budget is not of steps


class Allowance(Settings):
    """What every run of the comparison may spend."""

    unit: Unit = "tokens"
    """Generated tokens, steps, matrix FLOPs, or seconds of sampling and training."""
    amount: Annotated[float, Limits(0, above=True)] = 0.0
    """How many."""
    max_steps: Positive = LATER_STEPS
    """Where a run ends that has not spent its budget by then."""


class Tuning(Frozen):
    """How each arm gets its learning rate: the same tries for all, judged on the tune split."""

    factors: tuple[float, ...] = TRIES
    """Tries, times the rate that the arm names, or else finds; one factor tunes nothing."""
    probe: bool = False
    """Two tries in their place, where a first step moves the policy by 0.01 and 0.03 nats a token."""
    seed: Natural = 1000
    """Of the tries; none of `seeds`."""
    share: Annotated[float, Limits(0, 1, above=True)] = 1.0
    """The budget of a try, as a share of a run's. Shorter tries prefer higher rates."""
    halving: bool = False
    """Successive halving: all rates for a part of the budget, the better half for twice it, ..."""
    problems: Positive = 256
    """Problems of the tune split."""
    samples: Positive = 2
    """Completions of each."""

    def __post_init__(self) -> None:
        check_limits(self)
        if self.probe:
            if self.factors not in (TRIES, (1.0, PROBED)):
                raise UserError("probe has its own two tries; leave factors out")
            object.__setattr__(self, "factors", (1.0, PROBED))
        if not self.factors or min(self.factors) <= 0:
            raise UserError("factors must be at least one number, all above 0")
        if len(set(self.factors)) < len(self.factors):
            raise UserError("factors holds a number twice")


class Placebos(Frozen):
    """Arms that train the control's update, at its rate, without knowing any answer."""

    random_reward: bool = False
    """Reward by a coin."""
    format_only: bool = False
    """Reward for the form of the answer alone."""


class Study(Frozen):
    """One comparison; `base` and `extra` hold tables of settings of `modicum train`."""

    question: str
    """What the study is to answer, in words."""
    arms: tuple[str, ...]
    """What is compared, as expressions of `vary` or names of `[arm]` tables."""
    vary: Literal["update", "reward", "objective", "curriculum"] = "update"
    """The setting that an expression in `arms` is for."""
    control: str = "full"
    """The arm that all others are compared with."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each arm is run once with each."""
    primary: Literal["accuracy", "greedy", "lenient"] = "accuracy"
    """The score that the verdict is about, by problem."""
    margin: Between = 0.02
    """How far below the control still counts as not worse; fixed before running."""
    threads: Natural = 0
    """Threads of each run; 0 takes the cores over the jobs, when the study begins."""
    keep: bool = False
    """Keep the trained weights of the final runs."""
    null_check: bool = False
    """Arms may be one method under two names: they measure the noise (docs/objectives.md)."""
    analysis_seed: Natural = 0
    """Of the resampling in the analysis."""
    budget: Allowance = field(default_factory=lambda: Allowance(amount=1))
    tuning: Tuning = field(default_factory=Tuning)
    placebo: Placebos = field(default_factory=Placebos)
    base: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_limits(self)
        for name in ("arms", "seeds"):
            if len(set(values := getattr(self, name))) < len(values):
                raise UserError(f"{name} holds an entry twice")
        if not self.seeds or min(self.seeds) < 0:
            raise UserError("seeds must be at least one whole number, none below 0")
        if self.tuning.seed in self.seeds:
            raise UserError(f"the tuning seed {self.tuning.seed} is one of the seeds")
        if len(self.arms) < 2:
            raise UserError("arms needs at least two entries, the control and another")
        if self.control not in self.arms:
            raise UserError(f"control: {self.control!r} is not among the arms")
        if odd := [name for name in self.extra if name not in self.arms]:
            raise UserError(f"[arm.{odd[0]!r}] is not in arms; {nearest(odd[0], self.arms)}")


class PlannedArm(Frozen):
    """One arm: its name, and the settings that it lays over the common ones."""

    name: str
    settings: Mapping[str, Any]
    placebo: bool = False

    @property
    def slug(self) -> str:
        """Of its folders."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")


def read(path: Path) -> Study:
    """The study in a TOML file; anything wrong is a UserError that names file and key."""
    return parse(read_toml(path), str(path))


def parse(tables: Mapping[str, Any], where: str) -> Study:
    """The study that `tables` hold, its arms and settings checked; `where` begins messages."""
    own = dict(tables)
    base, extra = own.pop("config", {}), own.pop("arm", {})
    for name, table in (("config", base), ("arm", extra), *extra.items()):
        if not isinstance(table, Mapping):
            raise UserError(f"{where}: {name} must be a table")
    known = {f.name for f in dataclasses.fields(Study)} - {"base", "extra"}
    within = {name: f"config.{t}".rstrip(".") for name, t in places(TrainConfig).items()}
    for key in own:
        if key not in known:
            hint = elsewhere(key, within) or nearest(key, [*known, "config", "arm"])
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    if missing := [key for key in ("question", "arms", "budget") if key not in own]:
        raise UserError(f"{where}: {missing[0]} is missing")
    made = from_mapping(Study, own, where)
    try:
        study = replace(made, base=base, extra=extra)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    for name in ("seed", "out", "steps", "budget", "evaluation.eval_split"):
        table, _, key = name.rpartition(".")
        if key in (base.get(table, {}) if table else base):
            raise UserError(f"{where}: config: {name} is the study's to say, not the config's")
    slugs: dict[str, str] = {}
    for arm in arms(study):
        from_mapping(TrainConfig, _tables(study, arm), f"{where}: arm {arm.name}", within)
        if slugs.setdefault(arm.slug, arm.name) != arm.name:
            raise UserError(f"{where}: the arms {slugs[arm.slug]} and {arm.name} look alike")
    return study


def arms(study: Study) -> list[PlannedArm]:
    """The control, then the other arms, then the placebos."""
    names = [study.control, *(name for name in study.arms if name != study.control)]
    found = [PlannedArm(n, {study.vary: n, **study.extra.get(n, {})}) for n in names]
    style = {**TrainConfig().sampling.__dict__, **study.base.get("sampling", {})}["style"]
    rewards = {"random reward": "random"} if study.placebo.random_reward else {}
    if study.placebo.format_only:
        if style == "none":
            raise UserError("placebo: format_only needs a style that asks for a form, not none")
        rewards["format only"] = f"format(style={style!r})"
    own = found[0].settings
    return found + [PlannedArm(n, {**own, "reward": of}, placebo=True) for n, of in rewards.items()]


def _tables(study: Study, arm: PlannedArm) -> dict[str, Any]:
    return merge(dict(study.base), dict(arm.settings))


def config(
    study: Study, arm: PlannedArm, seed: int, out: Path, rate: float | None, share: float = 1.0
) -> TrainConfig:
    """The settings of one run of an arm, with `share` of the budget."""
    from modicum import updates

    made = from_mapping(TrainConfig, _tables(study, arm), f"arm {arm.name}")
    if made.compute.quantise and updates.parse(made.update).kind != "adapters":
        why = "a study has one base, and only under adapters the same layers rest in 4 bits"
        raise UserError(f"arm {arm.name}: quantise: {why}; modicum compare takes single runs")
    allowed, steps, limit = study.budget, study.budget.max_steps, Budget()
    if allowed.unit == "steps":
        steps = max(1, round(allowed.amount * share))
    else:
        limit = Budget(allowed.amount * share, allowed.unit)
    held = made.evaluation
    varied = any(_tables(study, a).get("curriculum", "uniform") != "uniform" for a in arms(study))
    if varied and held.probe_every is None:
        held = replace(held, probe_every=PROBE_EVERY)
    made = replace(made, seed=seed, out=str(out), steps=steps, budget=limit, evaluation=held)
    rate = rate or made.optimizer.learning_rate
    return replace(made, optimizer=replace(made.optimizer, learning_rate=rate))


def text(study: Study, without: Sequence[str] = (), names: Sequence[str] | None = None) -> str:
    """The study as TOML that `read` takes; without some keys, the settings of some arms only."""
    tables = {k: v for k, v in vars(study).items() if k not in without}
    tables["config"], extra = tables.pop("base"), tables.pop("extra")
    arms = {toml_value(n): table for n, table in extra.items() if names is None or n in names}
    return to_toml(tables | ({"arm": arms} if arms else {}))


def fixed(study: Study, names: Sequence[str], kind: Kind = "study") -> list[str]:
    """The lines that may not change once a study of the arms `names`, or a scan, has begun."""
    lines = text(study, (*FREE, "null_check"), names).splitlines()
    if kind == "study":
        return lines
    loose = {n.rpartition(".")[2] for n, resume, _ in settings(TrainConfig()) if resume in LOOSE}
    return [line for line in lines if line.partition(" = ")[0] not in {*loose, "keep"}]
