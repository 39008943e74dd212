"""Plans as a whole: machines, times, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modicum import cache, cli
from modicum.config import Held, Sampling, Steps, TrainConfig
from modicum.engine.flops import StepFlops
from modicum.plan import hardware, overall
from modicum.plan.hardware import GIB, DeviceRates, Machine
from modicum.plan.shapes import Lengths, cache_numbers, config_of
from modicum.types import UserError

SHORT = [
    "--max-tokens",
    "8",
    "--prompts-per-step",
    "2",
    "--group-size",
    "2",
    "--eval-problems",
    "0",
]


def test_hardware_is_a_card_or_memory() -> None:
    found = hardware.parse("2x48GB")
    assert (found.count, found.memory, found.device) == (2, 48 * GIB, "cuda")
    # The slowest card of that memory.
    assert found.rates == hardware.parse("A40").rates
    named = hardware.parse("4 x A100-80GB")
    assert (named.count, named.memory) == (4, 80 * GIB)
    assert named.rates is not None and named.rates.flops("bf16") == 312e12
    assert hardware.parse("NVIDIA GeForce RTX 4090").memory == 24 * GIB
    assert hardware.parse("7 GB").rates is None


@pytest.mark.parametrize("text", ["rtx4091", "0x48GB", "", "48", "0GB", "24GB fast"])
def test_unknown_hardware_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"is not known") as caught:
        hardware.parse(text)
    assert "\n" not in str(caught.value)


def test_this_machine_is_measured() -> None:
    found = hardware.parse("this", "cpu")
    assert found.device == "cpu" and found.rates is not None
    # A CPU does more than a million and less than a million billion operations a second.
    assert 1e6 < found.rates.fp32 < 1e15 and 1e6 < found.rates.bandwidth < 1e13


def test_times_are_a_roofline() -> None:
    config = TrainConfig(
        steps=10,
        sampling=Sampling(max_tokens=100),
        batch=Steps(prompts_per_step=4, group_size=8, rollout_batch=512),
        evaluation=Held(eval_problems=0),
    )
    lengths = Lengths(50, 50, 100, 100)
    rates = DeviceRates(bf16=1e12, fp32=1e11, bandwidth=1e10, source="")
    machine = hardware.Machine("", "cpu", None, rates)
    flops = StepFlops(sampling=0.0, training=7e11)
    # Bound by weights: 7 s / 0.7 of the bandwidth a token, 100 tokens; prompts are for free.
    heavy = overall.DecodingCost(layers=1, weight_bytes=70 * 10**9, token_flops=0.0, cache_bytes=0)
    found = overall.times(config, heavy, flops, lengths, machine)
    assert found.sampling == pytest.approx(100 * 70e9 / (0.7 * 1e10))
    assert found.training == pytest.approx(7e11 / (0.7 * 1e11))
    assert found.run == pytest.approx(10 * found.step)
    # Bound by FLOPs: 4 prompts of 50, and 32 rows of 100.
    busy = overall.DecodingCost(layers=1, weight_bytes=0, token_flops=7e9, cache_bytes=0)
    found = overall.times(config, busy, flops, lengths, machine)
    assert found.sampling == pytest.approx((4 * 50 + 32 * 100) * 7e9 / (0.7 * 1e11))
    # Bound by the cache: prompts once a group, rows half full on average.
    cached = overall.DecodingCost(layers=1, weight_bytes=0, token_flops=0.0, cache_bytes=7 * 10**6)
    found = overall.times(config, cached, flops, lengths, machine)
    assert found.sampling == pytest.approx(100 * (4 * 50 + 32 * 50) * 7e6 / (0.7 * 1e10))


def test_the_cache_of_a_token_is_the_published_one() -> None:
    for size, expected in {"0.5B": 12_288, "1.5B": 28_672, "3B": 36_864, "7B": 57_344}.items():
        assert 2 * cache_numbers(config_of(f"Qwen/Qwen2.5-{size}")) == expected


@pytest.mark.parametrize(
    ("text", "name", "gib", "bf16"),
    [
        ("T4", "t4", 16, False),
        ("Tesla V100", "v100-16gb", 16, False),
        ("v100 32GB", "v100-32gb", 32, False),
        ("RTX 3060 12GB", "rtx3060", 12, True),
        ("a100", "a100-40gb", 40, True),
        ("4090 laptop", "rtx4090-laptop", 16, True),
        ("4060 Ti", "rtx4060ti-16gb", 16, True),
        ("A5000", "rtxa5000", 24, True),
        ("MI300X", "mi300x", 192, True),
    ],
)
def test_cards_are_known_by_their_usual_names(text: str, name: str, gib: int, bf16: bool) -> None:
    found = hardware.parse(text)
    assert (found.name, found.memory, found.bf16) == (name, gib * GIB, bf16)


def test_an_unknown_card_is_its_memory_and_rates() -> None:
    found = hardware.parse("2x24GB 100TFLOPS 600GB/s")
    assert (found.count, found.memory) == (2, 24 * GIB) and found.rates is not None
    assert (found.rates.bf16, found.rates.fp32, found.rates.bandwidth) == (1e14, 1e14, 6e11)
    assert found.rates.source == "as given"
    assert hardware.parse("24 GB, 50 tflops").rates is not None


def test_the_command_gives_json_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "--hardware", "2x48GB", "--json", *SHORT]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True and found["parameters"] == 997_760
    assert found["memory"]["phases"][found["memory"]["peak_phase"]]
    assert found["flops"]["total"] == found["flops"]["sampling"] + found["flops"]["training"]
    assert any("one GPU of 2" in text for text in found["assumptions"])
    args = ["plan", "--hardware", "1GB", "--updates", "last(1); bitfit", "--markdown", *SHORT]
    assert cli.run(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["`last(1)`", "`bitfit`"]


def test_the_command_shows_parts_and_refuses_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["plan", "--update", "last(1)", "--hardware", "l4", "--prompt-tokens", "20", *SHORT]
    assert cli.run([*args, "--require-fit"]) == 0
    shown = capsys.readouterr().out
    assert "of 24.0 GiB" in shown and "fits" in shown and "prompts of 20 tokens" in shown
    assert "optimizer" in shown and "an estimate" in shown


def test_a_plan_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    real = overall.make

    def make(config: TrainConfig, *given: Any, **named: Any) -> Any:
        made.append(config.update)
        return real(config, *given, **named)

    monkeypatch.setattr(overall, "make", make)
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path / "cache"))
    shown = []
    for card in ("l4", "l4", "1GB", "1GB", "this"):
        code = cli.run(["plan", "--hardware", card, "--update", "last(1)", *SHORT])
        shown.append((code, capsys.readouterr().out))
    assert len(made) == 3 and shown[0] == shown[1] != shown[2] == shown[3]
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 2  # what is free here is looked at anew
    for file in files:
        file.write_text("{")
    again = ["plan", "--hardware", "l4", "--update", "last(1)", *SHORT]
    assert cli.run(again) == 0 and len(made) == 4
    assert capsys.readouterr().out == shown[0][1]
    assert cli.run([*again, "--json"]) == 0 and len(made) == 4
    assert json.loads(capsys.readouterr().out)["fits"] is True


def test_what_is_named_and_has_changed_is_planned_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "train.jsonl").write_text("1")
    asked = TrainConfig(model=str(model), task=f"file('{tmp_path}/train.jsonl')")
    places = [cache.key(asked)]
    (model / "config.json").write_text("{}")
    places.append(cache.key(asked))
    (tmp_path / "train.jsonl").write_text("12")
    places += [cache.key(asked), cache.key(asked), cache.key(replace(asked, update="last(1)"))]
    assert places[2] == places[3] and len(set(places)) == 4


def test_plans_are_kept_only_where_that_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("", str(tmp_path / "file")):
        monkeypatch.setenv("MODICUM_CACHE", folder)
        assert [cache.once(lambda n=n: n, "l4") for n in (1, 2)] == [1, 2]
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MOST", 2)
    for card in ("l4", "t4", "h100"):
        assert cache.once(lambda card=card: card, card) == card
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert cache.once(lambda: 0, "h100") == "h100"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "7", '["a plan", []]'])
def test_a_spoiled_plan_is_made_anew(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path))
    assert cache.once(lambda: "first", "l4") == "first"
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert cache.once(lambda: "second", "l4") == "second"
    assert cache.once(lambda: "third", "l4") == "second"


def test_a_kept_plan_needs_no_torch(tmp_path: Path) -> None:
    code = """
