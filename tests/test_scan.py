"""Scans: units, ranking, contributions; and the command on a random model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import special

from helpers import Fails
from modicum import cli, runs, updates
from modicum.config import Held, Records, Sampling, Steps, TrainConfig
from modicum.study.analysis import said
from modicum.study.ranking import Standing, Unit, judge, placed, together, units
from modicum.study.scan import Scan, run_scan
from modicum.training import loop
from modicum.types import RunInterrupted, RunStopped, UserError

pytestmark = pytest.mark.usefixtures("quiet")


def test_the_units_of_a_model() -> None:
    assert units("layers", 3, 2, []) == [Unit(str(n), f"layers({n})") for n in range(3)]
    assert [u.place for u in units("blocks", 5, 2, [])] == [
        "surgical(0, of=2)",
        "surgical(1, of=2)",
    ]
    assert units("parts", 3, 2, ["mlp", "norm"])[1] == Unit("norm", "parts(norm)")
    for blocks in (1, 6):
        with pytest.raises(UserError, match="at least 2 and at most 5"):
            units("blocks", 5, blocks, [])


@pytest.mark.parametrize(
    ("over", "places", "method", "sign", "expected"),
    [
        ("layers", ["layers(2)", "layers(10)"], "", "@", "layers(2, 10)"),
        ("parts", ["parts(mlp)"], "lora(rank=4)", "@", "lora(rank=4) @ parts(mlp)"),
        ("layers", ["layers(1)"], "parts(mlp)", "&", "parts(mlp) & layers(1)"),
        (
            "layers",
            ["layers(1)"],
            "parts(mlp) + parts(norm)",
            "&",
            "(parts(mlp) + parts(norm)) & layers(1)",
        ),
        (
            "blocks",
            ["surgical(0)", "surgical(2)"],
            "lora",
            "@",
            "lora @ (surgical(0) + surgical(2))",
        ),
    ],
)
def test_the_best_units_make_one_update(
    over: Any, places: list[str], method: str, sign: str, expected: str
) -> None:
    made = placed(method, sign, together(over, places))
    assert made == expected
    assert str(updates.parse(made)) == expected


BASE = (0.0, 0.5, 0.0, 0.5)  # mean 0.25


def tried(
    unit: str,
    *scores: tuple[float, ...],
    rate: float | None = None,
    base: tuple[float, ...] = BASE,
    failed: tuple[str, ...] = (),
) -> Standing:
    """A unit whose runs of seeds 0, 1, ... have these scores."""
    by_seed = dict(enumerate(scores))
    return Standing(unit, f"layers({unit})", base, by_seed, rate, 10, 2.0, failed)


def t_interval(*values: float) -> tuple[float, float]:
    """Mean -+ t(n - 1) sd / sqrt(n), with t from the inverse of its distribution."""
    count, mean = len(values), sum(values) / len(values)
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(special.stdtrit(count - 1, 0.975)) * sd / math.sqrt(count)
    return mean - half, mean + half


def test_gains_and_intervals_by_hand() -> None:
    # Accuracies of 0.5, 0.5 and 0.4: gains of 0.25, 0.25 and 0.15.
    scores = (0.5, 0.5, 0.0, 1.0), (0.5, 0.5, 0.25, 0.75), (0.25, 0.5, 0.0, 0.85)
    (one,) = judge([tried("0", *scores)])
    assert one.gain == pytest.approx(13 / 60)
    assert one.by_seed == pytest.approx((0.25, 0.25, 0.15))
    assert one.over_seeds == pytest.approx(t_interval(0.25, 0.25, 0.15))
    # Averaged over seeds the problems score 5/12, 1/2, 1/12, 2.6/3.
    # Gains of 5/12, 0, 1/12, .3667 on four problems, by `stats.paired_interval`.
    assert one.over_problems == pytest.approx((-0.298387, 0.555676), abs=1e-6)
    assert (one.parameters, one.seconds, one.contribution) == (10, 2.0, None)
    assert one.level_with_best


def test_contributions_are_shares_of_a_clear_gain_of_full() -> None:
    half = tried("1", (0.5, 0.75, 0.0, 0.75))  # gain 0.25
    full = tried("full", (0.5, 1.0, 0.5, 1.0))  # every problem gains 0.5
    ranking = judge([full, half])
    assert [s.unit for s in ranking] == ["1", "full"]
    # Without spread the interval of four problems is Wilson's, which reaches below 0.
    assert [s.contribution for s in ranking] == [None, None]
    clear = tried("full", (0.5, 1.0, 0.4, 1.0) * 16, base=BASE * 16)
    half = tried("1", (0.5, 0.75, 0.0, 0.75) * 16, base=BASE * 16)
    ranking = judge([clear, half])
    assert [s.contribution for s in ranking] == pytest.approx([0.25 / 0.475, 1.0])


def test_what_is_level_with_the_best_is_paired_by_seed() -> None:
    def at(unit: str, *accuracies: float) -> Standing:
        return tried(unit, *((a,) * 4 for a in accuracies))

    # Seeds differ by far more than the units do, but unit 0 leads in each by 0.1 or so.
    found = judge([at("0", 0.3, 0.6, 0.9), at("1", 0.2, 0.49, 0.81)])
    assert [(s.unit, s.level_with_best) for s in found] == [("0", True), ("1", False)]
    found = judge([at("0", 0.3, 0.6, 0.9), at("1", 0.2, 0.7, 0.81)])
    assert [(s.unit, s.level_with_best) for s in found] == [("0", True), ("1", True)]


def test_notes_on_a_ranking() -> None:
    full = tried("full", (0.1,) * 4, rate=1e-3)
    ranked = [tried("1", (0.3,) * 4, rate=1e-3), tried("0", (0.3,) * 4, rate=2e-3)]
    assert said("of_scan", ranked, full, 1) == [
        "all units had one learning rate (0.001, 0.002); another may rank them otherwise",
        "no gain is clearly above 0: more steps, seeds or problems may rank them",
        "full's gain is not clearly above 0, so shares of it are not given",
    ]
    level = [replace(one, level_with_best=True) for one in ranked]
    assert said("of_scan", level, None, 2)[:2] == [
        "each unit stands with the best of 2 learning rates (0.001, 0.002)",
        "1 of the 1 others cannot be told from the best",
    ]


def test_a_unit_stands_with_its_best_rate_and_a_stopped_one_stands_last() -> None:
    stopped = tried("2", rate=1e-3, failed=("seed 0: the loss was not finite",))
    found = judge(
        [
            tried("full", (0.1,) * 4),
            tried("1", (0.3,) * 4, rate=1e-3),
            tried("1", (0.4,) * 4, rate=2e-3),
            stopped,
            tried("3", (0.9,) * 4, rate=1e-3, failed=("seed 1: diverged",)),
            tried("3", (0.35,) * 4, (0.35,) * 4, rate=2e-3),
        ]
    )
    ranks = [("1", 2e-3), ("3", 2e-3), ("2", 1e-3), ("full", None)]
    assert [(s.unit, s.learning_rate) for s in found] == ranks
    assert found[2].gain is None
    assert not found[2].level_with_best
    assert found[2].failed == ("seed 0: the loss was not finite",)
    assert judge([tried("1", BASE), stopped])[0].gain == 0.0


# The command -----------------------------------------------------------------------------


@pytest.fixture
def scanned(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Runs `modicum scan` on the random model with --json; returns what it printed."""

    def call(*args: str) -> Any:
        capsys.readouterr()
        assert cli.run([*command(folders, tmp_path), *args, "--json"]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        return json.loads(line)

    return call


def command(folders: dict[str, Path], tmp_path: Path) -> list[str]:
    model, out = str(folders["qwen2"]), str(tmp_path / "scan")
    return [
        *("scan", "--model", model, "--out", out, "--seeds", "1", "--steps", "1"),
        *("--prompts-per-step", "2", "--group-size", "2", "--max-tokens", "6"),
        *("--eval-problems", "3", "--eval-samples", "1", "--no-anatomy"),
    ]


def test_a_scan_ranks_and_goes_on(
    scanned: Callable[..., Any],
    folders: dict[str, Path],
    tmp_path: Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, calls = loop.train, []

    def watched(config: Any, *rest: Any, **more: Any) -> Any:
        calls.append((config.update, more["resume"], more["base"] is not None))
        if config.update == "layers(1)" and len(calls) == 2:
            real(config, *rest, **more)
            (Path(config.out) / "result.json").unlink()
            raise RunInterrupted("interrupted after step 1")
        if config.update == "layers(2)":
            real(config, *rest, **more)
            (Path(config.out) / "result.json").unlink()
            raise RunStopped("the agreement proof failed")
        return real(config, *rest, **more)

    monkeypatch.setattr(loop, "train", watched)
    first = command(folders, tmp_path)
    monkeypatch.setattr("sys.argv", ["modicum", *first])
    with pytest.raises(SystemExit, match="130"):
        cli.main()
    assert "the same command goes on from there" in capsys.readouterr().err
    found = scanned()
    assert calls == [
        ("layers(0)", False, True),
        ("layers(1)", False, True),
        ("layers(1)", True, True),
        ("layers(2)", False, True),
        ("full", False, True),
    ]
    root = tmp_path / "scan"
    assert json.loads((root / "scan.json").read_text()) == found
    assert [u["unit"] for u in found["units"]] == ["0", "1", "2"]
    assert found["units"][2]["failed"] == ["seed 0: the agreement proof failed"]
    assert (found["best"], found["split"], found["base"]["num_problems"]) == (
        "layers(0, 1)",
        "tune",
        3,
    )
    assert any("one learning rate" in note for note in found["notes"])
    assert any("no gain is clearly above 0" in note for note in found["notes"])
    assert (root / "scan.png").read_bytes().startswith(b"\x89PNG")
    assert "layers alone" in (root / "scan.svg").read_text()
    folder = root / "cells" / "final" / "layers-0" / "seed-0"
    assert not (folder / "checkpoints").exists()
    lines = runs.read_lines(folder / "evaluations.jsonl")
    assert {line["split"] for line in lines} == {"tune"}
    # Again: nothing is run, and the stopped run is not tried anew.
    assert scanned() == found
    assert len(calls) == 5
    assert "begun with other settings (amount = 1.0)" in fails(*first, "--steps", "2")
    assert cli.run([*first, "--micro-batch", "1"]) == 0
    assert cli.run([*first, "--best", "1"]) == 0
    assert cli.run([*first, "--overwrite", "--steps", "2", "--no-full"]) == 0
    assert [call[1] for call in calls[5:]] == [False] * 3


@pytest.mark.slow  # most of it is the start of processes
def test_a_scan_from_python_in_processes_tries_again_only_what_is_asked(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    config = TrainConfig(
        model=str(folders["qwen2"]),
        steps=1,
        sampling=Sampling(max_tokens=6),
        batch=Steps(prompts_per_step=2, group_size=2),
        evaluation=Held(3, 1, eval_split="test"),
        records=Records(anatomy=False),
    )
    design, out = Scan(over="blocks", blocks=2, seeds=1, best=1), tmp_path / "scan"
    found = run_scan(design, config, out, launcher="local")
    assert [unit["unit"] for unit in found["units"]] == ["block 0", "block 1"]
    assert (found["split"], found["full"]["unit"]) == ("tune", "full")
    assert found["best"] in ("surgical(0, of=2)", "surgical(1, of=2)")
    folder = out / "cells" / "final" / "surgical-1-of-2" / "seed-0"
    (folder / "result.json").unlink()
    (folder / "failed.json").write_text('{"error": "the loss was not finite"}')
    again = run_scan(design, config, out, launcher="local")
    assert again["units"][-1]["failed"] == ("seed 0: the loss was not finite",)
    assert again["best_units"] == ["block 0"]
    once_more = run_scan(design, config, out, launcher="local", retry_failed=True)
    for unit in (*found["units"], *once_more["units"], found["full"], once_more["full"]):
        del unit["seconds"]
    assert once_more == found


def test_parts_that_a_method_cannot_train_are_left_out(scanned: Callable[..., Any]) -> None:
    found = scanned(
        *("--over", "parts", "--method", "lora(rank=1)", "--no-full", "--keep", "--best", "9"),
        *("--rates", "1e-3", "2e-3"),
    )
    assert sorted(u["unit"] for u in found["units"]) == ["attention", "mlp"]
    assert found["best"] == "lora(rank=1) @ parts(attention, mlp)"
    assert found["full"] is None
    assert found["notes"][0].startswith("nothing to train in norm, bias, embedding, head")
    assert any("best of 2 learning rates" in note for note in found["notes"])


def test_a_scan_that_cannot_be_is_one_line(
    folders: dict[str, Path], tmp_path: Path, fails: Fails
) -> None:
    start = command(folders, tmp_path)
    assert "--method says" in fails(*start, "--update", "full")
    assert "eval_problems must be" in fails(*start, "--eval-problems", "0")
    assert "'fast'" in fails(*start, "--rates", "fast")
    assert "exclude each other" in fails(*start, "--rates", "1", "--learning-rate", "1e-3")
    assert "at least 2" in fails(*start, "--over", "blocks", "--blocks", "9")
    assert "cannot be joined" in fails(*start, "--method", "full @ full")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    assert "is no scan" in fails(*start, "--out", str(tmp_path / "other"), "--overwrite")
    assert "must be" in fails(*start, "--rates", "1e-3", "-1")
    assert "unknown" in fails(*start, "--reward", "acuracy")
    assert "one at a time" in fails(*start, "--jobs", "2")
    assert not (tmp_path / "scan").exists()
