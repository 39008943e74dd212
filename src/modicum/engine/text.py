"""What tokens say: the texts of completions, and the stop strings that end them.

Texts are decoded and never put together from tokens, so this is exact whatever the tokenizer: a
stop string may begin and end within tokens, and its characters may be cut between them."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modicum.grading.extraction import THINKING, TURN
from modicum.types import Completion

Completions = tuple[Completion, ...]
TAIL = 64  # tokens that are decoded first; more where these are not enough
UNREADABLE = "\ufffd"  # what half a character is decoded to
OPENED = re.compile(f"(?:{'|'.join(map(re.escape, THINKING))})\\s*\\Z")


class Texts:
    """Decodes tokens, and looks for what ends a row.

    Special tokens are left out, but for those in marks of thinking and in stop strings."""

    def __init__(self, tokenizer: Any, ends: Sequence[int] = (), stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.ends, self.stops = tokenizer, ends, stops
        self.lengths: dict[int, int] = {}
        marks = [*stops, *THINKING, *THINKING.values()]
        added = getattr(tokenizer, "added_tokens_decoder", {}).items()
        special = {number: token.content for number, token in added if token.special}
        self.dropped = {n for n, word in special.items() if not any(word in m for m in marks)}
        self.drops_all = len(self.dropped) == len(special)

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of every row of tokens."""
        if not self.drops_all:
            rows = [[token for token in row if token not in self.dropped] for row in rows]
        how = {"skip_special_tokens": self.drops_all, "clean_up_tokenization_spaces": False}
        return self.tokenizer.batch_decode(rows, **how)

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether the last token is an end token or completes a stop string, the first that does."""
        if tokens[-1] in self.ends:
            return True
        length, size = self._length(tokens[-1]) if self.stops else 0, TAIL
        while length and size < len(tokens):
            (tail,) = self([tokens[-size:]])
            # Where a tail begins it may lack a space or half a character, not behind that.
            if len(tail) > 1 + length + max(map(len, self.stops)) and UNREADABLE not in tail:
                if not self.stop_in(tail):
                    return False
                break
            size *= 2
        return bool(length and self.stop_in(*self([tokens])))

    def _length(self, token: int) -> int:
        """Characters of a token that may complete a stop string, or more; 0: it cannot."""
        if token not in self.lengths:
            # Twice, since the first token of a text may lose the space before it.
            (text,) = self([[token, token]])
            last = {UNREADABLE, *(stop[-1] for stop in self.stops)}
            self.lengths[token] = len(text) if last & set(text) else 0
        return self.lengths[token]

    def stop_in(self, text: str) -> str:
        """The stop string that ends first in a text, the longest of several; or nothing."""
        found = [(text.index(s) + len(s), -len(s), s) for s in self.stops if s in text]
        return min(found)[2] if found else ""

    def cut(self, text: str) -> str:
        """A text up to its stop string, which stays in it unless it begins another's turn."""
        stop = self.stop_in(text)
        before = text.partition(stop)[0] if stop else text
        return before if TURN.match(stop.strip()) else before + stop


def begun(tokenizer: Any, prompt: Sequence[int], group: Completions) -> Completions:
    """The completions, their texts beginning with the mark by which the prompt opened thinking.

    A text that has the mark itself, or nothing, stays as it is."""
    tail = tokenizer.decode(prompt[-TAIL:], clean_up_tokenization_spaces=False)
    mark = OPENED.search(tail)
    if mark is None:
        return group
    own = re.compile(rf"\s*(?:{re.escape(mark[0].strip())}|\Z)")
    return tuple(c if own.match(c.text) else replace(c, text=mark[0] + c.text) for c in group)
