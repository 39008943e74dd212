"""Chat templates: what they are told, and whether what is asked stands in what they write.

A template comes with its model and may raise for a system turn, want content in parts, drop
earlier turns or their thinking, or write nothing of what it was given. So a chat is tried in
several forms, and the first text that holds all of it is the prompt.
"""

from __future__ import annotations

import html
import inspect
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modicum.spec import keywords, nearest
from modicum.types import UserError

DAY = datetime(2024, 7, 26)
"""What day it is for a template that writes it (Llama 3.1's own default): a prompt stays the same."""
NOW = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
BLANK_LINES = re.compile(r"\n\s*\n")
PART = re.compile(r"""\{['"]type['"]: ['"]text['"]""")


@dataclass(frozen=True)
class Chat:
    """What the prompt must hold, and what the style asks for."""

    system: str
    turns: Sequence[tuple[str, str]]
    """Worked examples: question and answer."""
    question: str
    asked: str

    def render(self, tokenizer: Any, arguments: dict[str, Any]) -> str:
        """The prompt that the tokenizer's template makes, up to the assistant's header.

        UserError when it raises, or leaves something out, in whatever form.
        """
        from jinja2 import TemplateError

        faults = (TemplateError, ArithmeticError, AttributeError, LookupError)
        fault = lacks = ""
        for messages, in_parts in self._forms():
            try:
                text = tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **arguments
                )
            except (*faults, RecursionError, TypeError, ValueError) as error:
                fault = fault if in_parts else " ".join(str(error).split())
                continue
            missing = self._missing(text)
            if not missing and not (in_parts and PART.search(text)):
                return text
            lacks = lacks or missing
        if not lacks:
            raise UserError(f"the tokenizer's chat template cannot be rendered: {fault}")
        raise UserError(
            f"the tokenizer's chat template leaves out {lacks}; --template r1_zero or plain asks"
            " without it, or mend chat_template.jinja in the model's folder"
        )

    def _forms(self) -> Iterator[tuple[list[dict[str, Any]], bool]]:
        """The chat as messages, in the forms to be tried, and whether their content is in parts.

        A system turn or a text before the first question; examples as turns, or all in one;
        at last without empty lines (`tiny` reads up to the first).
        """
        together, apart = (
            (False, True)[: 1 + bool(self.turns)],
            (True, False)[: 1 + bool(self.system)],
        )
        for gap, *form in itertools.product(("\n\n", "\n"), together, apart):
            messages = self._messages(gap, *form)
            yield messages, False
            parts = [[{"type": "text", "text": m["content"]}] for m in messages]
            yield [m | {"content": p} for m, p in zip(messages, parts, strict=True)], True

    def _messages(self, gap: str, together: bool, apart: bool) -> list[dict[str, Any]]:
        rounds = [*self.turns, (self.question, "")]
        if together:
            rounds = [(gap.join(text for pair in rounds for text in pair if text), "")]
        found = [("system", self.system)] if self.system and apart else []
        lead = "" if apart else f"{self.system}{gap}"
        for user, answer in rounds:
            user = user if gap == "\n\n" else BLANK_LINES.sub("\n", user)
            found.append(("user", lead + f"{user}\n\n{self.asked}".strip()))
            found += [("assistant", answer)] if answer else []
            lead = ""
        return [{"role": role, "content": content} for role, content in found]

    def _missing(self, text: str) -> str:
        """What does not stand in `text`; spaces and escaped characters do not count."""
        text, place = "".join(text.split()), 0
        if self.system and _end(self.system, text, 0) < 0:
            return "the system prompt"
        for piece in itertools.chain.from_iterable(self.turns):
            if (place := _end(piece, text, place)) < 0:
                return "a worked example"
        return "the question" if _end(self.question, text, place) < 0 else ""


def _end(piece: str, text: str, start: int) -> int:
    """Where `piece` ends in `text`, which has no spaces, or -1."""
    plain, unicode = json.dumps(piece)[1:-1], json.dumps(piece, ensure_ascii=False)[1:-1]
    for form in (piece, unicode, plain, html.escape(piece)):
        form = "".join(form.split())
        place = text.find(form, start)
        if place >= 0:
            return place + len(form)
    return -1


def arguments(tokenizer: Any, said: str) -> dict[str, Any]:
    """The arguments of `apply_chat_template` beside the chat: the template, and what it is told.

    `said` is `name=value, ...`. UserError for a template that is not there or not to be read,
    and for a name that the template does not read.
    """
    from jinja2 import TemplateError

    given, held = keywords("template_args", said), tokenizer.chat_template
    name = given.pop("chat_template", None)
    if isinstance(held, dict):
        if (name or "default") not in held:
            what = f"no chat template {name!r}" if name else "several chat templates, no default"
            known = ", ".join(sorted(held))
            raise UserError(
                f"the tokenizer has {what}; --template-args chat_template=NAME takes one: {known}"
            )
        held = held[name or "default"]
    elif name is not None:
        raise UserError("template_args: the tokenizer has one chat template, which has no name")
    try:
        known = _read(held, tokenizer) if given else set()
    except TemplateError as error:
        fault = " ".join(str(error).split())
        raise UserError(f"the tokenizer's chat template cannot be read: {fault}") from None
    for word in given:
        if word not in known:
            what = nearest(word, known) if known else "it reads nothing but the chat"
            raise UserError(f"template_args: the chat template does not read {word!r}; {what}")
    held = NOW.sub(lambda call: repr(DAY.strftime(call[2])), held)
    return given if held == tokenizer.chat_template else given | {"chat_template": held}


def _read(template: str, tokenizer: Any) -> set[str]:
    """The names that a template reads and that are not given to it already."""
    from jinja2 import Environment, meta

    environment = Environment(
        extensions=["jinja2.ext.loopcontrols"], autoescape=True
    )  # parses only
    read = meta.find_undeclared_variables(environment.parse(GENERATION.sub("", template)))
    taken = {"messages", "strftime_now", "raise_exception", *environment.globals}
    return (
        read
        - taken
        - {*inspect.signature(tokenizer.apply_chat_template).parameters}
        - {*tokenizer.special_tokens_map}
    )
