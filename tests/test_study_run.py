"""A whole small study by the command line: cells, analysis, report, the same numbers again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from helpers import modicum, replace_base
from modicum import cli
from modicum.report import page
from modicum.report.study import read
from modicum.runs import read_object
from modicum.study import (
    Allowance,
    Study,
    StudyObserver,
    Tuning,
    analysis,
    collect,
    design,
    run_study,
    study_status,
)
from modicum.types import UserError
from test_study_launch import NEEDS, TRIAL

pytestmark = pytest.mark.usefixtures("no_pdf")
TESTS = os.pathsep.join(filter(None, sys.path))  # where the cells find the reward
TEXT = """
question = "Does the last layer suffice?"
arms = ["full", "last(1)"]
seeds = [0, 1]
threads = 1
[budget]
amount = 60
[tuning]
factors = {factors}
problems = 2
samples = 1
[placebo]
random_reward = {placebo}
[config]
model = "{model}"
reward = "function('test_study_launch:parity')"
[config.sampling]
max_tokens = 8
[config.batch]
prompts_per_step = 2
group_size = 4
[config.evaluation]
eval_problems = 4
eval_samples = 2
[config.records]
anatomy = false
"""


HERE = (
    "--launcher",
    "here",
)  # those of local take ten seconds to begin: tests/test_study_launch.py


def study_file(folder: Path, model: Path, factors: str = "[1]", placebo: str = "false") -> Path:
    path = folder / "small.toml"
    path.write_text(TEXT.format(model=model, factors=factors, placebo=placebo))
    return path


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the study that is finished before the first test draws any."""
    monkeypatch.setattr(page, "draw", lambda figures: {})


