"""A reward function of the user's own, in the form that TRL's GRPOTrainer takes.

    def function(prompts, completions, completion_ids, trainer_state, **columns):
        return [score, ...]  # a number or None for each completion

docs/rewards.md: departing from TRL, an exception gives all completions of the call 0."""

import asyncio
import contextlib
import inspect
import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar, Self

from modicum.rewards.base import StepExtras, Term
from modicum.rewards.source import OWN, PATH, Guard, attribute, file_of, find, shown
from modicum.spec import nearest
from modicum.tasks.base import Task
from modicum.types import Completion, Problem, UserError

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Called(Term):
    """A term that calls a function: with `each` for every completion alone, else for all of a
    problem. With `chat`, prompts and completions are lists of messages ({"role", "content"})."""

    chat: bool = field(default=False, kw_only=True)
    each: bool = field(default=False, kw_only=True)

    @property
    @abstractmethod
    def called(self) -> Callable[..., Any]:
        """The function."""

    def at(self, extras: StepExtras) -> Self:
        """The same term, which hands its function what belongs to the step."""
        return self.having(extras=extras)

    def require(self, problem: Problem) -> None:
        """UserError where the function needs an argument that there is not."""
        accepted(str(self), self.called, self._columns(problem, []))

    def score_group(
        self, task: Task, problem: Problem, completions: Sequence[Completion], faults: list[str]
    ) -> list[float]:
        """What the function returns; NaN where it returns None, 0 where it fails."""
        if self.each and len(completions) > 1:
            calls = [self.score_group(task, problem, [c], faults) for c in completions]
            return [score for (score,) in calls]
        arguments = accepted(str(self), self.called, self._columns(problem, completions))
        values, fault = _call(self, arguments)
        count = len(completions)
        if not fault and len(values) != count:
            fault = f"returned {len(values)} scores for {count} completion{'s' * (count != 1)}"
        faults += [f"{self}: {fault}"] * (count if fault else 0)
        return [0.0] * count if fault else values

    def _columns(self, problem: Problem, completions: Sequence[Completion]) -> dict[str, Any]:
        prompt: Any = problem.question
        texts: list[Any] = [completion.text for completion in completions]
        if self.chat:
            prompt = [{"role": "user", "content": prompt}]
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        columns = {**problem.data, "question": problem.question, "prompts": prompt}
        columns |= dict.fromkeys(("answer", "ground_truth"), problem.answer)
        given = {name: [value] * len(texts) for name, value in columns.items()}
        ids = [list(completion.tokens) for completion in completions]
        extras: StepExtras = vars(self).get("extras") or StepExtras()
        more = extras.arguments(completions)
        return {**given, "completions": texts, "completion_ids": ids, **more}


class Function(Called):
    """Your own `module:function` or `file.py:function`, in the form of TRL's reward functions."""

    path: str

    def __post_init__(self) -> None:
        # So that a run fails before its model is loaded.
        object.__setattr__(self, "module", find(self.path))

    def __str__(self) -> str:
        given = [f"{name}=True" for name in ("chat", "each") if getattr(self, name)]
        return shown(self.path, *given)

    @property
    def called(self) -> Callable[..., Any]:
        """What stands at the path now: a cell of a notebook may have defined it anew."""
        return attribute(self.path, vars(self)["module"])

    @property
    def file(self) -> Path:
        """Where it was read from; what is no file if it is of no file."""
        return file_of(sys.modules[vars(self)["module"]])


class GivenFunction(Called):
    """A function that is no importable one: of a notebook, a closure, a callable object."""

    name: ClassVar[str] = "given"
    function: Callable[..., Any]
    label: str = ""  # what metrics call it; empty takes its own name

    def __str__(self) -> str:
        kind = type(self.function).__name__
        return self.label or getattr(self.function, "__name__", kind).strip("<>")

    @property
    def called(self) -> Callable[..., Any]:
        return self.function


def term_of(function: Callable[..., Any]) -> Called:
    """The term that calls `function`: by its path where that gives it again."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    path = f"{module}:{name}"
    if module in sys.modules and module != "__main__" and PATH.fullmatch(path):
        with contextlib.suppress(UserError):
            if not module.startswith(OWN) and attribute(path, module) is function:
                return Function(path)
    return GivenFunction(function)


def _call(term: Called, arguments: dict[str, Any]) -> tuple[list[float], str]:
    """The values of one call, or what it raised; UserError when the result is no list."""
    guard, values = Guard(), None
    with guard, contextlib.redirect_stdout(sys.stderr):
        values = term.called(**arguments)
        if inspect.iscoroutine(values):
            with ThreadPoolExecutor(max_workers=1) as pool:  # a loop may run already (Jupyter)
                values = pool.submit(asyncio.run, values).result()
        if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping | Set):
            values = [math.nan if value is None else float(value) for value in values]
    if guard.fault:
        return [], guard.fault
    if not isinstance(values, list):
        raise UserError(f"reward {term}: the function returned {values!r:.60}, no list")
    return values, "returned an infinite score" * any(map(math.isinf, values))


def accepted(path: str, function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function has a parameter for; all with **kwargs. UserError
    when it needs one that there is not: a column that the data lacks."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of some functions in C nobody knows
        raise UserError(f"reward {path}: what it takes cannot be told; wrap it in one") from None
    for name, parameter in known.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UserError(f"reward {path}: {name!r} is positional-only; arguments go by name")
        needed = parameter.default is parameter.empty and parameter.kind not in VARIADIC
        if needed and name not in given:
            near = nearest(name, given)
            raise UserError(f"reward {path}: the problems have no column {name!r}; {near}")
    whole = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    return given if whole else {n: value for n, value in given.items() if n in known}
