"""How a question becomes prompt tokens: a chat, R1-Zero's conversation, or the bare question.

Exactly one begin token if the tokenizer wants one, the assistant's header at the end of a
chat, and never a decode and re-encode: what is sampled after and trained on are these ids.
"""

from __future__ import annotations

from typing import Any

from modicum.config import Sampling
from modicum.styles import STYLES
from modicum.tasks import chat
from modicum.tasks.examples import Examples
from modicum.types import Problem, UserError

# DeepSeek-R1 (arXiv 2501.12948), table 1, without its last sentence: that is the style's
# instruction. The turns begin on lines of their own, as in TinyZero.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant"
    " solves it. The assistant first thinks about the reasoning process in the mind and then"
    " provides the user with the answer."
)


def prompt_text(question: str, tokenizer: Any, sampling: Sampling, examples: Examples = ()) -> str:
    """The prompt as text, in the form that `sampling.template` names.

    `chat` renders the tokenizer's template: the user's turn is the question and what the
    style asks for. `r1_zero` is the template of DeepSeek-R1-Zero for base models. `plain`
    is the question and a newline, and asks for nothing. `auto` is chat if the tokenizer
    has a template, else r1_zero. Worked `examples` (`examples.draw`) are earlier turns.
    """
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
    arguments = chat.arguments(tokenizer, str(sampling.template_args))
    return chat.Chat(system or "", examples, question, asked).render(tokenizer, arguments)


def encode(
    problem: Problem, tokenizer: Any, sampling: Sampling, examples: Examples = ()
) -> tuple[int, ...]:
    """The prompt of `problem` as token ids; UserError when there are none or too many."""
    text = prompt_text(problem.question, tokenizer, sampling, examples)
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if not ids:
        raise UserError(f"the tokenizer makes no tokens of the prompt of problem {problem.id}")
    begin = tokenizer.bos_token_id
    wants_begin = begin is not None and tokenizer("x")["input_ids"][:1] == [begin]
    if wants_begin and ids[:1] != [begin]:
        ids.insert(0, begin)
    rows = getattr(tokenizer, "embedding_rows", None)
    if rows is not None and max(ids, default=0) >= rows:
        raise UserError(
            f"the prompt of problem {problem.id} has the token"
            f" {tokenizer.convert_ids_to_tokens(max(ids))!r} (number {max(ids)}): the tokenizer has"
            f" {len(tokenizer)} tokens, the model embeddings for {rows}; take that token out of the"
            " tokenizer or the text, or give the model more rows (resize_token_embeddings)"
        )
    if len(ids) > sampling.max_prompt_tokens:
        shown = f" (with {len(examples)} worked examples)" if examples else ""
        raise UserError(
            f"the prompt of problem {problem.id} has {len(ids)} tokens{shown}, more than"
            f" max_prompt_tokens = {sampling.max_prompt_tokens}"
        )
    return tuple(ids)


def template_of(tokenizer: Any, sampling: Sampling) -> str:
    """The template that is meant, also by `auto`."""
    if sampling.template != "auto":
        return sampling.template
    return "chat" if tokenizer.chat_template else "r1_zero"


def stops(tokenizer: Any, sampling: Sampling) -> tuple[str, ...]:
    """The stop strings that are meant: those of the settings, or what the prompt invites.

    A conversation in plain text is for models that know no end token and write the next turn,
    and after worked examples in plain text they write the next one.
    """
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
