"""Curricula: the contract of every member, and each problem once an epoch."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cases import load
from helpers import Fails, metrics_of, tensors_of
from modicum import cli, curricula, runs, tasks
from modicum.commands import difficulty
from modicum.curricula import CURRICULA, Competence, EasyToHard, Order, Seen, UniformOrder
from modicum.curricula.members import (
    E2H,
    AdaRFT,
    believed,
    informative,
    learnability,
)
from modicum.curricula.orders import ArmOrder
from modicum.engine.policy import Policy
from modicum.tasks.base import Task
from modicum.tasks.examples import without
from modicum.tasks.file import FileTask
from modicum.training.checkpoint import reload
from modicum.training.loop import Observer, train
from modicum.types import SPLITS, Grade, Problem, RunInterrupted, Split, UserError

# A use of each that fits a task of a hundred difficulties.
USES = {name: name for name in CURRICULA} | {
    "adarft": "adarft(rescale=True)",
    "pools": "pools(medium=3, easy=0.5)",
    "placebo": "placebo(easy_to_hard)",
}
MEMBERS = sorted(USES.values())


@pytest.fixture
def nine(tmp_path: Path) -> FileTask:
    """A file of which exactly nine problems fall into the train split."""
    path = tmp_path / "problems.jsonl"
    lines: list[str] = []
    while not lines or FileTask(str(path)).size("train") != 9:
        number = len(lines)
        row = {"question": f"q{number}", "answer": str(number), "level": number}
        lines.append(json.dumps(row))
        path.write_text("\n".join(lines) + "\n")
    return FileTask(str(path), difficulty="level")


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_comes_back_from_its_expression(name: str) -> None:
    made = curricula.parse(name)
    assert curricula.parse(str(made)) == made


class Cycle:
    """A train split of problems of given difficulties, in their order again and again."""

    def __init__(self, difficulties: Sequence[float | None], ends: bool = True) -> None:
        self.difficulties, self.ends = difficulties, ends

    def __str__(self) -> str:
        return "cycle"

    def size(self, split: Split) -> int | None:
        return len(self.difficulties) if self.ends else None

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        place = index % len(self.difficulties)
        number = place if self.ends else index
        return Problem(f"{split}/{number}", f"q{number}", "1", self.difficulties[place])

    def grade(self, problem: Problem, text: str) -> Grade:
        raise AssertionError("no curriculum grades")


def task_of(name: str) -> Task:
    """A task that the member's expression fits."""
    with_history = ("prioritized", "pools", "e2h", "bandit", "adarft")
    ends = name.startswith(with_history)
    return Cycle([float(i * 37 % 100) for i in range(100)], ends)


def seen_of(problems: Sequence[Problem], right: int = 1) -> list[Seen]:
    return [Seen(p, (1.0, 0.0, float("nan")), right, 2) for p in problems]


# Worked out by hand: the difficulties of a task's problems, again and again in this order, and for
# every draw what is asked for (count, progress) and the difficulties of what must come.
EXAMPLES: dict[str, tuple[list[float | None], list[tuple[int, float, list[float | None]]]]] = {
    "uniform": (
        [3.0, 1.0, None, 2.0],
        [(3, 0.0, [3.0, 1.0, None]), (3, 0.5, [2.0, 3.0, 1.0]), (1, 0.9, [None])],
    ),
    "easy_to_hard(stages=4)": (
        [4.0, 1.0, 8.0, None, 2.0, 6.0, 3.0, 5.0, 7.0],
        [
            (3, 0.0, [1.0, 2.0, 1.0]),
            (3, 0.24, [2.0, 1.0, 2.0]),
            (3, 0.25, [3.0, 4.0, 1.0]),
            (4, 0.5, [2.0, 6.0, 3.0, 5.0]),
            (5, 0.999, [7.0, 4.0, 1.0, 8.0, None]),
            (2, 1.0, [2.0, 6.0]),
        ],
    ),
    "hard_to_easy(stages=4)": (
        [4.0, 1.0, 8.0, None, 2.0, 6.0, 3.0, 5.0, 7.0],
        [
            (3, 0.0, [8.0, 7.0, 8.0]),
            (4, 0.25, [6.0, 5.0, 7.0, 8.0]),
            (9, 0.99, [None, 2.0, 6.0, 3.0, 5.0, 7.0, 4.0, 1.0, 8.0]),
        ],
    ),
    # c = .2, .7211 and 1 of 10 ranks.
    "competence(c0=0.2, full_at=1)": (
        [4.0, 1.0, 8.0, 9.0, 2.0, 6.0, 3.0, 5.0, 7.0, 10.0],
        [(3, 0.0, [1.0, 2.0, 1.0]), (4, 0.5, [2.0, 6.0, 3.0, 5.0]), (2, 1.0, [7.0, 10.0])],
    ),
    # Half of all answers are right, so the target stays at 0; each problem comes once an epoch.
    "adarft": (
        [40.0, 10.0, 80.0, None, 20.0],
        [(2, 0.0, [10.0, 20.0]), (2, 0.1, [40.0, 80.0]), (3, 0.2, [None, 10.0, 20.0])],
    ),
}


