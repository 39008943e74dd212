"""How a question becomes prompt tokens: a chat, R1-Zero's conversation, or the bare question.

A chat template does what it likes, so a chat is tried in several forms, and the first text that
holds all of it is the prompt."""

import html
import itertools
import re
from collections.abc import Iterator, Sequence
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

from modicum.answers import R1_ZERO, STYLES
from modicum.config import Sampling
from modicum.spec import keywords, nearest
from modicum.types import Problem, UserError

Examples = tuple[tuple[str, str], ...]
"""Worked examples: questions, and the whole texts of their answers."""
DAY = date(2024, 7, 26)
"""What day it is for a template that writes it (Llama 3.1's own default): prompts stay the same."""
NOW = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
CHAT = {"messages", "tools", "documents", "add_generation_prompt"}
HELPERS = {"strftime_now", "raise_exception"}
ASKED = ("defined", "undefined", "default", "d")
PART = re.compile(r"""\{['"]type['"]: ['"]text['"]""")


class Chat(NamedTuple):
    """What a prompt must hold (`turns`: question and answer of examples), and what the style asks."""

    system: str
    turns: Sequence[tuple[str, str]]
    question: str
    asked: str

    def render(self, tokenizer: Any, arguments: dict[str, Any]) -> str:
        """The prompt up to the assistant's header; UserError when the template makes none."""
        from jinja2 import TemplateError

        faults = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError)
        how = {"tokenize": False, "add_generation_prompt": True, **arguments}
        fault = lacks = ""
        for messages, in_parts in self._forms():
            try:
                text = tokenizer.apply_chat_template(messages, **how)
            except (*faults, TypeError, ValueError) as error:
                fault = fault if in_parts else " ".join(str(error).split())
                continue
            if not (missing := self._missing(text)) and not (in_parts and PART.search(text)):
                return text
            lacks = lacks or missing
        what = f"leaves out {lacks}; --template r1_zero or plain does without it"
        what = what if lacks else f"cannot be rendered: {fault}"
        raise UserError(f"the tokenizer's chat template {what}")

    def _forms(self) -> Iterator[tuple[list[dict[str, Any]], bool]]:
        """The chat as messages, in every form, and whether their content is in parts: a system
        turn, or its text before the first question; examples as turns, or all in one; at last
        without empty lines (`tiny` reads up to the first)."""
        together = sorted({False, bool(self.turns)})
        apart = sorted({True, not self.system}, reverse=True)
        for gap, joined, own in itertools.product(("\n\n", "\n"), together, apart):
            rounds = [*self.turns, (self.question, "")]
            if joined:
                rounds = [(gap.join(text for pair in rounds for text in pair if text), "")]
            turns, lead = [("system", self.system * own)], "" if own else self.system + gap
            for user, answer in rounds:
                user = user if gap == "\n\n" else re.sub(r"\n\s*\n", "\n", user)
                user = lead + f"{user}\n\n{self.asked}".strip()
                turns, lead = [*turns, ("user", user), ("assistant", answer)], ""
            turns = [(role, text) for role, text in turns if text]
            yield [{"role": role, "content": text} for role, text in turns], False
            parts = [(role, [{"type": "text", "text": text}]) for role, text in turns]
            yield [{"role": role, "content": part} for role, part in parts], True

    def _missing(self, text: str) -> str:
        """What does not stand in `text`."""
        text, place = _bare(text), 0
        if _bare(self.system) not in text:
            return "the system prompt"
        for piece in (*itertools.chain.from_iterable(self.turns), self.question):
            if (start := text.find(_bare(piece), place)) < 0:
                return "the question" if piece is self.question else "a worked example"
            place = start + len(_bare(piece))
        return ""


def _bare(text: str) -> str:
    """`text` without spaces and escapes, with which a template may write it."""
    return "".join(re.sub(r"\\[nrt]?", "", html.unescape(text)).split())


def arguments(tokenizer: Any, said: str) -> dict[str, Any]:
    """What `apply_chat_template` gets beside the chat; `said` is `name=value, ...`."""
    from jinja2 import TemplateError

    given, held = keywords("template_args", said), tokenizer.chat_template
    name = given.pop("chat_template", None)
    if isinstance(held, dict):
        if (name or "default") not in held:
            what = f"no chat template {name!r}" if name else "several chat templates, no default"
            raise UserError.of("no_template", what=what, known=", ".join(sorted(held)))
        held = str(held[name or "default"])
    elif name is not None:
        raise UserError("template_args: the tokenizer has one chat template, which has no name")
    try:
        known = _read(held) if given else set()
    except TemplateError as error:
        raise UserError(f"the tokenizer's chat template cannot be read: {error.message}") from None
    if unread := [word for word in given if word not in known]:
        what = nearest(unread[0], known) if known else "it reads nothing but the chat"
        raise UserError(f"template_args: the chat template does not read {unread[0]!r}; {what}")
    dated = NOW.sub(lambda call: repr(DAY.strftime(call[2])), held)
    return given if dated == tokenizer.chat_template else given | {"chat_template": dated}


