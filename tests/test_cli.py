"""The command line: help, JSON for scripts, and one line for whatever the user got wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modicum import cli
from modicum.types import UserError

QUICK = [
    *("--steps", "1", "--prompts-per-step", "2", "--group-size", "2", "--max-tokens", "6"),
    *("--eval-problems", "2", "--eval-samples", "1"),
]
Fails = Callable[..., str]


def modicum(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `modicum args` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "modicum", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def make_run(out: Path, model: Path, *args: str) -> Path:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        options = [*QUICK, "--model", str(model), "--out", str(out), "--json", *args]
        assert cli.run(["train", *options]) == 0
    return out


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Progress bars of transformers are off, as `main` has them before it imports them."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    logging.set_verbosity(level)


@pytest.fixture(scope="module")
def dense(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that trained the last layer."""
    out = tmp_path_factory.mktemp("runs") / "dense"
    return make_run(out, folders["qwen2"], "--update", "last(1)")


@pytest.fixture(scope="module")
def unfinished(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint and without a result."""
    out = make_run(tmp_path_factory.mktemp("runs") / "cut", folders["llama"], "--update", "last(1)")
    (out / "result.json").unlink()
    return out


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Runs a command that must fail with one line on stderr and code 2; returns the line.

    With `late` the run had begun and had said so: then the line is the last one.
    """

    def call(*args: object, late: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["modicum", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert ended.value.code == 2
        assert out == ""
        lines = err.splitlines()
        assert lines[-1].startswith("error: ")
        assert len([line for line in lines if line.startswith("error:")]) == 1
        assert late or len(lines) == 1, err
        assert "Traceback" not in err
        return lines[-1]

    return call


@pytest.fixture
def broken(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a model folder in which one file has other content (None: is missing)."""

    def make(name: str, content: bytes | Callable[[bytes], bytes] | None) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(folders["qwen2"], folder)
        old = (folder / name).read_bytes()
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content(old))
        return folder

    return make


# Help ------------------------------------------------------------------------------------


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


def test_train_prints_its_result_and_nothing_else(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    model = str(folders["qwen2"])
    done = modicum("train", *QUICK, "--model", model, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
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
    assert cli.run(["train", *options, "--task", f"file({str(path)!r})"]) == 0
    out, err = capsys.readouterr()
    assert str(path) in err
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


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean 'train'", "evaluate"]),
        (["--steps", "3"], ["unknown command '--steps'"]),
        (["train", "--stesp", "1"], ["unknown option '--stesp'", "did you mean --steps?"]),
        (["train", "last(1)"], ["unknown option 'last(1)'"]),
        (["train", "--steps"], ["--steps: expected one argument"]),
        (["train", "--steps", "abc"], ["steps must be a whole number, not 'abc'"]),
        (["train", "--steps", "-1"], ["steps must be at least 0, not -1"]),
        (["train", "--group-size", "1"], ["group_size must be at least 2"]),
        (["train", "--temperature", "0"], ["temperature 0"]),
        (["train", "--dtype", "fp8"], ["dtype", "bf16, fp32"]),
        (["train", "--resume", "--overwrite"], ["exclude each other"]),
        (["train", "--config", "none.toml"], ["no config file none.toml"]),
        (["train", "--update", "lats(1)"], ["unknown update 'lats'", "did you mean 'last'"]),
        (["train", "--update", "last(n=1)"], ["no argument 'n'", "it takes k"]),
        (["train", "--update", "last(0)"], ["at least 1"]),
        (["train", "--task", "arithmetik"], ["unknown task", "did you mean 'arithmetic'"]),
        (["train", "--task", "3"], ["task '3' is a number"]),
        (["train", "--task", "file('none.jsonl')"], ["no file none.jsonl"]),
        (["train", "--reward", "acuracy"], ["unknown reward", "did you mean 'accuracy'"]),
        (["train", "--objective", "gpro"], ["unknown objective", "did you mean 'grpo'"]),
        (["train", "--objective", "3"], ["objective '3' is a number"]),
        (["train", "--curriculum", "unifrom"], ["unknown curriculum", "'uniform'"]),
        (["train", "--model", "nowhere"], ["no model folder nowhere"]),
        (["train", "--model", "./no/such"], ["no model folder ./no/such"]),
        (["train", "--model", "some/model"], ["'some/model'", "HF_HUB_OFFLINE"]),
        (["train", "--device", "nope"], ["'nope' is not a device"]),
        (["train", "--device", "cuda:99"], ["'cuda:99'"]),
        (["train", "--device", "meta"], ["'meta' cannot be used"]),
        (["updates", "lats(1)"], ["did you mean 'last'"]),
        (["updates", "last(99)"], ["has only 6 layers"]),
        (["updates", "full", "--model", "nowhere"], ["no model folder nowhere"]),
        (["tasks", "arithmetik"], ["did you mean 'arithmetic'"]),
        (["tasks", "--split", "tset"], ["split", "did you mean 'test'"]),
        (["evaluate", "nowhere"], ["nowhere is not a run folder"]),
        (["evaluate", "--problems", "x"], ["problems must be a whole number"]),
        (["export", "nowhere", "--out", "x"], ["nowhere is not a run folder"]),
        (["export"], ["needs --out"]),
        (["export", "--out", "x", "--format", "adapter"], ["needs a RUN"]),
        (["export", "--out", "x", "--format", "gguf"], ["format", "adapter, merged"]),
        (["report"], ["needs at least one run folder"]),
        (["report", "nowhere"], ["nowhere"]),
        (["demo", "--updates", "full; lats(1)"], ["did you mean 'last'"]),
        (["pretrain"], ["needs --out"]),
        (["pretrain", "--out", "x", "--heads", "3"], ["heads must be even"]),
        (["pretrain", "--out", "x", "--steps", "0"], ["steps must be at least 1"]),
    ],
    ids=lambda value: " ".join(value)[:40] if value and value[0].isascii() else "",
)
def test_a_wrong_command_line_is_one_line(
    args: list[str],
    parts: list[str],
    fails: Fails,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = fails(*args)
    for part in parts:
        assert part in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", b"{garbage", "JSON"),
        ("config.json", b"[]", "broken"),
        ("config.json", b"{}", "model_type"),
        ("config.json", lambda b: b.replace(b'"qwen2"', b'"nope"'), "nope"),
        ("config.json", lambda b: b.replace(b'"hidden_size": 32', b'"hidden_size": "x"'), "size"),
        ("config.json", lambda b: b.replace(b'"hidden_size": 32', b'"hidden_size": 64'), "broken"),
        ("config.json", lambda b: b.replace(b"ForCausalLM", b"ForMaskedLM"), "not a causal"),
        ("model.safetensors", None, "model.safetensors"),
        ("model.safetensors", lambda b: b[: len(b) // 2], "header"),
        ("model.safetensors", lambda b: b[:5], "header"),
        ("model.safetensors", b"", "header"),
        ("model.safetensors", lambda b: b.replace(b"layers.1.mlp.up", b"layers.1.mlp.pu"), "mlp"),
        ("tokenizer.json", None, "tokenizer"),
        ("tokenizer.json", b"{garbage", "broken"),
        ("tokenizer.json", b"{}", "broken"),
        ("tokenizer_config.json", b"{garbage", "broken"),
    ],
)
def test_a_broken_model_folder_is_one_line(
    name: str, content: Any, reason: str, broken: Callable[..., Path], fails: Fails, tmp_path: Path
) -> None:
    folder = broken(name, content)
    message = fails("train", *QUICK, "--model", folder, "--out", tmp_path / "run")
    assert str(folder) in message
    assert reason in message
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_causal_is_one_line(fails: Fails, tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig(hidden_size=8, architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    assert "BertForMaskedLM" in fails("train", "--model", tmp_path)
    assert "BertForMaskedLM" in fails("updates", "full", "--model", tmp_path)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("steps = ", ["is not TOML"]),
        ("stesp = 3", ["unknown key 'stesp'", "did you mean 'steps'"]),
        ("[batch]\nmicro_batch = '8'", ["batch: micro_batch must be a whole number"]),
        ("[batch]\nmicro_batch = 0", ["batch: micro_batch must be at least 1"]),
    ],
)
def test_a_wrong_config_file_is_one_line(
    text: str, parts: list[str], fails: Fails, tmp_path: Path
) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    message = fails("train", "--config", path, "--out", tmp_path / "run")
    assert all(part in message for part in [str(path), *parts])


def test_a_bad_row_of_a_data_file_is_one_line(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"question": "1+1?", "answer": 2}\n{"question": "1+2?"}\n')
    message = fails("train", *QUICK, "--task", f"file({str(path)!r})", "--out", tmp_path / "run")
    assert f"{path}, line 2" in message
    assert "'answer' is missing" in message


def test_a_prompt_that_is_too_long_is_named(
    fails: Fails, folders: dict[str, Path], tmp_path: Path
) -> None:
    options = [*QUICK, "--model", folders["qwen2"], "--out", tmp_path / "run"]
    message = fails("train", *options, "--max-prompt-tokens", 3, late=True)
    assert "max_prompt_tokens = 3" in message


# Run folders -----------------------------------------------------------------------------


def test_a_run_folder_is_not_overwritten_unasked(
    dense: Path, unfinished: Path, folders: dict[str, Path], fails: Fails
) -> None:
    options = [*QUICK, "--model", folders["qwen2"], "--out"]
    assert "holds a finished run" in fails("train", *options, dense)
    assert "--resume goes on" in fails("train", *options, unfinished)
    assert "no run folder" in fails("train", *options, folders["llama"], "--overwrite")


def test_a_resume_that_cannot_be_is_one_line(dense: Path, unfinished: Path, fails: Fails) -> None:
    assert "finished run" in fails("train", "--resume", "--out", dense)
    assert "other settings (seed = 0)" in fails(
        "train", "--resume", "--out", unfinished, "--seed", 5
    )
    assert "not a run folder" in fails("train", *QUICK, "--resume", "--out", unfinished / "none")


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(
    name: str, unfinished: Path, fails: Fails, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    path = unfinished / "checkpoints" / "step-000001" / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-9])
        for args in (["train", "--resume", "--out"], ["evaluate"], ["export", "--out", out]):
            message = fails(*args, unfinished)
            assert str(path.parent) in message
            assert "damaged" in message
        assert not out.exists()
    finally:
        path.write_bytes(whole)


def test_a_state_without_a_counter_is_named(unfinished: Path, fails: Fails) -> None:
    path = unfinished / "checkpoints" / "step-000001" / "state.json"
    whole = path.read_text()
    try:
        path.write_text(whole.replace('"skipped"', '"jumped"'))
        assert "state.json has no 'skipped'" in fails("evaluate", unfinished)
    finally:
        path.write_text(whole)


def test_a_run_goes_on_under_another_name_of_its_folder(unfinished: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(unfinished, tmp_path / "moved")
    assert cli.run(["train", "--resume", "--json", "--out", f"{moved}/"]) == 0
    assert (moved / "result.json").exists()


def test_an_export_that_cannot_be_is_one_line(dense: Path, fails: Fails, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no adapter" in fails("export", dense, "--out", out, "--format", "adapter")
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    assert "is not empty" in fails("export", dense, "--out", out)
    assert "holds no model" in fails("export", dense, "--out", out, "--overwrite")
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


def test_a_failure_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("modicum.commands.tasks.run", crash)
    with pytest.raises(ZeroDivisionError):
        cli.run(["tasks"])
    with pytest.raises(UserError):
        cli.run(["nope"])
