"""Prompts: templates, styles, and that the grader reads what the prompt asks for."""

from __future__ import annotations

import re
import typing
from typing import Any, Literal

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from modicum import answers
from modicum.answers import STYLES
from modicum.config import Sampling
from modicum.models.load import load
from modicum.tasks.prompts import arguments, encode, notes, prompt_text, stops
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
    assert stops(base, Sampling(template="plain", style="boxed", examples=2)) == ("\n\n",)
    assert stops(base, Sampling(template="plain", examples=2)) == ("</answer>", "\n\n")
    assert stops(base, Sampling(style="hashes", examples=2)) == ("\nUser:",)
    assert stops(chat, Sampling(examples=2)) == ()
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


def test_a_question_with_empty_lines_is_not_cut() -> None:
    """The template of `tiny` reads up to the first empty line."""
    tokenizer = load("tiny", "cpu").tokenizer
    found = prompt_text("Two lines.\n\nWhat is 1+2?\n \nSay it.", tokenizer, Sampling())
    assert found == "Two lines.\nWhat is 1+2?\nSay it.\n"
    assert prompt_text("What is 1+2?", tokenizer, Sampling(system="Hm.")) == "Hm.\nWhat is 1+2?\n"


PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}[assistant]"
)
EACH = "{% for m in messages %}%s{% endfor %}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (PARTS, "[system]Be brief.[user]a <b>\n\nc[assistant]"),
        (PARTS.replace("[{{ m.role }}]", "").replace("[assistant]", ""), "Be brief.a <b>\n\nc"),
        # Raises for a text: it has no first part.
        (EACH.replace("%s", "{{ m.content[0].text.strip() }};"), "Be brief.;a <b>\n\nc;"),
        # Drops the system turn without a word.
        ("{{ messages[-1].content }}|", "Be brief.\n\na <b>\n\nc|"),
        (EACH.replace("%s", "{{ m.content | tojson }}"), '"Be brief.""a <b>\\n\\nc"'),
        (EACH.replace("%s", "{{ m.content | e }};"), "Be brief.;a &lt;b&gt;\n\nc;"),
        (EACH.replace("%s", "{{ m.content | replace('\n', ' ') }};"), "Be brief.;a <b>  c;"),
        # `tiny`, with a question that has an empty line.
        ("{{ messages[-1]['content'].split('\n\n')[0] }}!", "Be brief.\na <b>\nc!"),
    ],
)
def test_the_question_and_the_system_prompt_stand_in_the_prompt(template: str, text: str) -> None:
    sampling = Sampling(system="Be brief.", style="none")
    assert prompt_text("a <b>\n\nc", tokenizer_of(False, template), sampling) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("[user][assistant]", "leaves out the question; --template r1_zero or plain"),
        ("", "needs a tokenizer with a chat template"),
        (" ", "leaves out the question"),
        ("{{ messages[0].content | upper }}", "leaves out the question"),
        ("{{ messages[0].content[:3] }}", "leaves out the question"),
        ("{{ messages[0].content | upper if messages[0].content is string else messages }}", "out"),
        ("{{ messages[0].text.strip() }}", "cannot be rendered: 'dict object' has no attribute"),
        ("{{ tools[0].name }}", "cannot be rendered: 'None' has no element 0|None"),
        ("{{ 1 // 0 }}", "cannot be rendered: integer"),
        ("{% for m in messages %}", "cannot be rendered: Unexpected end of template.*endfor"),
        ("{{ raise_exception('one\ntwo') }}", "cannot be rendered: one two"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "cannot be rendered: Range too big"),
    ],
)
def test_a_template_without_the_question_is_refused(template: str, message: str) -> None:
    tokenizer = tokenizer_of(False, template)
    with pytest.raises(UserError, match=message) as found:
        prompt_text("one plus two", tokenizer, Sampling(template="chat"))
    assert "\n" not in str(found.value)


