"""A reward function of the user's own, in the form that TRL's GRPOTrainer takes.

    def function(prompts, completions, completion_ids, trainer_state, **columns):
        return [score, ...]  # a number or None for each completion

It is called once for all completions of a problem. `columns` are lists as long as
`completions`: everything in the problem's data, and `question`, `answer` and `ground_truth`
(the gold answer). `prompts` holds the question as the task states it, without the template.
A parameter that the function does not have is not passed; one that nothing is known for is a
UserError. `async def` works as well.

None or NaN is no verdict: the term is left out of that completion's sum, as in TRL. Values
are taken as they are; whether they lie in [0, 1] is the user's business.

Departure from TRL, where an exception ends the run: when the call raises, each completion is
scored by a call of its own, and one that fails again gets 0 and a line in the log. After a
list of another length all completions of the call get 0 and a line, since nobody knows which
score is whose. What returns no list, or not one score for one completion, is a UserError.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import importlib
import inspect
import math
import operator
import re
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from modicum.rewards.base import Term
from modicum.spec import nearest
from modicum.tasks.base import Task
from modicum.types import Completion, Problem, UserError

PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
MAX_FAULT = 200  # characters of an exception's message that are shown


class Called(Term):
    """Base of the terms that call a function; they have `called` and `chat`."""

    if TYPE_CHECKING:  # a field of the terms

        @property
        def chat(self) -> bool: ...

    @property
    @abstractmethod
    def called(self) -> Callable[..., Any]:
        """The function."""

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """What the function returns for a group of one."""
        return self.score_group(task, problem, [completion], [])[0]

    def score_group(
        self, task: Task, problem: Problem, completions: Sequence[Completion], faults: list[str]
    ) -> list[float]:
        """What the function returns; NaN where it returns None, 0 where it fails."""
        arguments = accepted(str(self), self.called, self._columns(problem, completions))
        values, fault = _call(self, arguments)
        count = len(completions)
        if fault is None and len(values) == count:
            return values
        if fault is None:
            if count == 1:
                what = f"{len(values)} scores for 1 completion"
                raise UserError(f"reward {self}: the function returned {what}")
            fault = f"returned {len(values)} scores for {count} completions"
        elif count > 1:
            # Which one is it? The others keep their scores.
            return [self.score_group(task, problem, [c], faults)[0] for c in completions]
        faults += [f"{self}: {fault}"] * count
        return [0.0] * count

    def _columns(
        self, problem: Problem, completions: Sequence[Completion]
    ) -> dict[str, list[Any] | None]:
        """All arguments that a function may have."""
        prompt: Any = problem.question
        texts: list[Any] = [completion.text for completion in completions]
        if self.chat:
            prompt = [{"role": "user", "content": prompt}]
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        columns = {
            **problem.data,
            "question": problem.question,
            "answer": problem.answer,
            "ground_truth": problem.answer,
            "prompts": prompt,
        }
        given = {name: [value] * len(texts) for name, value in columns.items()}
        ids = [list(completion.tokens) for completion in completions]
        return {**given, "completions": texts, "completion_ids": ids, "trainer_state": None}


@dataclass(frozen=True)
class Function(Called):
    """Your own function `module:function`, with the signature of TRL's reward functions.

    With `chat`, prompts and completions are lists of messages ({"role", "content"}).
    """

    name: ClassVar[str] = "function"
    path: str
    chat: bool = False

    def __post_init__(self) -> None:
        if not PATH.fullmatch(self.path):
            raise UserError(
                f"reward: {self.path!r} is not a function; write package.module:function"
            )
        load(self.path)  # so that a run fails before its model is loaded

    def __str__(self) -> str:
        return f"{self.path}(chat=True)" if self.chat else self.path

    @property
    def called(self) -> Callable[..., Any]:
        """What stands at the path now: a cell of a notebook may have defined it anew."""
        return load(self.path)


@dataclass(frozen=True)
class GivenFunction(Called):
    """A function that is no importable one: of a notebook, a closure, a callable object."""

    name: ClassVar[str] = "given"
    function: Callable[..., Any]
    chat: bool = False
    label: str = ""
    """What metrics call it; empty takes its own name."""

    def __str__(self) -> str:
        kind = type(self.function).__name__
        return self.label or getattr(self.function, "__name__", kind).strip("<>")

    @property
    def called(self) -> Callable[..., Any]:
        """The function."""
        return self.function


def term_of(function: Callable[..., Any]) -> Called:
    """The term that calls `function`: by its path where that gives it again."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    path = f"{module}:{name}"
    if module != "__main__" and PATH.fullmatch(path):
        with contextlib.suppress(UserError):
            if load(path) is function:
                return Function(path)
    return GivenFunction(function)


