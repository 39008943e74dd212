"""The chat template of an export gives the prompt of training, of the question alone."""

from __future__ import annotations

import itertools
import shutil
import typing
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from modicum.answers import STYLES
from modicum.config import Sampling
from modicum.models.load import TINY, read_tokenizer
from modicum.tasks.handed import PROBES, handed, own, rendered
from modicum.tasks.prompts import encode
from modicum.types import Problem, UserError
from test_prompts import EACH, PARTS, TEMPLATE, THINKS, tokenizer_of

HINTS = typing.get_type_hints(Sampling)
FORMS = [form for form in typing.get_args(HINTS["template"]) if form != "auto"]
EXAMPLES = (("What is 1 + 1?", "<think>1 + 1 = 2</think>\n<answer>2</answer>"), ("{{ 3 }}?", "3"))
SYSTEM = 'Say "{% no %}" \\n or\n\nnothing.'
MARKUP = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BASES: dict[str, str | None] = {
    "none": None,
    "markup": MARKUP,
    # Qwen's: a system prompt of its own where there is none.
    "default": "{% if messages[0].role != 'system' %}<s>You are a model.</s>{% endif %}\n\n"
    + MARKUP,
    # Gemma's.
    "refuses": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + MARKUP,
    "shifts": "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
    + MARKUP,
    "macro": "{% macro all() %}{{ messages | length }}{% endmacro %}{{ all() }}" + MARKUP,
    "parts": PARTS,
    "strict": "{{ messages[0].content[0].text.strip() }};",
    "last": "{{ messages[-1].content }}|",
    "tiny": "{{ messages[-1]['content'].split('\n\n')[0] + '\n' }}",
    "opens": MARKUP + "{% if add_generation_prompt %}<think>\n{% endif %}",
    "escapes": "{% for m in messages %}{{ m.content | tojson }};{% endfor %}",
    "thinks": THINKS,
}


def asked(tokenizer: Any, sampling: Sampling, examples: Any, question: str) -> list[int]:
    return list(encode(Problem("", question, ""), tokenizer, sampling, examples))


def check(tokenizer: Any, sampling: Sampling, examples: Any = ()) -> str:
    """The template, which gives the prompt token for token; also written and read again."""
    template = handed(tokenizer, sampling, examples)
    assert template
    for question in (*PROBES, "x", " 1\n2 "):
        expected = asked(tokenizer, sampling, examples, question)
        assert rendered(tokenizer, template, question) == expected
    return template


@pytest.mark.parametrize("style", typing.get_args(HINTS["style"]))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", BASES)
def test_the_question_alone_gives_the_prompt_of_training(base: str, form: Any, style: Any) -> None:
    """Every style in every form, with and without a system prompt and worked examples."""
    tokenizer, seen = read_tokenizer("tiny"), 0
    tokenizer.chat_template = BASES[base]
    for system, examples in itertools.product((None, "", SYSTEM), (EXAMPLES, ())):
        sampling = Sampling(
            template=form,
            style=style,
            system=system,
            examples=len(examples),
            max_prompt_tokens=4096,
        )
        try:
            asked(tokenizer, sampling, examples, "x")
        except UserError:
            continue  # no prompt at all: none is there, or `tiny` with an empty line in its system one
        check(tokenizer, sampling, examples)
        seen += 1
    assert seen == {"none": 0, "tiny": 4}.get(base if form == "chat" else "", 6)


@pytest.mark.parametrize("adds_begin", [True, False])
@pytest.mark.parametrize("begin", [None, "", "<s>"])
@pytest.mark.parametrize("form", ["auto", "r1_zero", "plain"])
def test_a_begin_token_stands_once(adds_begin: bool, begin: str | None, form: Any) -> None:
    chat = None if begin is None else TEMPLATE.replace("{{ begin }}", begin)
    check(tokenizer_of(adds_begin, chat), Sampling(template=form, max_prompt_tokens=4096))