def check_example(text: str) -> None:
    difficulties, draws = EXAMPLES[text]
    order = curricula.parse(text).begin(Cycle(difficulties), 0)
    for count, progress, wanted in draws:
        found = order.next(count, progress)
        assert [p.difficulty for p in found] == wanted, (count, progress)
        order.observe(seen_of(found))


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_example_of_a_member(text: str) -> None:
    check_example(text)


# Those that draw by chance are held to the chances, and to what moves them.
CHANCES = {"e2h", "bandit", "prioritized", "pools", "placebo"}


def test_every_member_has_an_example() -> None:
    assert {text.partition("(")[0] for text in EXAMPLES} | CHANCES == set(CURRICULA)


@pytest.mark.parametrize(
    ("schedule", "u", "wanted"),
    [
        ("cosine", 0.0, [0.5, 0.3333, 0.1667]),
        ("cosine", 0.25, [0.4512, 0.3333, 0.2155]),
        ("cosine", 0.5, [0.3333, 0.3333, 0.3333]),
        ("cosine", 0.75, [0.2155, 0.3333, 0.4512]),
        ("cosine", 1.0, [0.1667, 0.3333, 0.5]),
        ("gaussian", 0.0, [0.6069, 0.2263, 0.1668]),
        ("gaussian", 0.25, [0.2199, 0.5602, 0.2199]),
        ("gaussian", 0.5, [0.1741, 0.4548, 0.3711]),
        ("gaussian", 0.75, [0.1677, 0.3080, 0.5243]),
        ("gaussian", 1.0, [0.1668, 0.2263, 0.6069]),
    ],
)
def test_the_chances_of_e2h(schedule: str, u: float, wanted: list[float]) -> None:
    member = E2H(schedule)  # type: ignore[arg-type]
    assert member.chances(u, 3) == pytest.approx(wanted, abs=5e-5)
    order = member.begin(Cycle([1.0, 2.0, 3.0] * 30), 0)
    drawn = Counter(p.difficulty for _ in range(200) for p in order.next(10, u))
    assert [drawn[level] / 2000 for level in (1.0, 2.0, 3.0)] == pytest.approx(wanted, abs=0.04)


def test_beliefs_and_weights() -> None:
    once = believed((), 2, 8, 0.9)
    assert once == pytest.approx((3.0, 7.0)) and learnability(once, 8) == pytest.approx(
        0.1909, abs=5e-5
    )
    twice = believed(once, 6, 8, 0.9)
    assert twice == pytest.approx((8.8, 8.4))
    assert learnability(twice, 8) == pytest.approx(0.2361, abs=5e-5)
    assert learnability((), 8) == pytest.approx(1 / 6)
    rates = {0.02: 0.1492, 0.05: 0.3366, 0.125: 0.6564, 0.25: 0.8999, 0.5: 0.9922}
    for rate, wanted in rates.items():
        assert informative((rate, 1 - rate), 8) == pytest.approx(wanted, abs=5e-5)


