"""Finding and comparing answers: the shared cases, our policies, and hostile texts."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest

from cases import load
from modicum import answers
from modicum.tasks.arithmetic import Arithmetic, Countdown
from modicum.types import UserError

# Nothing is marked in these: the lenient verdict finds the answer, the strict one does not.
PATIENCE = 60.0  # seconds: a busy machine may need more than the default limit
UNMARKED = {"EX-09", "EX-12"}


def each(fn: str) -> pytest.MarkDecorator:
    cases = load(fn)
    names = [f"{case['id']}-{place}" for place, case in enumerate(cases)]
    return pytest.mark.parametrize("case", cases, ids=names)


@each("equiv")
def test_equal(case: dict[str, Any]) -> None:
    given = case["input"]
    assert answers.equal(given["gold"], given["pred"], True, PATIENCE) is case["expected"]


@each("score_completion")
def test_grade(case: dict[str, Any]) -> None:
    verdict = answers.grade(case["input"]["completion"], case["input"]["gold"], True, PATIENCE)
    assert verdict.lenient is bool(case["expected"])
    assert verdict.strict is (bool(case["expected"]) and case["id"] not in UNMARKED)


@each("score_batch")
def test_grade_of_a_batch(case: dict[str, Any]) -> None:
    pairs = zip(case["input"]["completions"], case["input"]["golds"], strict=True)
    assert [int(answers.grade(text, gold).strict) for text, gold in pairs] == case["expected"]


@each("countdown")
def test_countdown(case: dict[str, Any]) -> None:
    given = case["input"]
    got = answers.countdown(given["answer"], given["numbers"], given["target"])
    assert got is case["expected"]


@each("score_countdown_completion")
def test_grade_countdown(case: dict[str, Any]) -> None:
    given = case["input"]
    grade = answers.grade_countdown(given["completion"], given["numbers"], given["target"])
    assert grade.strict is grade.lenient is bool(case["expected"])


@each("format_ok")
def test_format_ok(case: dict[str, Any]) -> None:
    assert answers.format_ok(case["input"]) is bool(case["expected"])


@each("gold_from_gsm8k")
def test_gold_from_gsm8k(case: dict[str, Any]) -> None:
    assert answers.gold_from_gsm8k(case["input"]) == case["expected"]


@pytest.mark.parametrize("solution", ["", "72", "#### ", "#### none", "####\n"])
def test_gsm8k_without_a_number(solution: str) -> None:
    with pytest.raises(UserError, match="no number follows"):
        answers.gold_from_gsm8k(solution)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,080", "1080"),
        ("1,234,567.5", "1234567.5"),
        (r"\dfrac12", "1/2"),
        (r"-\frac{-3}{4}", "3/4"),
        ("\u22127", "-7"),
        ("-$5", "-5"),
        (r"-3\frac{1}{2}", "-7/2"),
        ("3 1/2", "7/2"),
        (r"12\%", "12"),
        ("5 cm^2", "5"),
        (r"5\text{ cm}^2", "5"),
        ("60 km/h", "60"),
        (".5", "1/2"),
        ("2^{-2}", "1/4"),
        ("2^(-2)", "1/4"),
        ("6.5*10**-3", "0.0065"),
        ("6.5 x 10^(-3)", "0.0065"),
        ("5 million", "5000000"),
        (r"0.1\overline{6}", "1/6"),
        ("0.(12)", "4/33"),
        ("0.333...", "1/3"),
        ("-2^2", "-4"),
    ],
)
def test_number(text: str, value: str) -> None:
    assert answers.number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "²", "٣", "1_000", "1e999999", "10^{99999}", "9" * 1001, "1/0", r"\frac{1}{0}"),
        *("--5", "+-5", "1,00", "10,11", "1.2.3", "12:00", "0x10", "nan", "inf", "1\x00", "2i"),
        *("5 hundred", "5 squared", "3 or 4", "5xy", "2 pi", "2x", r"5\mathrm{i}", "5!", "0^0"),
        *("1+1", "2*3", "12+45-7", "(5)", "1,2", "6/3/2", "3**2"),
    ],
)
def test_no_number(text: str) -> None:
    assert answers.number(text) is None


def test_repeating_the_question_scores_nothing() -> None:
    task = Arithmetic()
    for index in range(20):
        problem = task.problem("train", 0, index)
        asked = problem.question.removeprefix("What is ").removesuffix("?")
        assert task.grade(problem, f"<answer>{problem.answer}</answer>").strict
        assert not task.grade(problem, f"<answer>{asked}</answer>").lenient


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("50%", "0.5", True),
        ("50", "50%", True),
        ("50%", "5000", False),
        ("5 seconds", "5 minutes", False),
        ("5 seconds", "5 second", True),
        ("2/3", "0.666666", True),
        ("2/3", "0.666667", True),
        ("2/3", "0.66667", False),
        ("2/3", "0.666668", False),
        ("2/3", "0.666665", False),
        ("1/4", "0.250001", False),
        ("5", r"\text{5 apples}", True),
        ("5", "5,", True),
        ("5", "*5*", True),
        ("5", "`5`", True),
        ("5", "__5__", True),
        ("1250", r"\$1{,}250", True),
        (r"1250", r"1,\! 250", True),
        ("12", "1 2", False),
        ("12", r"1\,2", False),
        (r"\frac{1}{2}", "½", True),
        ("1.5", "1½", True),
        ("0.001", "10⁻³", True),
        ("5", "5 tenths", False),
        (r"9 \text{ m/s}^2", "9 meters per second squared", True),
        (r"x \le -2 \text{ or } x \ge 5", r"(-\infty,-2] \cup [5,\infty)", True),
        (r"x < 5 \text{ cm}", r"x < 5 \text{ m}", False),
        (r"(0, 10^{400}) \cup (1, 2)", r"(0, 10^{400})", True),
        ("(2, 4)", "y = 4, x = 2", True),
        ("(2, 4)", "y = 2, x = 4", False),
        ("3, -1", "x_1 = -1, x_2 = 3", True),
        ("3, -1", "x_1 = -1, x_2 = 2", False),
        (r"\frac{\pi}{3}", r"\frac{\pi}{3}^\circ", False),
        ("5", "2+3=5", False),
        ("0.666667", "2/3", False),
        ("1,1,2", "2,1,1", True),
        ("1,2,2", "1,1,2", False),
        ("x=1, x=2", "2, 1", True),
        ("(1,2)", "(2,1)", False),
        ("(0.5, 3)", r"\left(\frac12, 3\right)", True),
        (r"\pm 2", "2, -2", True),
        ("x=3", "y=3", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
        (r"A \cup ", r"\cup \cup", False),
        (r"\emptyset", "{}", True),
        ("0", "{}", False),
        ("x", "X", False),
    ],
)
def test_policies_of_equal(gold: str, answer: str, same: bool) -> None:
    assert answers.equal(gold, answer) is same


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (r"\boxed{1} <answer>2</answer> #### 3", "2", "2"),
        (r"#### 3 and \boxed{1}", "1", "1"),
        ("#### Step 1\n#### 1. First, add\n#### **42**", "**42**", "**42**"),
        (r"\boxed{3}, then \boxed{4", "3", "3"),
        ("<answer></answer> 42", "", ""),
        ("<answer>42", None, None),
        ("<think>5</think> so 7", None, "7"),
        ("5 <think> 7", None, "5"),
        ("<answer>1</answer></think>", None, None),
        ("9-4=5.", None, "5"),
        ("it is -5", None, "-5"),
        ("The answer is 1,234 apples, not 5", None, "1,234"),
        ("Answer: x+1", None, "x+1"),
        (r"Hence the value is \fbox{42}.", "42", "42"),
        (r"\fbox {42}", "42", "42"),
        (r"\framebox{4{2}}", "4{2}", "4{2}"),
        (r"\boxed{5}, no: \fbox{42}", "42", "42"),
        (r"\fbox{42}, no: \boxed{5}", "5", "5"),
        (r"\fbox 42.", "42", "42"),
        (r"so 7, and \fbox{4", None, None),
        ("Answer: 5 or 6", None, "5 or 6"),
        ("no idea", None, None),
    ],
)
def test_what_is_read(text: str, strict: str | None, lenient: str | None) -> None:
    assert answers.extract(text) == strict
    assert answers.extract_lenient(text) == lenient


NEXT = "What is 3+4?"
TAGGED = "<think> 2+2 is 4 </think> <answer> 4 </answer>"


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        # A turn that the model makes up after its answer is not read.
        (f"We get \\boxed{{3}}.\nUser: {NEXT}\nAssistant: \\boxed{{7}}", "3", "3"),
        (f"{TAGGED}\nUser: {NEXT}\nAssistant: <think> 7 </think> <answer> 7 </answer>", "4", "4"),
        (f"2+2. </think> <answer>4</answer>\nUser: {NEXT}\n</think> <answer>7</answer>", "4", "4"),
        (f"{TAGGED} User: {NEXT} Assistant: <answer> 7 </answer>", "4", "4"),
        (f"{TAGGED}\nA conversation between User and Assistant. <answer>7</answer>", "4", "4"),
        ("\\boxed{3}\n\n**Question 2:** x\n\\boxed{4}", "3", "3"),
        ("\\boxed{3}\n### Problem\nx\n\\boxed{4}", "3", "3"),
        ("\\boxed{3}\nUser Question: x\n\\boxed{4}", "3", "3"),
        ("\\boxed{3}\n\nExample 2:\nx\n\\boxed{4}", "3", "3"),
        ("\\boxed{3}\nInput: x\nOutput: \\boxed{4}", "3", "3"),
        ("For example, \\boxed{3}\nis one, and the input 5 gives \\boxed{4}", "4", "4"),
        ("\\boxed{3}\nHuman: x\n\\boxed{4", "3", "3"),
        ("\\boxed{3}\nuser\nx\nassistant\n\\boxed{4}", "3", "3"),
        ("\\boxed{3}<|im_end|>\n<|im_start|>user\nx<|im_start|>assistant\n\\boxed{4}", "3", "3"),
        ("\\boxed{3} [INST] x [/INST] \\boxed{4}", "3", "3"),
        ("\\boxed 3\n<end_of_turn>\n<start_of_turn>user\n\\boxed{4}", "3", "3"),
        ("<answer></answer>\nUser: x\n<answer>7</answer>", "", ""),
        (f"The answer is 4.\nHuman: {NEXT}\nAssistant: \\boxed{{7}}", None, "4."),
        (f"Question: 2+2?\nAnswer: 4\n\nQuestion: {NEXT}\nAnswer: 7", None, "4"),
        (f"It comes to 72\nUser: {NEXT}\nAssistant: It is 7", None, "72"),
        # So is thinking anew after a marked answer.
        (f"{TAGGED} <think> it is 7 </think> <answer> 7 </answer>", "4", "4"),
        ("2+2</think> \\boxed{4}\n<think>3+4</think> \\boxed{7}", "4", "4"),
        (f"{TAGGED}\n<think> 3+4 is 7, \\boxed{{7}}", "4", "4"),
        # Its own turn is read to the end.
        ("<answer>1</answer>, no: <answer>2</answer>", "2", "2"),
        ("The answer is 4? <think> no </think> \\boxed{5}", "5", "5"),
        (r"We get \boxed{3}. Wait, no: \boxed{5}", "5", "5"),
        ("\\boxed{3}\nThe question asks for more.\n\\boxed{5}", "5", "5"),
        ("\\boxed{3} is the question: is it\n\\boxed{5}", "5", "5"),
        ("User: 5 apples\nServer: 3 apples\nSo \\boxed{8}", "8", "8"),
        ("There are 3.\nUser: 5 apples\nServer: 2\nSo 7", None, "7"),
        ("Question: What is 2+2?\nAnswer: 4", None, "4"),
        ("Question: What is 2+2?\nAnswer: We add.\nQuestion: how?\n\\boxed{4}", "4", "4"),
        ("Assistant: the sum is \\boxed{3}", "3", "3"),
        ("<|im_start|>assistant\n\\boxed{3}", "3", "3"),
        ("<think> maybe \\boxed{3}\nUser: 5\n</think> <answer>5</answer>", "5", "5"),
        ("maybe \\boxed{3}\nUser: 5\n</think> <answer>5</answer>", "5", "5"),
    ],
)
def test_made_up_turns_are_not_read(text: str, strict: str | None, lenient: str | None) -> None:
    assert answers.extract(text) == strict
    assert answers.extract_lenient(text) == lenient


@pytest.mark.parametrize(
    ("text", "strict"),
    [
        ("<think>\nmaybe \\boxed{4}, but let me check again", None),
        ("[THINK]maybe \\boxed{4}[/THINK] it is \\boxed{5}", "5"),
        ("[THINK]maybe \\boxed{4}", None),
        ("<seed:think>\\boxed{4}</seed:think>\\boxed{5}", "5"),
        ("<thinking>\\boxed{4}", None),
        ("maybe \\boxed{4}</reasoning>\\boxed{5}", "5"),
        ("<|channel|>analysis<|message|>\\boxed{4}", None),
        ("<|channel|>analysis<|message|>4assistant<|channel|>final<|message|>\\boxed{5}", "5"),
        ("<|channel>thought\n\\boxed{4}", None),
        ("<|channel>thought\n<channel|>\\boxed{5}", "5"),
        # What does not close what was opened is a word of the thinking.
        ("<think> write </reasoning>, maybe \\boxed{4}, but", None),
        ("<think> in <thinking> tags </think> \\boxed{5}", "5"),
        ("<think> a <think> b </think> \\boxed{5}", "5"),
    ],
)
def test_what_is_thought_is_no_answer(text: str, strict: str | None) -> None:
    assert answers.extract(text) == answers.extract_lenient(text) == strict


def test_the_form_of_tags_with_other_marks_of_thinking() -> None:
    assert answers.format_ok("[THINK]2+2[/THINK] <answer>4</answer>")
    assert not answers.format_ok("[THINK]2+2</think> <answer>4</answer>")
    assert not answers.format_ok("2+2[/THINK] <answer>4</answer>")
    assert not answers.format_ok("<think>2+2</think> <think>4</think> <answer>4</answer>")


def test_countdown_does_not_read_made_up_turns() -> None:
    text = "<answer>3*8</answer>\nUser: again\nAssistant: <answer>8-3</answer>"
    assert answers.grade_countdown(text, [3, 8], 24).strict
    assert not answers.grade_countdown(text, [3, 8], 5).lenient


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("-3+11", True),
        ("(-3)+11", True),
        (r"\boxed{11-3}", True),
        ("$11 - 3 = 8$", True),
        ("11-3=8=8", False),
        ("11--3", False),
        ("+11-3", False),
        ("11-03", False),
        ("11-3.0", False),
        ("11-\u0663", False),
        ("11-3\x00", False),
        ("11 3", False),
        ("11 - 3 == 8", True),
        ("11\n-3", True),
        ("11 - 3)*(1", False),
        ("11-3,", True),
        ("11-3,8", False),
        ("11-3if 1", False),
        ("[11-3]", False),
    ],
)
def test_countdown_grammar(expression: str, right: bool) -> None:
    assert answers.countdown(expression, [3, 11], 8) is right


@pytest.mark.parametrize(
    "gold",
    [
        *("5", "-5", "1,080", r"\text{Monday}", "(C)", r"\frac{1}{2}", r"\emptyset", r"\{\}", "∅"),
        *(
            "x+1",
            "<",
            r"\{1, 2\}",
            "no solution",
            r"\frac{1}{0}",
            r"\boxed{5}",
            "$5$",
            "α",
            "12:30",
        ),
    ],
)
def test_golds_that_are_answers(gold: str) -> None:
    assert answers.check_gold(gold) == gold


@pytest.mark.parametrize(
    ("gold", "fault"),
    [
        *(
            (text, "no content")
            for text in ("", "  ", "$$", ".", r"\text{}", r"\boxed{}", "-", "()")
        ),
        *((text, "braces") for text in (r"\frac{1}{2", "}5{", "{", r"\text{a}}")),
        *((text, "without its argument") for text in (r"\frac", r"\sqrt", r"2+\dfrac")),
        ("7" * 1001, "longer than 1000"),
    ],
)
def test_golds_that_are_none(gold: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        answers.check_gold(gold)


def test_countdown_of_the_task_scores() -> None:
    task = Countdown()
    for index in range(30):
        problem = task.problem("test", 3, index)
        assert task.grade(problem, f"<answer>{problem.answer}</answer>").strict
        unmarked = task.grade(problem, f"I try.\n{problem.answer}")
        assert unmarked.lenient and not unmarked.strict
        assert not task.grade(problem, f"<answer>{problem.answer}+0</answer>").lenient


LONG = 100_000
PIECES = [
    *(
        "{",
        "}",
        "$",
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "(",
        "[",
        "((",
        "()",
        "-",
        "#",
    ),
    *(
        "User:\n",
        "\\boxed{3}\nUser",
        "</think>\nQ:",
        "<think></think>User:",
        "<|a ",
        "answer is 3\n",
    ),
    *(r"\boxed{", r"\boxed ", r"\frac", r"\frac{", r"{\frac{1}", "#### ", "#", "\\", "\x00", " "),
    *(
        r"1\!",
        r"1,\!",
        r"1,\! 111",
        r"\\[",
        r"(\begin{array}",
        r"\fbox{",
        "oo ",
        "½",
        "⁻",
        "==",
        "!=",
    ),
    *(r"k \in \mathbb{Z}", " k integer", r"x < 1 \text{ or }", r"\setminus \{1\}", "[[1],", "{1,"),
    *("x_1=", "E: ", "(A) or ", r"\le", "f(", "1 to ", "all real numbers except "),
    *("1", "1,", "1,111", "1/", "1.", "9^", "9**", "9^{", "e9", "x=", r"x\in ", r"\pm", r"\cup "),
    *(
        "answer is ",
        "answer: 1 ",
        "Answer:",
        "*",
        "_",
        r"\text{",
        r"\text{a}",
        "a ",
        "and ",
        "\u2212",
    ),
]
SIZES = [40, 999, LONG]


@pytest.mark.parametrize("piece", PIECES)
def test_long_texts_cost_nothing(piece: str) -> None:
    start = time.process_time()
    for size in SIZES:
        text = (piece * size)[:size]
        assert not answers.grade(text, "x=2").strict
        assert not answers.grade(f"<answer>{text}</answer>", "x=2").strict
        assert not answers.grade_countdown(f"<answer>{text}</answer>", [2, 3], 5).strict
        assert not answers.equal("7", "1" + text + "x")
        answers.equal(text, text[1:])
        answers.number(text)
        answers.grade(f"{text} 5 {text}", "(1,2)")
        answers.format_ok(text)
    assert time.process_time() - start < 2.0, "for 24 readings, of which 8 are long"


def test_lists_that_are_hard_to_pair_cost_nothing() -> None:
    start = time.process_time()
    inner = r"\{" + ",".join("abcdefgh") + r"\}"
    gold = ",".join(inner.replace("h", f"h{n}") for n in range(12))
    answer = ",".join(inner.replace("a", f"a{n}") for n in range(12))
    assert not answers.equal(gold, answer)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('false')",
        "9**9**9**9",
        "().__class__.__base__.__subclasses__()",
        "(" * 5000 + "1" + ")" * 5000,
        "1" * 5000,
        "1e" + "9" * 400,
        r"5^{(5^{(5^{(5^5)})} - 4)}",
        "\ud800",
        "\x00" * 10,
        r"x \text{}",
        "x_",
    ],
)
def test_code_and_towers_are_plain_wrong(text: str) -> None:
    assert not answers.equal("5", text)
    assert not answers.countdown(text, [9, 9], 81)
    assert not answers.grade(rf"\boxed{{{text}}}", "5").strict
