r"""One spelling for what is written in several ways: ½, x², θ, 11,\!111, oo, \dfrac."""

import re
from functools import lru_cache
from unicodedata import normalize

from modicum.grading import firsts, pairs, patterns, rules

COMMANDS = {sign: rf"\{name} " for sign, name in pairs("signs").items()}
SIGNS = str.maketrans(COMMANDS | pairs("characters") | {"¢": " cents"})
SCRIPTS = re.compile("([⁰¹²³⁴-⁹⁺⁻⁽⁾ⁿⁱ]+)|([₀-₉₊₋ₙₖ]+)")
CLEAN, PROGRAMS = rules("clean"), rules("programs")

TEXT, STOP, WORD = patterns("text stop word")
UNWRAP = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"))
UNWRAP += (("*", "*"), ("`", "`"))
KEY = rules("key")
SYNONYMS = firsts("synonyms")


def clean(text: str) -> str:
    r"""`text` without math delimiters, an outer \boxed{}, sizing commands and a final stop."""
    if not text.isascii():
        text = SCRIPTS.sub(
            lambda found: ("^{" if found[1] else "_{") + normalize("NFKC", found[0]) + "}", text
        ).translate(SIGNS)
    if "\\" in text:
        if r"\begin" in text:
            text = re.sub(r"\\\\\[[^\[\]]*\]", r"\\\\", text)
        text = CLEAN(text)
    text = PROGRAMS(text).strip()
    for _ in range(4):
        before = text
        text = STOP.sub("", text).strip()
        for left, right in UNWRAP:
            if text.startswith(left) and text.endswith(right):
                inner = text[len(left) : -len(right)]
                text = inner.strip() if inner and left not in inner else text
        if text[:1] == "\\" and (whole := TEXT.fullmatch(text)):
            text = whole[1].strip()
        if text.startswith(r"\boxed{") and text.endswith("}"):
            text = text[len(r"\boxed{") : -1].strip()
        if text == before:
            break
    return text


@lru_cache(maxsize=1024)
def key(text: str) -> str:
    """`text` in one spelling: no spaces, no \\text{}, no needless braces."""
    text = KEY(TEXT.sub(r" \1 ", text))
    text = text.lower() if WORD.fullmatch(text) else text
    return SYNONYMS.get(text, text)