def test_a_system_prompt_that_cannot_be_shown_is_refused() -> None:
    tokenizer = tokenizer_of(False, "{{ messages[-1].content.split('Brief ')[-1] }}")
    assert prompt_text("one", tokenizer, Sampling(style="none")) == "one"
    with pytest.raises(UserError, match="leaves out the system prompt"):
        prompt_text("one", tokenizer, Sampling(style="none", system="Brief "))


def test_a_prompt_without_tokens_is_refused() -> None:
    empty = Problem("add-8", " ", "3")
    with pytest.raises(UserError, match="no tokens of the prompt of problem add-8"):
        encode(empty, tokenizer_of(False, None), Sampling(template="plain"))


THINKS = (
    "{{ bos_token }}{% if enable_thinking is defined and not enable_thinking %}[off]{% endif %}"
    "{% if not reasoning_effort is defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "{% if messages %}{% set effort = reasoning_effort %}{% endif %}[{{ effort }}]"
    "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ strftime_now('%d %B %Y') }}"
)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("", "<s>[medium]one26 July 2024"),
        ("enable_thinking=false", "<s>[off][medium]one26 July 2024"),
        ("enable_thinking=False, reasoning_effort=low", "<s>[off][low]one26 July 2024"),
        ("reasoning_effort='very low', enable_thinking=true", "<s>[very low]one26 July 2024"),
        (("reasoning_effort=3", "enable_thinking=false"), "<s>[off][3]one26 July 2024"),
    ],
)
def test_a_template_gets_its_arguments(said: Any, text: str) -> None:
    """And the day it is never changes."""
    tokenizer = tokenizer_of(False, THINKS)
    assert prompt_text("one", tokenizer, Sampling(template_args=said, style="none")) == text


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("enable_thinkin=false", "does not read 'enable_thinkin'; did you mean 'enable_thinking'"),
        ("effort=1", r"does not read 'effort'.*\(known: enable_thinking, reasoning_effort\)"),
        ("messages=1", "does not read 'messages'"),
        ("tools=[]", "does not read 'tools'"),
        ("add_generation_prompt=false", "does not read 'add_generation_prompt'"),
        ("bos_token=''", "does not read 'bos_token'"),
        ("chat_template=rag", "one chat template, which has no name"),
    ],
)
def test_arguments_that_a_template_does_not_read(said: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prompt_text("one", tokenizer_of(False, THINKS), Sampling(template_args=said))


def test_arguments_need_a_chat_template() -> None:
    for tokenizer, template in ((None, "auto"), (THINKS, "plain")):
        sampling = Sampling(template=template, template_args="enable_thinking=false")
        with pytest.raises(UserError, match="template_args are for a chat template"):
            prompt_text("one", tokenizer_of(False, tokenizer), sampling)
    with pytest.raises(UserError, match="reads nothing but the chat"):
        arguments(tokenizer_of(False, TEMPLATE.replace("{{ begin }}", "")), "enable_thinking=false")


def test_named_templates(tmp_path: Any) -> None:
    """As transformers writes them: chat_template.jinja and additional_chat_templates/."""
    named = {"rag": "r:{{ messages[0].content }}", "tool_use": "t:{{ messages[0].content }}"}
    tokenizer, sampling = tokenizer_of(False, None), Sampling(style="none")
    tokenizer.chat_template = named
    with pytest.raises(
        UserError, match=r"no default; --template-args chat_template=NAME .*rag, to"
    ):
        prompt_text("one", tokenizer, sampling)
    rag = Sampling(style="none", template_args="chat_template=rag")
    assert prompt_text("one", tokenizer, rag) == "r:one"
    with pytest.raises(UserError, match=r"no chat template 'rog'; .*rag, tool_use"):
        prompt_text("one", tokenizer, Sampling(template_args="chat_template=rog"))
    tokenizer.chat_template = named | {"default": "d:{{ messages[0].content }}"}
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "additional_chat_templates" / "rag.jinja").is_file()
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert prompt_text("one", again, sampling) == "d:one"
    assert prompt_text("one", again, rag) == "r:one"
