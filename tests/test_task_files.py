"""Problems from files: what is read, what is refused with file and line, what order results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from modicum import runs, tasks
from modicum.tasks.base import split_of
from modicum.tasks.dataset import DataTask
from modicum.tasks.file import FileTask
from modicum.tasks.sets import Gsm8k
from modicum.types import SPLITS, Problem, UserError

GSM8K = Path(__file__).parent / "data" / "gsm8k"
GOOD = '{"question": "What is 1+1?", "answer": 2}'


def everything(task: FileTask | Gsm8k) -> dict[str, Problem]:
    """All problems by question."""
    return {
        (p := task.problem(split, 0, i)).question: p
        for split in SPLITS
        for i in range(task.size(split) or 0)
    }


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def parquet(folder: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "problems.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_every_format_gives_the_same_problems(tmp_path: Path) -> None:
    rows = [{"question": f"Über {i}, ja?", "answer": i, "level": i / 2} for i in range(40)]
    table = "question,answer,level\n" + "".join(
        f'"{r["question"]}",{r["answer"]},{r["level"]}\n' for r in rows
    )
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    paths = [
        write(tmp_path, "a.jsonl", lines),
        write(tmp_path, "bom.jsonl", b"\xef\xbb\xbf" + lines.replace("\n", "\r\n\r\n").encode()),
        write(tmp_path, "a.json", json.dumps(rows, indent=1)),
        write(tmp_path, "a.csv", table),
        write(tmp_path, "bom.csv", b"\xef\xbb\xbf" + table.replace("\n", "\r\n").encode()),
        write(tmp_path, "a.tsv", table.replace(",", "\t").replace("\t ja", ", ja")),
        parquet(tmp_path, rows),
    ]
    expected = {r["question"]: (str(r["answer"]), float(r["level"])) for r in rows}
    for path in paths:
        found = everything(FileTask(path, difficulty="level"))
        assert {q: (p.answer, p.difficulty) for q, p in found.items()} == expected, path


@pytest.mark.parametrize(
    ("answer", "text"),
    [("5", "5"), ("5.0", "5"), ("0.1", "0.1"), ("1e22", "1" + "0" * 22), ("1e-7", "0.0000001"),
     ("-3", "-3"), ('" x=1 "', "x=1"), ("1" * 400, "1" * 400)],
)  # fmt: skip
def test_answers_become_text(tmp_path: Path, answer: str, text: str) -> None:
    path = write(tmp_path, "a.jsonl", f'{{"question": "q", "answer": {answer}}}')
    assert everything(FileTask(path))["q"].answer == text


BAD_ROWS = [
    ('{"question": "q", "answer": ""}', "'answer' is empty"),
    ('{"question": "q", "answer": "  "}', "'answer' is empty"),
    ('{"question": "q", "answer": null}', "'answer' is null"),
    ('{"question": "q"}', "'answer' is missing"),
    ('{"answer": 1}', "'question' is missing"),
    ('{"question": "", "answer": 1}', "'question' is empty"),
    ('{"question": null, "answer": 1}', "'question' is null"),
    ('{"question": 7, "answer": 1}', "'question' must be a text, not 7"),
    ('{"question": "\\ud800", "answer": 1}', "'question' holds half a character"),
    ('{"question": "q", "answer": []}', "'answer' is an empty list"),
    ('{"question": "q", "answer": [1, null]}', "'answer' must be a text or a number, not None"),
    ('{"question": "q", "answer": [[1]]}', "must be a text or a number, not a list ([1])"),
    ('{"question": "q", "answer": ["1", "{"]}', "the braces of the gold answer '{' do not match"),
    ('{"question": "q", "answer": {"a": 1}}', "must be a text or a number, not an object"),
    ('{"question": "q", "answer": true}', "must be a text or a number, not true or false"),
    ('{"question": "q", "answer": NaN}', "'answer' is not a finite number"),
    ('{"question": "q", "answer": ' + "1" * 5000 + "}", "too many digits"),
    ('{"question": "q", "answer": 1', "not JSON (Expecting ',' delimiter at character"),
    ("[" * 100_000, "not JSON"),
    ('["q", 1]', "must be an object"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=[m for _, m in BAD_ROWS])
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    lines = [GOOD, "", *[GOOD] * 4, row, GOOD]
    path = write(tmp_path, "problems.jsonl", "\n".join(lines))
    with pytest.raises(UserError) as error:
        FileTask(path).problem("train", 0, 0)
    assert str(error.value).startswith(f"{path}, line 7: ")
    assert message in str(error.value) and "\n" not in str(error.value)


def check_message(path: str, message: str, **columns: Any) -> None:
    with pytest.raises(UserError) as error:
        FileTask(path, **columns).size("train")
    assert message in str(error.value)
    assert path in str(error.value) and "\n" not in str(error.value)


def test_bad_csv_json_and_parquet_rows_are_named_by_line(tmp_path: Path) -> None:
    head = 'question,answer\n"a text\nof two lines",1\n'
    check_message(write(tmp_path, "a.csv", head + "q,\n"), "a.csv, line 4: 'answer' is empty")
    check_message(write(tmp_path, "b.csv", head + "q,1,2\n"), "b.csv, line 4: 3 values for 2 col")
    check_message(write(tmp_path, "c.csv", head + "q\n"), "c.csv, line 4: 1 values for 2 columns")
    check_message(write(tmp_path, "d.csv", head + '"q,1\n'), "d.csv, line 4: not CSV")
    check_message(write(tmp_path, "e.csv", "answer,answer\n1,2"), "line 1: column 'answer' stands")
    check_message(write(tmp_path, "f.csv", head.encode() + b"\xff,1\n"), "f.csv, line 4: not UTF-8")
    start = f"[\n {GOOD},\n "
    check_message(write(tmp_path, "a.json", start + '{"question": "q"}]'), "row 2: 'answer' is mis")
    check_message(write(tmp_path, "b.json", start + '{\n"x" 1}]'), "line 4: not JSON (Expecting")
    check_message(write(tmp_path, "c.json", start), "c.json, line 3: not JSON")
    check_message(write(tmp_path, "d.json", f"[{GOOD},]"), "line 1: not JSON (")
    check_message(write(tmp_path, "e.json", f"[{GOOD} {GOOD}]"), "line 1: not JSON (Expecting ','")
    check_message(write(tmp_path, "f.json", GOOD), "must be a list of objects")
    check_message(write(tmp_path, "g.json", f"[{GOOD}] x"), "line 1: not JSON (Extra data")
    rows = [{"question": "q", "answer": 1}, {"question": "r", "answer": None}]
    check_message(parquet(tmp_path, rows), "problems.parquet, row 2: 'answer' is null")
    check_message(write(tmp_path, "x.parquet", "no"), "x.parquet is not Parquet")


def test_files_without_rows_or_columns_are_errors(tmp_path: Path) -> None:
    for name, content in {"a.jsonl": "", "b.jsonl": "\n\n", "a.json": "[]", "b.json": " ",
                          "a.csv": "", "b.csv": "question,answer\n"}.items():  # fmt: skip
        check_message(write(tmp_path, name, content), "holds no rows")
    check_message(parquet(tmp_path, [{"question": "q", "answer": 1}][:0]), "holds no rows")
    check_message(str(tmp_path / "no.jsonl"), "there is no file")
    (tmp_path / "folder.jsonl").mkdir()
    check_message(str(tmp_path / "folder.jsonl"), "must hold *train* or *test* files")
    path = write(tmp_path, "good.jsonl", GOOD)
    nearest = "has no column 'anwser'; did you mean 'answer'? (known: answer, question)"
    check_message(path, nearest, answer="anwser")
    check_message(path, "has no column 'level'", difficulty="level")
    check_message(path, "'question' must be a number, not 'What is 1+1?'", difficulty="question")


@pytest.mark.parametrize("columns", [("problem",), ("prompt",), ("prompt", "problem")])
def test_the_question_column_is_found(tmp_path: Path, columns: tuple[str, ...]) -> None:
    row = {name: f"the {name}" for name in columns} | {"answer": 1}
    path = write(tmp_path, "a.jsonl", json.dumps(row))
    assert list(everything(FileTask(path))) == [f"the {columns[-1]}"]
    with pytest.raises(UserError, match="no column 'problm'"):
        FileTask(path, question="problm").size("train")


def test_equal_questions_stay_apart_and_in_one_split(tmp_path: Path) -> None:
    rows = [{"question": f"Name a prime{end}", "answer": str(n)} for n, end in ((2, "."), (3, "!"))]
    rows += [{"question": "name a prime.", "answer": "5"}]
    task = FileTask(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))))
    split = split_of("Name a prime.")
    problems = [task.problem(split, 0, index) for index in range(3)]
    assert sorted(p.answer for p in problems) == ["2", "3", "5"]
    assert len({p.id for p in problems}) == 3 == task.size(split)
    for other in set(SPLITS) - {split}:
        assert task.size(other) == 0
        with pytest.raises(UserError, match=f"no problem for the split '{other}': it holds 3"):
            task.problem(other, 0, 0)


def test_a_moved_file_keeps_its_order_and_a_changed_one_is_read_again(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"q{i}", "answer": i}) for i in range(60)]
    one = FileTask(write(tmp_path, "a.jsonl", "\n".join(lines)))
    (tmp_path / "there").mkdir()
    two = FileTask(write(tmp_path / "there", "a.jsonl", "\n".join(lines)))
    assert [one.problem("train", 1, i) for i in range(99)] == [
        two.problem("train", 1, i) for i in range(99)
    ]
    write(tmp_path, "a.jsonl", "\n".join(lines[:-1]))
    os.utime(one.path, ns=(1, 1))
    assert len(everything(one)) == 59 and len(everything(two)) == 60


# GSM8K -----------------------------------------------------------------------------------


def test_gsm8k_keeps_the_official_test_set() -> None:
    task = Gsm8k(str(GSM8K))
    assert task.size("test") == 40
    assert (task.size("train") or 0) + (task.size("tune") or 0) == 40
    problem = everything(task)[
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips"
        " in May. How many clips did Natalia sell altogether in April and May?"
    ]
    assert (problem.id, problem.answer, problem.difficulty) == ("gsm8k/train/1", "72", 2.0)
    assert problem.data["solution"].endswith("#### 72")


def test_gsm8k_divides_one_file_by_hash() -> None:
    task = Gsm8k(str(GSM8K / "test.jsonl"))
    assert [(task.size(split) or 0) > 0 for split in SPLITS] == [True] * 3
    assert all(split_of(q) == s for s in SPLITS for q in [task.problem(s, 0, 0).question])


def test_gsm8k_refuses_bad_rows_and_folders(tmp_path: Path) -> None:
    good = '{"question": "q", "answer": "one\\n#### 1"}'
    write(tmp_path, "train.jsonl", f'{good}\n{{"question": "r", "answer": "no mark"}}')
    write(tmp_path, "test.jsonl", good)
    with pytest.raises(UserError, match=r"train.jsonl, line 2: no number follows ####"):
        Gsm8k(str(tmp_path)).size("train")
    # What is tested is not trained on: nothing is left to train.
    write(tmp_path, "train.jsonl", good)
    task = Gsm8k(str(tmp_path))
    assert [task.size(split) for split in SPLITS] == [0, 0, 1]
    assert "the first: gsm8k/train/1 is gsm8k/test/1" in task.notes()[0]
    write(tmp_path, "train.jsonl", '{"question": "q", "solution": "#### 1"}')
    with pytest.raises(UserError, match=r"train.jsonl has no column 'answer'; .*solution"):
        Gsm8k(str(tmp_path)).size("train")
    with pytest.raises(UserError, match="there is no file"):
        Gsm8k(str(tmp_path / "nowhere")).size("train")


def test_gsm8k_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*args: object) -> None:
        raise ConnectionError("Couldn't reach 'openai/gsm8k'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"openai/gsm8k.*gsm8k\(path='...'\)") as error:
        Gsm8k().size("train")
    assert "\n" not in str(error.value) and "HF_HUB_OFFLINE" in str(error.value)
    parts = {
        part: [json.loads(line) for line in (GSM8K / f"{part}.jsonl").read_text().splitlines()]
        for part in ("train", "test")
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: parts)
    assert everything(Gsm8k()) == everything(Gsm8k(str(GSM8K)))


def test_the_fingerprint_of_a_file_is_of_its_problems(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"question": "What is 1+1?", "answer": 2}, {"question": "What is 2+3?", "answer": 5}]

    def found(*entries: dict[str, Any]) -> str:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return tasks.fingerprint(tasks.parse(f"file({str(path)!r})"))

    first = found(*rows)
    assert first == "ace686ca55604f5c09ed06985fea47f26ec6bfcedf0bdc1503737b03cbffd515"
    others = [
        found(*rows[::-1]),
        found(rows[0]),
        found(rows[0], {**rows[1], "answer": 6}),
        found(rows[0], {**rows[1], "question": "What is 3+2?"}),
    ]
    assert len({first, *others}) == 5


def test_a_relative_file_is_found_in_the_first_of_some_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = '{"question": "What is 1+1?", "answer": %d}\n'
    for name, answer in (("one", 2), ("two", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.jsonl").write_text(row % answer)
    monkeypatch.chdir(tmp_path)
    task = tasks.parse("file('p.jsonl')")
    assert isinstance(task, DataTask)
    places = [Path(), tmp_path / "two", tmp_path / "one"]

    def answer() -> str:
        made = task.found_in(places)
        assert str(made) == "file('p.jsonl')"
        (problem,) = [p for shelf in made._loaded().shelf.values() for p in shelf]
        return problem.answer

    assert answer() == "3"
    (tmp_path / "two" / "p.jsonl").unlink()
    assert answer() == "2"
    (tmp_path / "p.jsonl").write_text(row % 4)
    assert answer() == "4"
    with pytest.raises(UserError, match=r"no file q.jsonl, which file\('q.jsonl'\) reads: not in"):
        missing = tasks.parse("file('q.jsonl')")
        assert isinstance(missing, DataTask)
        missing.found_in(places).size("train")


# Named as people name their data -----------------------------------------------------------


def sums(*numbers: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} + {n}?", "answer": 2 * n, "hard": n % 3} for n in numbers]


def asked(task: tasks.Task, split: Any) -> set[str]:
    return {task.problem(split, 0, i).answer for i in range(task.size(split) or 0)}


@pytest.mark.parametrize(
    "given",
    ["file('a.jsonl', test='b.jsonl')", "file(train='a.jsonl', test='b.jsonl')",
     "file(test='b.jsonl', train='a.jsonl')"],
)  # fmt: skip
def test_train_and_test_files_by_their_names(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(runs.to_lines(sums(*range(1, 41))))
    (tmp_path / "b.jsonl").write_text(runs.to_lines(sums(50, 51)))
    task = tasks.parse(given)
    assert str(task) == "file('a.jsonl', test='b.jsonl')"
    assert asked(task, "test") == {"100", "102"}
    assert len(asked(task, "train") | asked(task, "tune")) == 40


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("sums.csv", "task 'sums.csv': a file or folder is named by --task \"file('sums.csv')\""),
        ("./my sums.jsonl.gz", "--task \"file('./my sums.jsonl.gz')\""),
        ("pair", "--task \"file('pair')\""),
        ("openai/gsm8k", "that is --task gsm8k or --task \"hub('openai/gsm8k')\""),
        ("owner/my-set", "a data set on the hub is named by --task \"hub('owner/my-set')\""),
        ("file(sums.csv)", "quotes are missing: 'sums.csv'"),
        ("file('a.jsonl', 'b.jsonl')", "'b.jsonl' is no column; a file to test on is test=..."),
        ("file('a.jsonl', train='b.jsonl')", "file got 'path' twice"),
        ("hub('')", "hub: path must be a file, not ''"),
        ("file('saved')", "saved was saved by datasets: hub('saved') reads it"),
        ("hub('saved', train='nope')", "has the parts train, test; train= and test= name those"),
        ("hub('saved', train='train', test='train')", "has the parts train, test; train="),
        ("hub('saved', answer='label')", "saved train has no column 'label'"),
        ("gsm9k", "unknown task 'gsm9k'; did you mean 'gsm8k'?"),
    ],
)
def test_what_is_named_otherwise_gets_the_right_form(
    given: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pair").mkdir()
    rows = datasets.Dataset.from_list(sums(1, 2))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk("saved")
    with pytest.raises(UserError) as error:
        tasks.parse(given).size("train")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hub_data_set_by_name_and_column(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    called: list[tuple[str, ...]] = []
    rows = [{"asked": f"{n}?", "gold": f"so #### {n}", "level": n % 2} for n in range(1, 41)]
    parts = {"train": rows, "validation": rows[:0], "test": [{"asked": "7 more?", "gold": 7}]}

    def load(*args: str) -> dict[str, Any]:
        called.append(args)
        return parts

    monkeypatch.setattr(datasets, "load_dataset", load)
    text = "hub('openai/gsm8k', question='asked', answer='gold', config='main')"
    task = tasks.parse(text)
    assert (str(task), asked(task, "test")) == (text, {"7"})
    problems = [task.problem("train", 0, i) for i in range(task.size("train") or 0)]
    assert {p.answer for p in problems} == {str(n) for n in range(1, 41)}, "the marked answers"
    assert problems[0].data["level"] in (0, 1), "other columns are for rewards"
    assert called == [("openai/gsm8k", "main")]
    # Parts by other names, and one part alone, of which a hash makes three.
    columns = "question='asked', answer='gold'"
    parts = {"train_sft": rows, "train_gen": [], "heldout": [{"asked": "8?", "gold": 8}]}
    with pytest.raises(UserError, match="has the parts train_sft, train_gen, heldout; train="):
        tasks.parse(f"hub('a/b', {columns})").size("train")
    task = tasks.parse(f"hub('a/b', train='train_sft', test='heldout', {columns})")
    assert asked(task, "test") == {"8"}
    parts = {"everything": rows}
    task = tasks.parse(f"hub('a/one', {columns})")
    assert [bool(task.size(split)) for split in SPLITS] == [True, True, True]


def test_a_hub_data_set_that_is_in_the_cache_is_read_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    (tmp_path / "folder").mkdir()
    for name, some in (("train", range(1, 31)), ("test", range(40, 43))):
        (tmp_path / "folder" / f"{name}.jsonl").write_text(runs.to_lines(sums(*some)))
    cache = tmp_path / "cache"
    datasets.load_dataset(str(tmp_path / "folder"), cache_dir=str(cache))
    (cache / "folder").rename(cache / "someone___folder")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    task = tasks.parse("hub('someone/folder')")
    assert asked(task, "test") == {"80", "82", "84"}


def test_a_hub_that_is_silent_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from modicum.tasks import readers

    told = []

    def load(*_: str) -> None:
        told.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        readers, "silence", lambda: "https://huggingface.co does not answer (no name)"
    )
    with pytest.raises(
        UserError, match=r"does not answer \(no name\) .*hub\(path='...'\) takes a local copy"
    ):
        tasks.parse("hub('some/thing')").size("train")
    assert told == [True], "the library looks into its cache alone"
    assert datasets.config.HF_HUB_OFFLINE is False, "and asks again when the hub is there"


@pytest.mark.parametrize(
    ("named", "values", "wanted"),
    [
        ("hard:asc", [1, None, 3], {"0": 1.0, "1": None, "2": 3.0}),
        ("hard:desc", [1, "", 3], {"0": -1.0, "1": None, "2": -3.0}),
        ("hard:desc", [0.25, float("nan"), 1], {"0": 0.75, "1": None, "2": 0.0}),
        ("hard", [1, "nan", "2.5"], {"0": 1.0, "1": None, "2": 2.5}),
    ],
)
def test_a_difficulty_has_a_direction_and_may_be_missing(
    named: str, values: list[Any], wanted: dict[str, float | None], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"q{n}?", "answer": n, "hard": value} for n, value in enumerate(values)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tasks.parse(f"file({str(path)!r}, difficulty={named!r})")
    found = {}
    for split in SPLITS:
        for index in range(task.size(split) or 0):
            problem = task.problem(split, 0, index)
            found[problem.answer] = problem.difficulty
    assert found == wanted


def test_a_difficulty_that_is_no_number_or_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "q?", "answer": 1, "hard": "very"}\n')
    for named, word in (("hard:desc", "'hard' must be a number, not 'very'"), ("hrd:asc", "hard")):
        with pytest.raises(UserError, match=word):
            tasks.parse(f"file({str(path)!r}, difficulty={named!r})").size("train")