@pytest.mark.parametrize(
    ("power", "wanted"),
    [(1, [0.01, 0.109, 0.2575, 0.505, 1.0]), (2, [0.01, 0.3164, 0.5001, 0.7071, 1.0])],
)
def test_the_share_of_competence(power: float, wanted: list[float]) -> None:
    member = Competence(power=power, c0=0.01, full_at=1)
    found = [member.share(u) for u in (0, 0.1, 0.25, 0.5, 1)]
    assert found == pytest.approx(wanted, abs=5e-5)


def test_the_stages_of_a_thousand_steps() -> None:
    stages = [EasyToHard().stage(step / 1000) for step in (0, 249, 250, 499, 500, 999)]
    assert stages == [0, 0, 1, 1, 2, 3]


def test_the_target_of_adarft() -> None:
    target, found = 0.0, []
    for mean in (0.9, 0.8, 0.3, 0.5):
        target = AdaRFT().moved(target, mean)
        found.append(target)
    assert found == pytest.approx([33.202, 60.054, 41.057, 41.057], abs=5e-4)


def test_a_wrong_rule_fails_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EasyToHard, "stage", lambda self, progress: 0)
    with pytest.raises(AssertionError):
        check_example("easy_to_hard(stages=4)")


@pytest.mark.parametrize("name", MEMBERS)
def test_problems_depend_on_task_and_seed_alone(name: str) -> None:
    task = task_of(name)
    first = curricula.parse(name).begin(task, 3).next(4, 0.0)
    assert first == curricula.parse(name).begin(task, 3).next(4, 0.0)
    assert len(first) == 4


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_resumed_order_is_the_uncut_one(name: str, cut: int) -> None:
    """Its state is JSON, and all that a new order needs."""

    def walk(order: Order, first: int, last: int) -> list[Any]:
        found = []
        for step in range(first, last):
            problems = order.next(3, step / 8)
            order.observe(seen_of(problems, step % 3))
            found += [[p.id for p in problems], order.metrics()]
        return found

    curriculum, task = curricula.parse(name), task_of(name)
    uncut = curriculum.begin(task, 1)
    before = walk(uncut, 0, cut)
    kept = json.loads(json.dumps(uncut.state()))
    resumed = curriculum.begin(task, 1)
    resumed.load(kept)
    assert walk(resumed, cut, 8) == walk(uncut, cut, 8)
    assert walk(curriculum.begin(task, 1), 0, cut) == before


@pytest.mark.parametrize("name", MEMBERS)
def test_metrics_of_an_order_are_explained(name: str) -> None:
    order = curricula.parse(name).begin(task_of(name), 0)
    order.observe(seen_of(order.next(4, 0.5)))
    known = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    for key in order.metrics():
        assert key.startswith("curriculum/") and f"`{key}`" in known


@pytest.mark.parametrize("name", MEMBERS)
def test_problems_come_from_the_train_split(name: str, nine: FileTask) -> None:
    known = {nine.problem("train", 0, index).id for index in range(9)}
    order = curricula.parse(name).begin(nine, 0)
    drawn = [p for step in range(12) for p in order.next(3, min(1.0, step / 6))]
    assert {p.id for p in drawn} == known


def test_equal_difficulties_are_parted_evenly() -> None:
    """Two levels in four stages: a hash decides which of the easy half comes first."""
    task = Cycle([1.0] * 200 + [2.0] * 200)
    parts = []
    for stage in range(4):
        order = curricula.parse("easy_to_hard(cumulative=False)").begin(task, 0)
        parts.append({p.id for p in order.next(100, stage / 4)})
    assert [len(part) for part in parts] == [100] * 4, "each problem once in an epoch of a stage"
    assert len(set.union(*parts)) == 400


@pytest.mark.parametrize(
    "difficulties, word",
    [([None] * 9, "0 have one"), ([1.0, 2.0, None], "2 have one"), ([3.0] * 9, "same difficulty")],
)
def test_a_task_without_enough_difficulties_is_refused(difficulties: Any, word: str) -> None:
    with pytest.raises(UserError, match=word):
        curricula.parse("easy_to_hard").begin(Cycle(difficulties), 0)
    with pytest.raises(UserError, match="stages must be at least 2"):
        curricula.parse("easy_to_hard(stages=1)")


