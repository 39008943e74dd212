r"""Find the final answer in a completion, and decide whether two answers are equal.

Strict reads a marked answer only: the last <answer>...</answer>, else the last balanced
\boxed{...}, else the first `#### x`. Lenient falls back to "Answer: x" and to the last
number. The policies and their reasons are in docs/grading.md.

Pure: no torch, no symbolic algebra. Model output is matched, never evaluated, in time
linear in its length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from modicum.expressions import countdown
from modicum.quantities import DECIMAL, TEXT, clean, number, same_quantity
from modicum.types import Grade, UserError

__all__ = [
    "countdown", "equal", "extract", "extract_lenient", "format_ok", "gold_from_gsm8k", "grade",
    "grade_countdown", "number",
]  # fmt: skip

MAX_ANSWER = 1000  # characters of an answer that are compared by more than identity
MAX_LOOSE = 12  # members of a list that are paired by trying

BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
BARE_BOX = re.compile(r"\\boxed[ \t]+([^\s{}]+)")
# A heading such as "#### 1. First step" or "#### Step 1" is no answer.
HASHES = re.compile(
    r"####[ \t]*(?![0-9]+[.)][ \t]+\S)((?:\*\*)?(?:[-+\u2212$€£\\.0-9]|\((?=[-(0-9]))[^\n]*)"
)
ANSWER_IS = re.compile(r"(?i)\banswer[*_ \t]{0,4}(?:is[ \t]*:?|:|=)[*_ \t]{0,4}([^\n]{1,200})")
FIRST_NUMBER = re.compile(
    rf"[-+\u2212]?[$€£]?{DECIMAL}(?:/[0-9]+)?(?=[*_]*(?:\s+[A-Za-z]{{2}}|[.,;]?\s|[.,;]?$))",
    re.ASCII,
)
ANY_NUMBER = re.compile(
    r"\\[dt]?frac\{-?[0-9]+\}\{[0-9]+\}"
    r"|(?:(?<![0-9A-Za-z)\]}.])[-\u2212])?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
    r"(?:\.[0-9]+)?(?:/[0-9]+)?"
)
PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}")


# Finding ---------------------------------------------------------------------------------


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007 (the last one is what is wanted)
        pass
    return match


def _after_thinking(text: str) -> str:
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
    text = _after_thinking(text)
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
    text = _after_thinking(text)
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


# Comparing -------------------------------------------------------------------------------

AND = re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<=\s)(?:and|or)(?=\s)")
VARIABLE = re.compile(
    r"([A-Za-z]|[A-Za-z]{3,}|\\[A-Za-z]+|[A-Za-z]_\{?\w\}?|[A-Za-z]\([A-Za-z]\))\s*(?:=|\\in(?![A-Za-z]))([^=]+)"
)
TEXT_KEY = (
    (re.compile(r"(?<!\\)\\(?:[,;:! ]|q?quad(?![A-Za-z]))|\s+|~"), ""),
    (re.compile(r"\\([gln]e)q(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\(begin|end)\{[bBvp]?matrix\}"), r"\\\1{pmatrix}"),
    (re.compile(r"([_^])\{([0-9]+)\}"), r"\1\2"),
    (re.compile(r"\{([0-9A-Za-z])\}"), r"\1"),
    (re.compile(r"^\(([A-Za-z])\)$"), r"\1"),
)
WORDS = re.compile(r"[A-Za-z]{2,}")


def equal(gold: str, answer: str) -> bool:
    """Whether two answers say the same: by exact value, by parts, or by normalised text.

    Not symmetric in two respects: only `answer` may round an endless decimal, and an
    empty gold equals nothing. Symbolic equivalence belongs after `_same` says no.
    """
    if max(len(gold), len(answer)) > MAX_ANSWER:
        return gold.strip() == answer.strip()
    gold, answer = clean(gold), clean(answer)
    return bool(gold and answer) and _same(gold, answer, depth=2)


def _same(gold: str, answer: str, depth: int) -> bool:
    by_value = same_quantity(gold, answer)
    if by_value is not None:
        return by_value
    if not (gold.strip() and answer.strip()):
        return False
    if _key(gold) == _key(answer):
        return True
    named, other = VARIABLE.fullmatch(gold), VARIABLE.fullmatch(answer)
    if named or other:
        if named and other and _key(named[1]) != _key(other[1]):
            return False
        gold = named[2].strip() if named else gold
        answer = other[2].strip() if other else answer
        return _same(gold, answer, depth)
    kind, parts = _split(gold)
    other_kind, other_parts = _split(answer)
    if depth == 0 or kind != other_kind or len(parts) != len(other_parts) or not kind:
        return False
    if kind in ("set", "union"):
        return _same_members(parts, other_parts, depth - 1)
    return all(_same(g, a, depth - 1) for g, a in zip(parts, other_parts, strict=True))


def _same_members(gold: list[str], answer: list[str], depth: int) -> bool:
    """Whether two lists of equal length hold the same members, in any order."""
    shared = Counter(map(_key, gold)) & Counter(map(_key, answer))
    loose, rest = _without(gold, shared), _without(answer, shared)
    if len(loose) != len(rest) or len(loose) > MAX_LOOSE:
        return False
    for part in loose:
        match = next((other for other in rest if _same(part, other, depth)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _without(parts: list[str], keys: Counter[str]) -> list[str]:
    keys, left = Counter(keys), []
    for part in parts:
        keys[_key(part)] -= 1
        if keys[_key(part)] < 0:
            left.append(part)
    return left


def _key(text: str) -> str:
    """`text` in one spelling: no spaces, no \\text{}, no needless braces."""
    text = TEXT.sub(r" \1 ", text)
    for pattern, spelling in TEXT_KEY:
        text = pattern.sub(spelling, text)
    return text.lower() if WORDS.fullmatch(text) else text


def _split(text: str) -> tuple[str, list[str]]:
    """The parts of a union, a set, a tuple, an interval or a bare list, and which it is.

    A tuple or interval is named by its brackets; "" means that there are no parts.
    """
    if r"\cup" in text:
        return "union", text.split(r"\cup")
    text = text.strip().replace(r"\{", "⟨").replace(r"\}", "⟩")
    inner = _at_commas(text[1:-1])
    if text[:1] in "([⟨" and text[-1:] in ")]⟩" and inner is not None:
        kind = "set" if text[0] + text[-1] == "⟨⟩" else text[0] + text[-1]
        return kind if kind == "set" or len(inner) > 1 else "", inner
    parts = _at_commas(AND.sub(",", text)) or [text]
    parts = [p.replace(r"\pm", sign) for p in parts for sign in ("+-" if r"\pm" in p else "+")]
    return "set" if len(parts) > 1 else "", parts


def _at_commas(text: str) -> list[str] | None:
    """`text` cut at the commas outside brackets; None if its brackets do not match."""
    parts, depth, start = [], 0, 0
    for place, char in enumerate(text):
        depth += (char in "([{⟨") - (char in ")]}⟩")
        if depth < 0:
            return None
        if char == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part] if depth == 0 else None


# Grading ---------------------------------------------------------------------------------


def grade(text: str, gold: str) -> Grade:
    """The verdict on a completion whose answer should be `gold`."""
    marked = extract(text)
    if marked is not None:
        right = equal(gold, marked)
        reason = "the marked answer is " + ("right" if right else "wrong" if marked else "empty")
        return Grade(right, right, marked, reason)
    found = extract_lenient(text)
    if found is None:
        return Grade(False, False, None, "there is no answer")
    right = equal(gold, found)
    return Grade(False, right, found, f"unmarked; what was read is {'right' if right else 'wrong'}")


def grade_countdown(text: str, numbers: Sequence[int], target: int) -> Grade:
    """The verdict on a completion whose answer should be an expression worth `target`.

    Lenient reads the last line that is not empty when nothing is marked.
    """
    marked = extract(text)
    if marked is not None:
        right = countdown(marked, numbers, target)
        wrong = "does not reach the target with these numbers"
        return Grade(right, right, marked, "right" if right else f"the marked answer {wrong}")
    text = _after_thinking(text)
    lines = text.strip().splitlines()
    if not lines or r"\boxed{" in text or "<answer>" in text:
        return Grade(False, False, None, "there is no answer")
    stated = ANSWER_IS.search(lines[-1])
    line = (stated[1] if stated else lines[-1]).strip().strip("*_ ")
    right = countdown(line, numbers, target)
    return Grade(False, right, line, f"unmarked; the last line is {'right' if right else 'wrong'}")


def format_ok(text: str) -> bool:
    """Whether `text` is <think>...</think> <answer>...</answer>, once each, not empty."""
    if any(text.count(tag) != 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")):
        return False
    before, _, rest = text.partition("<think>")
    thought, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    content, closed, after = rest.partition("</answer>")
    outside = before + between + after
    return bool(closed and thought.strip() and content.strip()) and not outside.strip()


def gold_from_gsm8k(solution: str) -> str:
    """The number after the last ####, without separators; UserError when there is none."""
    _, mark, tail = solution.rpartition("####")
    gold = tail.strip().partition("\n")[0].strip().replace(",", "").removeprefix("$")
    if not mark or number(gold) is None:
        raise UserError(f"no number follows #### in the solution that ends {solution[-60:]!r}")
    return gold
