"""Worked examples: how they are written, which they are, and that nothing trains on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from modicum import answers, curricula, tasks
from modicum.config import Sampling, TrainConfig
from modicum.evaluate import evaluate
from modicum.models.load import load
from modicum.plan.shapes import prompt_tokens
from modicum.tasks.examples import Sizes, draw, thought_of, without, worked
from modicum.tasks.prompts import R1_ZERO, encode, prompt_text
from modicum.training.origin import record
from modicum.training.session import prepare
from modicum.types import Grade, Problem, UserError
from test_prompts import PARTS, TEMPLATE, tokenizer_of

ROWS = [{"question": f"What is {n}+1?", "answer": n + 1} for n in range(10)]


def given(train: list[dict[str, Any]] = ROWS) -> tasks.Task:
    return tasks.of({"train": train, "test": [{"question": "What is 20+1?", "answer": 21}]})


@pytest.mark.parametrize(
    ("data", "thought"),
    [
        (
            {"solution": "Tom has 48/2 = <<48/2=24>>24.\nSo 24.\n#### 24"},
            "Tom has 48/2 = 24.\nSo 24.",
        ),
        ({"solution": r"So $x = \boxed{\frac{1}{2}}$."}, r"So $x = \frac{1}{2}$."),
        ({"solution": "<think> two and two </think>\n<answer> 4 </answer>"}, "two and two"),
        ({"solution": "#### Step 1\nAdd."}, "#### Step 1\nAdd."),
        ({"steps": ("of", "a", "file"), "terms": (1, 2), "signs": ("+",)}, ""),
        ({"solution": 3}, ""),
        ({}, ""),
    ],
)
def test_the_way_to_an_answer_has_no_marks(data: dict[str, Any], thought: str) -> None:
    assert thought_of(given(), Problem("a", "q", "1", data=data)) == thought


@pytest.mark.parametrize(
    ("task", "data", "thought"),
    [
        ("countdown", {"steps": ("3*4=12", "12+5=17"), "numbers": (3, 4, 5)}, "3*4=12\n12+5=17"),
        ("arithmetic", {"terms": (1, 4, 7), "signs": ("+", "-")}, "1+4-7=5-7=-2"),
        ("arithmetic", {"terms": (2, 3, 4), "signs": ("+", "*")}, "2+3*4=2+12=14"),
        ("addition", {"terms": (2, 3), "signs": ("+",)}, "2+3=5"),
        ("matrix(inverse)", {}, ""),
    ],
)
def test_a_task_says_how_its_answers_come_about(
    task: str, data: dict[str, Any], thought: str
) -> None:
    assert thought_of(tasks.parse(task), Problem("a", "q", "1", data=data)) == thought


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("tags", "<think> One more. </think> <answer> 5 </answer>"),
        ("boxed", r"One more. \boxed{5}"),
        ("hashes", "One more.\n#### 5"),
        ("none", "One more.\nAnswer: 5"),
    ],
)
def test_examples_are_in_the_form_of_the_style(style: str, text: str) -> None:
    task = given()
    assert worked(task, Problem("a", "q", "5", data={"solution": "One more."}), style) == text
    bare = worked(task, Problem("a", "q", "5"), style)
    assert bare == (
        text.replace("One more.", "The answer is 5.") if style != "none" else "Answer: 5"
    )
    # A solution that ends elsewhere would teach a wrong form: two answers, here.
    odd = Problem("a", "q", "5", data={"solution": r"It is \boxed{\sqrt{\frac{\frac{1}{2}}{3}}}"})
    assert worked(task, odd, "boxed") == r"The answer is 5. \boxed{5}"
    assert worked(task, Problem("a", "q", ""), style) is None


@pytest.mark.parametrize(
    ("expression", "question", "answer"),
    [
        ("addition(below=20)", "What is 13+13?", "<think> 13+13=26 </think> <answer> 26 </answer>"),
        (
            "arithmetic(terms=3, operators='+*')",
            "What is 6*7+7?",
            "<think> 6*7+7=42+7=49 </think> <answer> 49 </answer>",
        ),
        (
            "countdown(numbers=2)",
            "Make 115 from 71, 44, each used once.",
            "<think> 44+71=115 </think> <answer> 44+71 </answer>",
        ),
        (
            "matrix(rows=2)",
            "What is the reduced row echelon form of the matrix [[-5, 5, 4], [4, -1, -5]]?",
            "<think> The answer is [[1, 0, -7/5], [0, 1, -3/5]]. </think>"
            " <answer> [[1, 0, -7/5], [0, 1, -3/5]] </answer>",
        ),
    ],
)
def test_every_task_has_examples(expression: str, question: str, answer: str) -> None:
    """The same ones for a seed, and the first of more are those of fewer."""
    task = tasks.parse(expression)
    three = draw(task, Sampling(examples=3))
    assert three[0] == (question, answer)
    assert len(dict(three)) == 3
    assert draw(task, Sampling(examples=2)) == three[:2]
    assert draw(task, Sampling(examples=3, examples_seed=1)) != three
    assert draw(task, Sampling()) == ()


@pytest.mark.parametrize(
    ("task", "wanted", "message"),
    [
        (given(), 11, r"examples = 11: the train split of 11 problems .* has 10 problems with an"),
        (given([ROWS[0]] * 4), 2, "has 1 problems with an answer"),
        (tasks.parse("addition(below=5)"), 40, "addition.below=5. has 1. problems with"),
    ],
)
def test_too_few_problems(task: tasks.Task, wanted: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(task, Sampling(examples=wanted))
    if wanted == 2:
        with pytest.raises(UserError, match="shown; the styles tags and boxed hold answers that"):
            draw(task, Sampling(examples=2, style="hashes"))


def test_what_is_shown_does_not_come_again() -> None:
    """Of an endless task all others keep their places, of a fixed set each comes once an epoch."""
    for task, size in ((given(), 2), (tasks.parse("addition(below=5)"), None)):
        shown = draw(task, Sampling(examples=8))
        rest = without(task, shown)
        before = [task.problem("train", 0, index) for index in range(200)]
        after = [rest.problem("train", 0, index) for index in range(200)]
        assert dict(shown).keys() <= {problem.question for problem in before}
        assert not dict(shown).keys() & {problem.question for problem in after}
        pairs = zip(before, after, strict=True)
        assert size or all(a == b for b, a in pairs if b.question not in dict(shown))
        assert rest.problem("test", 0, 0) == task.problem("test", 0, 0)
        assert (str(rest), rest.size("train")) == (str(task), size)
        assert without(task, ()) is task
        assert not size or len({problem.id for problem in after[:2]}) == 2
        assert tasks.fingerprint(rest) == tasks.fingerprint(task)


@dataclass(frozen=True, slots=True)
class Own:
    """A task of the caller's, without room for more."""

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem(str(index % 3), f"What is {index % 3}+1?", str(index % 3 + 1))

    def size(self, split: str) -> int:
        return 3

    def grade(self, problem: Problem, text: str) -> Grade:
        return answers.grade(text, problem.answer)


