r"""How a final answer is marked: what the prompt asks for, and whether a completion obeys.

The grader reads all marks whatever the style, which decides what is asked for and what counts as format.
"""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from modicum import answers
from modicum.grading.extraction import boxes, spoken

HASHES = re.compile(r"^####[ \t]*\S", re.MULTILINE)
CLOSING = re.compile(r"[\s$.!)\]\\*]*")


class Style(NamedTuple):
    """One way to mark an answer."""

    name: str
    instruction: str  # what a prompt says to get this style
    pattern: str  # a completion in it; {thought} and {answer} are the parts
    format_ok: Callable[[str], bool]  # has a whole completion this form, nothing after the mark?

    def example(self, answer: str, thought: str = "reasoning process here") -> str:
        """A completion in this style."""
        return self.pattern.replace("{thought}", thought).replace("{answer}", answer)


def boxed_ok(text: str) -> bool:
    r"""Whether `text` has, beside its thoughts, one \boxed{...}, not empty, and only CLOSING after it."""
    text = spoken(text)
    found = list(boxes(text))
    if len(found) != 1 or text.count(r"\boxed") != 1 or "<answer>" in text:
        return False
    ((start, end),) = found
    content = text[start:end].strip() and text[:start].endswith(r"\boxed{")
    return bool(content) and CLOSING.fullmatch(text[end + 1 :]) is not None


def hashes_ok(text: str) -> bool:
    """Whether the last line, and no other that is not thought, is `#### x`."""
    text = spoken(text)
    lines = text.strip().split("\n")
    found = [line for line in lines if HASHES.match(line)]
    return len(found) == 1 and found[0] == lines[-1] and answers.extract(text) is not None


_TEXTS = tomllib.loads(Path(__file__).with_name("styles.toml").read_text("utf-8"))
R1_ZERO = _TEXTS["r1_zero"]["conversation"]
_FORMS = {"tags": answers.format_ok, "boxed": boxed_ok, "hashes": hashes_ok}
STYLES = {name: Style(name, format_ok=ok, **_TEXTS[name]) for name, ok in _FORMS.items()}
