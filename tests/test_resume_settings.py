"""What a resumed run may change: every setting says it, and it is so."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from helpers import metrics_of, tensors_of
from modicum import curricula, runs, settings, tasks
from modicum.config import Held, Records, TrainConfig, read_toml, to_toml
from modicum.models.load import load
from modicum.training import folder as run_folder
from modicum.training.loop import Observer, train
from modicum.types import RunInterrupted, UserError
from modicum.updates import UPDATES, parse

# Every setting, what resume may do with it, and another value.
SETTINGS: dict[str, tuple[str, Any]] = {
    "model": ("free", "other"),
    "base": ("free", "other"),
    "init_adapter": ("free", "other"),
    "task": ("fixed", "arithmetic(terms=2)"),
    "reward": ("fixed", "format"),
    "update": ("fixed", "last(1)"),
    "objective": ("fixed", "grpo(kl=0.1)"),
    "curriculum": ("fixed", "easy_to_hard"),
    "steps": ("length", 90),
    "seed": ("fixed", 1),
    "out": ("free", "moved"),
    "sampling.temperature": ("fixed", 0.9),
    "sampling.top_p": ("fixed", 0.9),
    "sampling.top_k": ("fixed", 5),
    "sampling.max_tokens": ("fixed", 81),
    "sampling.max_prompt_tokens": ("free", 20_000),
    "sampling.template": ("fixed", "plain"),
    "sampling.style": ("fixed", "boxed"),
    "sampling.system": ("fixed", "Be brief."),
    "sampling.stop": ("fixed", ("</answer>",)),
    "sampling.long_prompts": ("fixed", "skip"),
    "sampling.template_args": ("fixed", "enable_thinking=false"),
    "sampling.examples": ("fixed", 2),
    "sampling.examples_seed": ("fixed", 1),
    "batch.prompts_per_step": ("fixed", 17),
    "batch.group_size": ("fixed", 9),
    "batch.updates_per_rollout": ("fixed", 2),
    "batch.micro_batch": ("digits", 8),
    "batch.rollout_batch": ("digits", 64),
    "batch.groups": ("fixed", "refill(cap=2)"),
    "batch.denominators": ("fixed", "kept"),
    "batch.correction": ("fixed", "none"),
    "batch.cut": ("fixed", "mask"),
    "budget.budget": ("length", 1e9),
    "budget.budget_unit": ("fixed", "flops"),
    "budget.stop_when": ("length", "reward/mean > 0.5"),
    "budget.patience": ("length", 3),
    "optimizer.learning_rate": ("fixed", 0.5),
    "optimizer.weight_decay": ("fixed", 0.1),
    "optimizer.beta1": ("fixed", 0.8),
    "optimizer.beta2": ("fixed", 0.8),
    "optimizer.epsilon": ("fixed", 1e-7),
    "optimizer.max_grad_norm": ("fixed", 0.5),
    "optimizer.schedule": ("fixed", "linear"),
    "optimizer.warmup_steps": ("fixed", 3),
    "compute.device": ("digits", "cuda"),
    "compute.dtype": ("fixed", "bf16"),
    "compute.rounding": ("fixed", "nearest"),
    "compute.engine": ("digits", "library"),
    "compute.sampler": ("member", "other"),
    "compute.parallel": ("digits", "ddp"),
    "compute.trunk_bytes": ("digits", 0),
    "compute.checkpointing": ("digits", True),
    "compute.deterministic": ("digits", False),
    "compute.agreement_every": ("free", 0),
    "compute.quantise": ("fixed", "nf4"),
    "trust.trust_remote_code": ("free", True),
    "trust.pickled_weights": ("free", True),
    "evaluation.eval_problems": ("fixed", 8),
    "evaluation.eval_samples": ("fixed", 1),
    "evaluation.eval_every": ("free", 5),
    "evaluation.eval_split": ("fixed", "tune"),
    "evaluation.probe_every": ("free", 5),
    "records.checkpoint_every": ("free", 1),
    "records.samples_every": ("free", 2),
    "records.samples_mib": ("free", 1),
    "records.anatomy": ("free", False),
    "records.watch": ("free", True),
    "records.keep_checkpoints": ("free", 1),
    "tracking.tracker": ("free", "tensorboard"),
    "tracking.tracker_project": ("free", "mine"),
    "tracking.tracker_folder": ("free", "store"),
    "tracking.tracker_online": ("free", True),
}


@pytest.fixture
def levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A task whose problems have levels, by a file in the folder that we are in."""
    rows = [{"question": f"q{i}", "answer": str(i), "level": i % 7} for i in range(60)]
    (tmp_path / "levels.jsonl").write_text(runs.to_lines(rows))
    monkeypatch.chdir(tmp_path)
    return "file('levels.jsonl', difficulty='level')"


