"""The command line: help, JSON for scripts, what it prints."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers import ENDED, QUICK, Fails, make_run, modicum
from modicum import cli, runs
from modicum.types import UserError

pytestmark = pytest.mark.usefixtures("quiet")


def test_help_is_instant_and_lists_all_commands() -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = modicum("--help")
        times.append(time.perf_counter() - began)
        assert done.returncode == 0
        assert done.stderr == ""
        assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)
    loaded = os.getloadavg()[0] > (os.cpu_count() or 1)
    assert min(times) < (1.0 if loaded else 0.5)


@pytest.mark.parametrize("args", [[], ["-h"], ["help"]])
def test_other_ways_to_ask_for_help(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(args) == 0
    assert capsys.readouterr().out == cli.usage() + "\n"


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run(["help", "updates"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: modicum updates ")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "?? n? 1+1 -> 2 - ok"), ("latin-1", "?? né 1+1 -> 2 - ok"), ("utf-8", None)],
)
def test_terminals_that_are_not_utf_8(
    encoding: str, shown: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "算术 né 1+1 → 2 — ok"
    rows = [{"question": f"{text} {number}", "answer": number} for number in range(9)]
    path = tmp_path / "sums.jsonl"
    path.write_text(runs.to_lines(rows), encoding="utf-8")
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "argv", ["modicum", "tasks", f"file({str(path)!r})"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    screen.seek(0)
    assert (shown or text) in screen.read()


def test_a_home_folder_is_expanded_where_no_shell_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sums.jsonl").write_text('{"question": "1+1?", "answer": 2}\n')
    (tmp_path / "a.toml").write_text("steps = 0\n[optimiser]\n")
    assert cli.run(["tasks", "file('~/sums.jsonl')"]) == 0
    assert "1+1?" in capsys.readouterr().out
    for args in (["--config=~/a.toml"], ["--config", "~/a.toml"]):
        with pytest.raises(UserError, match="unknown key 'optimiser'"):
            cli.run(["train", *args])
    with pytest.raises(UserError, match=f"^{tmp_path}/none is not a run folder"):
        cli.run(["evaluate", "~/none"])
    assert not Path("~").exists()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("modicum ")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--json" in text
    assert f"examples:\n  modicum {name}" in text


# Results ---------------------------------------------------------------------------------


def printed(capsys: pytest.CaptureFixture[str], *args: object) -> Any:
    """What a command prints with --json: one line, and nothing else on stdout."""
    capsys.readouterr()
    assert cli.run([*map(str, args), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_updates_and_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from modicum.tasks import TASKS
    from modicum.updates import UPDATES

    for name, members in (("updates", UPDATES), ("tasks", TASKS)):
        listed = printed(capsys, name)
        assert [entry["name"] for entry in listed] == list(members)
        assert all(entry["summary"] and entry["signature"] for entry in listed)
        assert cli.run([name]) == 0
        assert all(member in capsys.readouterr().out for member in list(members)[:1])


def test_an_update_is_previewed(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path]
) -> None:
    found = printed(capsys, "updates", "last(1)", "--model", folders["qwen2"])
    assert 0 < found["parameters"] < found["total_parameters"]
    assert found["share"] == found["parameters"] / found["total_parameters"]
    assert found["tensors"] == len(found["names"])
    assert found["lowest_layer"] == 2
    assert cli.run(["updates", "last(1)"]) == 0
    assert "lowest trained layer" in capsys.readouterr().out


def test_problems_of_a_task_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "tasks", "arithmetic", "--count", 4)
    assert len(found) == 4
    assert all(set(p) == {"id", "question", "answer", "difficulty"} for p in found)
    assert found != printed(capsys, "tasks", "arithmetic", "--count", 4, "--seed", 1)
    assert cli.run(["tasks", "arithmetic"]) == 0
    assert found[0]["question"] in capsys.readouterr().out


def test_prompts_of_a_task_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """As the model gets them, with the settings of a run; what is shown before them is not asked."""
    args = ["tasks", "addition(below=5)", "--model", "tiny", "--template", "plain", "--count", "2"]
    found = printed(capsys, *args, "--examples", "1")
    shown, plain = found[0]["prompt"].split("\n\n")[0], printed(capsys, *args)
    asked = [p["question"] for p in plain if p["question"] not in shown]
    assert asked
    assert asked[0] in [p["question"] for p in found]
    for one in found:
        assert one["prompt"] == f"{shown}\n\n{one['question']}\n"
    assert [p["prompt"] for p in plain] == [f"{p['question']}\n" for p in plain]
    assert cli.run(args) == 0
    assert (
        f"{plain[0]['question']}\n\n  answer: {plain[0]['answer']}\n  prompt: "
        in capsys.readouterr().out
    )


def test_train_prints_its_result_and_nothing_else(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    model = str(folders["qwen2"])
    done = modicum("train", *QUICK, "--model", model, "--out", str(out), "--json")
    assert done.returncode in ENDED, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == json.loads((out / "result.json").read_text())
    assert "trains" in done.stderr  # progress goes there
    assert "it/s" not in done.stderr  # and no bars of the libraries


def test_brackets_in_a_path_are_not_markup(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "[" / "x]" / "problems.jsonl"
    path.parent.mkdir(parents=True)
    rows = [{"question": f"{i}+1?", "answer": i + 1} for i in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [*QUICK, "--model", str(folders["qwen2"]), "--out", str(tmp_path / "[bold]")]
    assert cli.run(["train", *options, "--task", f"file({str(path)!r})"]) in ENDED
    out, err = capsys.readouterr()
    assert str(path) in err
    assert "and takes 1 optimizer step at a rate to be found (cpu, fp32)" in err
    assert f"run folder: {tmp_path / '[bold]'}" in out


def test_evaluate_of_a_model_and_of_a_run(
    dense: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--problems", "2", "--samples", "2", "--max-tokens", "6"]
    base = printed(capsys, "evaluate", "--model", folders["qwen2"], *small)
    assert base["model"] == str(folders["qwen2"])
    assert (base["num_problems"], base["samples_per_problem"]) == (2, 2)
    assert set(base["pass_at"]) == {"1", "2"}
    run = printed(capsys, "evaluate", dense, *small)
    assert (run["model"], run["task"], len(run["scores"])) == (str(dense), "arithmetic", 2)
    assert cli.run(["evaluate", str(dense), *small]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_bf16_run_is_evaluated_in_bf16(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    run = make_run(tmp_path / "run", folders["qwen2"], "--update", "last(1)", "--dtype", "bf16")
    assert printed(capsys, "evaluate", run, "--problems", 2, "--samples", 1)["num_problems"] == 2
    assert "was trained in bf16" in fails("evaluate", run, "--dtype", "fp32")


# What the user got wrong -----------------------------------------------------------------
