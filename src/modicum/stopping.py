"""When a run ends before its steps: a condition on what it measures, or no better evaluations.

`accuracy >= 0.9` is looked at after each evaluation, `reward/mean > 0.8` after each step, as the
mean of the last five that logged it. All that decides stands in the files of the run, so that a
resumed run decides as the uncut one does.
"""

import operator
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modicum.logged import METRICS, TERM
from modicum.spec import nearest
from modicum.types import Split, UserError

NEVER = "never"
HELD = ("accuracy", "lenient", "greedy", "format", "truncated", "length")
"""What an evaluation finds; all others are logged by steps."""
WINDOW = 5  # steps whose mean counts
SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
FORM = re.compile(
    r"\s*([^\s<>].*?)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%?)\s*"
)
AT_THE_ENDS = ("base", "trained")


@dataclass(frozen=True)
class Condition:
    """A metric, `>=` or the like, and a number."""

    name: str
    sign: str
    bound: float

    @property
    def held(self) -> bool:
        """Whether an evaluation finds it."""
        return self.name in HELD

    def holds(self, value: float) -> bool:
        """Whether a value is as asked for; NaN never is."""
        return SIGNS[self.sign](value, self.bound)

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.bound:g}"


def parse(text: str) -> Condition | None:
    """The condition that a text states, None for `never`; UserError for what is none."""
    if text.strip() == NEVER:
        return None
    found = FORM.fullmatch(text)
    if found is None:
        raise UserError(
            f"stop_when {text!r}: a metric, one of {', '.join(SIGNS)} and a number are wanted,"
            " such as 'accuracy >= 0.9', or never"
        )
    name = found[1]
    known = [*HELD, *(key for key in METRICS if key not in (TERM, "user/NAME", "step"))]
    if name not in known and not name.startswith(("reward/", "user/")):
        tails = [f"did you mean {key!r}?" for key in known if key.endswith(f"/{name}")]
        raise UserError(
            f"stop_when: nothing is called {name!r}; {tails[0] if tails else nearest(name, known)}"
        )
    return Condition(name, found[2], float(found[3]) / (100 if found[4] else 1))


def split_within(budget: Any, held: Any) -> Split:
    """The split of evaluations within a run: what decides when it ends is never a test problem.

    Raises UserError where it would be ended by evaluations that it does not make.
    """
    when = parse(budget.stop_when)
    why = f"stop_when = {budget.stop_when!r}" if when and when.held else ""
    why = f"patience = {budget.patience}" if budget.patience else why
    if why and not (held.eval_every and held.eval_problems):
        missing = "eval_every = 10, say" if held.eval_problems else "eval_problems above 0"
        raise UserError(f"{why} looks at evaluations within the run: it needs {missing}")
    return "tune" if why else held.eval_split


class Stop:
    """Whether a run has reached what ends it: `reason` says it, empty while it has not."""

    def __init__(self, budget: Any) -> None:
        self.when, self.patience, self.reason = parse(budget.stop_when), budget.patience, ""
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._best, self._after, self._since = float("-inf"), 0, 0

    def check(self, terms: Iterable[str]) -> None:
        """UserError for a term of the reward that the reward has not."""
        known = ["reward/mean", "reward/errors", *(f"reward/{term}" for term in terms)]
        if self.when and self.when.name.startswith("reward/") and self.when.name not in known:
            raise UserError(
                f"stop_when: the reward logs no {self.when.name!r};"
                f" {nearest(self.when.name, known)}"
            )

    def step(self, metrics: Mapping[str, Any]) -> None:
        """A step has ended; `metrics` is its line of metrics.jsonl."""
        self.reason = ""
        value = metrics.get(self.when.name) if self.when and not self.when.held else None
        if value is None:
            return
        self._recent.append(value)
        mean = sum(self._recent) / len(self._recent)
        if len(self._recent) == WINDOW and self.when and self.when.holds(mean):
            self.reason = f"{self.when} (a mean of {mean:.3g} over {WINDOW} steps)"

    def evaluated(self, entry: Mapping[str, Any]) -> None:
        """An evaluation has ended; `entry` is its line of evaluations.jsonl."""
        if entry["name"] in AT_THE_ENDS:
            return
        if self.when and self.when.held and self.when.holds(entry[self.when.name]):
            self.reason = f"{self.when} ({entry[self.when.name]:.3g} on {entry['split']} problems)"
        if not self.patience or entry["split"] != "tune":
            return
        self._since += 1
        if entry["accuracy"] > self._best:
            self._best, self._after, self._since = entry["accuracy"], entry["step"] + 1, 0
        if self._since >= self.patience:
            self.reason = (
                f"{self._since} evaluations without a better accuracy on tune problems than"
                f" {self._best:.1%} after step {self._after}"
            )

    def replay(
        self, steps: Iterable[Mapping[str, Any]], evaluations: Iterable[Mapping[str, Any]], to: int
    ) -> None:
        """Hear again what a run logged in its first `to` steps."""
        found = [(entry["step"], 0, entry) for entry in steps]
        found += [(entry["step"], 1, entry) for entry in evaluations]
        for step, kind, entry in sorted(found, key=lambda item: item[:2]):
            if step < to:
                (self.evaluated if kind else self.step)(entry)