def changed(config: TrainConfig, name: str, value: Any) -> TrainConfig:
    """The config with another value of the setting `table.key`."""
    table, _, key = name.rpartition(".")
    if not table:
        return replace(config, **{key: value})
    return replace(config, **{table: replace(getattr(config, table), **{key: value})})


def test_every_setting_says_what_resume_may_do() -> None:
    found = {name: kind for name, kind, _ in settings.settings(TrainConfig())}
    assert found == {name: kind for name, (kind, _) in SETTINGS.items()}


def test_the_page_says_what_the_settings_say() -> None:
    page = (Path(__file__).parent.parent / "docs" / "method.md").read_text(encoding="utf-8")
    table = page.split("## Resume\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", table, re.M))
    for kind in ("free", "digits", "length", "member"):
        named = [name for name, (of, _) in SETTINGS.items() if of == kind]
        assert re.findall(r"`([\w.]+)`", rows[kind]) == named
    assert rows["fixed"] == "all others"


@pytest.mark.parametrize("name", SETTINGS)
def test_what_may_change_and_what_may_not(name: str, tmp_path: Path) -> None:
    """In a folder that has settings only."""
    past = TrainConfig(evaluation=Held(eval_every=10))
    (tmp_path / "config.toml").write_text(to_toml(past))
    kind, value = SETTINGS[name]
    now = changed(past, name, value)
    key = name.rpartition(".")[2]
    old = "None" if key in ("learning_rate", "system") else repr(getattr_of(past, name))
    if kind in ("member", "fixed"):
        with pytest.raises(UserError) as caught:
            run_folder._changes(tmp_path, now)
        text = f"{tmp_path} was begun with other settings ({name} = {old}), not {name} = {value!r};"
        assert str(caught.value).startswith(text)
        assert (
            "What may change: model, base, init_adapter, steps, out, sampling.max_prompt_tokens, batch.micro_batch,"
            in str(caught.value)
        )
    else:
        changes = {} if name == "out" else {name: (getattr_of(past, name), value)}
        assert run_folder._changes(tmp_path, now) == (changes, kind == "digits")


def test_the_arguments_of_a_member_may_change_as_digits_do(tmp_path: Path) -> None:
    at = [f"server('http://there:{port}')" for port in (8000, 8001)]
    past, now = (changed(TrainConfig(), "compute.sampler", text) for text in at)
    (tmp_path / "config.toml").write_text(to_toml(past))
    assert run_folder._changes(tmp_path, now) == ({"compute.sampler": tuple(at)}, True)


def getattr_of(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    assert not is_dataclass(config)
    return config


class Cut(Observer):
    """Ends a run after so many steps, as a crash would; keeps what it was told."""

    def __init__(self, after: int = -1) -> None:
        self.after, self.notes = after, list[str]()

    def step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] + 1 == self.after:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


def cut(config: TrainConfig, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, Cut(after))