def _call(term: Called, arguments: dict[str, Any]) -> tuple[list[float], str | None]:
    """The values of one call, or what it raised; UserError when the result is no list."""
    guard, values = Guard(), None
    with guard, contextlib.redirect_stdout(sys.stderr):
        values = term.called(**arguments)
        if inspect.isawaitable(values):
            values = _await(values)
        if isinstance(values, Iterable):
            values = [math.nan if value is None else float(value) for value in values]
    if guard.fault is not None:
        return [], guard.fault
    if not isinstance(values, list):
        raise UserError(f"reward {term}: the function returned {values!r:.60}, no list")
    if any(map(math.isinf, values)):
        return [], "returned an infinite score"
    return values, None


class Guard:
    """Keeps what the user's code raises from ending the run; `fault` says what it was.

    The one place where every exception is caught, since only the user knows which there are
    (time limits of some libraries do not even derive from Exception). An interrupt, an exit
    and a lack of memory pass.
    """

    fault: str | None = None

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if kind is None or issubclass(kind, KeyboardInterrupt | SystemExit | MemoryError):
            return False
        message = " ".join(str(error).split())
        self.fault = f"{kind.__name__}: {message}"[:MAX_FAULT] if message else kind.__name__
        return True


def _await(found: Any) -> Any:
    """The result of a coroutine; where a loop runs already (Jupyter), on a thread of its own."""

    async def awaited() -> Any:
        return await found

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(awaited())
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, awaited()).result()


def accepted(path: str, function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function has a parameter for; all with **kwargs.

    UserError when it needs one that there is not: a column that the data lacks.
    """
    known = inspect.signature(function).parameters.values()
    for parameter in known:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UserError(
                f"reward {path}: {parameter.name!r} is positional-only; arguments go by name"
            )
        needed = parameter.default is parameter.empty and parameter.kind not in VARIADIC
        if needed and parameter.name not in given:
            raise UserError(
                f"reward {path}: the problems have no column {parameter.name!r};"
                f" {nearest(parameter.name, given)}"
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        return given
    names = {parameter.name for parameter in known}
    return {name: value for name, value in given.items() if name in names}


def load(path: str) -> Callable[..., Any]:
    """The callable at `package.module:name`; a UserError says what is missing.

    The current directory is searched last, so that no file of it hides a library.
    """
    module_name, _, name = path.partition(":")
    if not {"", "."} & set(sys.path):
        sys.path.append("")
    guard, found = Guard(), None
    with guard, contextlib.redirect_stdout(sys.stderr):
        found = importlib.import_module(module_name)
    if found is None:
        raise UserError(f"reward {path}: cannot import {module_name!r} ({guard.fault})")
    try:
        function = operator.attrgetter(name)(found)
    except AttributeError:
        close = difflib.get_close_matches(name, vars(found), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"reward {path}: the module has no {name!r}{hint}") from None
    if not callable(function):
        raise UserError(f"reward {path}: {name!r} is a {type(function).__name__}, not a function")
    return function


def rewrite(text: str) -> str:
    """`text` with every module:function outside quotes as a term: `function('m:f')`."""
    parts, place = [], 0
    for match in QUOTED.finditer(text):
        parts += [_as_term(text[place : match.start()]), match[0]]
        place = match.end()
    return "".join([*parts, _as_term(text[place:])])


def _as_term(text: str) -> str:
    """As `rewrite`, for a text without quotes; `m:f(chat=True)` keeps its arguments."""
    opened = re.compile(rf"(?<![\w.:])({PATH.pattern})[ \t]*\([ \t]*(?=[^) \t])")
    return re.compile(rf"(?<![\w.:'])({PATH.pattern})(?:[ \t]*\([ \t]*\))?(?![\w'])").sub(
        r"function('\1')", opened.sub(r"function('\1', ", text)
    )