def test_any_task_can_be_asked_for_the_rest() -> None:
    task: Any = Own()
    rest = without(task, draw(task, Sampling(examples=2)))
    assert {rest.problem("train", 0, index).question for index in range(9)} == {"What is 2+1?"}
    assert (rest.size("train"), str(rest), isinstance(rest, tasks.Task)) == (3, "Own()", True)


def test_long_prompts_and_curricula_leave_the_examples_out() -> None:
    rows = [*ROWS, {"question": "What is " + "1+" * 300 + "1?", "answer": 301}]
    task = given([row | {"difficulty": place} for place, row in enumerate(rows)])
    sampling = Sampling(examples=3, examples_seed=3, long_prompts="skip")
    shown = draw(task, sampling)
    sizes = Sizes(load("tiny").tokenizer, sampling, shown)
    rest = without(sizes.settle(task, []), shown)
    assert (rest.size("train"), rest.size("test")) == (7, 1)
    assert "more than 512 tokens (max_prompt_tokens, with 3 worked examples): 1 of 12" in "".join(
        tasks.notes(rest)
    )
    worse = replace(sampling, examples_seed=0)  # the long one is an example
    with pytest.raises(
        UserError,
        match=r"with 3 worked examples\): 12 of 12, .* has 1307; --max-prompt-tokens 1307 takes them$",
    ):
        replace(sizes, sampling=worse, examples=draw(task, worse)).settle(task, [])
    order = curricula.parse("easy_to_hard(stages=2)").begin(rest, 0)
    found = {p.question for progress in (0.0, 0.9) for p in order.next(30, progress)}
    assert found == {row["question"] for row in ROWS} - dict(shown).keys()


