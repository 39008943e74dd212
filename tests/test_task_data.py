r"""Tasks from known data sets: columns, levels, boxes, test sets, bad rows, overlap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modicum import answers, cli, tasks
from modicum.tasks import readers
from modicum.tasks.dataset import DataTask
from modicum.tasks.file import FileTask
from modicum.tasks.loading import normalise
from modicum.tasks.sets import Aime, Amc, Gsm8k, Math, Math500, OpenThoughts
from modicum.types import SPLITS, Problem, UserError


def write(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def everything(task: DataTask) -> dict[str, Problem]:
    """All problems by the end of their id."""
    return {
        (p := task.problem(split, 0, i)).id.split("/", 2)[2]: p
        for split in SPLITS
        for i in range(task.size(split) or 0)
    }


def math(problem: str, solution: str, level: Any = "Level 1", kind: str = "Algebra") -> Any:
    return {"problem": problem, "solution": solution, "level": level, "type": kind}


# Boxes, levels, subjects -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1}, no: \boxed{\sqrt{2}}", r"\sqrt{2}"),
        (r"\boxed{x} and \fbox{$y$}", "$y$"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"#### 7 \boxed 2", "2"),
        ("no box #### 7", None),
        (r"\boxed{\frac{1}{2", None),
    ],
)
def test_the_gold_is_the_last_box(solution: str, gold: str | None) -> None:
    assert answers.gold_from_box(solution) == gold


def test_math_reads_levels_subjects_and_boxes(tmp_path: Path) -> None:
    rows = [
        math("one", r"\boxed{1}", "Level 3"),
        math("two", r"\boxed{\frac{1}{2}}", "Level ?", "Counting & Probability"),
        {"problem": "three", "answer": "3", "level": 5, "subject": "Geometry", "solution": "."},
        {"problem": "four", "answer": 4, "unique_id": "test/a/4.json"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    found = everything(Math(path))
    assert {k: (p.answer, p.difficulty) for k, p in found.items()} == {
        "1": ("1", 3.0), "2": (r"\frac{1}{2}", None), "3": ("3", 5.0), "test/a/4.json": ("4", None),
    }  # fmt: skip
    assert found["2"].data["subject"] == "Counting & Probability"
    assert sorted(everything(Math(path, levels=(3, 5)))) == ["1", "3"]
    assert list(everything(Math(path, subject="counting and probability"))) == ["2"]
    left = tasks.notes(Math(path, levels=(3, 5)))
    assert left == ("math: 2 of 4 rows left out: their level is none of 3, 5",)
    with pytest.raises(UserError, match="no subject 'Algebre'; did you mean 'Algebra'"):
        Math(path, subject="Algebre").size("train")
    with pytest.raises(UserError, match=r"has no problem left of 4 rows; .*level is none of 2"):
        Math(path, levels=(2,)).size("train")


BAD = [
    (math("q", r"\boxed{}"), "the last box of the solution is empty"),
    (math("q", r"\boxed{ }"), "the last box of the solution is empty"),
    (math("q", "so 3"), r"no \boxed{...} that is closed"),
    (math("q", r"\boxed{1"), r"no \boxed{...} that is closed"),
    (math("q", r"\boxed{1}", "hard"), "'level' must be 1 to 5 or such as 'Level 3', not 'hard'"),
    (math("q", r"\boxed{1}", 9), "'level' must be 1 to 5"),
    (math("", r"\boxed{1}"), "'problem' is empty"),
    ({"problem": "q", "answer": ""}, "'answer' is empty"),
    ({"problem": "q", "answer": "{"}, "gold answer '{'"),
    ({"problem": "q", "level": 1}, "'solution' is missing"),
    ({"problem": "q", "answer": 1, "unique_id": "same"}, "id 'same' is also that of"),
    ('{"problem": ', "not JSON"),
    ("[1]", "must be an object"),
]


def test_bad_rows_are_refused_with_their_lines_or_skipped_with_a_count(tmp_path: Path) -> None:
    good = {**math("one", r"\boxed{1}"), "unique_id": "same"}
    for number, (row, message) in enumerate(BAD):
        path = write(tmp_path / f"{number}.jsonl", [good, "", row])
        with pytest.raises(UserError) as error:
            Math(path).size("train")
        said = str(error.value)
        assert said.startswith(f"{path}, line 3: ") and "\n" not in said
        assert message in said
        skipping = Math(path, bad_rows="skip")
        assert list(everything(skipping)) == ["same"]
        assert tasks.notes(skipping)[0].startswith("math: 1 of 2 rows are bad and skipped, as ")
    path = write(tmp_path / "all.jsonl", [good, *(row for row, _ in BAD)])
    with pytest.raises(UserError) as error:
        Math(path).size("train")
    assert str(error.value).count("all.jsonl, line") == 3
    counted = f"...; (bad rows: {len(BAD)} of {len(BAD) + 1}; bad_rows='skip' leaves them out)"
    assert str(error.value).endswith(counted.replace("; (", " ("))


def test_every_data_task_skips_bad_rows_when_asked(tmp_path: Path) -> None:
    rows = [{"question": "q", "problem": "q", "answer": "1 #### 1", "domain": "math",
             "ground_truth_solution": r"\boxed{1}"}, "{"]  # fmt: skip
    path = write(tmp_path / "a.jsonl", rows)
    for cls in (FileTask, Gsm8k, Math, Math500, Aime, Amc, OpenThoughts):
        with pytest.raises(UserError, match="line 2: not JSON"):
            cls(path).notes()
        assert len(everything(cls(path, bad_rows="skip"))) == 1
        assert len(tasks.notes(cls(path, bad_rows="skip"))) == 1


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"problm": "q", "solution": r"\boxed{1}"}])
    with pytest.raises(UserError, match=r"no column 'problem'; did you mean 'problm'"):
        Math(path).size("train")
    path = write(tmp_path / "b.jsonl", [{"problem": "q", "solution": r"\boxed{1}"}])
    with pytest.raises(UserError, match="no column 'level'"):
        Math(path, levels=(1,)).size("train")
    with pytest.raises(UserError, match="no column 'ground_truth_solution'"):
        OpenThoughts(path).size("train")
    with pytest.raises(UserError, match="no column 'answer'"):
        Aime(path).size("test")


# Splits and parts ------------------------------------------------------------------------


def test_test_sets_are_all_test_unless_they_are_divided(tmp_path: Path) -> None:
    rows = [{"id": 60 + i, "problem": f"Find {i}.", "answer": float(i)} for i in range(60)]
    path = write(tmp_path / "a.jsonl", rows)
    for cls in (Aime, Amc, Math500):
        assert [cls(path).size(split) for split in SPLITS] == [0, 0, 60]
        with pytest.raises(UserError, match=r"60 \(0 train, 0 tune, 60 test\); .*split='hash'"):
            cls(path).problem("train", 0, 0)
        assert all(cls(path, split="hash").size(split) for split in SPLITS)
    assert everything(Aime(path))["119"].answer == "59"
    rows.append({"id": 60, "problem": "Another.", "answer": 1})
    with pytest.raises(UserError, match=r"line 61: the id '60' is also that of .*line 1"):
        Amc(write(tmp_path / "b.jsonl", rows)).size("test")


def test_openthoughts_takes_math_with_a_boxed_answer(tmp_path: Path) -> None:
    rows = [
        {"problem": f"p{i}", "ground_truth_solution": solution, "domain": domain}
        for i, (solution, domain) in enumerate(
            [(r"\boxed{1}", "math"), ("Proof.", "math"), (r"\boxed{}", "math"), (None, "math"),
             (r"\boxed{1}", "code"), (r"\boxed{A}", "math")]
        )
    ]  # fmt: skip
    task = OpenThoughts(write(tmp_path / "a.jsonl", rows))
    assert {p.question: p.answer for p in everything(task).values()} == {"p0": "1", "p5": "A"}
    counts = sorted(note.split(" rows left out: ")[0] for note in tasks.notes(task))
    assert counts == ["openthoughts: 1 of 6", "openthoughts: 1 of 6", "openthoughts: 2 of 6"]


def test_every_format_can_be_a_part(tmp_path: Path) -> None:
    write(tmp_path / "my-train.jsonl", [math(f"train {i}", r"\boxed{1}") for i in range(30)])
    (tmp_path / "my-test.csv").write_text("problem,answer,level\nq,1/2,Level 2\n")
    (tmp_path / "train-notes.txt").write_text("not data")
    task = Math(str(tmp_path))
    assert task.size("test") == 1 and task.problem("test", 0, 0).difficulty == 2.0
    assert (task.size("train") or 0) + (task.size("tune") or 0) == 30
    write(tmp_path / "train_socratic.jsonl", [math("train 1", r"\boxed{1}")])
    with pytest.raises(
        UserError, match=r"one \*train\* file, .* it has my-train.jsonl, train_socra"
    ):
        Math(str(tmp_path)).size("test")


def test_data_sets_come_from_the_hub_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, ...]] = []
    row = {"problem": "q", "answer": 142.0, "domain": "math",
           "ground_truth_solution": r"\boxed{3}", "solution": r"\boxed{3}"}  # fmt: skip

    def load(*args: str) -> dict[str, list[dict[str, Any]]]:
        asked.append(args)
        return {"train": [row], "test": [{**row, "problem": "r"}]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    for task in (Math(), Math500(), OpenThoughts(), Aime(), Aime(year=2025), Amc()):
        assert len(everything(task)) >= 1
    assert asked == [
        ("DigitalLearningGmbH/MATH-lighteval", "default"),
        ("HuggingFaceH4/MATH-500",),
        ("open-thoughts/OpenThoughts-114k", "metadata"),
        ("HuggingFaceH4/aime_2024",),
        ("yentinglin/aime_2025",),
        ("AI-MO/aimo-validation-amc",),
    ]
    table = datasets.Dataset.from_list([{**row, "deepseek_reasoning": "long"}])
    (record,) = readers._hub_records("x", table, ("deepseek_reasoning", "test_cases"))
    assert record.values == row and record.where == "x, row 1"
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: {"validation": [row]})
    with pytest.raises(UserError, match="has no part 'test'"):
        Math500(levels=(1,)).size("test")


# Overlap ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is $1 + 2$?", r"what is \( 1+2 \)", True),
        (r"Find $\dfrac{1}{2}x$.", r"Find  $\frac12 x$ .", True),
        (r"Find $\dfrac{1}{2}\,x$.", r"find \frac{1}{2} x", True),
        (r"$\left( 3, 1{,}000 \right)$", "(3, 1{,}000)", True),
        ("He has 1,000 apples.", "He has 1000 apples", True),
        ("He has 12 apples.", "He has 13 apples.", False),
        ("What is 3-2?", "What is 3+2?", False),
        ("What is 1.5?", "What is 15?", False),
        ("x^2", "x^{2}", True),
        ("...", "???", False),
    ],
)
def test_what_counts_as_the_same_question(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


def test_what_is_tested_is_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [math(f"What is {i} + {i}?", r"\boxed{1}") for i in range(40)]
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "test.jsonl", [math("what is $7+7$", r"\boxed{14}"), math("r", r"\boxed{1}")])
    task = Math(str(tmp_path))
    assert task.size("test") == 2
    trained = [task.problem(s, 0, i) for s in SPLITS[:2] for i in range(task.size(s) or 0)]
    assert len(trained) == 39
    assert "What is 7 + 7?" not in {p.question for p in trained}
    (note,) = tasks.notes(task)
    assert "1 problems are also in a split that is held out" in note
    assert note.endswith("math/train/8 is math/test/1")
    tested = [task.problem("test", 0, i) for i in range(2)]
    assert tasks.overlap(trained, tested) == []
    assert len(tasks.overlap([*trained, tested[0]], tested)) == 1
    assert cli.run(["tasks", f"math({str(tmp_path)!r})"]) == 0
    assert f"note: {note}" in capsys.readouterr().out


def test_check_looks_at_golds_and_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", [math(f"q{i}", r"\boxed{1}") for i in range(50)])
    expression = f"math({path!r})"
    assert cli.run(["tasks", expression, "--check"]) == 0
    out = capsys.readouterr().out
    assert "difficulty 1 to 1, gold right for" in out and "in train and test: 0" in out
    assert cli.run(["tasks", expression, "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["sizes"].values()) == 50 and not any(found["wrong"].values())
    monkeypatch.setattr(
        Math, "grade", lambda self, problem, text: FileTask.grade(self, problem, "")
    )
    assert cli.run(["tasks", expression, "--check"]) == 1
    assert "(not: math/a/" in capsys.readouterr().out
