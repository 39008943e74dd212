"""How a question becomes prompt tokens: plain for base models, a chat template for others.

Exactly one begin token if the tokenizer wants one, the assistant's header at the end of a
chat, and never a decode and re-encode: what is sampled after and trained on are these ids.
"""

from __future__ import annotations

from typing import Any

from modicum.types import Problem, UserError

SYSTEM = (
    "Think step by step between <think> and </think>,"
    " then give the final answer alone between <answer> and </answer>."
)


def prompt_text(question: str, tokenizer: Any, template: str) -> str:
    """The prompt as text: `question` and a newline, or the rendered chat."""
    chat = getattr(tokenizer, "chat_template", None)
    if template == "plain" or (template == "auto" and not chat):
        return f"{question}\n"
    if not chat:
        raise UserError("template 'chat' needs a tokenizer with a chat template; this one has none")
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def encode(
    problem: Problem, tokenizer: Any, template: str, max_tokens: int | None = None
) -> tuple[int, ...]:
    """The prompt of `problem` as token ids; UserError when it is longer than `max_tokens`."""
    text = prompt_text(problem.question, tokenizer, template)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    begin = tokenizer.bos_token_id
    wants_begin = begin is not None and tokenizer("x")["input_ids"][:1] == [begin]
    if wants_begin and ids[:1] != [begin]:
        ids.insert(0, begin)
    if max_tokens is not None and len(ids) > max_tokens:
        raise UserError(
            f"the prompt of problem {problem.id} has {len(ids)} tokens, more than"
            f" max_prompt_tokens = {max_tokens}"
        )
    return tuple(ids)
