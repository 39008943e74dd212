r"""Rows as other trainers have them: forms, nested columns, lists of answers, packed files, copies."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modicum import cli, rewards, tasks
from modicum.answers import grade_lines
from modicum.runs import Run
from modicum.tasks.dataset import DataTask
from modicum.tasks.file import GivenTask
from modicum.tasks.rows import MISSING, value_at
from modicum.types import SPLITS, Completion, Problem, UserError


def write(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def problems(task: Any) -> list[Problem]:
    """All problems, in the order of their ids."""
    found = [task.problem(s, 0, i) for s in SPLITS for i in range(task.size(s) or 0)]
    return sorted(found, key=lambda problem: problem.id)


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def said(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


# Forms -----------------------------------------------------------------------------------

ASK = "What is 1+1? Put the answer after ####."
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [turn("user", ASK)],
    "ability": "math",
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": 0, "answer": "1+1=2\n#### 2"},
}
FORMS: list[tuple[dict[str, Any], str, str, str]] = [
    (VERL, ASK, "2", "'prompt', the answer from 'reward_model.ground_truth'"),
    ({**VERL, "prompt": json.dumps(VERL["prompt"]), "reward_model": '{"ground_truth": 2}'},
     ASK, "2", "'prompt', the answer from 'reward_model.ground_truth'"),
    ({"prompt": [turn("system", "Be short."), turn("user", "1+1?")], "answer": "2"},
     "Be short.\n\n1+1?", "2", ""),
    ({"prompt": "1+1?", "solution": "So $\\boxed{2}$, as \\boxed{1} is not."}, "1+1?", "1",
     "'prompt', the answer from 'solution'"),
    ({"prompt": "1+1?", "ground_truth": 2}, "1+1?", "2", "'prompt', the answer from 'ground_truth'"),
    ({"prompt": [turn("user", "1+1?")], "completion": [turn("assistant", "It is <answer>2</answer>")]},
     "1+1?", "2", "'prompt', the answer from 'completion'"),
    ({"messages": [turn("user", "1+1?"), turn("assistant", "1+1 is\n#### 2")]}, "1+1?", "2",
     "'messages', the answer from 'messages'"),
    ({"messages": [turn("user", [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]),
                   turn("assistant", [{"type": "text", "text": "2"}])]}, "1+1?", "2",
     "'messages', the answer from 'messages'"),
    ({"conversations": [said("system", "S"), said("human", "1+1?"), said("gpt", "\\boxed{2}")]},
     "S\n\n1+1?", "2", "'conversations', the answer from 'conversations'"),
    ({"conversation": [said("human", "1+1?"), said("chatgpt", "2")]}, "1+1?", "2",
     "'conversation', the answer from 'conversation'"),
    ({"conversations": [said("human", "1+1?"), said("bot", "2")]}, "1+1?", "2",
     "'conversations', the answer from 'conversations'"),
    ({"instruction": "Add.", "input": "1 and 1", "output": "2"}, "Add.\n\n1 and 1", "2",
     "'instruction', the answer from 'output'"),
    ({"instruction": "1+1?", "input": "", "output": "1+1 is \\fbox{2}."}, "1+1?", "2",
     "'instruction', the answer from 'output'"),
    ({"question": "1+1?", "answer": "One and one.\n#### 1,002"}, "1+1?", "1,002", ""),
    ({"question": "1+x?", "answer": "One and x.\n#### x+1"}, "1+x?", "x+1", ""),
    ({"question": "1+1?", "answer": ["\\boxed{2}", "One and one.\n#### 2"]}, "1+1?", "2", ""),
    ({"problem": "1+1?", "expected_answer": "2", "generated_solution": "Two."}, "1+1?", "2",
     "'problem', the answer from 'expected_answer'"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "question", "answer", "note"), FORMS)
def test_rows_of_other_trainers_are_known_by_their_columns(
    tmp_path: Path, row: dict[str, Any], question: str, answer: str, note: str
) -> None:
    paths = [write(tmp_path / name, [row]) for name in ("a.jsonl", "a.parquet")]
    made = [tasks.parse(f"file({path!r})") for path in paths]
    for task in [*made, tasks.of([row])]:
        (problem,) = problems(task)
        assert (problem.question, problem.answer) == (question, answer)
        name = "given" if task is not made[0] and task is not made[1] else "file"
        told = f"{name}: the question is read from {note}"
        assert tasks.notes(task) == ((told,) if note else ())


def test_plain_rows_need_no_note_and_columns_reach_rewards(tmp_path: Path) -> None:
    row = {"problem": "1+1?", "answer": 2, "hard": [1, 2], "solution": "1+1=2", "input": "x"}
    task = tasks.parse(f"file({write(tmp_path / 'a.jsonl', [row])!r})")
    assert tasks.notes(task) == ()
    assert problems(task)[0].data == {"hard": [1, 2], "solution": "1+1=2", "input": "x"}
    row = {"q": "1+1?", "a": "2", "why": "One more.", "level": 3}
    path = write(tmp_path / "b.jsonl", [row])
    task = tasks.parse(f"file({path!r}, question=q, answer=a, solution=why, difficulty=level)")
    (problem,) = problems(task)
    assert (problem.difficulty, tasks.notes(task)) == (3.0, ())
    assert problem.data == {"why": "One more.", "solution": "One more."}
    (problem,) = problems(tasks.parse(f"file({write(tmp_path / 'c.jsonl', [VERL])!r})"))
    assert set(problem.data) == {"data_source", "ability", "reward_model", "extra_info"}


LONG = "We add one to one. Then we have two of them, which is what was asked for in the text."
BAD_FORMS = [
    ({"messages": [turn("user", "1?"), turn("assistant", "1"), turn("user", "2?")], "answer": 2},
     "one question and perhaps its answer, not the turns user, assistant, user"),
    ({"messages": [turn("system", "1?")], "answer": 2}, "not the turns of nobody"),
    ({"messages": [turn("user", "1?"), turn("tool", "1")], "answer": 2}, "the turns user, tool"),
    ({"messages": [turn("user", "")], "answer": 2}, "'messages' is empty"),
    ({"messages": [turn("user", [{"type": "image"}])], "answer": 2}, "must be a text, not a list"),
    ({"messages": [turn("user", "1?"), turn("assistant", LONG)]}, "no answer is marked in 'messages'"),
    ({"conversations": [said("human", "1?"), said("gpt", "The answer is 2")]}, "no answer is marked"),
    ({"prompt": [turn("user", "1?"), turn("assistant", "Well,")], "answer": 2}, "words of the ass"),
    ({"prompt": "[{'role': 'user', 'content': '1?'}]", "answer": 2}, "as Python shows it"),
    ({"prompt": ["1?"], "answer": 2}, "'prompt' must be a text, not a list"),
    ({"prompt": "1?", "answer": "['3', '4']"}, "'answer' is a list as Python shows it; write JSON"),
    ({"prompt": "1?", "solution": LONG}, "no answer is marked in 'solution'"),
    ({"prompt": "1?", "solution": "\\boxed{}"}, "the last box of the solution is empty"),
    ({"prompt": "1?", "reward_model": {"ground_truth": {"target": 3}}}, "not an object"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD_FORMS)
def test_rows_that_are_no_problem_are_bad(tmp_path: Path, row: Any, message: str) -> None:
    good = {name: value for name, value in FORMS[6][0].items() if "messages" in row}
    good = good | {"answer": 2} if "answer" in row and good else good
    path = write(tmp_path / "a.jsonl", [row, *([good] if good else [])])
    with pytest.raises(UserError) as error:
        tasks.notes(tasks.parse(f"file({path!r})"))
    assert f"{path}, line 1: " in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


# Columns ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a", {"b": [5, {"c.d": 6}], "b.0": 7}),
        ("a.b.1.c.d", 6),
        ("a.b.-2", 5),
        ("a.b.0", 7),
        ("x.y", 8),
        ("x", MISSING),
        ("json.k.0", 9),
        ("a.b.2", MISSING),
        ("a.b.one", MISSING),
        ("null.x", MISSING),
        ("text.0", MISSING),
        (".", MISSING),
        ("a.", MISSING),
        ("", MISSING),
    ],
)
def test_names_lead_into_columns(name: str, found: Any) -> None:
    row = {"a": {"b": [5, {"c.d": 6}], "b.0": 7}, "x.y": 8, "json": '{"k": [9]}', "null": None,
           "text": "[no json"}  # fmt: skip
    assert value_at(row, name) is found or value_at(row, name) == found


def test_nested_columns_are_named_and_known(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [VERL])
    named = "question='prompt.0.content', answer='extra_info.answer'"
    (problem,) = problems(tasks.parse(f"file({path!r}, {named})"))
    assert (problem.question, problem.answer) == (ASK, "2")
    assert problem.data["solution"] == "1+1=2\n#### 2"
    with pytest.raises(UserError) as error:
        tasks.notes(tasks.parse(f"file({path!r}, answer='reward_model.gold_truth')"))
    assert "did you mean 'reward_model.ground_truth'? (known: ability, data_source," in str(
        error.value
    )
    assert "prompt.0.content, prompt.0.role" in str(error.value)
    assert "question= and answer= name columns" in str(error.value)
    path = write(tmp_path / "b.jsonl", [{"text": "1+1?", "label": 2}])
    with pytest.raises(UserError, match="no column 'question' or 'problem' or 'prompt'; known are"):
        tasks.notes(tasks.parse(f"file({path!r})"))


# Lists of answers ------------------------------------------------------------------------


def test_any_answer_of_a_list_is_right_or_all_are_asked_for(tmp_path: Path) -> None:
    row = {"question": "x^2=9?", "answer": ["3", -3.0, "3"]}
    path = write(tmp_path / "a.jsonl", [row])
    listed = tasks.of([{**row, "answer": np.array(["3", "-3"])}])
    again = tasks.of(problems(tasks.parse(f"file({path!r})")))
    packed = tasks.of([{**row, "answer": '["3", "-3"]'}])
    for task in (tasks.parse(f"file({path!r})"), listed, again, packed):
        (problem,) = problems(task)
        assert problem.answer == "3" and problem.data["accepted_answers"] == ["3", "-3"]
        texts = {"<answer>3</answer>": (True, True), "\\boxed{-3}": (True, True),
                 "<answer>9</answer>": (False, False), "it is -3": (False, True),
                 "<answer>3, -3</answer>": (False, False)}  # fmt: skip
        for text, verdict in texts.items():
            grade = task.grade(problem, text)
            assert (grade.strict, grade.lenient) == verdict, text
    task = tasks.parse(f"file({path!r}, several=all)")
    (problem,) = problems(task)
    assert problem.answer == r"\{3, -3\}" and "accepted_answers" not in problem.data
    right = {"-3, 3": True, r"\{-3, 3\}": True, "3": False, "3, -3, 9": False, "3 and -3": True}
    assert {text: task.grade(problem, f"\\boxed{{{text}}}").strict for text in right} == right
    path = write(tmp_path / "b.jsonl", [{"question": "q", "answer": ["(1,2)", "[1,2]"]}])
    assert problems(tasks.parse(f"file({path!r}, several=all)"))[0].answer == r"\{(1,2), [1,2]\}"
    path = write(tmp_path / "c.jsonl", [{"question": "q", "answer": ["1,000", "2"]}])
    with pytest.raises(UserError, match="line 1: an answer of several holds a comma"):
        tasks.notes(tasks.parse(f"file({path!r}, several=all)"))
    (problem,) = problems(tasks.of([{"question": "interval?", "answer": "[1, 2]"}]))
    assert problem.answer == "[1, 2]"


def test_grade_takes_a_list_as_gold() -> None:
    lines = [
        {"gold": ["3", "3.5"], "answer": "7/2"},
        {"gold": ["3", "-3"], "completion": "It is -3."},
        {"gold": ["3"], "completion": "<answer>4</answer>"},
        {"gold": [], "answer": "3"},
        {"gold": ["3", None], "answer": "3"},
        {"gold": ["3", ""], "answer": "3"},
    ]
    found = list(grade_lines([json.dumps(line).encode() for line in lines]))
    assert [(r["strict"], r["lenient"]) for r in found[:3]] == [
        (True, True), (False, True), (False, False),
    ]  # fmt: skip
    assert ["`gold` must be a text" in r.get("error", "") for r in found[3:5]] == [True, True]
    assert "no content" in found[5]["error"]


# Files -----------------------------------------------------------------------------------

ROWS = [{"question": f"What is {i}+{i}?", "answer": 2 * i} for i in range(60)]


def test_packed_files_are_read(tmp_path: Path) -> None:
    import pyarrow as pa

    text = "\n".join(map(json.dumps, ROWS)).encode()
    table = b"question,answer\n" + b"".join(
        f"{r['question']},{r['answer']}\n".encode() for r in ROWS
    )
    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress(text[:500], mtime=0) + gzip.compress(text[500:])
    )
    (tmp_path / "B.NDJSON").write_bytes(text)
    (tmp_path / "c.Json.BZ2").write_bytes(bz2.compress(json.dumps(ROWS).encode()))
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(table, mtime=0))
    (tmp_path / "e.tsv.gz").write_bytes(gzip.compress(table.replace(b",", b"\t"), mtime=0))
    (tmp_path / "f.jsonl.zst").write_bytes(pa.Codec("zstd").compress(text, asbytes=True))
    for path in sorted(tmp_path.iterdir()):
        found = problems(tasks.parse(f"file({str(path)!r})"))
        assert (
            len(found) == 60
            and {"What is 7+7?": "14"}.items() <= {p.question: p.answer for p in found}.items()
        ), path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b'{"question": "q", "answer": 1}', "cannot be read: "),
        ("b.jsonl.gz", gzip.compress(b"x" * 5000, mtime=0)[:-20], "cannot be read: "),
        ("c.jsonl.zst", b"no", "cannot be read: "),
        ("d.jsonl.gz", gzip.compress(b"", mtime=0), "holds no rows"),
        ("e.jsonl", gzip.compress(b"{}", mtime=0), "is packed with gzip: its name must end in .gz"),
        ("f.gz", b"", ": files end in .jsonl, .ndjson, .json,"),
        ("g.jsonl.zip", b"", "must be a folder or end in"),
        ("h.jsonl", json.dumps(ROWS[:3], indent=1).encode(), "its rows run over several lines"),
        ("i.jsonl", "\n".join(json.dumps(r, indent=2) for r in ROWS).encode(), "run over several"),
        ("j.jsonl", b'\n{"question": "q",\n "answer": 1}\n', "its rows run over several lines"),
        ("k.jsonl", b'{\n"question": q', "its rows run over several lines"),
        ("l.csv", b'question;answer\n"a, b";1\n', "line 1: the values seem to be divided by ';'"),
        ("m.tsv", b"question,answer\na,1\n", "seem to be divided by ','; .csv takes commas"),
        ("n.csv", b"question\tanswer\na\t1\n", r"seem to be divided by '\t'"),
        ("o.jsonl", '{"question": "q"}'.encode("utf-16"), "line 1: not UTF-8"),
        ("p.csv", "question,answer\nÜber,1\n".encode("latin-1"), "line 2: not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        tasks.notes(tasks.parse(f"file({str(tmp_path / name)!r})"))
    assert message in str(error.value) and name in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def sizes(task: Any) -> list[int | None]:
    return [task.size(split) for split in SPLITS]


def test_train_and_test_files_stay_apart(tmp_path: Path) -> None:
    train = write(tmp_path / "pair" / "my-train.jsonl", ROWS[:40])
    test = write(tmp_path / "pair" / "TEST.jsonl", ROWS[38:])
    apart = tasks.parse(f"file({train!r}, test={test!r})")
    assert sizes(apart)[2] == 22
    assert (apart.size("train") or 0) + (apart.size("tune") or 0) == 38
    assert "2 problems are also in a split that is held out" in tasks.notes(apart)[0]
    folder = str(tmp_path / "pair")
    assert sizes(tasks.parse(f"file({folder!r})")) == sizes(apart)
    write(tmp_path / "pair" / "valid.jsonl", [{"question": "9?", "answer": 9}])
    write(tmp_path / "pair" / "info.json", [1])
    assert sizes(tasks.parse(f"file({folder!r})")) == [38, 1, 22]
    Path(test).unlink()
    assert sizes(tasks.parse(f"file({folder!r})"))[2] == 1, "what is left is tested"
    (tmp_path / "pair" / "valid.jsonl").unlink()
    assert all(sizes(tasks.parse(f"file({folder!r})"))), "a hash divides it"
    again = tasks.parse(f"file({train!r}, test={train!r})")
    with pytest.raises(
        UserError, match=r"pair is a folder, whose \*test\* files are what is tested"
    ):
        tasks.notes(tasks.parse(f"file({folder!r}, test={train!r})"))
    assert sizes(again) == [0, 0, 40] and len({p.id for p in problems(again)}) == 40


def test_shards_are_read_together(tmp_path: Path) -> None:
    for shard in range(3):
        write(tmp_path / "data" / f"train-{shard:05}-of-00003.parquet", ROWS[shard * 10 :][:10])
    write(tmp_path / "data" / "test-00000-of-00001.parquet", ROWS[50:])
    (tmp_path / "README.md").write_text("train and test")
    task = tasks.parse(f"file({str(tmp_path)!r})")
    assert sizes(task)[2] == 10 and sum(filter(None, sizes(task))) == 40
    assert "file/train-00002-of-00003.parquet/1" in {p.id for p in problems(task)}


def test_folders_that_say_nothing_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "latest.jsonl", ROWS)  # no test
    with pytest.raises(
        UserError, match=r"must hold \*train\* or \*test\* files .* it has latest.js"
    ):
        tasks.notes(tasks.parse(f"file({str(tmp_path)!r})"))
    write(tmp_path / "train-test.jsonl", ROWS)
    with pytest.raises(UserError, match=r"train-test.jsonl is named for both train and test"):
        tasks.notes(tasks.parse(f"file({str(tmp_path)!r})"))
    with pytest.raises(UserError, match=r"there is no file .*nowhere"):
        tasks.notes(tasks.parse(f"file({str(tmp_path / 'nowhere')!r})"))
    with pytest.raises(UserError, match=r"there is no file .*no.jsonl"):
        path = str(tmp_path / "latest.jsonl")
        tasks.notes(tasks.parse(f"file({path!r}, test={str(tmp_path / 'no.jsonl')!r})"))


def test_the_fingerprint_covers_all_files_and_the_home_folder_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "train.jsonl", ROWS[:40])

    for expression in ("file('~')", "file('~/train.jsonl', test='~/test.jsonl.gz')"):
        found = set()
        for test in (ROWS[40:], ROWS[41:], [{**ROWS[40], "answer": 1}]):
            lines = "\n".join(map(json.dumps, test)).encode()
            (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
            found.add(tasks.fingerprint(tasks.parse(expression)))
        assert len(found) == 3


# Copies and contradictions ---------------------------------------------------------------


def test_copies_are_counted_and_taken_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row in ROWS[:20] for _ in range(10)]
    rows[7] = {"question": " What is 0+0?", "answer": "0.0"}
    path = write(tmp_path / "a.jsonl", rows)
    task = tasks.parse(f"file({path!r})")
    (note,) = tasks.notes(task)
    assert note == (
        f"file: 180 of 200 rows are copies and are left out; the first: {path}, line 2 is"
        f" {path}, line 1"
    )
    assert len(problems(task)) == 20
    assert cli.run(["tasks", f"file({path!r})", "--check"]) == 0
    assert f"note: {note}" in capsys.readouterr().out
    assert "180 of 200 rows are copies" in tasks.notes(tasks.of(rows))[0]


def test_contradictory_golds_are_bad_rows(tmp_path: Path) -> None:
    rows = [{"question": "2+3?", "answer": 5}, ROWS[1], {"question": "2+3?", "answer": 99}]
    rows += [{"question": "y?", "answer": "x+1"}, {"question": "y?", "answer": "1+x"}]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError) as error:
        tasks.notes(tasks.parse(f"file({path!r})"))
    assert str(error.value) == (
        f"{path}, line 1: its answer is '5', and {path}, line 3 has '99' for the same question;"
        f" {path}, line 3: its answer is '99', and {path}, line 1 has '5' for the same question"
        " (bad rows: 2 of 5; bad_rows='skip' leaves them out)"
    )
    task = tasks.parse(f"file({path!r}, bad_rows=skip)")
    assert [p.answer for p in problems(task)] == ["2", "x+1"]
    assert "1 of 5 rows are copies" in tasks.notes(task)[0]
    assert "2 of 5 rows are bad and skipped, as " in tasks.notes(task)[1]
    rows = [{"question": "2+3?", "answer": [5, 6]}, {"question": "2+3?", "answer": 6}]
    assert len(problems(tasks.of(rows))) == 1


def test_a_test_set_has_its_copies(tmp_path: Path) -> None:
    """What others report on has as many problems as there are."""
    path = write(tmp_path / "a.jsonl", [{"problem": "1+1?", "answer": n} for n in (2, 2, 3)])
    assert sizes(tasks.parse(f"math500({path!r})")) == [0, 0, 3]
    assert isinstance(tasks.parse(f"math500({path!r})"), DataTask)


def test_golds_that_stand_for_nothing_are_named(tmp_path: Path) -> None:
    rows = [*ROWS, *({"question": f"{a}?", "answer": a} for a in ("nan", "N/A", "None", "nano"))]
    path = write(tmp_path / "a.jsonl", rows)
    (note,) = tasks.notes(tasks.parse(f"file({path!r})"))
    assert note == (
        f"file: 3 of 64 rows may have no answer, but the word for none, as 'nan' in {path}, line 61"
    )


# In Python and in runs --------------------------------------------------------------------


class Table:
    """What a table of pandas has, and it is a sequence of its columns' names."""

    iterrows = None

    def __iter__(self) -> Any:
        return iter(("question", "answer"))

    def to_dict(self, form: str) -> list[dict[str, Any]]:
        assert form == "records"
        return [{"question": "1+1?", "answer": 2}]