def test_nothing_is_left_to_train_on() -> None:
    shown = tuple((f"What is {a}+{b}?", "") for a in range(5) for b in range(5))
    for task in (given(ROWS[:2]), tasks.parse("addition(below=5)")):
        with pytest.raises(UserError, match="all train problems are worked examples"):
            without(task, shown).problem("train", 0, 0)


SHOWN = (("one", "<a> 1"), ("two", "<a> 2"))
TAGS = " The reasoning process and the answer are enclosed"


@pytest.mark.parametrize(
    ("template", "begins", "ends"),
    [
        ("plain", "one\n<a> 1\n\ntwo\n<a> 2\n\n", "plus\n"),
        (
            "r1_zero",
            R1_ZERO + TAGS,
            ".\nUser: one\nAssistant: <a> 1\nUser: two\nAssistant: <a> 2\nUser: plus\nAssistant:",
        ),
        ("chat", "<user> one\n\nThe reasoning", "<assistant> <a> 2 <user> plus\n\nThe"),
    ],
)
def test_examples_are_earlier_turns(template: Any, begins: str, ends: str) -> None:
    tokenizer = tokenizer_of(False, TEMPLATE.replace("{{ begin }}", ""))
    text = prompt_text("plus", tokenizer, Sampling(template=template, examples=2), SHOWN)
    assert text.startswith(begins)
    assert text.endswith(ends) if template != "chat" else text.count(ends) == 1
    short = Sampling(template=template, examples=2, max_prompt_tokens=5)
    with pytest.raises(UserError, match=r"tokens \(with 2 worked examples\), more than"):
        encode(Problem("a", "plus", "1"), tokenizer, short, SHOWN)


LAST_ONLY = "<user> {{ messages[-1].content }} <assistant>"
NO_THOUGHT = (
    "{% for m in messages %}<{{ m.role }}>"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            PARTS,
            "[user]one[assistant]<a> 1[user]two[assistant]<think> 2 </think> b[user]plus[assistant]",
        ),
        (LAST_ONLY, "<user> one\n\n<a> 1\n\ntwo\n\n<think> 2 </think> b\n\nplus <assistant>"),
        (NO_THOUGHT, "<user>one\n\n<a> 1\n\ntwo\n\n<think> 2 </think> b\n\nplus"),
    ],
)
def test_a_template_that_drops_turns_gets_one(template: str, text: str) -> None:
    shown = (SHOWN[0], ("two", "<think> 2 </think> b"))
    sampling = Sampling(style="none", examples=2)
    assert prompt_text("plus", tokenizer_of(False, template), sampling, shown) == text


def test_training_and_evaluation_show_the_same_examples(tmp_path: Path) -> None:
    sampling = Sampling(examples=2, max_tokens=4)
    session = prepare(TrainConfig(task="addition(below=5)", sampling=sampling, seed=3))
    tokenizer, shown = session.policy.tokenizer, session.examples
    assert shown == draw(session.task, sampling)
    assert record(session, tmp_path)["examples"] == list(shown)
    # 48 tokens of examples, which the planner counts.
    bare = replace(session.config, sampling=replace(sampling, examples=0))
    assert [prompt_tokens(c) for c in (bare, session.config)] == [(8, 8), (56, 56)]
    before = "".join(f"{question}\n{answer}\n" for question, answer in shown)
    problems = session.order.next(60, 0.0)
    assert not {p.question for p in problems} & dict(shown).keys()
    assert (
        tokenizer.decode(encode(problems[0], tokenizer, sampling, shown))
        == before + problems[0].question + "\n"
    )

    class Asked(Exception):
        pass

    class Policy:
        def __init__(self) -> None:
            self.tokenizer = tokenizer

        def sample(self, prompts: Any, *_: Any, **__: Any) -> Any:
            raise Asked(prompts)

    for split in ("test", "tune", "train"):
        with pytest.raises(Asked) as found:
            evaluate(Policy(), session.task, sampling, split, num_problems=4)  # type: ignore[arg-type]
        texts = [tokenizer.decode(prompt) for prompt in found.value.args[0]]
        assert all(text.startswith(before) for text in texts)
        assert not {text.removeprefix(before)[:-1] for text in texts} & dict(shown).keys()
