r"""Find the final answer in a completion.

`extract` reads a marked answer only: the last <answer>...</answer>, else the last balanced
\boxed{...}, else the first `#### x`. `extract_lenient` falls back to "Answer: x" and to the
last number. The policies and their reasons are in docs/grading.md.

Model output is matched, never evaluated, in time linear in its length.
"""

from __future__ import annotations

import re

from modicum.grading.quantities import DECIMAL, TEXT, number

BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
BARE_BOX = re.compile(r"\\boxed[ \t]+([^\s{}]+)")
# A heading such as "#### 1. First step" or "#### Step 1" is no answer.
HASHES = re.compile(
    r"####[ \t]*(?![0-9]+[.)][ \t]+\S)((?:\*\*)?(?:[-+\u2212$€£\\.0-9]|\((?=[-(0-9]))[^\n]*)"
)
ANSWER_IS = re.compile(r"(?i)\banswer[*_ \t]{0,4}(?:is[ \t]*:?|:|=)[*_ \t]{0,4}([^\n]{1,200})")
FIRST_NUMBER = re.compile(
    rf"[-+\u2212]?[$€£]?{DECIMAL}(?:/[0-9]+)?(?=[*_]*(?:\s+[A-Za-z]{{2}}|[.,;]?\s|[.,;]?$))"
    r"(?!\s+(?:or|and)\b)",
    re.ASCII,
)
ANY_NUMBER = re.compile(
    r"\\[dt]?frac\{-?[0-9]+\}\{[0-9]+\}"
    r"|(?:(?<![0-9A-Za-z)\]}.])[-\u2212])?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
    r"(?:\.[0-9]+)?(?:/[0-9]+)?"
)
PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}")


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007 (the last one is what is wanted)
        pass
    return match


def after_thinking(text: str) -> str:
    """What counts of `text`: after the last </think>, before a <think> that stays open."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def _tagged(text: str) -> str | None:
    before, mark, _ = text.rpartition("</answer>")
    _, opened, content = before.rpartition("<answer>")
    return content.strip() if mark and opened else None


def _boxed(text: str) -> str | None:
    r"""The content of the \boxed{} that closes last, or of a last `\boxed 42`."""
    stack: list[int] = []  # where content begins; -1 for a brace that is no box
    found: tuple[int, int] | None = None
    for match in BRACE.finditer(text):
        if match[0].endswith("{") and match[0] != r"\{":
            stack.append(match.end() if match[0] != "{" else -1)
        elif match[0] == "}" and stack:
            start = stack.pop()
            found = (start, match.start()) if start >= 0 else found
    bare = _last(BARE_BOX, text)
    if bare is not None and (found is None or bare.start() > found[1]):
        return bare[1].rstrip(".,;$")
    return None if found is None else text[found[0] : found[1]].strip()


def extract(text: str) -> str | None:
    """The marked final answer, "" if the mark is empty, None if there is no mark."""
    text = after_thinking(text)
    for found in (_tagged(text), _boxed(text)):
        if found is not None:
            return found
    hashes = HASHES.search(text)
    return None if hashes is None else hashes[1].strip()


def extract_lenient(text: str) -> str | None:
    """The marked answer, else what follows "Answer:" or "answer is", else the last number.

    A mark that was opened and cut off is no answer: its number may be half a number.
    """
    marked = extract(text)
    if marked is not None:
        return marked
    text = after_thinking(text)
    if r"\boxed{" in text or "<answer>" in text:
        return None
    stated = _last(ANSWER_IS, text)
    if stated is not None:
        rest = stated[1].strip().strip("*_ ")
        if number(rest) is not None:
            return rest
        first = FIRST_NUMBER.match(rest)
        if first is not None:
            return first[0]
        if rest and not PROSE.search(TEXT.sub("", rest)):
            return rest
    last = _last(ANY_NUMBER, text)
    return None if last is None else last[0]
