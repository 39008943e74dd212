"""The procedural data sets of reasoning-gym (arXiv:2505.24760; Apache-2.0), with its scorers.

All of reasoning-gym runs in a helper process (`gym_child`), where a scorer that hangs, crashes or
would evaluate the model's text costs one wrong answer. Departures (docs/tasks.md): splits and seeds
share no problem, an answer is right when the scorer gives it 1, and where a scorer pays what is
wrong (`COUNTDOWNS`, `BY_ANSWER`), the project's own grading takes its place."""

import dataclasses
import functools
import json
import operator
import random
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any, ClassVar

from modicum import answers
from modicum.child import Child, ChildFailed
from modicum.spec import nearest
from modicum.tasks.base import Level, Procedural, only
from modicum.types import Grade, Problem, Split, UserError

MAKE_SECONDS = 60.0
SCORE_SECONDS = 5.0
MAX_ANSWER = 20_000  # characters of an answer that the scorer is shown
NO_SINGLE_ANSWER = "(any answer that the scorer accepts)"
COUNTDOWNS = ("countdown", "puzzle24")
BY_ANSWER = ("coin_flip", "game_of_life_halting")  # by equality with the answer
TYPES: dict[str, type] = {kind.__name__: kind for kind in (int, float, bool, str)}
TYPES |= {"list": tuple, "none": type(None)}
child = Child("-m", "modicum.tasks.gym_child")
CALL = re.compile(r"\s*gym\s*\(\s*(?:dataset\s*=\s*)?(['\"]?)(\w+)\1\s*[,)]")


def _ask(limit: float, **request: Any) -> Any:
    """The child's reply; a UserError for a fault, None when the data set's code raised."""
    if "fault" in (reply := child.ask(request, limit)):
        raise UserError(f"gym({request['name']!r}): {reply['fault']}")
    return reply.get("value")


class Gym(Procedural):
    """A data set of reasoning-gym, with its settings as arguments: gym('chain_sum', max_terms=4).

    `level` sets all attributes of its curriculum, from 0, or several in turn; single settings go
    before it. What an expression makes is a subclass (`variant`) with its settings as fields."""

    graded: ClassVar[tuple[str, ...]] = ("level",)
    has_levels: ClassVar[bool] = False
    dataset: str
    level: Level | None = None

    def __post_init__(self) -> None:
        if type(self) is Gym:
            raise UserError("gym: the data set's name comes first: gym('chain_sum')")
        right = isinstance(self.level, tuple) or 0 <= (self.level or 0) <= 100
        if self.level is not None and not (self.has_levels and right):
            why = "is 0 to 100" if self.has_levels else "is not known: there is no curriculum"
            raise UserError(f"gym({self.dataset!r}): level {why}")
        # Wrong settings fail when the task is named, not in the middle of a run.
        if len(self.levels()) == 1:
            self.make(random.Random(0), "train")

    def grade(self, problem: Problem, text: str) -> Grade:
        """Right if the data set's own scorer gives the marked answer the full score of 1."""
        if self.dataset in COUNTDOWNS:
            return answers.grade_countdown(text, problem.data["numbers"], problem.data["target"])
        if self.dataset in BY_ANSWER:
            return answers.grade(text, problem.answer)
        return answers.judge(text, functools.partial(self._score, problem))

    def _score(self, problem: Problem, answer: str) -> tuple[bool, str]:
        if len(answer) > MAX_ANSWER:
            return False, f"is longer than {MAX_ANSWER} characters"
        asked = {"seed": problem.data["seed"], "question": problem.question, "answer": answer}
        try:
            score = _ask(SCORE_SECONDS, do="score", **self._key(problem.difficulty), **asked)
        except ChildFailed as error:
            return False, f"has no score: the scorer failed: {error}"
        if score is None:
            return False, "cannot be read by the scorer"
        return score >= 1.0, f"has the score {score:g}"

    def _key(self, difficulty: float | None) -> dict[str, Any]:
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        own = {name: getattr(self, name) for name in usual if name not in ("dataset", "level")}
        changed = {name: value for name, value in own.items() if value != usual[name]}
        settings = json.dumps(changed, sort_keys=True)
        level = None if difficulty is None else int(difficulty)
        return {"name": self.dataset, "settings": settings, "level": level}

    def fingerprint(self) -> str:
        """The version of the library, which another one may make other problems than."""
        return f"reasoning-gym {metadata.version('reasoning-gym')}"

    def make(self, rng: random.Random, split: Split) -> Problem | None:
        seed = rng.getrandbits(31)
        level = None if self.level is None else float(only(self.level))
        try:
            made = _ask(MAKE_SECONDS, do="make", **self._key(level), seed=seed)
        except ChildFailed as error:
            raise UserError(f"{self}: no problem could be made: {error}") from None
        if made is None:
            return None
        question = made["question"].strip()
        answer = NO_SINGLE_ANSWER if made["answer"] is None else made["answer"]
        data: dict[str, Any] = {"seed": seed}
        if self.dataset in COUNTDOWNS:
            target = 24 if self.dataset == "puzzle24" else made["target"]
            data |= {"numbers": tuple(made["numbers"]), "target": target}
        return Problem(question, question, answer, level, data)


@functools.cache
def variant(dataset: str) -> type[Gym]:
    """`Gym` with the settings of `dataset` as fields; UserError with the nearest name."""
    try:
        found = _ask(MAKE_SECONDS, do="describe", name=dataset)
    except ChildFailed as error:
        raise UserError(f"gym: reasoning-gym cannot be used: {error}") from None
    if "known" in found:
        raise UserError(f"gym has no data set {dataset!r}; {nearest(dataset, found['known'])}")
    own = {"__doc__": Gym.__doc__, "name": Gym.name, "has_levels": found["levels"]}
    hints: dict[str, Any] = {}
    for name, (kinds, default) in found["settings"].items():
        hints[name] = functools.reduce(operator.or_, [TYPES[kind] for kind in kinds])
        own[name] = _frozen(default)
    return type(f"Gym_{dataset}", (Gym,), {**own, "__annotations__": hints})


def members(text: str) -> Mapping[str, type]:
    """What `gym` stands for in the expression `text`: the class of the data set it names."""
    match = CALL.match(text)
    return {} if match is None else {"gym": variant(match[2])}


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