@lru_cache(maxsize=8)
def _read(template: str) -> set[str]:
    """The names that a template reads and that neither the chat nor the library gives, nor itself
    unless it asks whether they are there."""
    from jinja2 import Environment, meta, nodes

    made = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)  # only parses
    tree = made.parse(GENERATION.sub("", template))
    own = {found.name for found in tree.find_all(nodes.Name) if found.ctx == "store"}
    asked = (n.node for n in tree.find_all((nodes.Test, nodes.Filter)) if n.name in ASKED)
    own -= {found.name for found in asked if isinstance(found, nodes.Name)}
    read = meta.find_undeclared_variables(tree) - own - CHAT - HELPERS - made.globals.keys()
    return {name for name in read if not name.endswith("_token")}


def prompt_text(question: str, tokenizer: Any, sampling: Sampling, examples: Examples = ()) -> str:
    """The prompt as text, in the form that `sampling.template` names; `examples` are earlier turns."""
    assert len(examples) == sampling.examples, "those of the task are to be handed over"
    template, system = template_of(tokenizer, sampling), sampling.system
    asked = STYLES[sampling.style].instruction if sampling.style in STYLES else ""
    if template != "chat" and sampling.template_args:
        raise UserError(f"template_args are for a chat template; the prompt is {template!r}")
    if template == "plain":
        return "".join(f"{one}\n{answer}\n\n" for one, answer in examples) + f"{question}\n"
    if template == "r1_zero":
        preamble = R1_ZERO if system is None else system
        before = "".join(f"\nUser: {one}\nAssistant: {answer}" for one, answer in examples)
        return f"{preamble} {asked}".strip() + f"{before}\nUser: {question}\nAssistant:"
    if not tokenizer.chat_template:
        raise UserError("template 'chat' needs a tokenizer with a chat template; this one has none")
    told = arguments(tokenizer, str(sampling.template_args))
    return Chat(system or "", examples, question, asked).render(tokenizer, told)


def encode(
    problem: Problem, tokenizer: Any, sampling: Sampling, examples: Examples = ()
) -> tuple[int, ...]:
    """The prompt of `problem` as token ids; UserError when there are none or too many."""
    text = prompt_text(problem.question, tokenizer, sampling, examples)
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    prompt = f"the prompt of problem {problem.id}"
    if not ids:
        raise UserError(f"the tokenizer makes no tokens of {prompt}")
    begin = tokenizer.bos_token_id
    if begin not in (None, ids[0]) and tokenizer("x")["input_ids"][:1] == [begin]:
        ids.insert(0, begin)
    rows, last = getattr(tokenizer, "embedding_rows", None), max(ids)
    if rows is not None and last >= rows:
        token, known = tokenizer.convert_ids_to_tokens(last), len(tokenizer)
        said = {"prompt": prompt, "token": token, "number": last, "known": known}
        raise UserError.of("token_without_row", **said, rows=rows)
    if len(ids) > (limit := sampling.max_prompt_tokens):
        shown = f" (with {len(examples)} worked examples)" if examples else ""
        raise UserError.of("long_prompt", prompt=prompt, count=len(ids), shown=shown, limit=limit)
    return tuple(ids)


def template_of(tokenizer: Any, sampling: Sampling) -> str:
    """The template that is meant, also by `auto`."""
    if sampling.template != "auto":
        return sampling.template
    return "chat" if tokenizer.chat_template else "r1_zero"


def stops(tokenizer: Any, sampling: Sampling) -> tuple[str, ...]:
    """The stop strings that are meant: those of the settings, or what begins a next turn in a
    conversation in plain text, which is for models that know no end token, or a next example."""
    if isinstance(sampling.stop, tuple):
        return sampling.stop
    template = template_of(tokenizer, sampling)
    if template == "chat" or (template == "plain" and not sampling.examples):
        return ()
    closing = ("</answer>",) if sampling.style == "tags" else ()
    return (*closing, "\nUser:" if template == "r1_zero" else "\n\n")


def notes(tokenizer: Any, sampling: Sampling) -> list[str]:
    """What the user should know of where completions end."""
    found = " or ".join(map(repr, stops(tokenizer, sampling)))
    return [f"completions end at {found} (--stop)"] if found else []
