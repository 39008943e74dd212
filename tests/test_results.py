"""modicum.results: what is read back is what was written, and files of other versions are read."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from fake_runs import make
from modicum.results import Analysis, Anatomy, ArmResult, Evaluation, RunResult, fill
from modicum.runs import numbered, read_lines, read_object
from modicum.stats import Interval
from modicum.types import UserError

ROOT = Path(__file__).resolve().parent.parent
ARM = {"name": "full", "slug": "full", "verdict": "control"}
SHIPPED = sorted((ROOT / "studies").glob("*/*/analysis.json"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.parent.name)
def test_a_shipped_analysis_is_written_as_it_was_read(file: Path) -> None:
    data = json.loads(file.read_text(encoding="utf-8"))
    found = dataclasses.asdict(Analysis.from_json(data, str(file)))
    assert json.loads(json.dumps(found)) == data


def test_studies_are_shipped() -> None:
    assert len(SHIPPED) >= 2


def test_unknown_keys_and_nulls_of_other_versions_are_read() -> None:
    data = {"update": "full", "of_tomorrow": [1], "model": None, "base": None, "flops": 3}
    found = fill(RunResult, data, "result.json")
    assert found == RunResult(update="full", flops=3.0)
    assert found.model == ""


def test_dataclasses_lists_and_tables_within_are_filled() -> None:
    arm = fill(
        ArmResult,
        ARM
        | {"by_seed": {"0": 1}, "accuracy": {"mean": 0.5, "low": 0, "high": 1}}
        | {"difficulty": [{"level": "2", "problems": 3.0, "accuracy": None}]},
        "x",
    )
    assert arm.by_seed == {"0": 1.0}
    assert arm.accuracy == Interval(0.5, 0.0, 1.0)
    assert [(level.level, level.problems, level.accuracy) for level in arm.difficulty] == [
        ("2", 3, None)
    ]
    assert arm.cost.seconds is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tries": [{"rate": "fast"}]}, "x: tries[0]: 'rate' must be a number, not 'fast'"),
        ({"tries": {}}, "x: 'tries' must be list, not {}"),
        ({"by_seed": {"1": "a"}}, "x: by_seed: '1' must be a number, not 'a'"),
        ({"accuracy": {"mean": 1}}, "x: accuracy: 'low' is missing"),
        ({"cost": 1}, "x: 'cost' must be dict, not 1"),
        ({"name": None}, "x: 'name' must be a text, not None"),
        ({"failed": [1]}, "x: 'failed[0]' must be a text, not 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        fill(ArmResult, ARM | change, "x")
    assert str(error.value) == words


def test_two_arms_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two arms have the same name"):
        Analysis.from_json({"question": "?", "control": "full", "arms": [ARM, ARM]}, "x")


def test_an_evaluation_may_lack_what_an_older_one_did_not_hold() -> None:
    found = fill(Evaluation, {"accuracy": 0.25, "greedy": None}, "x")
    assert math.isnan(found.greedy) and math.isnan(found.low) and found.ids == []
    # To be compared, it must be whole.
    with pytest.raises(UserError, match="this is not an evaluation: it has no 'task'"):
        Evaluation.from_json({"accuracy": 0.25})


def test_halves_of_characters_are_replaced() -> None:
    assert fill(RunResult, {"update": "a\ud800b"}, "x").update == "a\ufffdb"


def test_an_anatomy_needs_its_parts() -> None:
    with pytest.raises(UserError, match="x: 'dtype' is missing"):
        fill(Anatomy, {}, "x")


def test_lines_are_read_as_far_as_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n{"a": 2}\nno\n{"a": 3}\n')
    found = numbered(file)
    assert [next(found), next(found)] == [(f"{file}:1", {"a": 1}), (f"{file}:3", {"a": 2})]
    with pytest.raises(UserError, match=r"a\.jsonl:4: not JSON"):
        next(found)
    # A line that is being written has no end yet.
    file.write_text('{"a": 1}\n{"a": ')
    assert read_lines(file) == [{"a": 1}]
    with pytest.raises(UserError, match=r"none\.jsonl is missing"):
        read_lines(tmp_path / "none.jsonl")


def test_an_object_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match=r"a\.json: an object is wanted, not list"):
        read_object(tmp_path / "a.json")
    folder = make(tmp_path, "full")
    assert read_object(folder / "result.json")["update"] == "full"
