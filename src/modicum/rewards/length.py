"""Length: full for a completion that is short enough, falling to 0 at the limit.

DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), from [-1, 0] to [0, 1]:

    1                                   tokens <= max_tokens - buffer
    (max_tokens - tokens) / buffer      in between
    0                                   tokens >= max_tokens

Departures: a completion that the sampling limit cut gets 0 whatever its length, and so does
an empty one, which DAPO does not punish: it would be the cheapest way to be short.
"""

from dataclasses import dataclass
from typing import ClassVar

from modicum.rewards.base import Term
from modicum.spec import within
from modicum.tasks.base import Task
from modicum.types import Completion, Problem


@dataclass(frozen=True)
class Length(Term):
    """1 up to `max_tokens` - `buffer` tokens, then falling to 0 at `max_tokens`.

    `buffer` is a fifth of `max_tokens` unless it is given, as in DAPO (4,096 of 20,480).
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
