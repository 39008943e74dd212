"""`modicum doctor` and `train --dry-run`: what they show of the first step, and their exit codes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modicum import cli, doctor, runs
from modicum.config import TrainConfig

pytestmark = pytest.mark.usefixtures("quiet")
SMALL = ["--prompts-per-step", "3", "--group-size", "4", "--max-tokens", "40"]


PLANNED = {
    "memory": {"peak_bytes": 3 * 2**29},
    "machine": {"memory": 2**30},
    "times": {"step": 4.0, "run": 240.0},
    "advice": "with --micro-batch 8: 0.90 GiB",
}


@pytest.fixture(autouse=True)
def planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the planner would say, which takes seconds; the slow test asks it."""
    monkeypatch.setattr(doctor.hardware, "parse", lambda *_: None)
    made = SimpleNamespace(to_json=lambda: PLANNED)
    monkeypatch.setattr(doctor.plan, "make", lambda *_: made)


def test_the_doctor_shows_what_the_first_step_will_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["doctor", *SMALL, "--show", "1"]) == 0
    out, _ = capsys.readouterr()
    assert list(tmp_path.iterdir()) == [], "nothing is written"
    for part in (
        "full on tiny; arithmetic (endless train, endless tune, endless test); reward accuracy\n",
        "template chat, style tags, 12 tokens (all: 12 to 12); completions end at '<|endoftext|>'\n",
        "  | What is 1+4-3+8?\n",
        "What is 1+4-3+8?  (gold 10)\n  reward 0 (accuracy 0); the marked answer is wrong: '11'",
        "groups of the first step\n",
        "\nrate      0.00",
        "\nmemory    1.5 GiB of 1.0; about 4 s a step, 4 min the run (estimates: modicum plan)\n"
        "          with --micro-batch 8: 0.90 GiB\n",
    ):
        assert part in out
    assert out.count("(gold ") == 1
    assert cli.run(["train", "--dry-run", *SMALL, "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert [len(problem["completions"]) for problem in seen["problems"]] == [4, 4, 4]
    # A run's first step has these very completions.
    held = ["--eval-problems", "0", "--no-anatomy", "--steps", "1", "--samples-every", "1"]
    assert cli.run(["train", *SMALL, *held, "--out", "run", "--json"]) == 0
    sampled = [line["completion"] for line in runs.read_lines(tmp_path / "run" / "samples.jsonl")]
    shown = [one["text"] for problem in seen["problems"] for one in problem["completions"]]
    assert sampled[:4] == shown[:4]
    rewards = [one["reward"] for problem in seen["problems"] for one in problem["completions"]]
    metrics = runs.read_lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert metrics["reward/mean"] == pytest.approx(sum(rewards) / 12)
    assert seen["with_signal"] == pytest.approx(3 * (1 - metrics["groups/no_signal"]))
    capsys.readouterr()
    assert cli.run(["doctor", *SMALL, "--problems", "2", "--json"]) == 0
    few = json.loads(capsys.readouterr().out)
    assert few["problems"] == seen["problems"][:2], "fewer of the same"


def test_a_run_that_would_learn_nothing_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["doctor", *SMALL[:-1], "2"]) == 1
    out, _ = capsys.readouterr()
    assert "1. completions are cut at max_tokens = 2\n" in out
    assert "\n   -> --max-tokens 8\n" in out
    assert "As it is the run would learn nothing: no group of its first step has a signal." in out
    assert cli.run(["doctor", *SMALL[:-1], "2", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["learns"] is False
    # The run itself ends with the same, and with an exit code of its own.
    few = [*SMALL[:-1], "2", "--steps", "2", "--eval-problems", "0", "--no-anatomy", "--out", "run"]
    assert cli.run(["train", *few]) == 3
    out, err = capsys.readouterr()
    assert "no group of step 1 had a signal: completions are cut at max_tokens = 2" in err
    last = err.splitlines()[-2:]
    assert last[0].startswith("NOTHING WAS TRAINED: no group of step 1 had a signal: completions")
    assert last[0].endswith("; --max-tokens 8")
    assert last[1] == "modicum doctor --config run/config.toml shows more"
    assert cli.run(["train", *few, "--overwrite", "--json"]) == 3
    out, _ = capsys.readouterr()
    assert json.loads(out)["nothing_trained"].endswith("; --max-tokens 8")
    assert cli.run(["doctor", "--config", "run/config.toml", "--show", "0"]) == 1


def test_own_data_and_functions_are_looked_at(
    tmp_path: Path, bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes on the rows, a term that fails now and then, sizes; and special tokens are seen."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n}+1?", "answer": n + 1, "hard": n % 2} for n in range(30)]
    Path("a.jsonl").write_text(runs.to_lines([*rows, rows[0]]))
    Path("own.py").write_text(
        "def own(completions, hard, **_):\n    return [len(c) / 1 / hard[0] for c in completions]\n"
    )
    config = replace(bare, task="file('a.jsonl')", reward="./own.py:own", seed=1)
    seen = doctor.examine(replace(config, batch=replace(config.batch, prompts_per_step=8)))
    assert any("1 of 31 rows are copies" in note for note in seen["notes"])
    assert seen["findings"][0]["what"] == "scores failed and are 0"
    assert "ZeroDivisionError" in seen["findings"][0]["evidence"]
    assert seen["problems_of"] == {"train": 25, "tune": 0, "test": 5}
    assert seen["ends"] == ["<|endoftext|>"]


@pytest.mark.slow
def test_memory_and_time_are_the_planners(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    assert cli.run(["doctor", *SMALL]) == 0
    found = re.search(
        r"memory    (0\.\d) GiB of \d+\.\d; about .* s a step", capsys.readouterr().out
    )
    assert found and 0.1 <= float(found[1]) < 0.9


def test_a_run_that_cannot_begin_is_refused_as_train_refuses_it(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch, fails: Any
) -> None:
    assert "no file nope.jsonl" in fails("doctor", "--task", "file('nope.jsonl')")
    assert "--resume: not allowed with argument --dry-run" in fails(
        "train", "--dry-run", "--resume"
    )
    assert "problems must be at least 0" in fails("doctor", "--problems", "-1")
    assert "unknown option '--lr'; did you mean --learning-rate?" in fails("doctor", "--lr", "1")
