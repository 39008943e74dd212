"""What flows through a training step, from a problem to a batch: frozen, and free of torch."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, dataclass_transform

Split = Literal["train", "tune", "test"]
SPLITS: tuple[Split, ...] = ("train", "tune", "test")
Advantage = float | Sequence[float]  # of a completion: one number, or one for each of its tokens
Weights = tuple[float | None, ...]  # of its tokens; None has no part in the loss


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Frozen:
    """Base of values: every class below it is a frozen dataclass."""

    def __init_subclass__(cls, **how: bool) -> None:
        dataclass(frozen=True, **how)(cls)


class UserError(ValueError):
    """What the user asked for cannot be done; the message is one line that says why, which the
    command line prints with exit code 2. It is never a bug of ours."""

    @classmethod
    def of(cls, reason: str, /, **values: Any) -> Self:
        """The error that says what `refusals.toml` has under a name, filled with values."""
        return cls(_refusals()[reason].format(**values))


@cache
def _refusals() -> dict[str, str]:
    return tomllib.loads(Path(__file__).with_name("refusals.toml").read_text(encoding="utf-8"))


class RunStopped(UserError):
    """A run stopped itself: a proof failed or the loss stayed not finite."""


class RunInterrupted(RunStopped):
    """A signal stopped a run, which can be resumed; `number` is the signal's (2: Ctrl-C)."""

    def __init__(self, message: str, number: int = 2) -> None:
        super().__init__(message)
        self.number = number


class FolderError(UserError):
    """A folder cannot be written now: the disk is full, another process writes it. Nothing is wrong
    with what was asked for, and the same works when that has ended."""


class Problem(Frozen):
    """One checkable problem. `id` is unique within a task, `answer` the gold answer as text, `data`
    what the grader needs besides; `difficulty` a task's own measure, larger is harder, or None."""

    id: str
    question: str
    answer: str
    difficulty: float | None = None
    data: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Grade(Frozen):
    """The verdict on one completion. `strict` reads only an answer marked as the prompt asks;
    `lenient` falls back to the last number of the text. `extracted` is the answer that was read,
    None without one; `reason` says why."""

    strict: bool
    lenient: bool
    extracted: str | None
    reason: str


class Origin(Frozen):
    """What completions were drawn with, said by the sampler that drew them."""

    weights: str  # the version of what trains (`engine.version.version_of`)
    temperature: float
    top_p: float
    top_k: int


class Completion(Frozen):
    """What the model wrote: tokens up to and with the one that ended it, if it came (`finished`).
    `text` ends with the stop string, or before it where it begins another's turn (`User:`); where
    the prompt had opened thinking, it begins with that mark. `logprobs[t]` is the log-probability
    of `tokens[t]` under the sampling distribution (temperature, top-p and top-k included), `trunk`
    what the engine kept of its way. `reference` has the reference's log-probs of the tokens, where
    an objective asks for them before the advantages, `values` what a critic made of each. Once a sampler
    elsewhere is corrected (`objectives.corrections`), it has `weights`, and `sampled` what the sampler said."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool
    trunk: Any = field(default=None, compare=False, repr=False)
    origin: Origin | None = field(default=None, compare=False, repr=False)
    reference: tuple[float, ...] = field(default=(), compare=False, repr=False)
    values: tuple[float, ...] = field(default=(), compare=False, repr=False)
    sampled: tuple[float, ...] = field(default=(), compare=False, repr=False)
    weights: Weights = field(default=(), compare=False, repr=False)


class Group(Frozen):
    """G completions of one problem's prompt."""

    problem: Problem
    prompt: tuple[int, ...]
    completions: tuple[Completion, ...]


class Row(Frozen):
    """A completion on its way through training. Rows with the same `group` have the same prompt.
    `trunk`, `reference` and `sampled` are the completion's; `part` says which tokens have one in the loss,
    if not all."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: Advantage
    group: int = 0
    trunk: Any = field(default=None, compare=False, repr=False)
    reference: tuple[float, ...] = field(default=(), compare=False, repr=False)
    sampled: tuple[float, ...] = field(default=(), compare=False, repr=False)
    part: tuple[bool, ...] = field(default=(), compare=False, repr=False)

    @property
    def advantages(self) -> Sequence[float]:
        """The advantage of every token."""
        if isinstance(self.advantage, Sequence):
            return self.advantage
        return [self.advantage] * len(self.tokens)


class Batch(Frozen):
    """The rows of one optimizer step and the counts that its loss is divided by: those of the whole
    batch that was sampled for this update, before rows without a signal were left out. `signal` has
    the numbers of the groups whose rewards differ."""

    rows: tuple[Row, ...]
    num_rows: int
    num_tokens: int
    signal: frozenset[int]

    @property
    def has_signal(self) -> bool:
        """Whether the rewards of some group that is here differ."""
        return any(row.group in self.signal for row in self.rows)