def test_what_a_template_was_told_can_be_told_otherwise() -> None:
    tokenizer = tokenizer_of(False, THINKS)
    sampling = Sampling(template_args="enable_thinking=false, reasoning_effort=None", style="none")
    template = check(tokenizer, sampling)
    chat = [{"role": "user", "content": "one"}]
    how = {"tokenize": False, "chat_template": template}
    assert tokenizer.apply_chat_template(chat, **how) == "<s>[off][None]one26 July 2024"
    more = {"enable_thinking": True, "reasoning_effort": "low"}
    assert tokenizer.apply_chat_template(chat, **how, **more) == "<s>[low]one26 July 2024"


def test_a_named_template_is_the_one_that_was_named() -> None:
    tokenizer = tokenizer_of(False, None)
    tokenizer.chat_template = {"default": "d:{{ messages[0].content }}", "rag": MARKUP}
    sampling = Sampling(template_args="chat_template=rag", style="boxed")
    assert MARKUP in check(tokenizer, sampling)


TURNS = [("user", "one"), ("assistant", "two"), ("user", "plus")]
BOXED = STYLES["boxed"].instruction


@pytest.mark.parametrize(
    ("form", "own_system", "text"),
    [
        ("chat", "", f"[system]Be brief.[user]one\n\n{BOXED}[assistant]two[user]plus\n\n{BOXED}"),
        (
            "chat",
            "Be long.",
            f"[system]Be long.[user]one\n\n{BOXED}[assistant]two[user]plus\n\n{BOXED}",
        ),
        ("r1_zero", "", f"Be brief. {BOXED}\nUser: one\nAssistant: two\nUser: plus\nAssistant:"),
        ("r1_zero", "No.", f"No. {BOXED}\nUser: one\nAssistant: two\nUser: plus\nAssistant:"),
        ("plain", "", "one\ntwo\n\nplus\n"),
        ("plain", "Hm.", "Hm.\n\none\ntwo\n\nplus\n"),
    ],
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_conversation(form: Any, own_system: str, text: str, in_parts: bool) -> None:
    """Every question gets the instruction; a system message of one's own replaces that of training."""
    tokenizer = read_tokenizer("tiny")
    tokenizer.chat_template = EACH.replace("%s", "[{{ m.role }}]{{ m.content }}")
    sampling = Sampling(template=form, style="boxed", system="Be brief.")
    tokenizer.chat_template = handed(tokenizer, sampling, ())
    turns = [("system", own_system)] * bool(own_system) + TURNS
    chat: list[dict[str, Any]] = [{"role": role, "content": said} for role, said in turns]
    if in_parts:  # as the API of OpenAI has them
        chat = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in chat]
        chat = [m if m["role"] != "assistant" else {**m, "content": "two"} for m in chat]
    how = {"tokenize": False, "add_generation_prompt": True}
    assert tokenizer.apply_chat_template(chat, **how) == text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", BASES)
def test_modicum_reads_the_template_of_the_base_back(base: str, form: Any, tmp_path: Path) -> None:
    """By it the prompt is made as ever; others find the whole in the file."""
    tokenizer, before = read_tokenizer("tiny"), BASES[base]
    tokenizer.chat_template = before
    if form == "chat" and base in ("none", "thinks"):  # the day of `thinks` is fixed
        return
    whole = handed(tokenizer, Sampling(template=form), ())
    assert whole != before and own(whole) == before and own(before) == before

    folder = shutil.copytree(TINY, tmp_path / "model")
    tokenizer.chat_template = whole
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == whole
    again = read_tokenizer(str(folder))
    assert (again.chat_template, again.handed) == (before, whole)


def test_what_no_template_gives_is_left() -> None:
    """A tokenizer that cuts text after its begin token otherwise than text alone."""
    tokenizer = read_tokenizer("tiny")
    tokenizer.chat_template = "{{ messages[0].content if messages | length == 1 else 1 // 0 }}"
    sampling = Sampling(style="none")
    assert handed(tokenizer, sampling, ())

    class Odd:
        bos_token, bos_token_id, chat_template = "<s>", 0, None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [0, 1] if _.get("add_special_tokens", True) else [2, len(text)]}

        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            return "x"

    assert handed(Odd(), sampling, ()) == ""
