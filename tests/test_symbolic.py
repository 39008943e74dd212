"""Algebra: equal and unequal formulas, hostile ones, and the child process that reads them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from modicum import answers
from modicum.child import Child
from modicum.grading import equivalence, latex

DATA = Path(__file__).parent / "data"
# A busy machine may need longer than the default limit for an honest comparison.
PATIENCE = 60.0
SIGNS = {" === ": True, " =/= ": False}


def sections(name: str = "answer_pairs.txt") -> dict[str, list[str]]:
    """The pairs of answers of a file by the heading above them."""
    found: dict[str, list[str]] = {}
    for line in (DATA / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            found[line[3:]] = []
        elif line and not line.startswith("#"):
            list(found.values())[-1].append(line)
    return found


def wrong(lines: list[str], only: bool | None = None) -> list[str]:
    """The pairs with another verdict than the sign between them says."""
    failed = []
    for line in lines:
        (sign,) = [sign for sign in SIGNS if sign in line]
        gold, answer = line.split(sign)
        if (
            only in (None, SIGNS[sign])
            and answers.equal(gold, answer, True, PATIENCE) is not SIGNS[sign]
        ):
            failed.append(line)
    return failed


@pytest.mark.parametrize("section", sections())
def test_pairs_of_answers(section: str) -> None:
    assert wrong(sections()[section]) == []


def test_there_are_both_kinds_of_pairs() -> None:
    lines = [line for section in sections().values() for line in section]
    counts = {sign: sum(sign in line for line in lines) for sign in SIGNS}
    assert sum(counts.values()) == len(lines) > 300
    assert min(counts.values()) > 100


@pytest.mark.parametrize("section", sections("near_misses.txt"))
def test_no_near_miss_is_accepted(section: str) -> None:
    assert wrong(sections("near_misses.txt")[section]) == []


def test_there_are_many_near_misses() -> None:
    lines = [line for lines in sections("near_misses.txt").values() for line in lines]
    assert len(set(lines)) == len(lines) > 350
    assert all(" =/= " in line for line in lines)


def test_equality_is_mutual_where_nothing_is_rounded_or_calculated() -> None:
    """Swapped, the pairs of formulas without a plain number on one side stay as they are."""
    for section in ("Polynomials, factors, fractions of them", "Equations", "Matrices"):
        for line in sections()[section]:
            (sign,) = [sign for sign in SIGNS if sign in line]
            gold, answer = line.split(sign)
            assert answers.equal(answer, gold, True, PATIENCE) is SIGNS[sign], line


def test_without_symbolic_formulas_stay_apart() -> None:
    assert not answers.equal("x+1", "1+x")
    assert not answers.grade(r"\boxed{1+x}", "x+1").strict
    assert answers.grade(r"\boxed{1+x}", "x+1", symbolic=True).strict
    assert answers.grade(r"Answer: 1+x", "x+1", symbolic=True).lenient


# Reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("-x^2", ("neg", ("pow", ("var", "x"), ("num", 2)))),
        (r"2\frac12", ("num", 2.5)),
        (r"2\frac x3", ("mul", ("num", 2), ("div", ("var", "x"), ("num", 3)))),
        (r"\sin 2x", ("fn", "sin", ("mul", ("num", 2), ("var", "x")))),
        ("x_{12}", ("var", "x_12")),
        (r"|x|", ("fn", "abs", ("var", "x"))),
        (r"\log_2 8", ("fn", "log", ("num", 8), ("num", 2))),
    ],
)
def test_trees(text: str, tree: object) -> None:
    assert latex.parse(text).sides == (tree,)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x+", "(x", "x)", "a/bc", "Monday", "dog", "204_5", "(1,200)", "1 2", r"\frac{1}"),
        *("f(x+1)", "g(x)", "g(", "AB", "5!!", "x_{", "x_+_", "log(1,2,3)", "sin(1,2)"),
        *(
            "1/2/3",
            r"\int x",
            r"\infty",
            "x;y",
            "\x00",
            "\ud800",
            "x\u0663",
            "|x",
            "__import__('os')",
        ),
        *("(" * 400 + "x" + ")" * 400, "x+" * 400 + "x", r"\sqrt" * 150 + "2", "{" * 500),
    ],
)
def test_what_is_not_read(text: str) -> None:
    with pytest.raises(latex.Unreadable):
        latex.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *("9^9^9^9", "9**9**9**9", r"10^{10^{10}}", "((2^{9999})^{9999})^{9999}", "(10^9)!"),
        *(r"e^{e^{e^{e^e}}}", r"\sin(10^{1000})", r"\binom{10^9}{10^8}", "1.5^{3.7^{99.1}}"),
        *("(10^9+x)!", r"\sqrt[100000]{2+x}", "10^{50000}+x", "e^{1000}+1"),
    ],
)
def test_numbers_that_are_too_large_cost_nothing(text: str) -> None:
    start = time.process_time()
    try:
        assert not equivalence.same_formula("y+1", text)
        assert not equivalence.same_formula(r"\sqrt{7}", text)
    except latex.TooLarge:
        pass
    assert time.process_time() - start < 0.5


# The child -------------------------------------------------------------------------------

HOSTILE = [
    "__import__('os').system('false')",
    "().__class__.__base__.__subclasses__()",
    "9" * 10**6,
    "(" * 10**5 + "1" + ")" * 10**5,
    "factorial(10**9)",
    "x^" * 400 + "x",
    "1/" * 400 + "1",
    r"\frac" * 190,
    r"\begin{pmatrix}" + "1&" * 400 + r"\end{pmatrix}",
    ",".join(f"x+{n}" for n in range(140)),
    r"\cup".join(f"(0,{n}+x)" for n in range(90)),
    r"\mathbb{R} \setminus \{" + ",".join(rf"\sqrt{{{n}}}" for n in range(80)) + r"\}",
    r"(0, 10^{10^{10}}) \cup (0, 9^{9^9})",
    " " * 900 + r"k \in \mathbb{Z}",
    "x" + "+x" * 490,
    "((((x+1)^{99})^{99})^{99})^{99}",
    "\x00",
    "\ud800 + x",
]


@pytest.fixture
def fresh() -> Iterator[None]:
    answers.child.close()
    answers.by_algebra.cache_clear()
    yield
    answers.child.close()
    answers.by_algebra.cache_clear()


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def waits_until_gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and is_alive(pid):
        time.sleep(0.01)
    return not is_alive(pid)


def children() -> list[int]:
    process = answers.child.process
    return [] if process is None else [process.pid]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_wrong_at_once(text: str) -> None:
    start = time.process_time()
    for gold in ("5", r"\frac{x^2}{3}", "x+1, x+2, x+3"):
        assert not answers.equal(gold, text, symbolic=True)
        assert not answers.grade(rf"\boxed{{{text}}}", gold, symbolic=True).strict
    assert time.process_time() - start < 1.0


@pytest.mark.usefixtures("fresh")
def test_a_child_over_the_limit_is_killed_and_replaced() -> None:
    assert answers.equal("x+1", "1+x", symbolic=True)
    (first,) = children()
    os.kill(first, signal.SIGSTOP)
    start = time.monotonic()
    assert not answers.equal("x+5", "5+x", symbolic=True, time_limit=0.1)
    assert 0.1 <= time.monotonic() - start < 2
    assert not is_alive(first)
    assert children() == []
    assert answers.equal("x+2", "2+x", symbolic=True)
    second = answers.child.process
    assert second is not None and second.pid != first
    second.kill()  # as the system does when memory runs out
    second.wait()
    assert answers.equal("x+3", "3+x", symbolic=True)


@pytest.mark.usefixtures("fresh")
def test_children_are_recycled_and_verdicts_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_ANSWERS", 2)
    pids = []
    for n in range(4):
        assert answers.equal(f"x+{n}", f"{n}+x", symbolic=True)
        pids.append(children())
    assert [len(running) for running in pids] == [1, 0, 1, 0]
    assert answers.equal("x+3", "3+x", symbolic=True)  # from the cache
    assert children() == []


@pytest.mark.usefixtures("fresh")
def test_what_asks_all_processes_to_end_is_not_for_a_child_that_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = subprocess.Popen

    def begun(*arguments: Any, **options: Any) -> Any:
        process = begin(*arguments, **options)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        return process

    monkeypatch.setattr(subprocess, "Popen", begun)
    child = Child("-c", "print('{}', flush=True); input()")
    assert child.start() is None
    child.close()


def test_an_interrupt_does_not_shift_the_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers.equal("x+1", "1+x", symbolic=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Child, "receive", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        answers.equal("x+2", "2+x", symbolic=True)
    assert children() == []
    assert not answers.equal("x+1", "2+x", symbolic=True)
    assert answers.equal("x+2", "2+x", symbolic=True)


@pytest.mark.usefixtures("fresh")
def test_eight_threads_and_one_bad_answer() -> None:
    texts = [f"{n}+x" for n in range(64)]
    texts[20] = r"9^{9^{9^{9}}}+x"
    with ThreadPoolExecutor(8) as threads:
        right = list(
            threads.map(
                lambda n: answers.grade(rf"\boxed{{{texts[n]}}}", f"x+{n}", True).strict, range(64)
            )
        )
    assert right == [n != 20 for n in range(64)]
    assert len(children()) == 1


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="reads /proc")
def test_the_memory_of_a_child_is_limited() -> None:
    assert answers.equal("x+1", "1+x", symbolic=True)
    (pid,) = children()
    limits = Path(f"/proc/{pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert line.split()[3] == str(equivalence.MAX_MEMORY)


PROGRAM = r"""
import signal, sys, time
del signal.SIGALRM, signal.alarm
from modicum import answers
assert answers.equal(r"\frac{1}{2}", "0.5") and answers.child.process is None
assert answers.equal("x+1", "1+x", symbolic=True)
loaded = {"sympy", "torch", "mpmath", "math_verify"} & set(sys.modules)
assert not loaded, loaded
print(answers.child.process.pid, flush=True)
"""


@pytest.mark.parametrize("end", ["", "raise ValueError", "time.sleep(60)"])
def test_no_child_is_left(end: str, tmp_path: Path) -> None:
    """After the end of a program, after an exception, and after SIGKILL."""
    (tmp_path / "random.py").write_text("raise SystemExit('imported from the working folder')")
    program = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM + end],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert program.stdout is not None
    with program, program.stdout:
        pid = int(program.stdout.readline())
        if "sleep" in end:
            assert is_alive(pid)
            program.kill()
    assert program.returncode == {"": 0, "raise ValueError": 1}.get(end, -signal.SIGKILL)
    assert waits_until_gone(pid)


@pytest.mark.usefixtures("fresh")
def test_a_signal_to_all_processes_leaves_the_child_to_the_run() -> None:
    """A cluster sends SIGTERM to each; the step that the run then ends needs its verdicts."""
    assert answers.equal("x+x", "2*x", True, PATIENCE)
    (child,) = children()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(child, number)
    assert answers.equal("y+y", "2*y", True, PATIENCE)
    assert children() == [child] and is_alive(child)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_what_hangs_ends_at_the_limit_in_a_batch_of_64() -> None:
    """SEC-04, SEC-05: 63 right verdicts, in the limit and a second."""
    gold = r"\sum_{k=1}^{n} k"
    assert answers.equal(gold, r"\frac{n(n+1)}{2}", symbolic=True)
    hang = r"\sum_{k=1}^{10^9} k^k"
    start = time.monotonic()
    assert not answers.equal("x+1", hang, symbolic=True)
    assert time.monotonic() - start < answers.TIME_LIMIT + 1
    start = time.monotonic()
    right = [
        answers.equal(f"x+{n}", hang + "+x" if n == 7 else f"{n}+x", symbolic=True)
        for n in range(64)
    ]
    assert right == [n != 7 for n in range(64)]
    assert time.monotonic() - start < answers.TIME_LIMIT + 1


@pytest.mark.slow
def test_a_child_that_hangs_ends_with_its_parent() -> None:
    code = PROGRAM + r"answers.equal('x+1', r'\sum_{k=1}^{10^9} k^k', True, 12.0)"
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    with program, program.stdout:
        pid = int(program.stdout.readline())
        time.sleep(4)
        assert is_alive(pid)
        program.kill()
    assert waits_until_gone(pid, 60)
