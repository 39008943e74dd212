"""How a question becomes prompt tokens: a chat, R1-Zero's conversation, or the bare question.

Exactly one begin token if the tokenizer wants one, the assistant's header at the end of a
chat, and never a decode and re-encode: what is sampled after and trained on are these ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from modicum.config import Sampling
from modicum.styles import STYLES
from modicum.tasks import chat
from modicum.tasks.base import Task
from modicum.tasks.examples import Examples, draw
from modicum.types import Problem, UserError

# DeepSeek-R1 (arXiv 2501.12948), table 1, without its last sentence: that is the style's
# instruction. The turns begin on lines of their own, as in TinyZero.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant"
    " solves it. The assistant first thinks about the reasoning process in the mind and then"
    " provides the user with the answer."
)


@dataclass(frozen=True)
class Prompter:
    """Makes the prompts of a run or an evaluation, in the form that `sampling.template` names.

    `chat` renders the tokenizer's template: a user's turn is the question and what the style
    asks for. `r1_zero` is the template of DeepSeek-R1-Zero for base models. `plain` is the
    question and a newline, and asks for nothing. `auto` is chat if the tokenizer has a
    template, else r1_zero. Worked examples are earlier turns.
    """

    tokenizer: Any
    sampling: Sampling
    examples: Examples = ()

    def __post_init__(self) -> None:
        assert len(self.examples) == self.sampling.examples, "Prompter.of draws them"

    @classmethod
    def of(cls, task: Task, tokenizer: Any, sampling: Sampling) -> Prompter:
        """With the worked examples of `task` that `sampling` asks for."""
        return cls(tokenizer, sampling, draw(task, sampling))

    @cached_property
    def template(self) -> str:
        """The form that is used: chat, r1_zero or plain; UserError when it cannot be."""
        asked, there = self.sampling.template, self.tokenizer.chat_template
        found = ("chat" if there else "r1_zero") if asked == "auto" else asked
        if found == "chat" and not there:
            raise UserError(
                "template 'chat' needs a tokenizer with a chat template; this one has none"
            )
        if found != "chat" and self.sampling.template_args:
            raise UserError(f"template_args are for a chat template; the prompt is {found!r}")
        return found

    @cached_property
    def _arguments(self) -> dict[str, Any]:
        return chat.arguments(self.tokenizer, str(self.sampling.template_args))

    def text(self, question: str) -> str:
        """The prompt as text; UserError when the question would not stand in it."""
        sampling, system = self.sampling, self.sampling.system
        asked = STYLES[sampling.style].instruction if sampling.style in STYLES else ""
        if self.template == "plain":
            return (
                "".join(f"{one}\n{answer}\n\n" for one, answer in self.examples) + f"{question}\n"
            )
        if self.template == "r1_zero":
            preamble = R1_ZERO if system is None else system
            before = "".join(f"\nUser: {one}\nAssistant: {answer}" for one, answer in self.examples)
            return f"{preamble} {asked}".strip() + f"{before}\nUser: {question}\nAssistant:"
        made = chat.Chat(system or "", self.examples, question, asked)
        return made.render(self.tokenizer, self._arguments)

    def encode(self, problem: Problem) -> tuple[int, ...]:
        """The prompt of `problem` as token ids; UserError when there are none or too many."""
        text, tokenizer, sampling = self.text(problem.question), self.tokenizer, self.sampling
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise UserError(f"the tokenizer makes no tokens of the prompt of problem {problem.id}")
        begin = tokenizer.bos_token_id
        wants_begin = begin is not None and tokenizer("x")["input_ids"][:1] == [begin]
        if wants_begin and ids[:1] != [begin]:
            ids.insert(0, begin)
        if len(ids) > sampling.max_prompt_tokens:
            shown = f" (with {sampling.examples} worked examples)" if sampling.examples else ""
            raise UserError(
                f"the prompt of problem {problem.id} has {len(ids)} tokens{shown}, more than"
                f" max_prompt_tokens = {sampling.max_prompt_tokens}"
            )
        return tuple(ids)


def prompt_text(question: str, tokenizer: Any, sampling: Sampling) -> str:
    """The prompt as text, for a `sampling` without worked examples."""
    return Prompter(tokenizer, sampling).text(question)


def encode(problem: Problem, tokenizer: Any, sampling: Sampling) -> tuple[int, ...]:
    """The prompt as token ids, for a `sampling` without worked examples."""
    return Prompter(tokenizer, sampling).encode(problem)
