"""What each reward term counts, in known values."""

from __future__ import annotations

from fractions import Fraction

import pytest

from modicum import rewards
from modicum.rewards.steps import steps, value
from modicum.tasks.arithmetic import Arithmetic
from modicum.types import Completion, Problem

PROBLEM = Problem("p", "?", "7")


def score(term: str, text: str, tokens: int = 1, finished: bool = True) -> float:
    completion = Completion((0,) * tokens, (0.0,) * tokens, text, finished)
    (found,) = rewards.parse(term).score_group(Arithmetic(), PROBLEM, [completion], [])[0].values()
    return found


@pytest.mark.parametrize(
    ("style", "right", "wrong"),
    [
        (
            "tags",
            "<think>a</think>\n<answer>7</answer>\n",
            [
                "<answer>7</answer> <think>a</think>",
                "<think>a</think> <answer>7</answer> so",
                "<think>a</think> <answer>7</answer> <answer>7</answer>",
                "<think>a</think> <answer> </answer>",
                r"\boxed{7}",
            ],
        ),
        (
            "boxed",
            r"So it is $\boxed{\frac{7}{1}}$.",
            [r"\boxed{7} or \boxed{8}", r"\boxed{7} I think", r"\boxed{}", r"\boxed{7", "7"],
        ),
        ("hashes", "So\n#### 7\n", ["#### 7\nso", "#### 6\n#### 7", "####", "it is #### 7", "7"]),
    ],
)
def test_format_is_once_whole_and_last(style: str, right: str, wrong: list[str]) -> None:
    term = f"format(style={style!r})"
    assert score(term, right) == 1
    assert [text for text in wrong if score(term, text)] == []


# Language --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lang", "text", "wanted"),
    [
        ("en", "First add the two numbers, then halve.", 1),
        ("en", "我们先把两个数加起来", 0),
        ("zh", "我们先把两个数加起来", 1),
        ("en", "add the two numbers and then 我们先把两个数加起来然", 6 / 12),  # DYN-06
        ("zh", "add the two numbers and then 我们先把两个数加起来然", 6 / 12),
        ("en", "Сначала сложим числа then", 1 / 4),
        ("ja", "足し算をします", 1),
        ("ko", "먼저 더합니다 then add", 1 / 2),
        ("en", r"$x^2 + \alpha = 12$, \(ab = 3\), `sum(ab)`, 5", 1),  # formulas only
        ("zh", r"$\sin xy = ab$ \[AB\] ```print(ab)``` x 12", 1),
        ("en", r"$\text{我们先加} = 3$ so it is", 3 / 5),  # the formula hides nothing
        ("zh", "x = 3, y = 4: 三加四", 1),  # variables are no words
        ("en", "", 0),
        ("en", "... !!", 0),
        ("en", "<think>我们先加</think> <answer>the sum</answer>", 0),
        ("en", "<think>add the two</think> 答案是七", 1),
        ("en", "<think></think> <answer>the sum</answer>", 1),
        ("en", "<think>add 我们", 1 / 2),
        ("en", "costs $5 and the rest 我们", 4 / 5),  # one dollar sign opens no formula
    ],
)
def test_language_is_the_share_of_words_in_its_script(lang: str, text: str, wanted: float) -> None:
    assert score(f"language({lang!r})", text) == pytest.approx(wanted)


