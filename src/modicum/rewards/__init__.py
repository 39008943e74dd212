"""Rewards: terms that score a completion, and their weighted sum.

To add one: a file with a frozen dataclass (see `base.Term`), an entry in REWARDS. The
contract suite (tests/test_rewards.py) picks it up."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modicum import spec
from modicum.rewards.base import Reward, Term, reward_of
from modicum.rewards.base import StepExtras as StepExtras
from modicum.rewards.function import Function, GivenFunction, term_of
from modicum.rewards.source import FOLDERS, rewrite
from modicum.rewards.steps import Consistency
from modicum.rewards.terms import Accuracy, Format, Language, Learned, Length, Random, Repetition
from modicum.types import UserError

TERMS = (Accuracy, Format, Consistency, Language, Length, Repetition, Random, Function, Learned)
REWARDS: dict[str, type[Term]] = {cls.name: cls for cls in TERMS}


def parse(text: str, folders: Sequence[Path] = ()) -> Reward:
    """The reward that an expression such as `accuracy + 0.5*module:function` describes; modules and
    relative paths of files are also looked for in `folders`."""
    before = FOLDERS.set(folders)
    try:
        return reward_of(spec.build("reward", text, REWARDS, rewrite(text)))
    finally:
        FOLDERS.reset(before)


def of(value: Any) -> Reward:
    """The reward that an expression, a function, a term, or a list of them (a sum) names. Functions
    of one name are numbered, and so is one with a name that metrics have: `accuracy_2`."""
    parts = value if isinstance(value, list | tuple) else [value]
    if not parts:
        raise UserError("reward: the list is empty")
    weights, terms = zip(*(t for part in parts for t in reward_of(_of(part)).terms), strict=True)
    taken, named = {*REWARDS, "mean", "errors"}, list[Term]()
    for place, term in enumerate(terms):
        if term in terms[:place]:
            term = named[terms.index(term)]  # the sum refuses it
        elif isinstance(term, GivenFunction):
            numbers = (f"_{number}" * (number > 1) for number in itertools.count(1))
            label = next(name for end in numbers if (name := f"{term}{end}") not in taken)
            taken.add(label)
            term = term if label == str(term) else dataclasses.replace(term, label=label)
        named.append(term)
    return Reward(tuple(zip(weights, named, strict=True)))


def _of(part: Any) -> Reward | Term:
    if isinstance(part, str):
        return parse(part)
    if isinstance(part, Reward | Term):
        return part
    if callable(part) and not isinstance(part, type):
        return term_of(part)
    known = "an expression such as 'accuracy', a function or a term"
    raise UserError(f"reward: must be {known}, not {part!r:.60}")
