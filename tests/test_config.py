"""Settings: TOML and back, refusals that name the place, and the command line's options."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from modicum import options
from modicum.commands import demo, export, report, tasks, train, updates
from modicum.config import (
    Budget,
    Compute,
    Held,
    Optimizer,
    Records,
    Sampling,
    Steps,
    Tracking,
    TrainConfig,
    Trust,
    from_mapping,
    read_toml,
    to_toml,
)
from modicum.face.evaluation import EvaluateConfig
from modicum.options import Parser, convert, field_docs, given, merge
from modicum.types import UserError

SECTIONS = (Sampling, Steps, Budget, Optimizer, Compute, Held, Records, Tracking, Trust)
TEXTS = [
    "",
    "plain",
    'runs/it\'s "quoted"',
    "C:\\runs\\new\\table",
    "line\nbreak\ttab\r\b\f",
    "übung/运行/\u2028/\ufeff",
    "emoji \U0001f9ee beyond the first plane",
    "control \x00 \x1f \x7f \x85",
    "# no comment = [x]\n[y]",
    "'''\"\"\"\\",
]


def through_toml(config: TrainConfig, folder: Path) -> TrainConfig:
    path = folder / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return from_mapping(TrainConfig, read_toml(path), str(path))


def refusal(text: str, folder: Path, cls: type = TrainConfig) -> str:
    """The message with which the TOML `text` is refused, checked to be one line."""
    path = folder / "my.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        from_mapping(cls, read_toml(path), str(path))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


# TOML ------------------------------------------------------------------------------------


def test_a_config_survives_toml(tmp_path: Path) -> None:
    assert through_toml(TrainConfig(), tmp_path) == TrainConfig()
    other = TrainConfig(
        model="a/b",
        base="c/d",
        update="last(1) + parts(norm)",
        steps=7,
        seed=2**70,
        out="runs/x",
        sampling=Sampling(0.7, 0.9, 20, 33, 100, "plain", "boxed", "Be brief."),
        batch=Steps(3, 5, 2, 7, 11),
        budget=Budget(5e4, "flops"),
        optimizer=Optimizer(1e-7, 0.1, 0.8, 0.95, 1e-12, 0.0, "linear", 3),
        compute=Compute("cpu", "bf16"),
        trust=Trust(True, True),
        evaluation=Held(0, 2, 5),
        records=Records(0, 1),
        tracking=Tracking("mlflow", "mine", "store", True),
    )
    assert through_toml(other, tmp_path) == other
    changed = {f.name for f in dataclasses.fields(other)} - {"task", "reward", "objective"}
    for name in changed - {"curriculum"}:
        assert getattr(other, name) != getattr(TrainConfig(), name)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_any_text_survives_toml(text: str, tmp_path: Path) -> None:
    config = replace(TrainConfig(), out=text, task=f"file({text!r})")
    assert through_toml(config, tmp_path) == config


@pytest.mark.parametrize("rate", [1e-300, 5e-324, 1 / 3, 1e-6, 9.999999999999999])
def test_a_number_survives_toml_to_the_last_bit(rate: float, tmp_path: Path) -> None:
    config = replace(TrainConfig(), optimizer=Optimizer(learning_rate=rate))
    assert through_toml(config, tmp_path).optimizer.learning_rate == rate


def test_half_a_character_is_refused() -> None:
    with pytest.raises(UserError, match="out must be a text in UTF-8"):
        from_mapping(TrainConfig, {"out": "a\udcff"}, "options")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("stesp = 3", ["unknown key 'stesp'", "did you mean 'steps'"]),
        ("[sampling]\ntemprature = 1", ["sampling: unknown key", "'temperature'", "top_p"]),
        ("[smapling]\ntop_k = 1", ["unknown key 'smapling'", "'sampling'"]),
        ("temperature = 1", ["unknown key 'temperature'", "batch"]),
        ("sampling = 3", ["sampling must be a table"]),
        ("steps = '8'", ["steps must be a whole number", "'8'"]),
        ("steps = {}", ["steps must be a whole number"]),
        ("steps = [8]", ["steps must be a whole number"]),
        ("steps = 8.5", ["steps must be a whole number", "8.5"]),
        ("steps = nan", ["steps must be a whole number", "nan"]),
        ("steps = inf", ["steps must be a whole number", "inf"]),
        ("steps = -1", ["steps must be at least 0, not -1"]),
        ("seed = -1", ["seed must be at least 0"]),
        ("update = 3", ["update must be a text"]),
        ("update = 2020-01-01", ["update must be a text"]),
        ("[compute]\ndtype = 'fp23'", ["compute: dtype", "did you mean 'fp32'", "bf16"]),
        ("[sampling]\ntemplate = 'caht'", ["template", "did you mean 'chat'"]),
        ("[sampling]\ntemperature = 0", ["above 0"]),
        ("[sampling]\ntemperature = -1", ["temperature must be at least 0"]),
        ("[sampling]\ntemperature = nan", ["temperature must be a number"]),
        ("[sampling]\ntemperature = true", ["temperature must be a number"]),
        ("[sampling]\ntop_p = 0", ["top_p must be above 0"]),
        ("[sampling]\ntop_p = 1.1", ["top_p", "at most 1"]),
        ("[sampling]\nmax_tokens = 0", ["max_tokens must be at least 1"]),
        ("[optimizer]\nlearning_rate = 0", ["learning_rate must be above 0"]),
        ("[optimizer]\nlearning_rate = 10", ["learning_rate must be above 0 and below 10"]),
        ("[optimizer]\nlearning_rate = '1e-3'", ["learning_rate must be a number or nothing"]),
        ("[optimizer]\nbeta1 = 1", ["beta1", "below 1"]),
        ("[optimizer]\nbeta2 = -0.1", ["beta2 must be at least 0"]),
        ("[optimizer]\nepsilon = -1", ["epsilon must be at least 0"]),
        ("[optimizer]\nmax_grad_norm = -1", ["max_grad_norm must be at least 0"]),
        ("[evaluation]\neval_samples = 0", ["eval_samples must be at least 1"]),
        ("[records]\nsamples_every = 0", ["samples_every must be at least 1"]),
        ("[batch]\ngroup_size = 1", ["group_size must be at least 2"]),
        # What is no TOML at all.
        ("steps = ", ["is not TOML", "Invalid value"]),
        ("steps = 1\nsteps = 2", ["is not TOML", "overwrite"]),
        ("[batch\nsteps = 1", ["is not TOML: ", "line 1"]),
        ("\x00", ["line 1"]),
        ("x = " + "[" * 5000, ["is not TOML"]),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_wrong_file_is_explained(text: str, parts: list[str], tmp_path: Path) -> None:
    message = refusal(text, tmp_path)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "key", ["prompts_per_step", "micro_batch", "rollout_batch", "updates_per_rollout"]
)
@pytest.mark.parametrize("value", ["'8'", "'8 '", "8.5", "0", "-1", "true", "''", "[8]"])
def test_ops_08_a_wrong_batch_size_names_file_and_key(key: str, value: str, tmp_path: Path) -> None:
    message = refusal(f"[batch]\n{key} = {value}", tmp_path)
    assert f"{key} must be " in message
    assert value.replace("true", "True").strip("'") in message


def test_ops_08_a_whole_float_is_a_whole_number(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[batch]\nmicro_batch = 8.0\n")
    found = from_mapping(TrainConfig, read_toml(path), "a.toml").batch.micro_batch
    assert found == 8
    assert type(found) is int


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no config file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(UserError, match="cannot be read"):
        read_toml(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"out = '\xfc'")
    with pytest.raises(UserError, match=r"latin\.toml"):
        read_toml(tmp_path / "latin.toml")


# Declarations ----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [TrainConfig, *SECTIONS])
def test_every_setting_is_documented_and_has_a_default(cls: type) -> None:
    docs = field_docs(cls)
    for field in dataclasses.fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            assert field.default_factory in SECTIONS
            continue
        assert docs[field.name].endswith("."), field.name
        assert field.default is not dataclasses.MISSING
    assert cls.__doc__


def test_every_section_is_in_the_config() -> None:
    hints = typing.get_type_hints(TrainConfig)
    assert {h for h in hints.values() if dataclasses.is_dataclass(h)} == set(SECTIONS)


@pytest.mark.parametrize("root", [TrainConfig, EvaluateConfig])
def test_names_are_unique_across_sections(root: type) -> None:
    names = ["config", "resume", "overwrite", "json", "run", "help"]
    todo = [root]
    while todo:
        cls = todo.pop()
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            inner = hints[field.name]
            todo += [inner] if dataclasses.is_dataclass(inner) else []
            names += [] if dataclasses.is_dataclass(inner) else [field.name]
    assert len(names) > 15
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "options",
    [EvaluateConfig, *(module.Options for module in (demo, export, report, tasks, updates))],
)
def test_every_option_of_a_command_is_documented(options: Any) -> None:
    docs, hints = field_docs(options), typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        assert dataclasses.is_dataclass(hints[field.name]) or docs[field.name].endswith(".")


def test_a_training_temperature_of_0_is_refused_but_not_an_evaluating_one() -> None:
    assert Sampling(temperature=0).temperature == 0
    with pytest.raises(UserError, match="nothing can be learnt"):
        TrainConfig(sampling=Sampling(temperature=0))
    with pytest.raises(UserError, match="at least 2"):
        Steps(group_size=1)


# Options ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    """A section."""

    depth: int = 1
    """How deep."""


@dataclass(frozen=True)
class Outer:
    """A config with a section."""

    rate: float | None = None
    """How fast, 100 % at most."""
    word: str = "x"
    """What."""
    inner: Inner = dataclasses.field(default_factory=Inner)


def parsed(*args: str) -> dict[str, Any]:
    parser = Parser("test", "summary", "example")
    options.add_options(parser, Outer)
    return given(Outer, parser.read(list(args)))


def test_given_holds_what_was_given_and_nothing_else() -> None:
    assert parsed() == {}
    assert parsed("--depth", "3") == {"inner": {"depth": 3}}
    assert parsed("--rate=1e-3", "--word", "5") == {"rate": 0.001, "word": "5"}
    assert parsed("--depth", "3", "--depth", "4") == {"inner": {"depth": 4}}


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--dept", "3"], "unknown option '--dept'; did you mean --depth?"),
        (["--depht=3"], "unknown option '--depht=3'; did you mean --depth?"),
        (["stray"], "unknown option 'stray'"),
        (["--depth"], "argument --depth: expected one argument"),
    ],
)
def test_a_wrong_option_is_one_line(args: list[str], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(*args)
    assert str(caught.value) == f"modicum test: {problem} (see modicum test --help)"


def test_convert_takes_texts_for_numbers_where_numbers_are_asked() -> None:
    assert convert("3", int) == 3
    assert convert("3", float) == 3.0
    assert convert("3", str) == "3"
    assert convert("3.5", int) == "3.5"  # and is refused by the check
    assert convert("3.5", float | None) == 3.5
    assert convert("none", float | None) == "none"
    assert convert("soft", typing.Literal["soft", "hard"]) == "soft"
    assert math.isnan(convert("nan", float))


def test_merge_goes_into_tables_and_changes_neither() -> None:
    low = {"a": 1, "t": {"x": 1, "y": 2}, "s": {"z": 1}}
    high = {"a": 2, "t": {"y": 3}, "s": 4, "n": {"q": 5}}
    assert merge(low, high) == {"a": 2, "t": {"x": 1, "y": 3}, "s": 4, "n": {"q": 5}}
    assert low == {"a": 1, "t": {"x": 1, "y": 2}, "s": {"z": 1}}
    assert high == {"a": 2, "t": {"y": 3}, "s": 4, "n": {"q": 5}}


def test_help_shows_docs_and_defaults() -> None:
    parser = Parser("test", "summary", "example")
    options.add_options(parser, Outer)
    text = " ".join(parser.format_help().split())
    assert "How fast, 100 % at most." in text
    assert "How deep. (default 1)" in text
    assert "examples: example" in text


def test_options_beat_the_file_and_the_file_beats_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainConfig] = []

    def catch(config: TrainConfig, *_: object) -> None:
        seen.append(config)
        raise UserError("seen")

    monkeypatch.setattr("modicum.training.loop.train", catch)
    path = tmp_path / "my.toml"
    path.write_text("steps = 5\nseed = 6\n[batch]\ngroup_size = 3\nmicro_batch = 9\n")
    with pytest.raises(UserError, match="seen"):
        train.run(["--config", str(path), "--seed", "7", "--micro-batch", "2"])
    (config,) = seen
    assert (config.steps, config.seed, config.batch.group_size) == (5, 7, 3)
    assert config.batch == Steps(group_size=3, micro_batch=2)
    assert config.sampling == Sampling()