def test_a_run_under_a_curriculum_is_resumed(quick: Any, nine: FileTask, tmp_path: Path) -> None:
    """Cut after two of four steps: problems, metrics and tensors are those of the uncut run."""
    task = f"file({nine.path!r}, difficulty='level')"
    config = replace(quick, task=task, curriculum="easy_to_hard(stages=2)", steps=4)
    train(config)
    stages = [line["curriculum/stage"] for line in runs.read_lines(tmp_path / "run/metrics.jsonl")]
    assert stages == [0, 0, 1, 1]
    cut = replace(config, out=str(tmp_path / "cut"))
    with pytest.raises(RunInterrupted):
        train(cut, StopAfter(2))
    train(cut, resume=True)
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "run")
    assert tensors_of(tmp_path / "cut") == tensors_of(tmp_path / "run")


class StopAfter(Observer):
    """Presses Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, metrics: dict[str, float]) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("case", load("epoch_counts"), ids=lambda case: case["id"])
def test_an_epoch_of_uniform_has_every_problem_once(case: dict, nine: FileTask) -> None:
    given, order = case["input"], curricula.parse("uniform").begin(nine, 0)
    assert given["n_prompts"] == nine.size("train")
    steps = given["n_prompts"] // given["prompts_per_batch"]
    drawn = [
        problem.id
        for step in range(steps)
        for problem in order.next(given["prompts_per_batch"], step / steps)
        for _ in range(given["group"] * given["iterations"])
    ]
    assert set(Counter(drawn).values()) == {case["expected"]["per_prompt"]}
    assert len(drawn) == case["expected"]["total"]


def test_a_checkpoint_without_a_curriculum_is_one_line(quick: Any, fails: Fails) -> None:
    """Its policy can be had; going on is refused, for the order of problems is not known."""
    train(quick)
    run = Path(quick.out)
    (run / "result.json").unlink()
    path = runs.checkpoints(run)[-1] / "state.json"
    state = json.loads(path.read_text())
    del state["curriculum"]
    path.write_text(json.dumps(state))
    assert reload(run).counters.optimizer_steps > 0
    config = ("--config", str(run / "config.toml"), "--out", str(run))
    said = fails("train", *config, "--resume", late=True)
    assert "what the curriculum uniform kept cannot be read (KeyError 'curriculum')" in said


@pytest.mark.parametrize("stages", [22, 49])
def test_every_stage_of_as_many_problems_as_stages_has_one(stages: int) -> None:
    """15 / 22 * 22 is a little below 15 in floating point."""
    task = Cycle([float(n) for n in range(stages)])
    text = f"easy_to_hard(stages={stages}, cumulative=False)"
    for stage in range(stages):
        (problem,) = curricula.parse(text).begin(task, 0).next(1, (stage + 0.5) / stages)
        assert problem.difficulty == stage


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("wrong", [-3, 1.9, True, "4", None])
def test_a_broken_state_is_refused(name: str, wrong: Any) -> None:
    order = curricula.parse(name).begin(task_of(name), 0)
    with pytest.raises((ValueError, TypeError, KeyError)):
        order.load(dict.fromkeys(order.state(), wrong))


def test_a_curriculum_that_gives_too_few_problems_stops_the_run(
    quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = UniformOrder.next
    monkeypatch.setattr(UniformOrder, "next", lambda self, count, u: few(self, count, u)[1:])
    with pytest.raises(UserError, match="uniform gave 1 problems for a step of 2"):
        train(quick)


def test_a_missing_difficulty_may_be_nan() -> None:
    """As in a table of pandas: it is unknown, and no number to sort by."""
    rows = [
        {"question": f"{n}?", "answer": n, "difficulty": float("nan") if n % 2 else n}
        for n in range(40)
    ]
    task = tasks.of(rows)
    found = [task.problem("train", 0, n) for n in range(task.size("train") or 0)]
    assert {p.difficulty for p in found if int(p.answer) % 2} == {None}
    assert all(p.difficulty == float(p.answer) for p in found if not int(p.answer) % 2)
    assert all("difficulty" not in p.data for p in found)


# Levels -----------------------------------------------------------------------------------

LEVELS = "arithmetic(terms=(2, 3, 4))"


def test_a_task_with_levels_takes_them_in_turn() -> None:
    """In every split; each level has the problems that it has alone, and its own grades."""
    task = tasks.parse(LEVELS)
    for split in SPLITS:
        found = [task.problem(split, 5, index) for index in range(6)]
        assert [p.difficulty for p in found] == [2, 3, 4, 2, 3, 4]
        alone = tasks.parse("arithmetic(terms=3)")
        assert found[1::3] == [alone.problem(split, 5, 0), alone.problem(split, 5, 1)]
        assert all(task.grade(p, f"<answer>{p.answer}</answer>").strict for p in found)
    both = tasks.parse("arithmetic(terms=(3, 2), digits=(1, 2))")
    assert [both.problem("train", 0, n).difficulty for n in range(4)] == [2, 3, 4, 6]
    assert str(both) == "arithmetic(terms=(3, 2), digits=(1, 2))"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("arithmetic(terms=(2, 2))", "two to 50 different levels"),
        ("arithmetic(terms=(3,))", "two to 50 different levels"),
        ("arithmetic(terms=())", "two to 50 different levels"),
        ("arithmetic(terms=(1, 2))", "terms must be at least 2 and at most 50, not 1"),
        ("arithmetic(terms=(2, 'x'))", "terms must be a whole number or a list"),
        ("addition(digits=(1, 2), below=20)", "exclude each other"),
        ("countdown(numbers=(2, 11))", "at least 2 and at most 10, not 11"),
        ("gym('chain_sum', level=(0, 101))", "level is 0 to 100"),
    ],
)
def test_levels_that_are_none(text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        tasks.parse(text)


def test_a_level_of_gym_is_graded_as_that_level() -> None:
    task = tasks.parse("gym('chain_sum', level=(0, 2))")
    problem = task.problem("test", 0, 1)
    assert problem == tasks.parse("gym('chain_sum', level=2)").problem("test", 0, 0)
    assert (
        problem.difficulty == 2 and task.grade(problem, f"<answer>{problem.answer}</answer>").strict
    )


def test_worked_examples_leave_a_level_its_problems() -> None:
    """What takes the place of one that is shown is of the same level."""
    task = tasks.parse("addition(digits=(1, 2, 3))")
    rest = without(task, tuple((task.problem("train", 0, n).question, "") for n in range(9)))
    assert [rest.problem("train", 0, n).difficulty for n in range(6)] == [1, 2, 3, 1, 2, 3]
    order = curricula.parse("e2h(schedule=gaussian, width=0.05)").begin(rest, 0)
    drawn = order.next(60, 0.0)
    assert Counter(p.difficulty for p in drawn)[1.0] > 35
    assert not {p.question for p in drawn} & {
        task.problem("train", 0, n).question for n in range(9)
    }


def test_orders_over_levels_go_on_within_each() -> None:
    task = tasks.parse(LEVELS)
    order = curricula.parse("bandit(explore=1)").begin(task, 0)
    drawn = [p for _ in range(4) for p in order.next(6, 0.0)]
    for level in (2, 3, 4):
        own = [p.id.rpartition("/")[2] for p in drawn if p.difficulty == level]
        assert own == [str(n) for n in range(len(own))]


def test_the_bandit_goes_to_the_level_that_is_half_right() -> None:
    order = curricula.parse("bandit").begin(tasks.parse(LEVELS), 0)
    rates = {2.0: 8, 3.0: 4, 4.0: 0}
    for _ in range(30):
        order.observe([Seen(p, (), rates[p.difficulty or 0], 8) for p in order.next(8, 0.0)])
    drawn = Counter(p.difficulty for _ in range(25) for p in order.next(8, 0.0))
    assert drawn[3.0] > 160 and min(drawn[2.0], drawn[4.0]) > 0, "a tenth is of any level"


def test_a_set_with_many_difficulties_has_five_levels_and_the_unknown() -> None:
    levels: list[float | None] = [float(n) for n in range(50)]
    order = curricula.parse("e2h").begin(Cycle([*levels, None, None]), 0)
    assert isinstance(order, ArmOrder) and len(order.arms) == 6
    assert [order.arms[n](0).difficulty for n in range(6)] == [0, 10, 20, 30, 40, None]
    assert order.look(8, 10)[-1] == "e2h: 2 problems have no difficulty, and come last"


def test_prioritized_prefers_what_is_half_right() -> None:
    order = curricula.parse("prioritized(explore=0)").begin(Cycle([float(n) for n in range(40)]), 0)
    for _ in range(60):
        seen = order.next(8, 0.0)
        assert len({p.id for p in seen}) == 8, "without replacement"
        order.observe([Seen(p, (), 4 if (p.difficulty or 0) < 20 else 8, 8) for p in seen])
    drawn = Counter((p.difficulty or 0) < 20 for _ in range(40) for p in order.next(4, 0.0))
    assert drawn[True] > 3 * drawn[False] > 0


def test_pools_weigh_the_last_group() -> None:
    order = curricula.parse("pools(hard=0, medium=3, easy=0)").begin(
        Cycle([float(n) for n in range(6)]), 0
    )
    right = [0, 2, 3, 6, 7, 8]  # up to a quarter of 8 is hard, above three quarters easy
    order.observe([Seen(p, (), right[int(p.difficulty or 0)], 8) for p in order.next(6, 0.0)])
    drawn = set()
    for _ in range(20):
        drawn |= {p.difficulty for p in order.next(2, 0.0)}
        order.observe([])
    assert drawn == {2, 3}


def test_draws_of_one_step_do_not_come_twice() -> None:
    """Also where a step draws again, before it has heard."""
    order = curricula.parse("prioritized").begin(Cycle([float(n) for n in range(10)]), 0)
    found = [p.id for count in (4, 4, 2) for p in order.next(count, 0.0)]
    assert len(set(found)) == 10


def test_adarft_follows_success() -> None:
    levels: list[float | None] = [float(n) for n in range(0, 101, 5)]
    order = curricula.parse("adarft").begin(Cycle(levels), 0)
    first = order.next(2, 0.0)
    assert [p.difficulty for p in first] == [0, 5]
    order.observe([Seen(p, (), 9, 10) for p in first])
    found = order.next(3, 0.0)  # near 33.2
    assert [p.difficulty for p in found] == [35, 30, 40]


def test_a_placebo_has_the_stages_of_the_other_with_other_problems() -> None:
    task = Cycle([float(n) for n in range(100)])
    real, placebo = (
        curricula.parse(text).begin(task, 0) for text in ("easy_to_hard", "placebo(easy_to_hard)")
    )
    found = [{p.difficulty for p in order.next(25, 0.0)} for order in (real, placebo)]
    assert found[0] == set(range(25)), "the easiest quarter"
    assert len(found[1]) == 25 and len(found[1] & found[0]) < 15
    assert placebo.metrics() == {"curriculum/stage": 0}


@pytest.mark.parametrize(
    ("text", "task", "word"),
    [
        ("e2h", "arithmetic(terms=(2, 3))", "at least 3 levels"),
        ("bandit", "arithmetic", "do not come again; bandit and e2h go by levels"),
        ("prioritized", LEVELS, "do not come again"),
        ("adarft", LEVELS, "do not come again"),
        ("hard_to_easy", "arithmetic", "same difficulty"),
        ("e2h(schedule=linear)", "", "known: cosine, gaussian"),
        ("prioritized(weight=x)", "", "known are informative, learnability"),
        ("pools", "", "equal weights are `uniform`"),
        ("competence(c0=0)", "", "c0 must be at least"),
        ("bandit(decay=2)", "", "decay must be at least 0 and at most 1"),
        ("adarft(eta=0)", "", "eta must be"),
        ("placebo(uniform)", "", "does not go by what is easier"),
        ("placebo(bandit)", "", "does not go by what is easier"),
        ("placebo(placebo(e2h))", "", "does not go by what is easier"),
        ("placebo(e2)", "", "did you mean 'e2h'"),
        ("placebo", "", "needs 'curriculum'"),
        ("easy_to_hard(difficulty='none.json')", LEVELS, "none.json is missing"),
    ],
)
def test_what_a_curriculum_cannot_do(text: str, task: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        curricula.parse(text).begin(tasks.parse(task), 0)


@pytest.mark.parametrize("levels", [(0.0, 1.0), (-5.0, 50.0), (0.0, 101.0), (2.0, 8.0)])
def test_adarft_wants_its_scale(levels: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="scale from 0 to 100"):
        curricula.parse("adarft").begin(Cycle([*levels]), 0)
    order = curricula.parse("adarft(rescale=True)").begin(Cycle([*levels]), 0)
    assert isinstance(order, ArmOrder) and order.levels.tolist() == [0, 100]


def test_what_is_known_before_a_run() -> None:
    """Too few open problems, too few visits, and the ends of the scale."""
    task = Cycle([float(n) for n in range(100)])
    with pytest.raises(UserError, match="10 problems are open at first, fewer than 4 batches of 3"):
        curricula.parse("competence").begin(task, 0).look(3, 10)
    first, last = curricula.parse("competence").begin(task, 0).look(2, 10)
    assert first == "competence: the easiest of 100 problems: q0 (0); q1 (1); q2 (2)"
    assert last == "competence: the hardest: q99 (99); q98 (98); q97 (97)"
    order = curricula.parse("prioritized").begin(task, 0)
    assert order.look(10, 30) == []
    (note,) = order.look(10, 20)
    assert "at most 2.0 visits of each of 100 problems, and below 3" in note
    with pytest.raises(UserError, match="a step of 101 needs more than 100"):
        order.look(101, 1)


def test_a_curriculum_that_learns_needs_verdicts(quick: Any, nine: FileTask) -> None:
    config = replace(
        quick, task=f"file({nine.path!r}, difficulty='level')", curriculum="prioritized"
    )
    with pytest.raises(UserError, match="the reward needs the term accuracy, and digits has none"):
        train(config)


@pytest.mark.parametrize("text", ["prioritized", "adarft(rescale=True)", "bandit", "e2h"])
def test_runs_that_learn_are_resumed(text: str, bare: Any, nine: FileTask, tmp_path: Path) -> None:
    config = replace(
        bare,
        task=f"file({nine.path!r}, difficulty='level')",
        reward="accuracy + digits",
        curriculum=text,
    )
    train(config)
    cut = replace(config, out=str(tmp_path / "cut"))
    with pytest.raises(RunInterrupted):
        train(cut, StopAfter(2))
    train(cut, resume=True)
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "run")
    assert tensors_of(tmp_path / "cut") == tensors_of(tmp_path / "run")


def test_the_probe_set_is_the_same_whatever_is_drawn(bare: Any) -> None:
    """At the first step the policies are the same, so the answers are; by default every ten."""
    found = []
    for text in ("competence(full_at=1)", "hard_to_easy"):
        held = replace(bare.evaluation, probe_every=2 if text == "hard_to_easy" else None)
        config = replace(bare, task=LEVELS, curriculum=text, evaluation=held)
        train(config, overwrite=True)
        lines = runs.read_lines(Path(config.out) / "metrics.jsonl")
        found.append([line.get("probe/accuracy") for line in lines])
    assert [value is not None for value in found[0]] == [True, False, False, False]
    assert [value is not None for value in found[1]] == [True, False, True, False]
    assert found[0][0] == found[1][0]
    train(replace(config, curriculum="uniform", evaluation=bare.evaluation), overwrite=True)
    lines = runs.read_lines(Path(config.out) / "metrics.jsonl")
    assert all("probe/accuracy" not in line for line in lines)


# Measured difficulty ------------------------------------------------------------------------


def rates_of(path: Path, rates: dict[str, list[int]], tokens: int = 1000) -> str:
    path.write_text(json.dumps({"base": {"base_hash": "x"}, "tokens": tokens, "rates": rates}))
    return str(path)


def test_levels_by_measured_rates(tmp_path: Path) -> None:
    rates = {"arithmetic(terms=2)": [1, 10], "arithmetic(terms=3)": [9, 10], "arithmetic": [5, 10]}
    path = rates_of(tmp_path / "rates.json", rates)
    text = f"easy_to_hard(stages=3, cumulative=False, difficulty={path!r})"
    order = curricula.parse(text).begin(tasks.parse(LEVELS), 0)
    assert [{p.difficulty for p in order.next(5, u)} for u in (0, 0.4, 0.9)] == [{3}, {4}, {2}]
    state = json.loads(json.dumps(order.state()))
    rates_of(tmp_path / "rates.json", rates | {"arithmetic": [6, 10]})
    with pytest.raises(ValueError, match=r"rates\.json has changed since"):
        curricula.parse(text).begin(tasks.parse(LEVELS), 0).load(state)


@pytest.mark.parametrize(
    "text",
    [
        *("{}", '{"rates": 3}', '{"base": {}, "tokens": 1, "rates": {"a": [1, 0]}}', "[]", "nix"),
        '{"base": {}, "tokens": 1, "rates": {"arithmetic": [3, 2]}}',
        '{"base": {}, "tokens": -5, "rates": {"arithmetic": [1, 2]}}',
    ],
)
def test_a_file_of_another_program_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"rates\.json(:1)?(:| is no file).* (wanted|JSON|written)"):
        curricula.parse(f"e2h(difficulty={str(path)!r})").begin(tasks.parse(LEVELS), 0)


def test_measured_difficulty_is_charged(bare: Any, tmp_path: Path) -> None:
    rates = {"arithmetic(terms=2)": [9, 10], "arithmetic(terms=3)": [5, 10], "arithmetic": [1, 10]}
    path = rates_of(tmp_path / "rates.json", rates)
    told: list[str] = []

    class Told(Observer):
        def note(self, text: str) -> None:
            told.append(text)

    config = replace(bare, task=LEVELS, steps=1, curriculum=f"placebo(e2h(difficulty={path!r}))")
    spent = train(config, Told())["ledger"]
    assert spent["difficulty"] == {"completions": 30, "tokens": 1000}
    assert spent["probe"]["completions"] == 64
    (line,) = runs.read_lines(Path(config.out) / "metrics.jsonl")
    assert line["tokens/generated"] == 1000 + 8 * line["completions/length_mean"]
    assert any(
        "took 1,000 tokens, which count as generated; they are those of another" in t for t in told
    )


def test_difficulty_is_measured_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: Fails,
) -> None:
    """The counts are the sampler's own; an interrupted command goes on; nothing is measured again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(difficulty, "CHUNK", 2)
    words = ["difficulty", "--task", LEVELS, "--problems", "2", "--samples", "2", "--json"]
    counted: list[int] = []
    real = Policy.sample

    def sample(self: Policy, *args: Any, **settings: Any) -> Any:
        if len(counted) == 2:
            raise KeyboardInterrupt
        found = real(self, *args, **settings)
        counted.append(sum(len(c.tokens) for group in found for c in group))
        return found

    monkeypatch.setattr(Policy, "sample", sample)
    with pytest.raises(KeyboardInterrupt):
        cli.run(words)
    (path,) = (tmp_path / "difficulty").iterdir()
    assert json.loads(path.read_text())["done"] == 4
    monkeypatch.setattr(Policy, "sample", real)
    assert cli.run(words) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["done"] == 6 and made["tokens"] > sum(counted)
    assert {unit: of for unit, (_, of) in made["rates"].items()} == {
        "arithmetic(terms=2)": 4,
        "arithmetic(terms=3)": 4,
        "arithmetic": 4,
    }
    monkeypatch.setattr(Policy, "sample", None)
    assert cli.run(words) == 0
    assert json.loads(capsys.readouterr().out) == made
    other = ("difficulty", "--task", LEVELS, "--samples", "3", "--file", made["file"])
    assert "was measured with another samples" in fails(*other, late=True)
    assert "do not come again" in fails("difficulty", "--task", "arithmetic", late=True)
    folder = str(Path(made["file"]).parent)
    assert "is a folder" in fails("difficulty", "--task", LEVELS, "--file", folder, late=True)
