"""What every reward term has in common: one score in [0, 1], and sums with weights.

    total = sum over terms of weight * score

Terms and rewards join with `+`, and take a weight with `*`: `Accuracy() + 0.2 * Format()`. NaN is
"no verdict": the term is left out of that completion's sum."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, Self

from modicum.limits import Limits
from modicum.spec import Spec
from modicum.tasks.base import Task
from modicum.types import Completion, Frozen, Problem, UserError

WEIGHTS = Limits(0, 1e6, above=True)  # of a term; usual: at most 1


class StepExtras:
    """What functions get in a step, as from TRL, and what they log: `trainer_state`, `log_metric`, `log_extra`."""

    def __init__(self, step: int = 0, steps: int = 1) -> None:
        # By the names of transformers' TrainerState; a step is a rollout.
        self.state = SimpleNamespace(global_step=step, max_steps=steps, epoch=step / steps)
        self.values: dict[str, list[float]] = defaultdict(list)
        self.columns: dict[int, dict[str, Any]] = defaultdict(dict)  # by the completion's id

    def arguments(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """What a function may have parameters for, in a call for these completions."""
        extra = partial(self._log_extra, completions)
        return {"trainer_state": self.state, "log_metric": self._log_metric, "log_extra": extra}

    def metrics(self) -> dict[str, float]:
        """The mean of every metric that was logged."""
        return {f"user/{name}": math.fsum(of) / len(of) for name, of in self.values.items()}

    def logged(self, completion: Completion) -> dict[str, Any]:
        """What was logged of a completion, for samples.jsonl."""
        return {"logged": self.columns[id(completion)]} if id(completion) in self.columns else {}

    def share(self, completions: Sequence[Completion], lines: Callable[[Any], Any]) -> None:
        """Know of what was logged in all processes, whose rows `lines` gives."""
        places = {id(c): number for number, c in enumerate(completions)}
        mine = [[places[key], column] for key, column in self.columns.items() if key in places]
        told = lines([[dict(self.values), mine]])
        self.values.clear()
        for values, columns in told:
            for name, of in values.items():
                self.values[name] += of
            self.columns.update({id(completions[number]): found for number, found in columns})

    def _log_metric(self, name: str, value: float) -> None:
        if math.isfinite(number := float(value)):  # JSON has no other
            self.values[str(name)].append(number)

    def _log_extra(self, completions: Sequence[Completion], column: str, values: Any) -> None:
        found, count = list(values), len(completions)
        if len(found) != count:
            raise ValueError(f"log_extra({column!r}): {len(found)} values for {count} completions")
        for completion, value in zip(completions, found, strict=True):
            value = value.item() if getattr(value, "ndim", 1) == 0 else value
            finite = isinstance(value, float) and math.isfinite(value)
            plain = finite or isinstance(value, str | int | None)
            self.columns[id(completion)][str(column)] = value if plain else str(value)


class _Summand:
    def __add__(self, other: object) -> "Reward":
        if not isinstance(other, Reward | Term):
            return NotImplemented
        return Reward(reward_of(self).terms + reward_of(other).terms)

    def __mul__(self, weight: object) -> "Reward":
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            return NotImplemented
        return Reward(tuple((weight * w, term) for w, term in reward_of(self).terms))

    __rmul__ = __mul__


class Term(_Summand, Spec):
    """One thing that a completion is scored for: a frozen dataclass with a `name`, which writes
    `score`, or `score_group` if it compares the completions of a group."""

    placebo: ClassVar[bool] = False  # whether the score knows nothing of the completion
    learned: ClassVar[bool] = False
    """Whether a model scores, so that what is right has to be watched beside it."""

    def at(self, extras: StepExtras) -> Self:
        """This term in a step of a run; one that calls a user's function hands it the extras."""
        return self

    def report(self) -> dict[str, Any]:
        """What was found when the model that scores was made; empty without one."""
        return {}

    def begin(self, opened: Callable[[Any], Callable[..., list[float]]]) -> "Term":
        """This term in a run; one that needs a model gets what scores by it from `opened`."""
        return self

    def require(self, problem: Problem) -> None:
        """UserError where problems lack what this term must know of them."""

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """The unweighted value, in [0, 1], of a completion alone; never raises for any text. A
        UserError says that the user's own function failed."""
        faults: list[str] = []
        (found,) = self.score_group(task, problem, [completion], faults)
        if faults:
            raise UserError(f"reward {faults[0]}")
        return found

    def score_group(
        self, task: Task, problem: Problem, completions: Sequence[Completion], faults: list[str]
    ) -> list[float]:
        """The values of the completions of one problem, in their order; NaN is no verdict. One that
        could not be scored gets 0 and a line in `faults`."""
        return [self.score(task, problem, completion) for completion in completions]


class Reward(_Summand, Frozen):
    """A weighted sum of different terms, the largest weight first; UserError for a wrong weight."""

    terms: tuple[tuple[float, Term], ...]

    def __post_init__(self) -> None:
        names = [str(term) for _, term in self.terms]
        for name, (weight, _) in zip(names, self.terms, strict=True):
            WEIGHTS.check(f"reward: the weight of {name}", weight)
            if names.count(name) > 1:
                raise UserError(f"reward: {name} is there twice; give it one weight")
        # One order for every way to write a sum, so that equal rewards are equal.
        ordered = sorted(self.terms, key=lambda item: (-item[0], str(item[1])))
        object.__setattr__(self, "terms", tuple((float(w), term) for w, term in ordered))

    def __str__(self) -> str:
        shown = list[str]()
        for weight, term in self.terms:
            number = int(weight) if weight.is_integer() and weight < 1e15 else weight
            shown.append(str(term) if weight == 1 else f"{number!r}*{term}")
        return " + ".join(shown)

    @property
    def learned(self) -> str:
        """The first term that a model scores; empty: there is none."""
        return next((str(term) for _, term in self.terms if term.learned), "")

    def at(self, extras: StepExtras) -> "Reward":
        """This reward in a step of a run (`Term.at`)."""
        return Reward(tuple((weight, term.at(extras)) for weight, term in self.terms))

    def score_group(
        self, task: Task, problem: Problem, completions: Sequence[Completion], faults: list[str]
    ) -> list[dict[str, float]]:
        """For every completion of one problem the unweighted value of each term, by its expression;
        see `Term.score_group`."""
        names = [str(term) for _, term in self.terms]
        columns = [t.score_group(task, problem, completions, faults) for _, t in self.terms]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def total(self, scores: Mapping[str, float]) -> float:
        """The weighted sum of a completion's values; NaN when no term has a verdict."""
        parts = [weight * scores[str(term)] for weight, term in self.terms]
        known = [part for part in parts if not math.isnan(part)]
        return math.fsum(known) if known else math.nan


def reward_of(part: Any) -> Reward:
    """A reward, or a term as one."""
    return part if isinstance(part, Reward) else Reward(((1.0, part),))
