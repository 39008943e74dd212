r"""Language: the share of words written in the script of the wanted language.

    score = (words in the script) / (words)

The language consistency reward of DeepSeek-R1 (arXiv 2501.12948), section 2.3.2: the share of
target-language words in the chain of thought. Departure: only scripts are told apart, by the
Unicode names of letters. English and French have the same script, so French earns full marks
for `en`; Chinese, Russian or Arabic earns none.

What is counted: the text inside <think>, if there is any, else the whole text; without tags.
A word is a run of letters of one script. In scripts that put no blanks between words, two
letters are a word. Not counted: digits, single Latin or Greek letters (variables), LaTeX
commands, and Latin and Greek letters in formulas and code. Letters of other scripts count
there too: a formula is no place to hide them.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from modicum.rewards.base import Term
from modicum.spec import nearest
from modicum.tasks.base import Task
from modicum.types import Completion, Problem, UserError

# Scripts, by the first word of the Unicode names of their letters, and the languages in them.
_SCRIPTS = {
    "LATIN": "en fr de es it pt nl pl cs sv da no fi hu ro tr id vi sw", "ARABIC": "ar fa",
    "CYRILLIC": "ru uk bg sr", "BENGALI": "bn", "GREEK": "el", "HEBREW": "he", "DEVANAGARI": "hi",
    "CJK HIRAGANA KATAKANA": "ja", "HANGUL": "ko", "TAMIL": "ta", "TELUGU": "te", "THAI": "th",
    "CJK": "zh",
}  # fmt: skip
LANGUAGES = {
    lang: frozenset(scripts.split()) for scripts, used in _SCRIPTS.items() for lang in used.split()
}
NO_BLANKS = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"})
IN_FORMULAS = frozenset({"LATIN", "GREEK"})

TAG = re.compile(r"</?(?:think|answer)>")
MARK = re.compile(r"```|`|\$\$|\$|\\[\[\]()]")
CLOSE = {"```": "```", "`": "`", "$$": "$$", "$": "$", r"\[": r"\]", r"\(": r"\)"}
COMMAND = re.compile(r"\\(?:begin|end)\{[a-z*]{1,20}\}|\\[A-Za-z]+")
LETTERS = re.compile(r"[^\W\d_]+")
CONTENT = re.compile(r"[0-9]|\\[A-Za-z]|[^\W\d_]")


@dataclass(frozen=True)
class Language(Term):
    """The share of words in the script of `lang` ("en", "zh", ...); 1 for formulas only."""

    name: ClassVar[str] = "language"
    lang: str = "en"

    def __post_init__(self) -> None:
        if self.lang not in LANGUAGES:
            known = nearest(self.lang, LANGUAGES)
            raise UserError(f"language: unknown lang {self.lang!r}; {known}")

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """In [0, 1]; a text without a letter, a digit or a formula gets 0."""
        text = thinking(completion.text)
        right = every = 0
        for script, count in words(text):
            every += count
            right += count if script in LANGUAGES[self.lang] else 0
        return right / every if every else float(CONTENT.search(text) is not None)


def thinking(text: str) -> str:
    """What stands in <think>, closed or not, or the whole text if that is empty."""
    before, closed, _ = text.partition("</think>")
    _, opened, inside = before.partition("<think>")
    inside = TAG.sub(" ", inside if opened else before if closed else "")
    return inside if inside.strip() else TAG.sub(" ", text)


def words(text: str) -> Iterator[tuple[str, int]]:
    """(script, number of words) of every run of letters of one script that counts."""
    for part, formula in _parts(COMMAND.sub(" ", text)):
        for match in LETTERS.finditer(part):
            run = match[0]
            scripts = [_script(letter) for letter in run]
            start = 0
            for end in range(1, len(run) + 1):
                if end < len(run) and scripts[end] == scripts[start]:
                    continue
                script, length, start = scripts[start], end - start, end
                if script in NO_BLANKS:
                    yield script, (length + 1) // 2
                elif script not in IN_FORMULAS or (length > 1 and not formula):
                    yield script, 1


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces, and whether each is a formula or code; what stays open is prose."""
    place, start, closing = 0, 0, ""
    for match in MARK.finditer(text):
        if not closing:
            closing, start = CLOSE.get(match[0], ""), match.end()
        elif match[0] == closing:
            yield text[place:start], False
            yield text[start : match.start()], True
            place, closing = match.end(), ""
    yield text[place:], False


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """LATIN, CJK, HIRAGANA, ...: what the letter's Unicode name begins with."""
    return unicodedata.name(letter, "UNKNOWN").removeprefix("FULLWIDTH ").split()[0]
