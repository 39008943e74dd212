"""Prompts: templates, styles, and that the grader reads what the prompt asks for."""

from __future__ import annotations

import re
import typing
from typing import Any, Literal

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from modicum import answers
from modicum.config import Sampling
from modicum.models.load import load
from modicum.styles import STYLES
from modicum.tasks.prompts import encode, notes, prompt_text, stops
from modicum.types import Problem, UserError

PROBLEM = Problem("add-7", "one plus two", "3")

TEMPLATE = (
    "{{ begin }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer_of(adds_begin: bool, template: str | None) -> Any:
    """A word tokenizer; it can put <s> in front, and so can its template."""
    words = ["<s>", "</s>", "<unk>", "<system>", "<user>", "<assistant>", "one", "plus", "two"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(words[:2] + words[3:6])
    if adds_begin:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
    )


@pytest.mark.parametrize("adds_begin", [True, False])
@pytest.mark.parametrize("template", [None, "", "<s>"], ids=["base", "chat", "chat-begins"])
def test_prompts_have_one_begin_token(adds_begin: bool, template: str | None) -> None:
    """TOK-01 and TOK-02: one if the tokenizer or its template wants one, else none."""
    chat = None if template is None else TEMPLATE.replace("{{ begin }}", template)
    ids = encode(PROBLEM, tokenizer_of(adds_begin, chat), Sampling(style="none"))
    assert ids.count(0) == (adds_begin or template == "<s>")
    assert ids[0] == 0 or 0 not in ids
    assert tuple(i for i in ids if i >= 6) == (6, 7, 8), "the question is there once"


def test_chats_end_with_the_header_of_the_assistant() -> None:
    """TOK-04. A system turn, if there is one, and the question come before it."""
    tokenizer = tokenizer_of(True, TEMPLATE.replace("{{ begin }}", "<s>"))
    ids = encode(PROBLEM, tokenizer, Sampling(system="one"))
    assert [i for i in ids if i in (3, 4, 5)] == [3, 4, 5]
    assert ids[-1] == 5
    assert encode(PROBLEM, tokenizer, Sampling(template="chat", system="one")) == ids
    assert [i for i in encode(PROBLEM, tokenizer, Sampling()) if i in (3, 4, 5)] == [4, 5]
    assert encode(PROBLEM, tokenizer, Sampling(template="plain")) == (0, 6, 7, 8)


def test_a_long_prompt_is_refused_and_never_cut() -> None:
    """TOK-03."""
    tokenizer = tokenizer_of(True, TEMPLATE.replace("{{ begin }}", "<s>"))
    ids = encode(PROBLEM, tokenizer, Sampling())
    assert encode(PROBLEM, tokenizer, Sampling(max_prompt_tokens=len(ids))) == ids
    with pytest.raises(UserError, match=rf"add-7 has {len(ids)} tokens.* = {len(ids) - 1}$"):
        encode(PROBLEM, tokenizer, Sampling(max_prompt_tokens=len(ids) - 1))


def test_a_chat_needs_a_template() -> None:
    with pytest.raises(UserError, match="chat template"):
        encode(PROBLEM, tokenizer_of(True, None), Sampling(template="chat"))


STYLE_NAMES = typing.get_args(typing.get_type_hints(Sampling)["style"])


def test_every_style_is_an_option_and_the_other_way_round() -> None:
    assert set(STYLE_NAMES) == {*STYLES, "none"}


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("answer", ["42", "-3/4", r"\frac{1}{2}", "(1, 2)", "1,000"])
def test_what_the_prompt_asks_for_is_what_the_grader_reads(name: str, answer: str) -> None:
    """The instruction names the marks of the pattern, in order, and strict reads the pattern."""
    style = STYLES[name]
    parts = [part.strip(" {}\n") for part in re.split(r"\{\w+\}", style.pattern)]
    marks = [part for part in parts if part]
    assert marks
    place = 0
    for mark in marks:
        place = style.instruction.index(mark, place) + len(mark)
    text = style.example(answer)
    assert answers.extract(text) == answer
    assert answers.grade(text, answer).strict
    assert not answers.grade(style.example("41"), answer).strict


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("template", ["chat", "r1_zero"])
def test_a_style_is_asked_for_once_in_every_template(
    name: Any, template: Literal["chat", "r1_zero"]
) -> None:
    tokenizer = tokenizer_of(True, TEMPLATE.replace("{{ begin }}", ""))
    text = prompt_text("What is 1+2?", tokenizer, Sampling(template=template, style=name))
    assert text.count(STYLES[name].instruction) == text.count("What is 1+2?") == 1
    own = Sampling(template=template, style=name, system="Be brief.")
    assert prompt_text("What is 1+2?", tokenizer, own).count("Be brief.") == 1


@pytest.mark.parametrize(
    ("style", "good", "bad"),
    [
        ("boxed", r"so \boxed{\frac{1}{2}}", r"\boxed{1} or \boxed{2}"),
        ("boxed", r"$\boxed{3}$.", r"\boxed{3} and so on"),
        ("boxed", r"x \boxed{a}", r"\boxed{}"),
        ("boxed", r"\[ \boxed{5} \]", r"\boxed{5"),
        ("boxed", r"\boxed{(1,2)}", "<answer>\\boxed{5}</answer>"),
        ("hashes", "1+1=2\n#### 2", "#### 2\nbut then"),
        ("hashes", "#### -3\n", "#### 2\n#### 3"),
        ("hashes", "a\n#### $5", "####"),
    ],
)
def test_format_of_boxes_and_hashes(style: str, good: str, bad: str) -> None:
    assert STYLES[style].format_ok(good)
    assert not STYLES[style].format_ok(bad)
    assert not STYLES[style].format_ok("")


def test_a_template_without_a_system_role_gets_it_before_the_question() -> None:
    """Gemma's template raises for a system turn."""
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer = tokenizer_of(False, refuse + TEMPLATE.replace("{{ begin }}", ""))
    text = prompt_text("one plus two", tokenizer, Sampling(system="Be brief.", style="none"))
    assert text == "<user> Be brief.\n\none plus two <assistant> "
    broken = tokenizer_of(False, "{{ raise_exception('always') }}")
    with pytest.raises(UserError, match="cannot be rendered: always"):
        prompt_text("one", broken, Sampling(system="x"))


def test_the_tiny_base_is_asked_the_bare_question() -> None:
    tokenizer = load("tiny", "cpu").tokenizer
    for style in STYLE_NAMES:
        assert prompt_text("What is 1+2?", tokenizer, Sampling(style=style)) == "What is 1+2?\n"


def test_stop_strings_are_what_the_prompt_form_invites() -> None:
    base, chat = tokenizer_of(False, None), tokenizer_of(False, TEMPLATE)
    assert stops(base, Sampling()) == ("</answer>", "\nUser:")
    assert notes(base, Sampling()) == ["completions end at '</answer>' or '\\nUser:' (--stop)"]
    assert notes(chat, Sampling()) == []
    assert stops(base, Sampling(style="boxed")) == ("\nUser:",)
    assert stops(base, Sampling(style="none")) == ("\nUser:",)
    assert stops(base, Sampling(template="plain")) == ()
    assert stops(chat, Sampling()) == ()
    assert stops(chat, Sampling(template="r1_zero", style="hashes")) == ("\nUser:",)
    assert stops(base, Sampling(stop=())) == ()
    assert stops(chat, Sampling(stop="###")) == ("###",)
    assert stops(load("tiny", "cpu").tokenizer, Sampling()) == ()


@pytest.mark.parametrize("style", ["boxed", "hashes"])
def test_the_form_of_a_completion_is_that_of_what_is_not_thought(style: str) -> None:
    ok, mark = STYLES[style].format_ok, STYLES[style].example("4", "So")
    assert ok(f"<think>\n{mark}\nNo.</think>\n{mark}")
    assert not ok(f"<think>\n{mark}")
    assert not ok(f"<think>\n{mark}</think>")
