"""Runs while they go, in lists and side by side: from their folders, at every width."""

from __future__ import annotations

import io
import itertools
import json
import re
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from browser import CHROMIUM, Browser
from modicum import cli, commands, disk, display, live, options, runs
from modicum.config import Records, TrainConfig, to_toml
from modicum.report import read, tables
from modicum.report.tables import RunRow
from modicum.results import RunResult, fill
from modicum.status import Status, find
from modicum.training import metrics as samples
from modicum.training.loop import Observer, train
from modicum.types import RunStopped, UserError

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m&amp;"


def make(root: Path, name: str, steps: int = 20, ended: bool = True, **settings: Any) -> Path:
    """A run folder of so many steps of 40, by hand."""
    folder = root / name
    folder.mkdir(parents=True)
    config = replace(TrainConfig(), steps=40, **settings)
    (folder / "config.toml").write_text(to_toml(config))
    metrics = [
        {
            **{"step": step, "reward/mean": step / 40, "reward/accuracy": step / 50},
            **{"completions/length_mean": 40 - step, "policy/kl": 0.0, "policy/entropy": 0.5},
            **{"time/step_seconds": 2.0, "time/sampling_seconds": 1.5, "memory/peak_bytes": 2**30},
            **{"tokens/generated": 1000 * step, "time/tokens_per_second": 500},
        }
        for step in range(steps)
    ]
    samples = [
        {
            **{"step": step, "id": f"{step}-{p}", "question": f"What is {step}+{p}?{HOSTILE}"},
            **{"prompt": f"user: What is {step}+{p}?", "gold": str(step + p), "member": m},
            **{"completion": f"{'x' * 90}\n{m}{HOSTILE}", "tokens": 9, "finished": m > 0},
            **{"reward": None if m == 2 else 1.0 * m, "scores": {"accuracy": 1.0, "format": m}},
        }
        for step in range(steps)
        for p in range(3)
        for m in range(3)
    ]
    held = {"accuracy": 0.25, "low": 0.2, "high": 0.3, "split": "test"}
    evaluations: list[dict[str, Any]] = [{"step": -1, "name": "base", **held}]
    for step in range(5, steps + 1, 5):
        found = {"accuracy": 0.2 + step / 100, "split": "tune", "low": 0.2, "high": 0.6}
        evaluations.append({"step": step - 1, "name": f"step {step}", **found})
    decisions = [{"step": 3, "trains": ["a", "b"], "parameters": 12345, "evidence": {}}]
    files = {"metrics": metrics, "samples": samples, "evaluations": evaluations}
    for file, rows in (files | {"decisions": decisions}).items():
        (folder / f"{file}.jsonl").write_text(runs.to_lines(rows))
    (folder / "environment.json").write_text('{"date": "2026-01-02 03:04:05"}')
    if ended:
        trained = {"accuracy": 0.5, "low": 0.41, "high": 0.59}
        result = {"update": config.update, "base": held, "trained": trained, "stopped": ""}
        (folder / "result.json").write_text(json.dumps(result | {"peak_memory_bytes": 2**31}))
    return folder


def printed(shown: Any, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


# How runs stand --------------------------------------------------------------------------


def test_the_state_of_a_run(tmp_path: Path) -> None:
    assert Status(make(tmp_path, "a")).state == "finished"
    result = tmp_path / "a" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"nothing_trained": "no signal"}))
    found = Status(tmp_path / "a")
    assert (found.state, found.why, found.values["state"]) == (
        "untrained",
        "no signal",
        "untrained",
    )
    folder = make(tmp_path, "b", ended=False)
    assert (Status(folder).state, Status(folder).why) == ("interrupted", "")
    (folder / "failed.json").write_text('{"error": "a proof failed"}')
    assert (Status(folder).state, Status(folder).why) == ("failed", "a proof failed")
    with disk.held(folder):
        assert Status(folder).state == "running"
    (folder / "metrics.jsonl").unlink()
    assert Status(folder).done == 0
    with pytest.raises(UserError, match="not a run folder"):
        Status(tmp_path)