def test_memory_and_records_may_change_and_nothing_else_does(
    bare: TrainConfig, tmp_path: Path
) -> None:
    train(replace(bare, out=str(tmp_path / "whole")))
    cut(bare, 3)
    now = replace(bare, records=Records(1, 1, anatomy=True), steps=4)
    now = replace(
        now,
        batch=replace(bare.batch, micro_batch=3, rollout_batch=2),
        compute=replace(bare.compute, trunk_bytes=0, checkpointing=True, agreement_every=1),
    )
    heard = Cut()
    found = train(now, heard, resume=True)
    whole, mine = metrics_of(tmp_path / "whole"), metrics_of(Path(bare.out))
    assert [line["step"] for line in mine] == [0, 1, 2, 3]
    for one, other in zip(whole, mine, strict=True):
        # What is computed, and so counted, is more or less by micro-batches and recomputing.
        one, other = ({k: v for k, v in m.items() if "flops/" not in k} for m in (one, other))
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert "anatomy" in found
    table = "batch.micro_batch = 3, batch.rollout_batch = 2, compute.trunk_bytes = 0,"
    (note,) = [text for text in heard.notes if text.startswith("goes on after step 2 with ")]
    assert f"with {table}" in note
    assert " instead of batch.micro_batch = 64, batch.rollout_batch = 512, " in note
    assert note.endswith("; last digits may differ from those of an uncut run")
    (line,) = runs.read_lines(Path(bare.out) / "changes.jsonl")
    assert line["step"] == 2
    assert line["settings"] == {
        "batch.micro_batch": [64, 3],
        "batch.rollout_batch": [512, 2],
        "compute.trunk_bytes": [2**30, 0],
        "compute.checkpointing": [False, True],
        "compute.agreement_every": [10, 1],
        "records.checkpoint_every": [2, 1],
        "records.samples_every": [2, 1],
        "records.anatomy": [False, True],
    }
    tables = read_toml(Path(bare.out) / "config.toml")
    assert (tables["batch"]["micro_batch"], tables["records"]["samples_every"]) == (3, 1)


def test_what_changes_nothing_leaves_no_trace(bare: TrainConfig) -> None:
    cut(bare, 3)
    before = (Path(bare.out) / "config.toml").read_text()
    heard = Cut()
    train(bare, heard, resume=True)
    assert (Path(bare.out) / "config.toml").read_text() == before
    assert not (Path(bare.out) / "changes.jsonl").exists()
    assert not [text for text in heard.notes if "instead of" in text]


@pytest.mark.parametrize(
    "update",
    [
        *("full", "lora(rank=2)"),
        *(
            pytest.param(update, marks=pytest.mark.slow)
            for update in ("badam(every=1)", "lisa(layers=1, every=1)", "slimfit(rate=0.5)")
        ),
    ],
)
def test_a_finished_run_goes_on_as_the_longer_one(
    update: str, quick: TrainConfig, tmp_path: Path
) -> None:
    """Cut once more on the way, before and after a checkpoint; with evaluations on the way."""
    config = replace(quick, update=update, evaluation=Held(4, 2, eval_every=3), steps=3)
    long, folder = replace(config, steps=7, out=str(tmp_path / "long")), Path(config.out)
    whole = train(long)
    first = train(config)
    assert first["steps"] == 3
    more = replace(config, steps=7)
    with pytest.raises(KeyboardInterrupt):
        train(more, Cut(4), resume=True)
    assert not (folder / "result.json").exists() and not (folder / "anatomy.json").exists()
    assert [e["name"] for e in runs.read_lines(folder / "evaluations.jsonl")] == ["base", "step 3"]
    found = train(more, resume=True)
    assert metrics_of(folder) == metrics_of(tmp_path / "long")
    assert tensors_of(folder) == tensors_of(tmp_path / "long")
    for name in ("samples.jsonl", "evaluations.jsonl"):
        assert runs.read_lines(folder / name) == runs.read_lines(tmp_path / "long" / name)
    for key in ("base", "trained", "steps", "generated_tokens", "change_proof", "anatomy"):
        assert found[key] == whole[key]
    assert runs.read_object(folder / "result.json")["steps"] == 7
    assert runs.read_lines(folder / "changes.jsonl") == [{"step": 3, "settings": {"steps": [3, 7]}}]


