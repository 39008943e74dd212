"""How a question becomes prompt tokens: a chat, R1-Zero's conversation, or the bare question.

Exactly one begin token if the tokenizer wants one, the assistant's header at the end of a
chat, and never a decode and re-encode: what is sampled after and trained on are these ids.
"""

from __future__ import annotations

from typing import Any

from modicum.config import Sampling
from modicum.styles import STYLES
from modicum.types import Problem, UserError

# DeepSeek-R1 (arXiv 2501.12948), table 1, without its last sentence: that is the style's
# instruction. The turns begin on lines of their own, as in TinyZero.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant"
    " solves it. The assistant first thinks about the reasoning process in the mind and then"
    " provides the user with the answer."
)


def prompt_text(question: str, tokenizer: Any, sampling: Sampling) -> str:
    """The prompt as text, in the form that `sampling.template` names.

    `chat` renders the tokenizer's template: the user's turn is the question and what the
    style asks for. `r1_zero` is the template of DeepSeek-R1-Zero for base models. `plain`
    is the question and a newline, and asks for nothing. `auto` is chat if the tokenizer
    has a template, else r1_zero.
    """
    chat, template, system = tokenizer.chat_template, sampling.template, sampling.system
    asked = STYLES[sampling.style].instruction if sampling.style in STYLES else ""
    if template == "auto":
        template = "chat" if chat else "r1_zero"
    if template == "plain":
        return f"{question}\n"
    if template == "r1_zero":
        preamble = R1_ZERO if system is None else system
        return f"{preamble} {asked}".strip() + f"\nUser: {question}\nAssistant:"
    if not chat:
        raise UserError("template 'chat' needs a tokenizer with a chat template; this one has none")
    return _render(tokenizer, system or "", f"{question}\n\n{asked}".strip())


def _render(tokenizer: Any, system: str, user: str) -> str:
    """A chat of one turn with the generation prompt; UserError when the template fails.

    A template that knows no system role (Gemma's) gets the system text before the user's.
    """
    from jinja2 import TemplateError

    turn = {"role": "user", "content": user}
    chats = [[{"role": "system", "content": system}, turn]] if system else [[turn]]
    if system:
        chats.append([{"role": "user", "content": f"{system}\n\n{user}"}])
    fault: Exception | None = None
    for messages in chats:
        try:
            return tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError) as error:
            fault = error
    raise UserError(f"the tokenizer's chat template cannot be rendered: {fault}")


def encode(problem: Problem, tokenizer: Any, sampling: Sampling) -> tuple[int, ...]:
    """The prompt of `problem` as token ids; UserError when it is longer than the limit."""
    text = prompt_text(problem.question, tokenizer, sampling)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
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
        raise UserError(
            f"the prompt of problem {problem.id} has {len(ids)} tokens, more than"
            f" max_prompt_tokens = {sampling.max_prompt_tokens}"
        )
    return tuple(ids)