def test_what_is_known_of_a_run(tmp_path: Path) -> None:
    found = Status(make(tmp_path, "a", update="last(1)")).values
    wanted = {
        **{"name": "a", "state": "finished", "done": 20, "steps": 40, "update": "last(1)"},
        **{"baseline": 0.25, "accuracy": 0.5, "low": 0.41, "high": 0.59, "memory": 2**31},
        **{"seconds": 40.0, "date": "2026-01-02 03:04:05", "group_size": 8},
    }
    assert wanted.items() <= found.items()
    going = Status(make(tmp_path, "b", ended=False)).values
    assert (going["accuracy"], going["memory"]) == (0.4, 2**30)  # of the last evaluation


def test_the_end_of_a_file_is_read_alone(tmp_path: Path) -> None:
    folder = make(tmp_path, "a", steps=3)
    path = folder / "samples.jsonl"
    rows = [{"step": k, "text": "x" * 5000} for k in range(100)]
    path.write_text(runs.to_lines(rows) + '{"step": 100, "te')
    assert [row["step"] for row in Status(folder).last("samples.jsonl", 3)] == [97, 98, 99]
    assert Status(folder).last("nothing.jsonl", 3) == []


def test_what_is_broken_is_one_line_and_what_is_bare_is_shown(tmp_path: Path) -> None:
    folder = make(tmp_path, "a", steps=3, ended=False)
    (folder / "samples.jsonl").write_text('{"step": 2}\n{"step": 2, \n')
    with pytest.raises(UserError, match=r"samples\.jsonl: not JSON"):
        live.write(Status(folder))
    row = {"step": 2, "question": "q", "gold": "g", "completion": "c"}
    (folder / "samples.jsonl").write_text(runs.to_lines([row]))
    (folder / "metrics.jsonl").write_text('{"reward/mean": 0.5}\n')
    (folder / "config.toml").write_text(
        'model = "m"\ntask = "t"\nupdate = "u"\nreward = "r"\nobjective = "o"\n'
    )
    (folder / "failed.json").write_text(json.dumps({"error": "bad\x1b[31m\nline"}))
    found = Status(folder)
    live.write(found)
    lines = printed(live.view(found, 80, 24), 80)
    assert lines[0] == "run a: failed, bad\ufffd[31m line"
    assert lines[1].split() == ["step", "0", "of", "0"]
    assert "  none  c" in lines


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    made = [make(tmp_path, name, steps=1) for name in ("a", "deep/er/b", "study/cells/c")]
    (tmp_path / "study" / "study.toml").write_text("")
    (tmp_path / "a" / "checkpoints" / "x").mkdir(parents=True)
    assert list(find(tmp_path)) == made[:2]
    assert list(find(tmp_path, cells=True)) == made
    assert list(find(tmp_path / "nowhere")) == []


# Lists -----------------------------------------------------------------------------------


def listed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.run(["runs", *args]) == 0
    return capsys.readouterr().out


def names(text: str) -> list[str]:
    return re.findall(r"^ ([\w/()-]+) +(?:finished|interrupted|failed)", text, re.M)