import sys
from modicum import cache, cli
cache.once = lambda *_: ["a plan", [{"fits": True}]]
assert cli.run(["plan", "--hardware", "l4"]) == 0
sys.exit("torch" in sys.modules)
"""
    environment = {**os.environ, "MODICUM_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment)
    assert done.returncode == 0


def test_a_plan_that_fails_has_no_more_to_say() -> None:
    with pytest.raises(UserError, match="hardware 'gtx1' is not known"):
        cli.run(["plan", "--hardware", "gtx1"])
    clocks = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(clock.finished.is_set() for clock in clocks)


@pytest.mark.parametrize("tokens", ["0", "-3", "many"])
def test_wrong_prompt_tokens_are_refused(tokens: str) -> None:
    with pytest.raises(UserError, match="--prompt-tokens must be"):
        cli.run(["plan", "--prompt-tokens", tokens])


def test_require_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("none", "cpu", 1, None)
    monkeypatch.setattr(hardware, "parse", lambda *_: machine)
    short, batch = Sampling(max_tokens=8), Steps(2, 2, micro_batch=4, rollout_batch=4)
    config = TrainConfig(sampling=short, batch=batch, evaluation=Held(eval_problems=0))
    plan = overall.make(config, Machine("any", "cpu", None, None), Lengths(9, 9, 8, 8))
    assert plan.fits is None
    monkeypatch.setattr(overall, "make", lambda *_, **__: replace(plan, machine=machine))
    assert cli.run(["plan", *SHORT]) == 0
    with pytest.raises(UserError, match=r"full on tiny does not fit none"):
        cli.run(["plan", "--require-fit", *SHORT])


def test_help_needs_no_torch() -> None:
    code = "import sys; from modicum.commands import plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
