"""Names of runs that were given none: from what differs, one for each, the same each time."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import modicum
from helpers import metrics_of
from modicum import naming
from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.settings import tables
from modicum.training.loop import train
from modicum.types import UserError


def named(**settings: Any) -> str:
    made = from_mapping(TrainConfig, tables(TrainConfig, settings, "test"), "test")
    return naming.name_of(made)


NAMES: list[tuple[dict[str, Any], str]] = [
    ({}, "full-seed0"),
    ({"seed": 3}, "full-seed3"),
    ({"update": "last(1)"}, "last-1-seed0"),
    ({"update": " last( 1 )"}, "last-1-seed0"),
    ({"update": "lora(rank=8) @ middle(8)"}, "lora-rank8-at-middle-8-seed0"),
    ({"update": "last(5) & parts(mlp)"}, "last-5-and-parts-mlp-seed0"),
    ({"update": "last(5) + parts(mlp)"}, "last-5+parts-mlp-seed0"),
    (
        {"model": "Qwen/Qwen2.5-0.5B", "task": "gsm8k", "update": "last(1)", "dtype": "bf16"},
        "last-1-Qwen--Qwen2.5-0.5B-gsm8k-bf16-seed0",
    ),
    ({"learning_rate": 1e-3}, "full-lr0.001-seed0"),
    ({"learning_rate": 4}, "full-lr4-seed0"),
    ({"reward": "accuracy + 0.2*format"}, "full-accuracy+0.2xformat-seed0"),
    ({"objective": "grpo(kl=0.04)", "group_size": 4}, "full-grpo-kl0.04-group4-seed0"),
    ({"schedule": "linear", "steps": 40}, "full-linear-steps40-seed0"),
    # What changes memory, files or length, and not what is trained, is left out.
    ({"steps": 40, "micro_batch": 3, "checkpoint_every": 1, "stop_when": "never"}, "full-seed0"),
]


@pytest.mark.parametrize(("settings", "name"), NAMES)
def test_a_name_says_what_differs(settings: dict[str, Any], name: str) -> None:
    assert named(**settings) == name


def test_no_two_runs_have_one_name() -> None:
    """Settings that look alike once signs are left out, and such as are long."""
    alike: list[dict[str, Any]] = [
        *({"update": u} for u in ("last(1)", "last(2)", "(last(1) + first(1)) & parts(mlp)")),
        *({"update": u} for u in ("last(1) + first(1) & parts(mlp)", "layers(1, 1)", "layers(11)")),
        *({"model": m} for m in ("m", "../m", "/m", "./m", "m/m", "a/b/m", "m m", "mm", "тест")),
        *({"task": f"file('{path}')"} for path in ("a.jsonl", "b/a.jsonl", "a .jsonl", "a.csv")),
        *({"system": text} for text in ("Be brief", "Bebrief", "be brief", "Be\nbrief", "")),
        *({"stop": stop} for stop in ("", "x", ("x", "y"), "xy")),
        *({"reward": r} for r in ("accuracy*0.5", "0.5*accuracy", "accuracy*5", "a.py:f", "a:f")),
        *({"learning_rate": rate} for rate in (1e-5, 1e-6, 1 / 3, 0.333333, 0.3333333)),
        *({"model": m} for m in ("a/b", "a--b", "X/Y", "X--Y", "bf16", "o/X-bf16", "o/X-gsm8k")),
        *({"model": "o/X", **more} for more in ({"dtype": "bf16"}, {"task": "gsm8k"})),
        *({"dtype": "bf16"}, {"reward": "f(a=-1)"}, {"reward": "f(a, 1)"}),
        *({"task": f"file({of})"} for of in ("train=a.jsonl", "traina.jsonl", "a.jsonl, accuracy")),
        {"task": "file(a.jsonl)", "objective": "accuracy"},
        *({"update": u} for u in ("f(a=1)", "f(a1)", "f(a=11)", "f(a1=1)", "f(a, 1)", "f(a)")),
        *({"update": u} for u in ("f(a=b)", "f(ab)", "f(a, b)", "f(a=True)", "f(aTrue)")),
        *({"update": u} for u in ("f(at, x)", "f @ x", "f(and, x)", "f & x", "f(x, at, y)")),
        *({"update": u} for u in ("f(x) @ y", "f(a=1e5)", "f(a1e5)", "f(.5)", "f(5)", "f(0.5)")),
        *({"reward": r} for r in ("2*f", "2xf", "f(2*g)", "f(2xg)", "g + 2*f", "g(2)*f")),
        *({"update": "layers(" + "1, " * n + "2)"} for n in range(30, 60)),
    ]
    names = [named(**settings) for settings in alike]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("kind", ["update", "model", "task", "reward", "system"])
@pytest.mark.parametrize(
    "text", ["../../etc", "a" * 400, "é∑/😀", "x'; rm -rf ~; '", "-", "..", "a\n\tb", "$HOME `id`"]
)
def test_every_text_makes_a_name_that_files_and_shells_take(kind: str, text: str) -> None:
    name = named(**{kind: text})
    assert re.fullmatch(r"[A-Za-z0-9][\w.+-]*-seed0", name, re.ASCII)
    assert len(name) <= 80 and shlex.quote(name) == name and ".." not in name


def test_what_is_too_long_ends_in_a_hash() -> None:
    name = named(update="lora(rank=8)", model="Qwen/Qwen2.5-0.5B", system="x " * 99, seed=12)
    assert name.startswith("lora-rank8-Qwen--Qwen2.5-0.5B-system-")
    long = [named(update=f"layers({', '.join(map(str, range(n)))})") for n in range(40, 60)]
    assert all(re.fullmatch(r"layers-[\d-]+-[0-9a-f]{6}-seed0", name) for name in long)
    assert max(map(len, long)) <= 80


def test_a_run_is_found_again_and_goes_on(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the same settings with more steps, from the command line and from Python."""
    monkeypatch.chdir(tmp_path)
    first = replace(bare, out="", model="tiny", update="last(1)", steps=2, reward="random")
    settings = {
        **{"model": "tiny", "update": "last(1)", "reward": "random", "max_tokens": 8},
        **{"prompts_per_step": 2, "group_size": 4, "eval_problems": 0, "anatomy": False},
    }
    train(replace(first, steps=4, out="whole"))
    options = shlex.split(
        "--update 'last(1)' --reward random --max-tokens 8 --prompts-per-step 2 --group-size 4"
        " --eval-problems 0 --no-anatomy"
    )
    from modicum import cli

    assert cli.run(["train", *options, "--steps", "2"]) == 0
    (folder,) = Path("runs").iterdir()
    name = "last-1-random-tokens8-prompts2-group4-eval-problems0-seed0"
    assert folder == Path("runs") / name
    with pytest.raises(UserError) as caught:
        cli.run(["train", *options, "--steps", "3"])
    assert str(caught.value) == (
        f"runs/{name} holds a finished run; --overwrite starts anew, --resume with more --steps"
        " goes on with it, --out takes another"
    )
    assert cli.run(["train", *options, "--steps", "3", "--resume"]) == 0
    # The rate that was looked up, and the folder, are not settings that were asked for.
    assert read_toml(folder / "config.toml")["out"] == ""
    found = modicum.train(**settings, steps=4, resume=True, progress=False)
    assert found.folder == folder.absolute()
    assert [path.name for path in Path("runs").iterdir()] == [name]
    assert metrics_of(folder) == metrics_of(Path("whole"))
    assert read_toml(folder / "config.toml")["out"] == ""
    # Its config begins a run of its own beside it.
    args = ["train", "--config", str(folder / "config.toml"), "--seed", "1", "--steps", "1"]
    assert cli.run(args) == 0
    rate = read_toml(folder / "config.toml")["optimizer"]["learning_rate"]
    other = f"last-1-random-tokens8-prompts2-group4-lr{rate:g}-eval-problems0-seed1"
    assert sorted(path.name for path in Path("runs").iterdir()) == sorted([name, other])


NAMED = ("member", "fixed")


def test_the_kinds_that_name_a_run_are_those_that_make_it() -> None:
    """Every setting that a resumed run may not change is in the name when it differs."""
    from test_resume_settings import SETTINGS, changed

    for name, (kind, value) in SETTINGS.items():
        other = naming.name_of(changed(TrainConfig(), name, value)) if kind in NAMED else ""
        assert other != "full-seed0", name
    pairs = itertools.combinations([n for n, (kind, _) in SETTINGS.items() if kind in NAMED], 2)
    config = TrainConfig()
    for one, other in list(pairs)[::7]:
        both = changed(changed(config, one, SETTINGS[one][1]), other, SETTINGS[other][1])
        assert naming.name_of(both) not in {
            naming.name_of(changed(config, n, SETTINGS[n][1])) for n in (one, other)
        }