@pytest.fixture
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs", "c", update="last(1)")
    make(tmp_path / "runs", "b", steps=10, ended=False, seed=3)
    make(tmp_path / "runs", "sub/a", steps=7, ended=False, task="gsm8k")
    slow = replace(TrainConfig().optimizer, learning_rate=1e-3)
    make(tmp_path / "runs", "d", optimizer=slow)
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["--sort", "name"], ["b", "c", "d", "sub/a"]),
        (["--sort", "seconds"], ["sub/a", "b", "c", "d"]),
        (["--sort", "learning_rate", "--where", "finished"], ["c", "d"]),
        (["--where", "learning_rate=0.001"], ["d"]),
        (["--where", "seed=3"], ["b"]),
        (["--where", "gsm8k"], ["sub/a"]),
        (["--where", "last(1)"], ["c"]),
        (["--where", "state=interrupted", "--where", "task=arithmetic"], ["b"]),
        (["--where", "update=last(1)"], ["c"]),
        (["runs/sub"], ["a"]),
    ],
)
def test_lists_are_sorted_and_searched(
    args: list[str], wanted: list[str], four: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names(listed(capsys, *args)) == wanted


def test_a_list_says_once_what_all_share(four: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = listed(capsys)
    assert "20/40" in text and "25.0 → 50.0" in text and "[41.0, 59.0]" in text
    assert "4 runs; accuracy (%): base → trained, or newest; model tiny" in text
    assert "gsm8k" in text and "2026-01-02 03:04" in text
    text = listed(capsys, "--columns", "name,seed,learning_rate", "--where", "finished")
    assert text.split()[:3] == ["name", "seed", "learning_rate"]
    assert "0.001" in text and "—" in text
    rows = json.loads(listed(capsys, "--json", "--where", "name=b"))
    assert [row["name"] for row in rows] == ["b"] and rows[0]["done"] == 10
    assert "there are no such runs" in listed(capsys, "--where", "nothing")


@pytest.mark.parametrize("command", ["watch", "compare", "evaluate", "export", "report"])
def test_a_run_is_named_as_it_is_listed(command: str, four: Path) -> None:
    parser = options.Parser(command)
    parser.add_argument("run", type=commands.folder, nargs="?")
    assert parser.read(["sub/a"]).run == "runs/sub/a"
    assert parser.read(["nowhere"]).run == "nowhere"
    assert parser.read([]).run is None
    Path("c").mkdir()
    assert parser.read(["c"]).run == "c"  # what is there comes first
    (four / "sub/a/config.toml").write_text("steps = x")
    with pytest.raises(UserError, match=r"runs/sub/a"):
        cli.run([command, "sub/a", *(["--out", "new"] if command == "export" else [])])


def test_runs_side_by_side(four: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = listed(capsys, "runs/c", "runs/d")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["update"] == ["last(1)", "full"]
    assert rows["learning_rate"] == ["—", "0.001"]
    assert "task" not in rows and "seed" not in rows
    assert rows["accuracy"] == ["25.0", "→", "50.0", "25.0", "→", "50.0"]
    assert "modicum compare runs/c runs/d" in text
    assert listed(capsys, "c", "d") == text  # as the list names them
    one = listed(capsys, "runs/c")
    assert "last(1)" in one and "learning_rate" not in one


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["--sort", "acuracy"], "nothing is called 'acuracy'; did you mean 'accuracy'?"),
        (["--where", "staet=x"], "nothing is called 'staet'; did you mean 'state'?"),
        (["--columns", "name,stats"], "nothing is called 'stats'"),
    ],
)
def test_what_no_list_has_is_one_line(args: list[str], message: str, four: Path) -> None:
    with pytest.raises(UserError) as caught:
        cli.run(["runs", *args])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_run_is_told_of_and_left_out(
    four: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (four / "b" / "metrics.jsonl").write_text("{\n{}\n")
    assert cli.run(["runs", "--sort", "name"]) == 0
    found = capsys.readouterr()
    assert names(found.out) == ["c", "d", "sub/a"]
    assert found.err.startswith("note: runs/b/metrics.jsonl:1: not JSON")


# Widths ----------------------------------------------------------------------------------

ROW = RunRow(
    "lora(rank=8)",
    0,
    fill(
        RunResult,
        {
            **{"update": "lora(rank=8)", "trainable_parameters": 160_256, "seconds": 37.5},
            **{"total_parameters": 997_760, "peak_memory_bytes": 574 * 2**20},
            "base": {"accuracy": 0.349, "greedy": 0.383, "length": 10.1},
            "trained": {
                **{"accuracy": 0.534, "low": 0.502, "high": 0.566, "greedy": 0.891},
                "length": 12.3,
            },
        },
        "row",
    ),
    read.RunRecord(Path("x"), {}, {}, (), None, {}),
)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_table_of_results_fits(width: int) -> None:
    lines = printed(tables.rich_table([ROW], width), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    for part in ("lora(rank=8)", "34.9 → 53.4", "[50.2, 56.6]", "update", "95% interval"):
        assert part in text
    assert "38.3 → 89.1" in text and "574 MiB" in text
    assert ("160k" in text and "37.5" in text) == (width > 60)
    assert ("10.1 → 12.3" in text) == (width > 80)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_list_fits(width: int, four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(four, "lora-rank8-at-middle-8-Qwen--Qwen2.5-0.5B-gsm8k-seed0", update="lora(rank=8)")
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    monkeypatch.setattr(tables, "terminal", lambda: console)
    assert cli.run(["runs"]) == 0
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "25.0 → 50.0" in text and "[41.0, 59.0]" in text and "finished" in text
    assert "20/40" in text and ("last(1)" in text) == (width > 60)


FIELDS = ["reward 0.45", "accuracy 0.40", "left 0:33", "812 tok/s", "length 12", "KL 0.003"]


@pytest.mark.parametrize(
    ("width", "wanted"),
    [
        (60, "last(1) ━━━━━━━    27/40  reward 0.45  accuracy 0.40"),
        (80, "last(1) ━━━━━━━    27/40  reward 0.45  accuracy 0.40  left 0:33  812 tok/s"),
        (
            120,
            "last(1) ━━━━━━━━━━━━━━       27/40  reward 0.45  accuracy 0.40  left 0:33"
            "  812 tok/s  length 12  KL 0.003",
        ),
    ],
)
def test_a_line_of_progress_keeps_its_steps_and_its_bar(width: int, wanted: str) -> None:
    assert display.line("last(1)", 27, 40, FIELDS, width) == wanted
    long = display.line("lora(rank=8, targets='attention') @ layers(1, 2, 3)", 1, 9, FIELDS, width)
    assert len(long) < width and " 1/9" in long and "━" in long
    assert ("…" in long) == (width < 80)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_what_a_terminal_of_80_columns_shows(
    quick: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines break between words, evaluations count their problems, equal numbers stand once."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with display.Display() as screen:
        train(replace(quick, steps=2, records=Records(0, anatomy=False)), screen)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", shown.getvalue())
    assert "full ━━━━━      1/2  reward 0." in text and "accuracy" not in text
    assert "evaluating base ━━━━━━━━━━ 4/4  problems  greedy" in text
    assert "evaluating base ━━━━━━━━━━ 4/4  problems  sampled" in text
    assert "/8" not in text
    assert all(len(line.rstrip()) <= 80 for line in re.split(r"[\r\n]+", text))
    said = "a step samples 2 x 4 completions, at most 64 tokens at temperature 1, and takes 1"
    assert said not in text and said in re.sub(r"\s+", " ", text)


# A run while it goes ---------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_view_fits_and_says_it_all(width: int, tmp_path: Path) -> None:
    folder = make(tmp_path, "mine", ended=False)
    with disk.held(folder):
        lines = printed(live.view(Status(folder), width, 24, "evaluating base 3/9"), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert lines[0] == "run mine: running"
    assert lines[1].startswith("━━━━━━━━━━           step 20 of 40")
    assert "Held-out accuracy" in text and "Reward" in text and "█" in text
    assert "KL from the reference" not in text, "it is 0 in every step"
    assert "step 20: What is 19+0?<script>" in text and "\x1b" not in text
    assert "  none  xxxx" in text and "  1.00  xxxx" in text
    assert "from step 4: trains 2 tensors" in text
    assert "held-out (%) 25.0 → 40.0" in text
    if width == 120:
        assert "evaluating base 3/9" in lines[1]
        assert "left 40 s" in text and "peak memory 1.00 GiB" in text


def test_the_page_is_one_file_that_loads_itself_anew(tmp_path: Path) -> None:
    folder = make(tmp_path, "mine", ended=False)
    with disk.held(folder):
        live.write(Status(folder))
    text = (folder / "live.html").read_text(encoding="utf-8")
    assert '<meta http-equiv="refresh" content="2.0">' in text
    assert "default-src 'none'" in text and "<script" not in text and "http://" not in text
    assert "Running, step 20 of 40" in text and "width: 50.0%" in text
    assert "&lt;script&gt;alert(1)" in text and "\x1b" not in text and "<img" not in text
    assert "user: What is 19+0?" in text and "9 tokens, cut" in text and "no verdict" in text
    assert text.count("<polyline") == 5
    assert text.count("<h3>What is 19+") == 2
    assert "From step 4: trains 2 tensors, 12.3k parameters" in text
    live.write(Status(make(tmp_path, "done")))
    text = (tmp_path / "done" / "live.html").read_text(encoding="utf-8")
    assert "refresh" not in text and "Finished, step 20 of 40" in text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    folder = make(tmp_path, "mine")
    live.write(Status(folder))
    over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    with Browser(tmp_path / "profile") as browser:
        for width in (1280, 390):
            browser.load(folder / "live.html", width, dark=width == 390)
            assert browser.messages == []
            assert browser.requests == [(folder / "live.html").resolve().as_uri()]
            assert browser.run(over) == 0
            lines = "[...document.querySelectorAll('polyline')].map(p => p.getBoundingClientRect())"
            assert (
                browser.run(f"{lines}.every(b => b.width > 200 && b.height > 20)")
                == (browser.run("document.querySelectorAll('polyline').length") == 0)
                or browser.run(f"{lines}.filter(b => b.width > 200).length") == 5
            )


@pytest.mark.parametrize("steps", [0, 1, 2, 500])
def test_runs_of_every_length_are_shown(steps: int, tmp_path: Path) -> None:
    folder = make(tmp_path, "mine", steps=steps, ended=False)
    file, entropies = folder / "metrics.jsonl", itertools.cycle(['entropy": NaN', 'entropy": 1'])
    file.write_text(re.sub(r'entropy": 0.5', lambda _: next(entropies), file.read_text()))
    live.write(Status(folder))
    assert printed(live.view(Status(folder), 80, 24), 80)[0] == "run mine: interrupted"
    (folder / "samples.jsonl").unlink()
    (folder / "evaluations.jsonl").unlink()
    live.write(Status(folder))
    points = re.findall(r'points="([^"]*)"', (folder / "live.html").read_text())
    assert all(1 < len(line.split()) <= 120 for line in points)


def test_old_samples_are_shown(tmp_path: Path) -> None:
    """Without prompt, member and tokens, as runs had them."""
    folder = make(tmp_path, "mine", ended=False)
    row = {"step": 0, "question": "1+1?", "gold": "2", "completion": "2", "reward": 1.0}
    (folder / "samples.jsonl").write_text(runs.to_lines([row | {"scores": {"accuracy": 1.0}}]))
    live.write(Status(folder))
    assert "1+1?" in (folder / "live.html").read_text()
    assert "1.00  2" in "\n".join(printed(live.view(Status(folder), 80, 24), 80))


def test_showing_never_takes_more_than_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, taken = [100.0], 0.05
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    seen: list[float] = []

    def show(found: Status) -> None:
        seen.append(now[0])
        now[0] += taken

    shown = live.Shown(make(tmp_path, "a", steps=1), show, lambda text: None)
    for _ in range(400):
        shown.update()
        now[0] += 0.1
    assert len(seen) == 4, "in 40 s each 10 s: 0.05 s are a two-hundredth of that"
    shown.update(now=True)
    assert len(seen) == 5


def test_what_fails_in_showing_is_a_note(tmp_path: Path) -> None:
    notes: list[str] = []

    def show(found: Status) -> None:
        raise AttributeError("no such thing")

    shown = live.Shown(make(tmp_path, "a", steps=1), show, notes.append)
    shown.update()
    shown.update(now=True)
    assert notes == ["the run goes on and is not shown (AttributeError: no such thing)"]
    with pytest.raises(KeyboardInterrupt):
        live.Shown(
            tmp_path / "a", lambda _: (_ for _ in ()).throw(KeyboardInterrupt), print
        ).update()


def test_a_run_writes_its_page_and_its_state(
    quick: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/opt/venv/bin/modicum", "train", "--steps", "4"])
    folder, states = Path(quick.out), list[str]()
    config = replace(quick, records=replace(quick.records, watch=True, anatomy=False))

    class Look(Observer):
        def step(self, metrics: dict[str, float]) -> None:
            states.append(Status(folder).state)
            if metrics["step"] == 2:
                raise RunStopped("the loss was not finite")

    with pytest.raises(RunStopped):
        train(config, Look())
    assert states == ["running"] * 3
    assert (Status(folder).state, Status(folder).why) == ("failed", "the loss was not finite")
    assert "Failed, step 3 of 4: the loss was not finite" in (folder / "live.html").read_text()
    train(config, resume=True)
    assert "Finished, step 4 of 4" in (folder / "live.html").read_text()
    assert not (folder / "failed.json").exists()
    began = runs.read_object(folder / "environment.json")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", began["date"])
    assert began["host"] and began["command"] == "modicum train --steps 4"


def test_watch_prints_a_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path, "mine", ended=False)
    with disk.held(folder):
        assert cli.run(["watch", str(folder), "--once"]) == 0
    text = capsys.readouterr().out
    assert "run mine: running" in text and f"page: {folder}/live.html" in text
    assert (folder / "live.html").exists()
    assert cli.run(["watch", str(make(tmp_path, "over"))]) == 0, "one that has ended ends it"
    with pytest.raises(UserError, match="not a run folder"):
        cli.run(["watch", str(tmp_path)])


# Samples ---------------------------------------------------------------------------------


def test_every_completion_is_kept(bare: TrainConfig) -> None:
    config = replace(bare, steps=2, records=Records(1, anatomy=False))
    train(config)
    rows = runs.read_lines(Path(config.out) / "samples.jsonl")
    assert [(row["step"], row["member"]) for row in rows] == [
        (step, member) for step in (0, 1) for _ in range(2) for member in range(4)
    ]
    assert set(rows[0]) == {
        *("step", "id", "question", "prompt", "gold", "member", "completion", "tokens"),
        *("finished", "reward", "scores"),
    }
    assert rows[0]["prompt"].endswith("\n") and rows[0]["question"] in rows[0]["prompt"]
    assert rows[0]["tokens"] == 8 and rows[0]["scores"] == {"digits": rows[0]["reward"]}
    assert len({row["id"] for row in rows}) == 4


def test_a_large_file_of_samples_is_thinned(
    bare: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past its limit; a resumed run and a longer one have the same lines as the uncut one."""
    assert samples.THIN == 10
    monkeypatch.setattr(samples, "THIN", 2)
    records = replace(bare.records, samples_every=1, samples_mib=0)
    config = replace(bare, records=records, steps=4)
    train(config)
    kept = runs.read_lines(Path(config.out) / "samples.jsonl")
    assert [row["step"] for row in kept] == [0] * 8 + [2] * 4 + [3] * 4
    assert [row.get("end", False) for row in kept] == [False] * 12 + [True] * 4
    longer = replace(config, steps=5)
    train(longer, resume=True)
    train(replace(longer, out=str(tmp_path / "whole")))
    assert runs.read_lines(Path(config.out) / "samples.jsonl") == runs.read_lines(
        tmp_path / "whole" / "samples.jsonl"
    )


def test_samples_cost_little(bare: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU seconds of writing 128 completions of an ordinary step: a few milliseconds."""
    spent: list[float] = []

    def write(*args: Any) -> None:
        began = resource.getrusage(resource.RUSAGE_SELF)
        real(*args)
        ended = resource.getrusage(resource.RUSAGE_SELF)
        spent.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)

    real = samples.write_samples
    monkeypatch.setattr(samples, "write_samples", write)
    batch = replace(bare.batch, prompts_per_step=16, group_size=8)
    train(replace(bare, batch=batch, records=Records(0, anatomy=False), steps=3))
    assert sorted(spent)[1] < 0.02


def test_reports_read_the_ends_of_samples(tmp_path: Path) -> None:
    record = read.load(make(tmp_path, "a"))
    assert [row.step for row in record.samples] == [0] * 9 + [19] * 9
    assert [row.step for row in read.load(make(tmp_path, "b", steps=1)).samples] == [0] * 9


def test_a_report_of_a_run_without_a_result_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pdf: None
) -> None:
    folder = make(tmp_path, "a", ended=False)
    assert Status(folder).so_far == "step 20 of 40, reward 0.47"
    assert cli.run(["report", str(folder)]) == 0
    text = capsys.readouterr().out
    said = f"{folder}: no result yet; step 20 of 40, reward 0.47\n"
    assert text.startswith(said)
    assert "base → trained" not in text


def test_of_one_sample_no_number_stands_twice() -> None:
    from modicum.config import Sampling
    from modicum.report.words import filled
    from modicum.results import Evaluation

    bands = {"1": [0.5, 0.4, 0.6], "4": [0.75, 0.7, 0.8]}
    found = Evaluation(accuracy=0.5, low=0.4, high=0.6, pass_at=bands, maj_at=bands)
    text = filled("evaluation.txt", name="x", found=found, sampling=Sampling())
    assert "pass@1" not in text and "maj@1" not in text
    assert "pass@4    75.0%" in text and "maj@4     75.0%" in text
