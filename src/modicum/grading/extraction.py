r"""Find the final answer in a completion.

docs/grading.md. Model output is matched, never evaluated, in time linear in its length."""

import itertools
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from modicum.grading import pairs, patterns
from modicum.grading.quantities import number
from modicum.grading.spelling import TEXT

BRACE, BARE_BOX, OPENED, ANSWER_IS, PROSE = patterns("brace bare_box opened answer_is prose")
HASHES, FIRST_NUMBER, ANY_NUMBER, TURN = patterns("hashes first_number any_number turn")
THINKING = pairs("thinking")  # what opens it, and what closes it
THINK = re.compile("|".join(map(re.escape, [*THINKING, *THINKING.values()])))


def _last(found: Iterable[Any]) -> Any:
    return next(iter(deque(found, 1)), None)


def spoken(text: str) -> str:
    """What follows the last thinking of `text`, before thinking that stays open."""
    start, stop, _ = [(0, 0, False), *_spoken(text)][-1]
    return text[start:stop]


def after_thinking(text: str) -> str:
    """What counts of `text`: what is not thought, of what comes before a next turn, or after a mark
    thinking anew, begins behind an answer."""
    answered = False
    for start, stop, opens in (part for part in _spoken(text) if part[0] < part[1]):
        part, end = text[start:stop], 0
        marks = _marks(part)
        if not answered:  # where the first marked or stated answer ends
            first = min(marks, default=len(part))
            stated = (m.end() for m in ANSWER_IS.finditer(part, 0, first) if _stated(m) is not None)
            end = next(stated, first if marks else None)
        if answered := end is not None:
            turn = TURN.search(text, start + end, stop)
            if turn or (marks and opens):
                return spoken(text[: turn.start() if turn else stop])
    return spoken(text)


def _spoken(text: str) -> Iterator[tuple[int, int, bool]]:
    """Where `text` is no thinking, which a prompt may have begun, and whether that follows."""
    start, closing = 0, ""
    for place, mark in enumerate(THINK.finditer(text)):
        opens = mark[0] in THINKING
        if closing and mark[0] != closing:
            continue
        if not closing and (place or opens):
            yield start, mark.start(), opens
        closing, start = THINKING.get(mark[0], ""), mark.end()
    if not closing:
        yield start, len(text), False


def _marks(text: str) -> list[int]:
    """Where the first answer ends that is marked, for each kind of mark."""
    opened = text.find("<answer>")
    closed = text.find("</answer>", opened) if opened >= 0 else -1
    ends = [closed + len("</answer>")] if closed >= 0 else []
    ends += [box[1] for box in itertools.islice(boxes(text), 1)]
    return ends + [m.end() for m in (BARE_BOX.search(text), HASHES.search(text)) if m]


def boxes(text: str) -> Iterator[tuple[int, int]]:
    r"""Where the content of each \boxed{} begins and ends, in the order in which they close."""
    stack: list[int] = []  # where content begins; -1 for a brace that is no box
    for match in BRACE.finditer(text):
        if match[0].endswith("{") and match[0] != r"\{":
            stack.append(match.end() if match[0] != "{" else -1)
        elif match[0] == "}" and stack and (start := stack.pop()) >= 0:
            yield start, match.start()


def extract(text: str) -> str | None:
    r"""The marked final answer: the last <answer>...</answer>, else the last balanced \boxed{...},
    else the first `#### x`. "" if the mark is empty, None if there is no mark."""
    text = after_thinking(text)
    before, closed, _ = text.rpartition("</answer>")
    _, opened, content = before.rpartition("<answer>")
    if closed and opened:
        return content.strip()
    found, bare, hashes = _last(boxes(text)), _last(BARE_BOX.finditer(text)), HASHES.search(text)
    if bare and not (found and bare.start() < found[1]):
        return bare[1].rstrip(".,;$")
    if found:
        return text[found[0] : found[1]].strip()
    return hashes and hashes[1].strip()


def extract_lenient(text: str) -> str | None:
    """The marked answer, else what follows "Answer:" or "answer is", else the last number; no
    answer is what a mark that was cut off has: it may be half a number."""
    if (marked := extract(text)) is not None:
        return marked
    text = after_thinking(text)
    if OPENED.search(text):
        return None
    if (stated := _last(ANSWER_IS.finditer(text))) and (found := _stated(stated)) is not None:
        return found
    # One "User:" may be part of the working; where somebody answers it is a dialogue.
    turns = [turn for turn in TURN.finditer(text) if turn["speaker"] or turn["token"]]
    first = turns[0].start() if len(turns) > 1 else 0
    last = _last(ANY_NUMBER.finditer(text, 0, first)) or _last(ANY_NUMBER.finditer(text))
    return last and last[0]


def _stated(match: re.Match[str]) -> str | None:
    """The answer in what follows "answer is", if it begins with a number or is no prose."""
    rest = match[1].strip().strip("*_ ")
    if number(rest) is None and (first := FIRST_NUMBER.match(rest)):
        return first[0]
    prose = number(rest) is None and PROSE.search(TEXT.sub("", rest))
    return None if prose or not rest else rest
