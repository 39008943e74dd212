"""Settings: TOML and back, refusals that name the place, and the command line's options."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import re
import tomllib
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modicum import cli, options, settings
from modicum.commands import parser as parser_of
from modicum.config import (
    KINDS,
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
from modicum.options import (
    HELP,
    Parser,
    add_options,
    as_number,
    config_of,
    field_docs,
    given,
    merge,
)
from modicum.parts import parsers
from modicum.settings import kept
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


# What is left to the program -------------------------------------------------------------


@pytest.mark.parametrize("name", ["micro_batch", "rollout_batch", "max_tokens", "learning_rate"])
def test_auto_leaves_a_setting_to_the_program(name: str, tmp_path: Path) -> None:
    """The same on the command line, in TOML and in Python, and the default."""
    at = settings.places(TrainConfig)[name]
    parser = Parser("recipes")
    options.add_options(parser, TrainConfig)
    found = parser.read([f"--{name.replace('_', '-')}", "auto"])
    (tmp_path / "a.toml").write_text(f"[{at}]\n{name} = 'auto'\n")
    section: Any = type(getattr(TrainConfig(), at))
    assert (
        TrainConfig()
        == from_mapping(TrainConfig, given(TrainConfig, found), "options")
        == from_mapping(TrainConfig, read_toml(tmp_path / "a.toml"), "a.toml")
        == replace(TrainConfig(), **{at: section(**{name: "auto"})})
    )
    assert "(default auto)" in " ".join(parser.format_help().split())


def test_auto_is_a_word_of_some_settings_only(tmp_path: Path) -> None:
    assert refusal("[batch]\ngroup_size = 'auto'", tmp_path).endswith("not 'auto'")
    message = refusal("[batch]\nmicro_batch = 'all'", tmp_path)
    assert message.endswith("not 'all' (auto leaves it to the program)")
    assert Compute(checkpointing="auto") == Compute()  # type: ignore[arg-type]
    assert Compute(checkpointing=False) != Compute()
    with pytest.raises(UserError, match="micro_batch must be a whole number, not False"):
        Steps(micro_batch=False)


def test_a_config_takes_what_another_one_chose() -> None:
    past = TrainConfig(batch=Steps(micro_batch=8, rollout_batch=32), optimizer=Optimizer(1e-4))
    now = TrainConfig(batch=Steps(micro_batch=4), compute=Compute(checkpointing=False))
    found = kept(now, past)
    assert (found.batch.micro_batch, found.batch.rollout_batch) == (4, 32)
    assert (found.optimizer.learning_rate, found.compute.checkpointing) == (1e-4, False)


# TOML ------------------------------------------------------------------------------------


def test_a_config_survives_toml(tmp_path: Path) -> None:
    assert through_toml(TrainConfig(), tmp_path) == TrainConfig()
    other = TrainConfig(
        model="a/b",
        base="c/d",
        init_adapter="e/f",
        update="last(1) + parts(norm)",
        steps=7,
        seed=2**70,
        out="runs/x",
        sampling=Sampling(
            *(0.7, 0.9, 20, 33, 100, "chat", "boxed", "Be brief.", "a=1, b='x y'", 2, 3),
            *(("\n", "x"), "skip"),
        ),
        batch=Steps(3, 5, 2, 7, 11),
        budget=Budget(5e4, "flops", "reward/mean > 1", 0),
        optimizer=Optimizer(1e-7, 0.1, 0.8, 0.95, 1e-12, 0.0, "linear", 3),
        compute=Compute("cpu", "bf16", deterministic=False),
        trust=Trust(True, True),
        evaluation=Held(0, 2, 5),
        records=Records(0, 2, 7, False, True),
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
        ("temperature = 1", ["unknown key 'temperature'; it belongs to [sampling]"]),
        ("[sampling]\nlearning_rate = 1", ["'learning_rate'; it belongs to [optimizer]"]),
        ("[batch]\nsteps = 1", ["unknown key 'steps'; it belongs above all tables"]),
        ("lr = 1", ["unknown key 'lr'; did you mean learning_rate in [optimizer]?"]),
        ("[batch]\nnum_generations = 8", ["did you mean group_size in [batch]?"]),
        ("beta = 0.1", ["unknown key 'beta'; did you mean objective = 'grpo(kl=0.04)'?"]),
        ("num_train_epochs = 1", ["did you mean steps? (rollouts, not epochs)"]),
        ("logging_steps = 1", ["unknown key 'logging_steps'; every step is logged"]),
        ("Learning-Rate = 1", ["it belongs to [optimizer]"]),
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
        ("[sampling]\nexamples = -1", ["examples must be at least 0"]),
        ("[sampling]\nexamples_seed = -1", ["examples_seed must be at least 0"]),
        ("[sampling]\ntemplate_args = 'thinking'", ["template_args 'thinking'", "name=value"]),
        ("[sampling]\ntemplate_args = 'a=1) + f('", ["template_args", "name=value"]),
        ("[sampling]\ntemplate_args = 'a=1)(b=2'", ["template_args", "name=value"]),
        ("[sampling]\ntemplate_args = '**a'", ["template_args", "name=value"]),
        ("[sampling]\ntemplate_args = 'a=1, a=2'", ["template_args"]),
        ("[sampling]\ntemplate_args = 'a=26 Jul'", ["template_args", "does not parse"]),
        ("[sampling]\ntemplate_args = 'a=open(1)'", ["template_args", "is not a value"]),
        ("[sampling]\ntop_p = 1.1", ["top_p", "at most 1"]),
        ("[sampling]\nmax_tokens = -1", ["max_tokens must be at least 0"]),
        ("[sampling]\nstop = ['a', '']", ["sampling: stop: an empty text beside others"]),
        ("[sampling]\nstop = 3", ["sampling: stop must be a text or a list", "not 3"]),
        ("[sampling]\nstop = ['a', 3]", ["sampling: stop must be", "['a', 3]"]),
        ("[sampling]\nstop = [['a']]", ["sampling: stop must be", "[['a']]"]),
        ("[optimizer]\nlearning_rate = 0", ["learning_rate must be above 0"]),
        ("[optimizer]\nlearning_rate = 10", ["learning_rate must be above 0 and below 10"]),
        ("[optimizer]\nlearning_rate = '1e-3'", ["learning_rate must be a number or nothing"]),
        ("[optimizer]\nbeta1 = 1", ["beta1", "below 1"]),
        ("[optimizer]\nbeta2 = -0.1", ["beta2 must be at least 0"]),
        ("[optimizer]\nepsilon = -1", ["epsilon must be at least 0"]),
        ("[optimizer]\nmax_grad_norm = -1", ["max_grad_norm must be at least 0"]),
        ("[evaluation]\neval_samples = 0", ["eval_samples must be at least 1"]),
        ("[records]\nsamples_every = 0", ["samples_every must be at least 1"]),
        ("[records]\nsamples_mib = -1", ["samples_mib must be at least 0"]),
        ("[records]\nwatch = 1", ["watch must be true or false"]),
        ("[budget]\nstop_when = 'kl > 1'", ["budget: stop_when", "did you mean 'policy/kl'?"]),
        ("[budget]\npatience = 2", ["patience = 2", "it needs eval_every = 10, say"]),
        ("[batch]\ngroup_size = 0", ["group_size must be at least 1"]),
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
@pytest.mark.parametrize("value", ["'8'", "'8 '", "8.5", "-1", "true", "''", "[8]", "'Auto'"])
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
    (tmp_path / "latin.toml").write_bytes(b"steps = 1\nout = '\xfc'")
    with pytest.raises(UserError, match=r"latin\.toml, line 2 is not in UTF-8; save the file as"):
        read_toml(tmp_path / "latin.toml")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_is_one_line(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes("steps = 3\n".encode(encoding))
    with pytest.raises(UserError, match=r"a\.toml is in UTF-16; TOML is UTF-8: save it as that"):
        read_toml(tmp_path / "a.toml")


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfsteps = 3\r\n[batch]\rgroup_size = 4\r\n")
    assert read_toml(tmp_path / "a.toml") == {"steps": 3, "batch": {"group_size": 4}}


# Python ------------------------------------------------------------------------------------


def of_completions(completions: list[str]) -> list[float]:
    return [0.0 for _ in completions]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(reward=of_completions), "reward must be an expression, a text, not <"),  # type: ignore[arg-type]
        (lambda: TrainConfig(reward=None), r"modicum\.train\(reward=\.\.\.\) takes objects"),  # type: ignore[arg-type]
        (lambda: TrainConfig(task=[{}]), "task must be an expression, a text, not .{}.; modicum.t"),  # type: ignore[arg-type]
        (lambda: TrainConfig(update=object()), "update must be an expression"),  # type: ignore[arg-type]
        (lambda: TrainConfig(steps="3"), "^steps must be a whole number, not '3'$"),  # type: ignore[arg-type]
        (lambda: replace(TrainConfig(), steps=2.5), "^steps must be a whole number, not 2.5$"),
        (lambda: TrainConfig(seed=True), "^seed must be a whole number, not True$"),
        (lambda: TrainConfig(model=object), "^model must be a text, not <class 'object'>$"),  # type: ignore[arg-type]
        (lambda: TrainConfig(out=3), "^out must be a text, not 3$"),  # type: ignore[arg-type]
        (lambda: TrainConfig(sampling=3), "^sampling must be a Sampling or a dict, not 3$"),  # type: ignore[arg-type]
        (lambda: TrainConfig(sampling=Steps()), "^sampling must be a Sampling or a dict, not St"),  # type: ignore[arg-type]
        (lambda: TrainConfig(sampling={"top": 1}), "sampling: unknown key 'top'; did you mean '"),  # type: ignore[arg-type]
        (lambda: TrainConfig(sampling={"top_p": 7}), "sampling: top_p must be above 0 and at most"),  # type: ignore[arg-type]
        (lambda: Sampling(temperature="1"), "^temperature must be a number, not '1'$"),  # type: ignore[arg-type]
        (lambda: replace(Sampling(), max_tokens=None), "^max_tokens must be a whole number, not N"),
        (lambda: Sampling(style="boxd"), "style is 'boxd'; did you mean 'boxed'"),  # type: ignore[arg-type]
        (lambda: Compute(dtype=np.float32), "dtype is <class 'numpy.float32'>; "),  # type: ignore[arg-type]
        (
            lambda: Compute(checkpointing="yes"),
            "checkpointing must be true or false or nothing, not 'yes' .auto l",
        ),  # type: ignore[arg-type]
        (lambda: Optimizer(learning_rate=np.array([1.0])), "learning_rate must be a number or no"),  # type: ignore[arg-type]
        (lambda: TrainConfig(learning_rate=1e-4), "'learning_rate'; it belongs to .optimizer.$"),  # type: ignore[call-arg]
        (lambda: TrainConfig(lr=1e-4), "'lr'; did you mean learning_rate in .optimizer."),  # type: ignore[call-arg]
        (lambda: Steps(num_generations=3), "Steps: unknown setting 'num_generations'; .* group_s"),  # type: ignore[call-arg]
        (lambda: Held(problems=3), "Held: unknown setting 'problems'; did you mean 'eval_problem"),  # type: ignore[call-arg]
    ],
)
def test_a_wrong_value_in_python_is_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_paths_dicts_and_numbers_of_numpy_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/at/home")
    config = TrainConfig(
        out=Path("runs/x"),  # type: ignore[arg-type]
        model=Path("m"),  # type: ignore[arg-type]
        seed=np.int64(3),  # type: ignore[arg-type]
        steps=4.0,  # type: ignore[arg-type]
        sampling={"temperature": np.float64(0.5), "max_tokens": 7},  # type: ignore[arg-type]
        optimizer=Optimizer(learning_rate=1, warmup_steps=np.int8(2)),  # type: ignore[arg-type]
        tracking=Tracking(tracker_folder="~/store"),
    )
    assert (config.out, config.model, config.seed, config.steps) == ("runs/x", "m", 3, 4)
    assert config.sampling == Sampling(temperature=0.5, max_tokens=7)
    assert config.optimizer == Optimizer(learning_rate=1.0, warmup_steps=2)
    assert config.tracking.tracker_folder == "/at/home/store"
    assert TrainConfig(out="~/run").out == "/at/home/run"
    assert [type(v) for v in (config.seed, config.steps, config.optimizer.warmup_steps)] == [
        int
    ] * 3
    assert from_mapping(TrainConfig, tomllib.loads(to_toml(config)), "again") == config
    assert copy.deepcopy(config) == config


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


def test_every_option_of_an_evaluation_is_documented() -> None:
    docs, hints = field_docs(EvaluateConfig), typing.get_type_hints(EvaluateConfig)
    for field in dataclasses.fields(EvaluateConfig):
        assert dataclasses.is_dataclass(hints[field.name]) or docs[field.name].endswith(".")


@pytest.mark.parametrize("name", HELP["commands"])
def test_every_argument_of_a_command_is_documented(name: str) -> None:
    for flag, told in HELP["commands"][name].get("arguments", {}).items():
        assert told["help"], flag
        default = told.get("default")
        if "section" in told and default not in (None, "") and told.get("type") != "switch":
            assert told["help"].endswith(f"(default {default})"), flag


def test_arguments_have_types_limits_and_defaults() -> None:
    plan = parser_of("plan").read(["--markdown", "--prompt-tokens", "3"])
    assert (plan.markdown, plan.require_fit, plan.prompt_tokens) == (True, False, 3)
    assert (plan.hardware, plan.updates) == ("this", "")
    assert parser_of("plan").read([]).prompt_tokens is None
    assert parser_of("grade").read([]).symbolic is True
    assert parser_of("grade").read(["--no-symbolic", "--time-limit", "0.5"]).time_limit == 0.5
    for name, option, value, problem in [
        ("plan", "--prompt-tokens", "0", "--prompt-tokens must be at least 1, not 0"),
        ("grade", "--time-limit", "0", "--time-limit must be above 0 and at most 1000000, not 0"),
        ("grade", "--time-limit", "nan", "--time-limit must be a number, not nan"),
        ("doctor", "--problems", "1.5", "--problems must be a whole number, not 1.5"),
        ("export", "--format", "zip", "--format is 'zip'; known are adapter, merged"),
        ("plan", "--hardware", "", "argument --hardware: an empty text is no value"),
    ]:
        with pytest.raises(UserError, match=re.escape(problem)):
            parser_of(name).read([option, value])
    assert parser_of("plan").read(["--models", ""]).models == ""
    assert parser_of("doctor").read(["--problems", "1e3"]).problems == 1000


def test_a_training_temperature_of_0_is_refused_but_not_an_evaluating_one() -> None:
    assert Sampling(temperature=0).temperature == 0
    with pytest.raises(UserError, match="nothing can be learnt"):
        TrainConfig(sampling=Sampling(temperature=0))
    with pytest.raises(UserError, match="at least 1"):
        Steps(group_size=0)


def test_stop_strings_are_one_text_or_several(tmp_path: Path) -> None:
    for text, stop in [("'x'", ("x",)), ("['x', \"\\ny\"]", ("x", "\ny")), ("[]", ()), ("''", ())]:
        (tmp_path / "a.toml").write_text(f"[sampling]\nstop = {text}\n")
        config = from_mapping(TrainConfig, read_toml(tmp_path / "a.toml"), "a.toml")
        assert config.sampling.stop == stop
        assert through_toml(config, tmp_path) == config
    for args, stop in [
        ([], None),
        (["--stop", ""], ()),
        (["--stop", "a"], ("a",)),
        (["--stop", "</answer>", "--stop=\nUser:"], ("</answer>", "\nUser:")),
    ]:
        assert config_of(Sampling, parser_of("tasks").read(list(args))).stop == stop
    with pytest.raises(UserError, match="options: stop: an empty text beside others"):
        config_of(Sampling, parser_of("tasks").read(["--stop", "", "--stop", "a"]))


def test_names_of_elsewhere_lead_to_what_is_here() -> None:
    at = settings.places(TrainConfig)
    found = settings._table()
    assert len(found) > 100
    assert not found.keys() & at.keys()
    for setting, value, note in found.values():
        assert setting in at or setting == "resume" or (setting == "" and note)
        if setting in KINDS and value:
            parsers()[setting](value)
        elif value:
            from_mapping(TrainConfig, {at[setting]: {setting: value}}, "elsewhere")
    for name in ("lr", "num_generations", "beta", "max_completion_length", "num_train_epochs"):
        assert found[name][0] in at


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
    parser = Parser("recipes")
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
        (["--Rate", "3"], "unknown option '--Rate'; did you mean --rate?"),
        (["--depth"], "argument --depth: expected one argument"),
    ],
)
def test_a_wrong_option_is_one_line(args: list[str], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(*args)
    assert str(caught.value) == f"modicum recipes: {problem} (see modicum recipes --help)"


def test_texts_are_numbers_where_numbers_are_asked() -> None:
    assert as_number("3") == 3
    assert as_number("1e3") == 1000.0  # a whole number
    assert as_number("3.5") == 3.5  # and is refused by the check where a whole one is asked
    assert as_number("none") == "none"
    assert math.isnan(float(as_number("nan")))
    parser = argparse.ArgumentParser()
    add_options(parser, TrainConfig)
    found = parser.parse_args(["--out", "3", "--steps", "1e3", "--top-p", "1", "--style", "tags"])
    assert given(TrainConfig, found) == {
        "out": "3",
        "steps": 1000.0,
        "sampling": {"top_p": 1, "style": "tags"},
    }


def test_merge_goes_into_tables_and_changes_neither() -> None:
    low = {"a": 1, "t": {"x": 1, "y": 2}, "s": {"z": 1}}
    high = {"a": 2, "t": {"y": 3}, "s": 4, "n": {"q": 5}}
    assert merge(low, high) == {"a": 2, "t": {"x": 1, "y": 3}, "s": 4, "n": {"q": 5}}
    assert low == {"a": 1, "t": {"x": 1, "y": 2}, "s": {"z": 1}}
    assert high == {"a": 2, "t": {"y": 3}, "s": 4, "n": {"q": 5}}


def test_help_shows_docs_and_defaults() -> None:
    parser = Parser("recipes")
    options.add_options(parser, Outer)
    text = " ".join(parser.format_help().split())
    assert "How fast, 100 % at most." in text
    assert "How deep. (default 1)" in text
    assert "examples: modicum recipes" in text


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
        cli.run(["train", "--config", str(path), "--seed", "7", "--micro-batch", "2"])
    (config,) = seen
    assert (config.steps, config.seed, config.batch.group_size) == (5, 7, 3)
    assert config.batch == Steps(group_size=3, micro_batch=2)
    assert config.sampling == Sampling()


def test_limits_are_those_of_a_whole_type() -> None:
    """`Natural | None` would have limits that nothing looks at."""
    for section in SECTIONS:
        for name, hint in typing.get_type_hints(section, include_extras=True).items():
            of = hint.__origin__ if hasattr(hint, "__metadata__") else hint
            inner = [part for part in typing.get_args(of) if hasattr(part, "__metadata__")]
            assert not inner, f"{section.__name__}.{name}"
    with pytest.raises(UserError, match="probe_every must be at least 0, not -1"):
        Held(probe_every=-1)
