"""When a run ends before its steps: a condition on what it measures, or no better evaluations.

`accuracy >= 0.9` is looked at after each evaluation, `reward/mean > 0.8` after each step, as the
mean of the last five that logged it. A resumed run decides as the uncut one does (`Stop.replay`)."""

import operator
import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from modicum.logged import METRICS, TERM
from modicum.spec import nearest
from modicum.types import Split, UserError

Line = Mapping[str, Any]  # of metrics.jsonl or evaluations.jsonl
NEVER = "never"
HELD = ("accuracy", "lenient", "greedy", "format", "truncated", "length")
"""What an evaluation finds; all others are logged by steps."""
KNOWN = [*HELD, *(METRICS.keys() - {TERM, "user/NAME", "step"})]
WINDOW = 5  # steps whose mean counts
SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
FORM = re.compile(rf"\s*([^\s<>].*?)\s*(>=|<=|>|<)\s*{NUMBER}\s*(%?)\s*")
AT_THE_ENDS = ("base", "trained")


class Condition(NamedTuple):
    """A metric, `>=` or the like, and a number."""

    name: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.bound:g}"

    def holds(self, value: float) -> bool:
        """Whether a value is as asked for; NaN never is."""
        return SIGNS[self.sign](value, self.bound)


def parse(text: str) -> Condition | None:
    """The condition that a text states, None for `never`; UserError for what is none."""
    if text.strip() == NEVER:
        return None
    if (found := FORM.fullmatch(text)) is None:
        form = f"a metric, one of {', '.join(SIGNS)} and a number are wanted"
        raise UserError(f"stop_when {text!r}: {form}, such as 'accuracy >= 0.9', or never")
    if found[1] not in KNOWN and not found[1].startswith(("reward/", "user/")):
        raise _unknown(found[1], KNOWN)
    bound = float(found[3]) / (100 if found[4] else 1)
    if found[1] in HELD[:-1] and bound > 1:
        raise UserError(f"stop_when {text!r}: {found[1]} is a share, at most 1; 90 % is 0.9 or 90%")
    return Condition(found[1], found[2], bound)


def _unknown(name: str, known: Iterable[str]) -> UserError:
    mean = f"{name}/mean"
    alike = (k for k in known if k == mean or k.endswith(f"/{name}"))
    near = min(alike, key=lambda k: (k != mean, not k.startswith("policy/"), k), default="")
    hint = f"did you mean {near!r}?" if near else nearest(name, known)
    return UserError(f"stop_when: nothing is called {name!r}; {hint}")


def split_within(budget: Any, held: Any) -> Split:
    """The split of evaluations within a run, never test where they may end it; UserError without."""
    when = parse(budget.stop_when)
    why = f"stop_when = {budget.stop_when!r}" if when and when.name in HELD else ""
    why = f"patience = {budget.patience}" if budget.patience else why
    if why and not (held.eval_every and held.eval_problems):
        missing = "eval_every = 10, say" if held.eval_problems else "eval_problems above 0"
        raise UserError(f"{why} looks at evaluations within the run: it needs {missing}")
    return "tune" if why else held.eval_split


class Stop:
    """Whether a run has reached what ends it: `reason` says it, empty while it has not."""

    def __init__(self, budget: Any) -> None:
        self.patience, self.reason, self._recent = budget.patience, "", deque[float](maxlen=WINDOW)
        self._best, self._after, self._since = float("-inf"), 0, 0
        when = parse(budget.stop_when)
        held = when is not None and when.name in HELD
        self._held, self._logged = (when, None) if held else (None, when)

    def check(self, terms: Iterable[str]) -> None:
        """UserError for a term that the reward has not."""
        known = ["reward/mean", "reward/errors", *(f"reward/{term}" for term in terms)]
        name = self._logged.name if self._logged else ""
        if name.startswith("reward/") and name not in known:
            raise _unknown(name, known)

    def step(self, metrics: Line) -> None:
        """A step has ended; `metrics` is its line of metrics.jsonl."""
        self.reason = ""
        if (when := self._logged) and when.name in metrics:
            self._recent.append(metrics[when.name])
            mean = sum(self._recent) / len(self._recent)
            if len(self._recent) == WINDOW and when.holds(mean):
                self.reason = f"{when} (a mean of {mean:.3g} over {WINDOW} steps)"

    def evaluated(self, entry: Line) -> None:
        """An evaluation has ended; `entry` is its line of evaluations.jsonl."""
        if entry["name"] in AT_THE_ENDS or entry["split"] != "tune":
            return
        if (when := self._held) and when.holds(entry[when.name]):
            self.reason = f"{when} ({entry[when.name]:.3g} on tune problems)"
        self._since += 1
        if entry["accuracy"] > self._best:
            self._best, self._after, self._since = entry["accuracy"], entry["step"] + 1, 0
        if 0 < self.patience <= self._since:
            more = f"accuracy on tune problems than {self._best:.1%} after step {self._after}"
            self.reason = f"no better {more} (patience = {self.patience})"

    def replay(self, steps: Iterable[Line], evaluations: Iterable[Line], to: int) -> None:
        """Hear again what a run logged in its first `to` steps."""
        heard = [(e["step"], self.step, e) for e in steps]
        heard += [(e["step"], self.evaluated, e) for e in evaluations]
        for step, tell, entry in sorted(heard, key=lambda item: item[0]):  # stable: steps first
            if step < to:
                tell(entry)