# Consistency -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3 + 4 = 7", ["3+4=7"]),
        ("12-5+8 = 15 = 3*5.", ["12-5+8=15", "15=3*5"]),
        ("1) 3+4=8 2) (2 + 5)*2 = 14", ["3+4=8!", "(2+5)*2=14"]),
        ("48/2 = <<48/2=24>>24 clips", ["48/2=24", "48/2=24"]),
        ("5*.2=$<<5*.2=1>>1.00", ["5*.2=1", "5*.2=1.00"]),
        (r"$12 \times 3 \div 4 = 9$, 3 × 4 ÷ 6 − 2 = 0, 12 x 3 = 36", None),
        (r"\frac{1}{2} + \frac12 = 1", ["((1)/(2))+(1/2)=1"]),
        (r"1,000 + 80 = \boxed{1,080}", ["1,000+80=1,080"]),
        ("1/3 + 1/3 = 0.66", ["1/3+1/3=0.66!"]),
        ("20% * 50 = 10 people", ["20%*50=10"]),
        ("x = 7 - 3 = 4 (that is 3+1=4)", ["7-3=4", "3+1=4"]),
        ("- 3 + 4 = 7\n* 2 + 2 = 4", ["3+4=7", "2+2=4"]),
        ("-3 + 10 = 7", ["-3+10=7"]),
        # No steps: nothing is computed, or it is algebra.
        ("5 = 5, 1 = 1", []),
        ("x + 3 = 7, 2x = 6, y - 3 = 8, 5 = 2x + 1, 1 + 2 = 3x", []),
        ("2^3 = 9, x_1+2 = 4, f(1+1) = 3, sqrt(16) + 1 = 2, \\sqrt{4} + 1 = 9", []),
        ("4 apples + 3 apples = 7 apples", []),
        ("1/0 = 1, 3 + = 7, (3 + 4 = 8", ["3+4=8!"]),
    ],
)
def test_steps_are_read_as_they_are_written(text: str, wanted: list[str] | None) -> None:
    found = steps(text)
    if wanted is None:
        assert [step.true for step in found] == [True] * 3
        return
    shown = [f"{s.left}={s.right}{'' if s.true else '!'}".replace(" ", "") for s in found]
    assert shown == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("(3+4)*4=28", 28), ("3/4", Fraction(3, 4)), ("3+4=8", None), ("x", None), ("1" * 600, None)],
)
def test_an_answer_may_be_an_expression(text: str, wanted: Fraction | None) -> None:
    assert value(text) == wanted


TRIVIAL = " ".join(f"{n}+1={n + 1}." for n in range(90))


@pytest.mark.parametrize(
    ("thought", "answer", "wanted"),
    [
        ("2+2=4. 4+3=7.", "7", 1),
        ("2+2=4. 4+3=7.", "$7 dollars", 1),
        ("2+2=4. 4+3=7.", "8", 0),
        ("2+2=5. 4+3=7.", "7", 1 / 2),
        ("2+2=5. 2+2=4. 2+2=5. 4+3=7.", "7", 2 / 3),
        ("4+3=7. 2+2=4. 4+3=7.", "7", 1),  # the last one counts, even when it was said before
        ("4+3=8.", "8", 0),
        ("1=1. 7=7.", "7", 0),
        ("I know.", "7", 0),
        ("(3+4)*4 = 28", "(3+4)*4", 1),
        ("1/4 = 25%", "25%", 1),
        # A false step costs a tenth, however many trivial ones are around it.
        (f"2+2=5. {TRIVIAL} 4+3=7.", "7", 9 / 10),
        (f"{' '.join(f'{n}+1={n}.' for n in range(12))} 4+3=7.", "7", 0),
    ],
)
def test_consistency(thought: str, answer: str, wanted: float) -> None:
    text = f"<think>{thought}</think> <answer>{answer}</answer>"
    assert score("consistency", text) == pytest.approx(wanted)


def test_consistency_reads_every_mark_and_needs_one() -> None:
    assert score("consistency", r"3+4 = \boxed{7}") == 1
    assert score("consistency", "3+4 = <<3+4=7>>7\n#### 7") == 1
    assert score("consistency", "3+4 = 7") == 0
    assert score("consistency", "<answer>3+4=7</answer>") == 0, "an answer is no step to itself"


# Length and repetition -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "wanted"), [(1, 1), (80, 1), (81, 0.95), (90, 0.5), (99, 0.05), (100, 0), (999, 0)]
)
def test_length_is_the_overlong_shaping(tokens: int, wanted: float) -> None:
    assert score("length(100)", "a", tokens) == pytest.approx(wanted)
    assert score("length(100, buffer=20)", "a", tokens) == pytest.approx(wanted)
    assert score("length(100)", "a", tokens, finished=False) == 0
    assert score("length(100)", "", tokens) == 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("one two three four", 1),
        ("a b c a b c", 3 / 4),  # abc bca cab abc
        ("A b c a B C", 3 / 4),
        ("so so so so so", 1 / 3),
        ("!!!!!!", 1 / 4),
        ("我我我我我", 1 / 3),
        ("one two", 1),
        ("", 0),
    ],
)
def test_repetition_is_the_share_of_new_trigrams(text: str, wanted: float) -> None:
    assert score("repetition", text) == pytest.approx(wanted)


def test_repetition_sees_a_text_without_blanks() -> None:
    assert score("repetition", "a" * 2000) < 0.02
    assert score("repetition(n=1)", "a b a") == pytest.approx(2 / 3)