def test_a_budget_may_grow_too(bare: TrainConfig, tmp_path: Path) -> None:
    def of(tokens: float, out: Path) -> TrainConfig:
        return replace(bare, steps=50, budget=replace(bare.budget, budget=tokens), out=str(out))

    whole = train(of(400, tmp_path / "long"))
    short = train(of(200, tmp_path / "run"))
    assert short["steps"] < whole["steps"]
    with pytest.raises(UserError, match="holds a finished run"):
        train(replace(of(200, tmp_path / "run"), steps=60), resume=True)
    train(of(400, tmp_path / "run"), resume=True)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "long")


def test_a_finished_run_without_more_to_do_is_refused(bare: TrainConfig) -> None:
    train(bare)
    folder = Path(bare.out)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for steps, text in (
        (4, "holds a finished run; --overwrite starts anew, more --steps go on"),
        (3, "has 4 steps behind it; steps = 3 are fewer"),
    ):
        with pytest.raises(UserError, match=text):
            train(replace(bare, steps=steps), resume=True)
    with pytest.raises(UserError, match="holds a finished run"):
        train(replace(bare, batch=replace(bare.batch, micro_batch=1)), resume=True)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"optimizer.schedule": "linear"}, "optimizer.schedule = 'linear' reaches its end with"),
        ({"update": "autofreeze"}, "update = 'autofreeze' is spread over the run"),
        (
            {
                "task": "file('levels.jsonl', difficulty='level')",
                "curriculum": "easy_to_hard(stages=2)",
            },
            "curriculum = 'easy_to_hard(stages=2)' is spread over the run",
        ),
    ],
)
def test_what_follows_the_length_keeps_it(
    changes: dict[str, Any], text: str, bare: TrainConfig, levels: str
) -> None:
    config = bare
    for name, value in changes.items():
        config = changed(config, name, value)
    cut(config, 3)
    for longer in (replace(config, steps=9), changed(config, "budget.budget", 1e6)):
        with pytest.raises(UserError, match=re.escape(text)) as caught:
            train(longer, resume=True)
        assert "(steps = 4), not steps = 9" in str(caught.value) or "budget.budget = " in str(
            caught.value
        )
    train(config, resume=True)


def test_which_updates_and_curricula_follow_the_length(
    folders: dict[str, Path], levels: str
) -> None:
    """A schedule that hears of the length does, unless it says that it only checks it."""
    found = set()
    for name, cls in UPDATES.items():
        if "by='run'" not in cls.examples[0]:
            model = load(str(folders["qwen2"]), "cpu", "fp32").model
            if parse(cls.examples[0]).apply(model, 0).schedule.follows_length:
                found.add(name)
    assert found == {"adalora", "autofreeze"}
    task = tasks.parse(levels)
    given = {"pools": "(medium=2)", "adarft": "(rescale=True)", "placebo": "(competence)"}
    uses = {name: name + given.get(name, "") for name in curricula.CURRICULA}
    orders = {name: curricula.parse(text).begin(task, 0) for name, text in uses.items()}
    found = {name for name, order in orders.items() if order.follows_length}
    assert found == {"easy_to_hard", "hard_to_easy", "competence", "e2h", "placebo"}


def test_an_interrupted_run_can_be_made_longer(bare: TrainConfig, tmp_path: Path) -> None:
    class Stop(Observer):
        def step(self, metrics: dict[str, float]) -> None:
            if metrics["step"] == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    train(replace(bare, steps=6, out=str(tmp_path / "long")))
    with pytest.raises(RunInterrupted):
        train(bare, Stop())
    train(replace(bare, steps=6), resume=True)
    assert metrics_of(Path(bare.out)) == metrics_of(tmp_path / "long")
    assert tensors_of(Path(bare.out)) == tensors_of(tmp_path / "long")
