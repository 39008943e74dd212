"""The short rewards: accuracy, format, length, repetition, and a coin for placebo arms."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from modicum.rewards.base import Term
from modicum.spec import within
from modicum.styles import STYLES
from modicum.tasks.base import Task
from modicum.types import Completion, Problem

_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]{{1,20}}|[^\w\s]")


@dataclass(frozen=True)
class Accuracy(Term):
    """1 if the marked answer is right; `lenient` accepts an unmarked one as well.

    The rule-based reward of DeepSeek-R1-Zero (arXiv 2501.12948), section 2.2.2. What is right is
    the task's to say.
    """

    name: ClassVar[str] = "accuracy"
    lenient: bool = False

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """1.0 or 0.0."""
        grade = task.grade(problem, completion.text)
        return float(grade.lenient if self.lenient else grade.strict)


@dataclass(frozen=True)
class Format(Term):
    r"""1 if the answer is marked once, in this style, and nothing follows it.

    tags: one think part and one answer part and nothing outside; boxed: one \boxed{...} at
    the end; hashes: one `#### x`, the last line. An empty part or mark gives 0.

    For tags it is the format reward of DeepSeek-R1-Zero (arXiv 2501.12948), section 2.2.2. It
    says nothing of whether the answer is right: keep its weight below that of accuracy.
    """

    name: ClassVar[str] = "format"
    style: Literal["tags", "boxed", "hashes"] = "tags"

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """1.0 or 0.0."""
        return float(STYLES[self.style].format_ok(completion.text))


@dataclass(frozen=True)
class Length(Term):
    """1 up to `max_tokens` - `buffer` tokens, then falling to 0 at `max_tokens`.

    `buffer` is a fifth of `max_tokens` unless it is given, as in DAPO (4,096 of 20,480).

    DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), from [-1, 0] to [0, 1]:

        1                                   tokens <= max_tokens - buffer
        (max_tokens - tokens) / buffer      in between
        0                                   tokens >= max_tokens

    Departures: a completion that the sampling limit cut gets 0 whatever its length, and so does
    an empty one, which DAPO does not punish: it would be the cheapest way to be short.
    """

    name: ClassVar[str] = "length"
    max_tokens: int
    buffer: int | None = None

    def __post_init__(self) -> None:
        within("length: max_tokens", self.max_tokens, 1, 10**9)
        if self.buffer is not None:
            within("length: buffer", self.buffer, 1, self.max_tokens)

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """In [0, 1]; the end token counts as one."""
        if not completion.finished or not completion.text.strip():
            return 0.0
        buffer = max(1, self.max_tokens // 5) if self.buffer is None else self.buffer
        return min(1.0, max(0.0, (self.max_tokens - len(completion.tokens)) / buffer))


@dataclass(frozen=True)
class Repetition(Term):
    """1 if no `n` words in a row come twice, less for every time that some do.

        score = (different n-grams of words) / (n-grams)

    The repetition penalty of Demystifying Long CoT (arXiv 2502.03373) as open-r1 has it, from
    [-1, 0] to [0, 1]. Departure: what a word is. There, what stands between blanks; here also
    each sign and each Chinese or Japanese character, and a word ends after 20 characters, so
    that text without blanks can repeat itself too.
    """

    name: ClassVar[str] = "repetition"
    n: int = 3

    def __post_init__(self) -> None:
        within("repetition: n", self.n, 1, 100)

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """In [0, 1]: 1 for a text of fewer than `n` words, 0 for one without any."""
        words = WORD.findall(completion.text.lower())
        if len(words) < self.n:
            return float(bool(words))
        grams = list(zip(*(words[start:] for start in range(self.n)), strict=False))
        return len(set(grams)) / len(grams)


@dataclass(frozen=True)
class Random(Term):
    """1 with probability `p`, whatever was written.

    For placebo arms: random rewards raised some models' accuracy on mathematics (Spurious
    Rewards, arXiv 2506.10947), so that what a run gains with this one did not come from the
    problems' answers. The coin is a hash of (seed, problem, member of the group, text): a
    repeated run gives the same scores, and equal completions of one problem still differ.
    """

    name: ClassVar[str] = "random"
    placebo: ClassVar[bool] = True
    p: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        within("random: p", self.p, 0, 1, above=True, below=True)

    def score_group(
        self, task: Task, problem: Problem, completions: Sequence[Completion], faults: list[str]
    ) -> list[float]:
        """0 or 1 for each; equal completions have coins of their own."""
        keys = (f"{self.seed}/{problem.id}/{at}/{c.text}" for at, c in enumerate(completions))
        digests = (hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in keys)
        return [float(int.from_bytes(digest[:8], "big") < self.p * 2**64) for digest in digests]