def test_a_table_is_taken_by_its_rows() -> None:
    assert [p.answer for p in problems(tasks.of(Table()))] == ["2"]
    assert tasks.of({"train": Table(), "test": Table()}).size("test") == 1


def test_parts_in_python_are_what_their_names_say(tmp_path: Path) -> None:
    parts = {"test": ROWS[50:], "validation": ROWS[40:50], "train": ROWS[:40]}
    task = tasks.of(parts)
    assert sizes(task) == [40, 10, 10]
    assert isinstance(task, GivenTask)
    task.write(Run(tmp_path))
    assert GivenTask.read(tmp_path) == task
    assert sizes(tasks.of({"train": ROWS[:40], "validation": ROWS[40:]}))[2] == 20


def test_a_test_file_is_found_from_where_a_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "there" / "a.jsonl", ROWS[:40])
    write(tmp_path / "there" / "b.jsonl", ROWS[40:])
    monkeypatch.chdir(tmp_path)
    task = tasks.parse("file('a.jsonl', test='b.jsonl')")
    assert isinstance(task, DataTask)
    assert task.found_in([Path(), tmp_path / "there"]).size("test") == 20


def test_columns_and_all_answers_reach_reward_functions(tmp_path: Path) -> None:
    def asked(completions: list[str], hard: list[int], **columns: Any) -> list[float]:
        seen.append((hard, columns["accepted_answers"], columns["ground_truth"]))
        return [1.0 for _ in completions]

    seen: list[Any] = []
    row = {"question": "1+1?", "answer": ["2", "two"], "hard": 3}
    task = tasks.parse(f"file({write(tmp_path / 'a.jsonl', [row])!r})")
    (problem,) = problems(task)
    completions = [Completion((5,), (0.0,), "2", True)] * 2
    rewards.of(asked).score_group(task, problem, completions, [])
    assert seen == [([3, 3], [["2", "two"]] * 2, ["2", "2"])]


def test_an_official_set_without_its_test_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    with pytest.raises(UserError, match=r"gsm8k: .* has no \*test\* file"):
        tasks.parse(f"gsm8k(path={str(tmp_path)!r})").size("train")
