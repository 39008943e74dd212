"""The chat template of a model that is handed on: the bare question in, the prompt of training out.

What a run puts around a question (system prompt, worked examples, what the style asks for) goes into
the template, before the base's own (`handed_chat.jinja`), or in its place where the prompt was no chat.
modicum itself reads the base's own back (`own`), so that with it a prompt is made as ever."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.resources import files
from itertools import product
from typing import Any

from modicum.answers import R1_ZERO, STYLES
from modicum.config import Sampling
from modicum.tasks.prompts import Examples, arguments, encode, template_of
from modicum.types import Problem, UserError

MARK = """{#- Written by modicum: the prompt of training around what is asked. -#}
{%- set null = none -%}
"""
SET = "{%- set NAME = modicum.told['NAME'] if NAME is not defined else NAME -%}\n"
OWN = "{#- What follows is the template of the base. #}\n"
UNUSED = ("{%- if false %}\n", "\n{%- endif %}")
PROBES = ("What is 12 + 3?", " Two lines.\n\nWhat is 1+2?\n \nSay: <b>{{ 'it' }}</b> ü 😀 \\n \"'")
"""Questions in which a template must give the prompt, beside those of the run."""


def handed(
    tokenizer: Any, sampling: Sampling, examples: Examples, questions: Sequence[str] = ()
) -> str:
    """The template that gives, of the question alone, the prompt that `encode` makes, token for token;
    "" where none does."""
    wanted = dict[str, list[int]]()
    for question in (*PROBES, *questions):
        with suppress(UserError):  # no prompt of this template, whoever makes it
            wanted[question] = list(
                encode(Problem("", question, ""), tokenizer, sampling, examples)
            )
    for template in _tried(tokenizer, sampling, examples) if wanted else ():
        if all(rendered(tokenizer, template, q) == ids for q, ids in wanted.items()):
            return template
    return ""


def rendered(tokenizer: Any, template: str, question: str) -> list[int] | None:
    """The tokens that a template makes of a question; None where it refuses it."""
    from jinja2 import TemplateError

    chat = [{"role": "user", "content": question}]
    given = {"add_generation_prompt": True, "chat_template": template, "tokenize": False}
    try:
        text = tokenizer.apply_chat_template(chat, **given)
    except (TemplateError, LookupError, TypeError, ValueError, AttributeError):
        return None
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def own(template: Any) -> Any:
    """The base's own template in one that `handed` made, None where it had none; others as they are."""
    if not isinstance(template, str) or not template.startswith(MARK):
        return template
    text, (begin, end) = template.partition(OWN)[2], UNUSED
    return (text[len(begin) : -len(end)] if text.startswith(begin) else text) or None


def _tried(tokenizer: Any, sampling: Sampling, examples: Examples) -> Iterator[str]:
    """The templates that may give the prompt."""
    form, system = template_of(tokenizer, sampling), sampling.system
    body = files("modicum.tasks").joinpath(f"handed_{form}.jinja").read_text(encoding="utf-8")
    held = {
        "asked": STYLES[sampling.style].instruction if sampling.style in STYLES else "",
        "system": (R1_ZERO if form == "r1_zero" else "") if system is None else system,
        "examples": examples,
    }
    told = arguments(tokenizer, str(sampling.template_args)) if form == "chat" else {}
    base = told.pop("chat_template", tokenizer.chat_template)
    if form != "chat":
        base = base.join(UNUSED) if isinstance(base, str) else ""
    lines = "".join(SET.replace("NAME", name) for name in told)
    both, begin = (False, True), sorted({"", tokenizer.bos_token or ""})
    ways = product(begin, both, ("\n\n", "\n"), both, (True, False))
    for way in ways if form == "chat" else [(start,) for start in begin]:
        held |= dict(zip(("begin", "parts", "gap", "joined", "own"), way, strict=False))
        text = json.dumps(held | {"told": told}, ensure_ascii=False)  # a value in Jinja too
        yield f"{MARK}{{%- set modicum = {text} -%}}\n{lines}{body}{OWN}{base}"