@pytest.fixture(scope="module")
def finished(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study of two arms and two seeds."""
    root = tmp_path_factory.mktemp("study")
    path = study_file(root, folders["qwen2"])
    with pytest.MonkeyPatch.context() as patch:
        # One figure: tests/test_report_study.py has all.
        patch.setattr(page, "draw", lambda figures, draw=page.draw: draw(figures[:1]))
        assert cli.run(["study", "run", str(path), "--out", str(root / "out"), *HERE]) == 0
    return root / "out"


def test_a_study_leaves_its_numbers_and_its_report(finished: Path) -> None:
    found = read_object(finished / "analysis.json")
    assert [arm["name"] for arm in found["arms"]] == ["full", "last(1)"]
    control, last = found["arms"]
    # What it trained with, from the folder's `tuning.json`.
    assert [arm["learning_rate"] for arm in (control, last)] == [6.66e-4, 3.4e-3]
    assert set(last["by_seed"]) == {"0", "1"}
    assert control["verdict"] == "control" and control["difference"] is None
    # What the arms' numbers are made of, from the runs themselves.
    runs = {
        arm["name"]: [read_object(finished / f / "result.json") for f in arm["folders"].values()]
        for arm in (control, last)
    }
    means = {name: sum(r["trained"]["accuracy"] for r in rows) / 2 for name, rows in runs.items()}
    assert last["accuracy"]["mean"] == pytest.approx(means["last(1)"])
    assert last["difference"]["mean"] == pytest.approx(means["last(1)"] - means["full"])
    # The reading that no verdict is about, of the base and of every arm.
    lenient = [r["trained"]["lenient"] for r in runs["last(1)"]]
    assert last["beside"]["lenient"]["mean"] == pytest.approx(sum(lenient) / 2)
    assert list(found["beside"]) == list(control["beside"]) == ["lenient"]
    assert "| lenient (%) |" in (finished / "report.md").read_text()
    cost = last["cost"]
    assert cost["parameters"] == runs["last(1)"][0]["trainable_parameters"]
    assert cost["flops_ratio"] == pytest.approx(
        sum(r["flops"] for r in runs["last(1)"]) / sum(r["flops"] for r in runs["full"])
    )
    assert cost["time_ratio"] > 0
    # Each step generates 2 x 4 completions of at most 8 tokens.
    assert all(abs(r["generated_tokens"] - 60) <= 32 for rows in runs.values() for r in rows)
    for name in (
        "report.html",
        "report.md",
        "curves.json",
        "study.toml",
        "figures/differences.svg",
    ):
        assert (finished / name).is_file(), name


class Heard(StudyObserver):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_design_made_in_python_gives_the_numbers_of_the_file(
    finished: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    made = Study(
        question="Does the last layer suffice?",
        arms=["full", "last(1)"],  # type: ignore[arg-type]
        seeds=(0, 1),
        threads=1,
        budget=Allowance(amount=60),
        tuning=Tuning(factors=(1,), problems=2, samples=1),
        base={
            "model": folders["qwen2"],
            "reward": "function('test_study_launch:parity')",
            "sampling": {"max_tokens": 8},
            "batch": {"prompts_per_step": 2, "group_size": 4},
            "evaluation": {"eval_problems": 4, "eval_samples": 2},
            "records": {"anatomy": False},
        },
    )
    heard = Heard()
    outcome = run_study(made, tmp_path / "out", launcher="here", observer=heard)
    assert analysis.differences(finished, outcome.folder) == []
    assert (outcome.folder, outcome.missing) == (tmp_path / "out", ())
    assert outcome.report == tmp_path / "out" / "report.html" and outcome.report.is_file()
    assert [arm.name for arm in outcome.analysis.arms] == ["full", "last(1)"]
    assert outcome.analysis.conclusion.startswith("Nothing to match: `full` itself")
    assert heard.lines[0].startswith("Does the last layer suffice?\n2 arms x 2 seeds in ")
    cells = [line.split("  ")[-1].split(":")[0] for line in heard.lines if "left" in line]
    assert cells == [
        *("base on the test split", "probe full", "probe last(1)"),
        *("full, seed 0", "last(1), seed 0", "full, seed 1", "last(1), seed 1"),
    ]
    # Once more: nothing is run, and what has no number is named.
    (outcome.folder / "cells/final/last-1/seed-1/result.json").unlink()
    (outcome.folder / "cells/final/last-1/seed-1/failed.json").write_text('{"error": "diverged"}')
    heard = Heard()
    again = run_study(outcome.folder, launcher="here", observer=heard)
    assert again.missing == ("last(1), seed 1: diverged",)
    assert not any("left" in line for line in heard.lines)
    assert study_status(outcome.folder)["arms"]["last(1)"]["failed"] == ["seed 1: diverged"]


def test_what_a_design_made_in_python_says_wrong_is_one_line(tmp_path: Path) -> None:
    made = Study("Why?", ("full", "last(1)"), budget=Allowance("steps", 1))
    for design_of, out, message in (
        (made, "", "a study that is no file needs out"),
        (replace(made, base={"steps": 3}), "x", "steps is the study's to say"),
        (replace(made, base={"modle": "x"}), "x", "unknown key 'modle'; did you mean 'model'"),
        (replace(made, base={"model": object()}), "x", "nothing that a file can hold"),
        (replace(made, base={"model": None}), "x", "nothing that a file can hold"),
        (replace(made, extra={"last(1)": {"reward": "acuracy"}}), "x", r"arm last\(1\): .*acuracy"),
    ):
        with pytest.raises(UserError, match=message):
            run_study(design_of, out and tmp_path / out)
    with pytest.raises(UserError, match="unknown launcher 'slrm'; did you mean 'slurm'"):
        run_study(made, tmp_path / "x", launcher="slrm")
    with pytest.raises(UserError, match="is not the folder of a study"):
        study_status(made, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_finished_study_runs_nothing_again(finished: Path, capsys: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("result.json")}
    text = (finished / "analysis.json").read_text()
    path = finished.parent / "small.toml"
    assert cli.run(["study", "run", str(path), "--out", str(finished)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("result.json")} == before
    assert (finished / "analysis.json").read_text() == text
    assert "last(1), seed" not in capsys.readouterr().err


def test_status_says_how_far_it_is(finished: Path, capsys: Any) -> None:
    assert cli.run(["study", "status", str(finished), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["arms"]["last(1)"] == {
        "tuned": 0, "tries": 0, "done": 2, "seeds": 2, "failed": [],
    }  # fmt: skip


def test_failed_seeds_are_shown_and_in_no_number(finished: Path) -> None:
    study = design.read(finished / "study.toml")
    result = finished / "cells" / "final" / "last-1" / "seed-1" / "result.json"
    kept = result.read_text()
    result.unlink()
    (result.parent / "failed.json").write_text('{"error": "the loss was not finite"}')
    found = analysis.analyse(collect.collect(study, finished), finished)
    arm = found.arms[1]
    assert arm.kind == "layers"
    assert arm.failed == ("seed 1: the loss was not finite",)
    assert list(arm.by_seed) == ["0"]
    assert "1 of its 2 seeds did not finish" in arm.sentence
    (result.parent / "failed.json").unlink()
    result.write_text(kept)


def test_the_same_but_for_clocks_and_memory(finished: Path, capsys: Any, tmp_path: Path) -> None:
    found = read_object(finished / "analysis.json")
    slower = json.loads(json.dumps(found))
    slower["arms"][1]["cost"] |= {"seconds": 9.0, "time_ratio": 3.0, "peak_memory_bytes": 1}
    slower["arms"][1]["sentence"] = "at 3.00 x the time"
    assert analysis.same(found, slower) == []
    # Analyses of older versions have the primary reading alone.
    older = {name: value for name, value in slower.items() if name != "beside"}
    older["arms"] = [{k: v for k, v in arm.items() if k != "beside"} for arm in slower["arms"]]
    assert analysis.same(found, older) == []
    slower["arms"][1]["by_seed"]["1"] += 0.01
    assert [line.split(":")[0] for line in analysis.same(found, slower)] == ["arms[1].by_seed.1"]
    (tmp_path / "analysis.json").write_text(json.dumps(slower))
    assert cli.run(["study", "same", str(finished), str(finished)]) == 0
    assert cli.run(["study", "same", str(finished), str(tmp_path)]) == 1
    assert "1 numbers differ" in capsys.readouterr().out


def test_a_study_goes_on_elsewhere_from_the_small_files_of_its_cells(
    finished: Path, tmp_path: Path
) -> None:
    """Weights and logs stay behind; what is there is not run again, and the report is the same."""
    light = shutil.ignore_patterns(
        "checkpoints", "*.log", "*.lock", "report*", "figures", "curves.json"
    )
    for number, missing in enumerate(([], ["full/seed-1", "last-1/seed-1"])):
        there = tmp_path / str(number) / "out"
        shutil.copytree(finished, there, ignore=light)
        for cell in missing:
            shutil.rmtree(there / "cells/final" / cell)
        heard = Heard()
        assert run_study(there, launcher="here", observer=heard).missing == ()
        run = [line for line in heard.lines if "left" in line]
        assert len(run) == len(missing)
        assert analysis.differences(finished, there) == []
    run_study(finished, launcher="here")
    for name in ("report.md", "curves.json", "analysis.json"):
        assert (tmp_path / "0/out" / name).read_text() == (finished / name).read_text(), name


def test_seconds_on_different_devices_are_not_compared(finished: Path) -> None:
    study = design.read(finished / "study.toml")
    path = finished / "cells/final/last-1/seed-1/environment.json"
    kept = path.read_text()
    alike = analysis.analyse(collect.collect(study, finished), finished)
    assert "device" in json.loads(kept)
    assert alike.arms[1].cost.seconds and alike.arms[1].cost.time_ratio
    path.write_text(json.dumps({**json.loads(kept), "device": "a GPU"}))
    found = run_study(finished, launcher="here").analysis
    assert [text for text in found.notes if "(a GPU, " in text or ", a GPU)" in text]
    assert analysis.same(asdict(alike), asdict(found)) == []
    for arm in found.arms:
        assert (arm.cost.seconds, arm.cost.step_seconds, arm.cost.time_ratio) == (None, None, None)
        assert arm.cost.flops_ratio and "x the time" not in arm.sentence
    text = (finished / "report.md").read_text()
    assert "different devices" in text and "their seconds are not compared" in text
    path.write_text(kept)
    run_study(finished, launcher="here")
    assert "different devices" not in (finished / "report.md").read_text()


@pytest.mark.slow
def test_local_gives_the_numbers_of_the_launcher_here(finished: Path, tmp_path: Path) -> None:
    path, out = finished.parent / "small.toml", str(tmp_path / "out")
    assert cli.run(["study", "run", str(path), "--out", out, "--jobs", "2"]) == 0
    assert cli.run(["study", "same", str(finished), out]) == 0


@pytest.mark.slow
def test_two_processes_run_one_study(finished: Path, tmp_path: Path) -> None:
    """Both begin it, share its cells, and end with its report."""
    command = [sys.executable, "-m", "modicum", "study", "run", str(finished.parent / "small.toml")]
    environment = {**os.environ, "PYTHONPATH": TESTS}
    both = [
        subprocess.Popen([*command, "--out", str(tmp_path / "out")], env=environment, stderr=-1)
        for _ in range(2)
    ]
    said = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert analysis.differences(finished, tmp_path / "out") == []
    assert not list((tmp_path / "out").rglob("*.lock"))
    logs = [path.read_text() for path in (tmp_path / "out/cells").rglob("*.log")]
    assert len(logs) == 7
    assert all(log.count("note: change proof after the first step") <= 1 for log in logs)


def mortal(completions: list[str], **columns: Any) -> list[float]:
    """A reward that takes along the first process of a study that asks for it."""
    mark = os.environ.get("MORTAL")
    if mark and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(len(text) % 2) for text in completions]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "slurm", "ray"])
def test_launchers_give_the_same_numbers_though_a_cell_is_killed(
    launcher: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study of 13 cells, beside that of the launcher here."""
    if launcher in NEEDS:
        pytest.importorskip(NEEDS[launcher])
    path, mark = study_file(tmp_path, folders["qwen2"], placebo="true"), tmp_path / "mark"
    text = path.read_text().replace("test_study_launch:parity", "test_study_run:mortal")
    path.write_text(text.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    environment = {"PYTHONPATH": TESTS}
    for how, more in (("here", {}), (TRIAL.get(launcher, launcher), {"MORTAL": str(mark)})):
        out = ["--out", str(tmp_path / how.partition("(")[0]), "--launcher", how]
        done = modicum("study", "run", str(path), *out, **environment, **more)
        assert done.returncode == 0, done.stderr
    assert mark.exists()
    assert len(list((tmp_path / launcher).rglob("result.json"))) == 12
    assert analysis.differences(tmp_path / "here", tmp_path / launcher) == []


@pytest.mark.slow
def test_the_same_study_gives_the_same_numbers_whatever_the_jobs(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    path = study_file(tmp_path, folders["qwen2"], "[0.5, 1, 2]", "true")
    for jobs in ("1", "2"):
        out = str(tmp_path / jobs)
        done = modicum("study", "run", str(path), "--out", out, "--jobs", jobs, PYTHONPATH=TESTS)
        assert done.returncode == 0, done.stderr
    assert cli.run(["study", "same", str(tmp_path / "1"), str(tmp_path / "2")]) == 0
    arms = read_object(tmp_path / "1" / "analysis.json")["arms"]
    assert [len(arm["tries"]) for arm in arms] == [3, 3, 0], "the placebo's rate is the control's"


def test_wrong_input_is_one_line(tmp_path: Path, folders: dict[str, Path]) -> None:
    path = study_file(tmp_path, folders["qwen2"])
    text = path.read_text()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "analysis.json").write_text('{"arms": 3}')
    for args, message in (
        (["study"], "required: run.*, FILE"),
        (["study", "go", str(path)], "action is 'go'"),
        (["study", "run"], "required: FILE"),
        (["study", "run", str(path), "--jobs", "99"], "jobs must be at most"),
        (["study", "status", str(tmp_path)], "is not the folder of a study"),
        (["study", "same", str(tmp_path)], "needs two folders"),
        (["study", "same", str(tmp_path), str(tmp_path)], "analysis.json is missing"),
        (["study", "same", str(broken), str(broken)], r"analysis\.json: 'question' is missing"),
    ):
        with pytest.raises(UserError, match=message):
            cli.run(args)
    for old, new, message in (
        ("last(1)", "lst(1)", "arm lst"),
        ("amount = 60", "", "amount must be above 0"),
        ("max_tokens = 8", "max_token = 8", "unknown key 'max_token'"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=message):
            cli.run(["study", "run", str(path), "--out", str(tmp_path / "none")])
        assert not (tmp_path / "none").exists()


def test_a_base_that_changes_between_runs_is_found(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """By the run that would begin on it; and afterwards, by what the runs have written."""
    base = shutil.copytree(folders["qwen2"], tmp_path / "base")
    path, out = study_file(tmp_path, base), tmp_path / "out"
    path.write_text(path.read_text().replace("seeds = [0, 1]", "seeds = [0]"))
    assert run_study(path, out, launcher="here").missing == ()
    replace_base(base)
    path.write_text(path.read_text().replace("seeds = [0]", "seeds = [0, 1]"))
    missing = run_study(path, out, launcher="here").missing
    assert len(missing) == 2
    wanted = f"{out}/cells/base-test was evaluated on another base model: its hash differs"
    assert all(wanted in line and str(base) in line for line in missing)
    # Runs that were made elsewhere and put there.
    kept = out / "cells" / "final" / "last-1" / "seed-0" / "environment.json"
    found = read_object(kept)
    found["base"]["base_hash"] = "0" * 64
    kept.write_text(json.dumps(found))
    with pytest.raises(UserError, match="are of different base models, though both name"):
        run_study(path, out, launcher="here")


def test_levels_come_from_the_task_or_from_the_base(tmp_path: Path) -> None:
    def levels(*difficulties: float | None) -> tuple[Any, Any]:
        rows = [{"id": str(n), "difficulty": d} for n, d in enumerate(difficulties)]
        path = tmp_path / "completions-base.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        ids = [row["id"] for row in rows]
        return collect._levels(tmp_path, {"ids": ids, "scores": [0.0, 0.25, 1.0]})

    assert levels(10, 0, 2) == (("10", "0", "2"), ("0", "2", "10"))
    by_base = (("base: 0 %", "to 50 %", "above"), ("above", "to 50 %", "base: 0 %"))
    assert levels(4, 4, 4) == levels(None, 1, 2) == by_base


@pytest.mark.slow
def test_a_study_that_was_killed_leaves_no_run_behind(tmp_path: Path) -> None:
    """Its cells end with it, and the same command goes on; nothing counts as failed."""
    path = tmp_path / "killed.toml"
    text = TEXT.format(model="tiny", factors="[1]", placebo="false").replace("= 60", "= 4000")
    path.write_text(text)
    command = [sys.executable, "-m", "modicum", "study", "run", str(path), "--jobs", "2"]
    command += ["--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": TESTS}
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    metrics = tmp_path / "out/cells/final/full/seed-0/metrics.jsonl"
    end = time.monotonic() + 120
    while time.monotonic() < end and not metrics.is_file():
        time.sleep(0.05)
    running.kill()
    running.wait()
    time.sleep(2)
    size = metrics.stat().st_size
    time.sleep(2)
    assert metrics.stat().st_size == size
    assert modicum(*command[3:], PYTHONPATH=TESTS).returncode == 0
    assert not list((tmp_path / "out").rglob("failed.json"))


KINDS = {
    "adapters": "lora rslora loraplus lorafa dora pissa olora adalora loraxs vera miss ia3"
    " lntuning oft shira tinylora",
    "schedules, masks": "lisa badam badam_ratio autofreeze slimfit rgn snr sparse",
    "optimizers": "sgd galore apollo apollo_mini",
    "layers": "first last middle layers every surgical",
    "parts of layers": "parts bitfit",
    "whole model": "full",
}


def test_every_update_has_a_family() -> None:
    from modicum.updates import UPDATES

    for kind, names in KINDS.items():
        assert {UPDATES[name].kind for name in names.split()} == {kind}
    assert {cls.kind for cls in UPDATES.values()} - {"whole model"} == read.NUMBERS.keys()
