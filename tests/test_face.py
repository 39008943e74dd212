"""`import modicum`: light, its calls, objects in place of expressions, results."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, get_type_hints

import numpy as np
import pytest

import modicum
from helpers import Fails, metrics_of, tensors_of
from modicum import cli, rewards, runs, tasks, updates
from modicum.parts import RunParts, expression, past_config, past_task
from modicum.tasks.arithmetic import Arithmetic
from modicum.tasks.file import GivenTask
from modicum.training.loop import Observer
from modicum.types import Completion, Problem, UserError
from modicum.updates.base import Selection
from modicum.updates.layout import Layout

ROOT = Path(__file__).resolve().parent.parent
Train = Callable[..., Any]
PROBLEMS = [
    {"question": f"What is {a}+{b}?", "answer": a + b, "terms": [a, b]}
    for a in range(1, 9)
    for b in range(1, 8)
]


def early(completions: list[str], terms: list[list[int]], **columns: Any) -> list[float]:
    """The share of characters before the small letters; random completions differ in it."""
    assert all(len(pair) == 2 for pair in terms)
    return [sum(c < "a" for c in text) / max(1, len(text)) for text in completions]


def closure() -> Any:
    """A function that no path leads to."""

    def share(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        assert all(isinstance(gold, str) for gold in answer)
        return early(completions, **columns)

    return share


SHARE = closure()


@pytest.fixture
def train(folders: dict[str, Path], tmp_path: Path) -> Train:
    """`modicum.train` on a random model, with few and short steps."""

    def call(**changes: Any) -> Any:
        settings = {
            "model": folders["qwen2"],
            "task": PROBLEMS,
            "reward": SHARE,
            "out": tmp_path / "run",
            "steps": 2,
            "max_tokens": 8,
            "prompts_per_step": 2,
            "group_size": 4,
            "eval_problems": 2,
            "eval_samples": 1,
            "checkpoint_every": 1,
            "progress": False,
        }
        return modicum.train(**{**settings, **changes})

    return call


class StopAt(Observer):
    """Raises in the middle of a run, as a crash would."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.notes: list[str] = []

    def step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] == self.at:
            raise MemoryError

    def note(self, text: str) -> None:
        self.notes.append(text)


# The module ------------------------------------------------------------------------------


def python(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_is_light() -> None:
    code = (
        "import sys, time\n"
        "began = time.process_time()\n"
        "import modicum\n"
        "print(time.process_time() - began)\n"
        "assert not {'torch', 'numpy', 'transformers', 'scipy'} & set(sys.modules)\n"
        "modicum.UserError, modicum.TrainConfig, dir(modicum)\n"
        "assert not {'torch', 'numpy', 'transformers', 'scipy'} & set(sys.modules)\n"
        "modicum.evaluate, modicum.evaluate.__doc__\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    assert median(float(python(code)) for _ in range(3)) < 0.1


@pytest.mark.parametrize("name", modicum.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert name in dir(modicum)
    found = getattr(modicum, name)
    assert found.__doc__
    assert f"`modicum.{name}" in (ROOT / "docs" / "python.md").read_text()
    if name in modicum.CALLS:
        call = getattr(modicum.face, name)  # type: ignore[attr-defined]
        assert call.__doc__
        assert inspect.signature(found) == inspect.signature(call)


def test_the_module_shows_its_names_and_calls_can_be_sent_to_processes() -> None:
    assert [name for name in dir(modicum) if not name.startswith("__")] == sorted(modicum.__all__)
    for name in modicum.CALLS:
        call = getattr(modicum, name)
        assert pickle.loads(pickle.dumps(call)) is call  # noqa: S301
        assert call.__doc__ == getattr(modicum.face, name).__doc__  # type: ignore[attr-defined]
    assert get_type_hints(modicum.train)["resume"] is bool


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'modicum' has no attribute 'trian'"):
        modicum.trian  # noqa: B018  # type: ignore[attr-defined]


CHECK = """
import types
for call, message in (
    (lambda: modicum.report(), "report needs at least one run folder"),
    (lambda: modicum.study("nowhere.toml"), "there is no"),
    (lambda: modicum.train(stepz=1), "unknown setting 'stepz'; did you mean 'steps'"),
    (lambda: modicum.evaluate(problms=1), "unknown setting 'problms'; did you mean 'problems'"),
    (lambda: modicum.compare("nowhere"), "there is no folder nowhere"),
    (lambda: modicum.load("nowhere"), "nowhere is not a run folder"),
    (lambda: modicum.train("tiny"), "config must be a TrainConfig, not 'tiny'; give settings by"),
    (lambda: modicum.train({"steps": 3}), "must be a TrainConfig, not {'steps': 3}; give settings"),
    (lambda: modicum.study(5), "study: must be a design, its file or its folder, not 5"),
):
    try:
        call()
    except modicum.UserError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
from modicum.report import read
from modicum.study import design
assert callable(read.load) and modicum.report.read is read and modicum.study.design is design
"""


ORDERS = [
    "import modicum",
    "import modicum.report, modicum.study.design, modicum.evaluate",
    "from modicum.training.loop import train\nfrom modicum.report import page\nimport modicum",
    "import modicum\nmodicum.report, modicum.study\nimport modicum.commands.study",
    "from modicum import evaluate, report, study, train\nimport modicum",
]


@pytest.mark.slow
def test_calls_work_in_every_order_of_imports() -> None:
    """Packages have the names of some: `modicum.report` is one, and is called.

    Each order has a process of its own, forked after what is imported slowly.
    """
    ended = python(
        "import os, sys, modicum\n"
        "import modicum.training.loop  # torch, transformers, peft\n"
        "for name in [name for name in sys.modules if name.split('.')[0] == 'modicum']:\n"
        "    del sys.modules[name]\n"
        f"for order in {ORDERS!r}:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        f"        exec(order + {CHECK!r}, {{}})\n"
        "        os._exit(0)\n"
        "    print(os.waitpid(child, 0)[1])\n"
    )
    assert ended.split() == ["0"] * len(ORDERS)


# A run of objects ------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pdf")
def test_a_run_of_a_list_and_a_function(
    train: Train,
    tmp_path: Path,
    fails: Fails,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = train(steps=np.int64(2), learning_rate=np.float32(0.5) / 1000, update="last(1)")
    folder = result.folder
    assert result.accuracy == result.values["trained"]["accuracy"]
    assert result.baseline == result.values["base"]["accuracy"]
    assert [line["step"] for line in result.metrics] == [0, 1]
    assert 0 < result.metrics[0]["reward/share"] < 1
    config = result.config
    assert (config.task, config.reward) == ("given('56 problems (ffd1c454)')", "given('share')")
    assert config.optimizer.learning_rate == pytest.approx(5e-4)

    # The folder says what its config cannot.
    kept = json.loads((folder / "given.json").read_text())
    assert kept["task"]["count"] == 56
    assert kept["task"]["sha256"].startswith("ffd1c454")
    assert kept["task"]["files"] == ["problems.jsonl"]
    assert kept["reward"]["source"]["share"].startswith("def share(completions")
    assert runs.read_lines(folder / "problems.jsonl") == PROBLEMS

    # Everything that goes on from a run works.
    again = modicum.load(folder)
    assert again == result
    assert {again: "by its hash"}[result] == "by its hash"
    monkeypatch.chdir(folder.parent)
    relative = modicum.load(folder.name)
    monkeypatch.chdir("/")
    assert relative.metrics == result.metrics
    with pytest.raises(UserError, match="format must be 'merged' or 'adapter', not 'foo'"):
        again.export(tmp_path / "model", format="foo")
    assert again.accuracy == result.accuracy
    evaluation = again.evaluate(problems=1, samples=1, progress=False)
    assert evaluation.task == "56 problems (ffd1c454)"
    assert evaluation.num_problems == 1
    assert cli.run(["evaluate", str(folder), "--problems", "1", "--samples", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == evaluation.scores
    assert modicum.compare(result).num_problems == 2
    assert modicum.compare(again, result).accuracy.mean == 0
    assert result.report() == folder / "report.html"
    assert "56 problems (ffd1c454)" in (folder / "report.html").read_text()
    exported = again.export(tmp_path / "model")
    assert modicum.evaluate(exported, task=PROBLEMS, problems=2, samples=1, progress=False)

    # From the command line it cannot be repeated.
    reason = "task given('56 problems (ffd1c454)') was an object in Python, which no expression"
    out = tmp_path / "other"
    assert reason in fails("train", "--config", folder / "config.toml", "--out", out)
    for text, message in {
        "[]": "an object is wanted, not list",
        "null": "an object is wanted, not NoneType",
        "{}": "'update' is missing",
        '{"update": "x"}': "'model' is missing",
    }.items():
        (folder / "result.json").write_text(text)
        with pytest.raises(UserError, match=f"result.json: {message}"):
            modicum.load(folder)
    (folder / "result.json").unlink()
    assert reason in fails("train", "--out", folder, "--resume")
    unfinished = modicum.load(folder)
    assert unfinished.accuracy is unfinished.baseline is None
    assert "not finished" in repr(unfinished)
    assert "not finished" in unfinished._repr_html_()
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="is not a run folder"):
        _ = unfinished.metrics


def test_a_resumed_run_of_objects_equals_the_uncut_one(train: Train, tmp_path: Path) -> None:
    whole = train(steps=4, out=tmp_path / "whole")
    cut = tmp_path / "cut"
    with pytest.raises(MemoryError):
        train(steps=4, out=cut, observer=StopAt(1))
    with pytest.raises(UserError, match=r"was begun with other settings .task = "):
        train(steps=4, out=cut, resume=True, task=[*PROBLEMS[:-1], {**PROBLEMS[-1], "answer": 99}])
    with pytest.raises(UserError, match=r"reward given.'share'. was an object in Python"):
        modicum.train(out=cut, resume=True, task=PROBLEMS, progress=False)
    result = train(steps=4, out=cut, resume=True)
    assert metrics_of(cut) == metrics_of(whole.folder)
    assert tensors_of(cut) == tensors_of(whole.folder)
    assert result.accuracy == whole.accuracy


def test_another_source_of_the_same_name_is_noted(train: Train, tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        train(observer=StopAt(0), eval_problems=0)

    def share(completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    listener = StopAt(9)
    train(reward=share, resume=True, observer=listener, eval_problems=0)
    assert any("the source differs from what the run began with" in n for n in listener.notes)


def test_problems_that_were_changed_in_the_folder_are_refused(tmp_path: Path) -> None:
    task = tasks.of(PROBLEMS)
    assert isinstance(task, GivenTask)
    text = expression("task", task)
    task.write(runs.Run(tmp_path))
    assert past_task(tmp_path, text) == task
    (tmp_path / "problems.jsonl").write_text('{"question": "1+1?", "answer": 2}\n')
    with pytest.raises(UserError, match="are not those of its run, given"):
        past_task(tmp_path, text)


def test_a_result_shows_itself_and_escapes() -> None:
    values = {"update": "full", "model": "<b>", "task": "a & b", "reward": "accuracy"}
    values |= {"trained": {"accuracy": 0.5, "low": 0.25, "high": 0.75}, "base": {"accuracy": 0.25}}
    values |= {"trainable_parameters": 1000, "total_parameters": 4000, "steps": 3, "seconds": 2.0}
    result = modicum.face.TrainResult(  # type: ignore[attr-defined]
        Path("runs/x"), values | {"change_proof": "1 of 1"}
    )
    shown = result._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert "25.0% → 50.0% [25.0%, 75.0%]" in shown
    assert "1,000 parameters (25.0%)" in repr(result)


# Updates, objectives, curricula ------------------------------------------------------------


class Norms(Selection):
    """An update of the caller's own."""

    name: ClassVar[str] = "norms"

    def names(self, layout: Layout) -> set[str]:
        return {name for name in layout.places if "norm" in name}


def test_an_object_with_an_expression_is_its_expression(train: Train) -> None:
    update = updates.parse("lora(rank=2) @ last(1)")
    result = train(
        update=update,
        objective=modicum.objectives.Grpo(kl=0.01),
        curriculum=modicum.curricula.parse("uniform"),
        task=tasks.parse("arithmetic(terms=2)"),
        reward=[rewards.Accuracy(), "0.2*format", digits_of],
        steps=1,
        eval_problems=0,
    )
    config = result.config
    assert (config.update, config.objective) == ("lora(rank=2) @ last(1)", "grpo(kl=0.01)")
    assert (config.task, config.curriculum) == ("arithmetic(terms=2)", "uniform")
    assert config.reward == "accuracy + test_face:digits_of + 0.2*format"
    assert not (result.folder / "given.json").exists()


def digits_of(completions: list[str], **columns: Any) -> list[float]:
    """A function that its module and name give again."""
    return [float(len(text)) for text in completions]


class Sums(Arithmetic):
    """A task of the caller's own."""


class MyLoss(modicum.objectives.Grpo):
    """An objective of the caller's own."""

    name: ClassVar[str] = "my_loss"


class MyOrder(modicum.curricula.Uniform):
    """A curriculum of the caller's own."""

    name: ClassVar[str] = "my_order"


def test_an_update_of_ones_own(train: Train, tmp_path: Path) -> None:
    result = train(update=Norms(), objective=MyLoss(), curriculum=MyOrder(), eval_problems=0)
    config = result.config
    assert (config.update, config.objective) == ("given('norms')", "given('my_loss')")
    assert config.curriculum == "given('my_order')"
    source = json.loads((result.folder / "given.json").read_text())["update"]["source"]["norms"]
    assert source.startswith("class Norms")
    assert result.export(tmp_path / "model").is_dir()
    reason = r"update given.'norms'. was an object in Python.* go on in Python with the result of"
    with pytest.raises(UserError, match=reason):
        modicum.load(result.folder).export(tmp_path / "other")


# A base that has moved ----------------------------------------------------------------------


def test_a_run_whose_base_has_moved(train: Train, folders: dict[str, Path], tmp_path: Path) -> None:
    base = shutil.copytree(folders["qwen2"], tmp_path / "base")
    result = train(model=base, update="last(1)", eval_problems=0)
    few = {"problems": 1, "samples": 1, "progress": False}
    before = result.evaluate(**few)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"there is no model folder .*, the base of"):
        result.evaluate(**few)
    assert result.evaluate(base=moved, **few) == before
    assert modicum.evaluate(result.folder, task=PROBLEMS, base=moved, **few) == before
    again = modicum.load(result.folder, base=moved)
    assert again == result
    assert again.evaluate(**few) == before
    assert again.export(tmp_path / "one").is_dir()
    assert result.export(tmp_path / "two", base=moved).is_dir()
    with pytest.raises(UserError, match="another base model: its hash differs"):
        result.evaluate(base="tiny", **few)
    with pytest.raises(UserError, match="is for an adapter, and tiny is none"):
        modicum.evaluate("tiny", base=moved, **few)
    with pytest.raises(MemoryError):
        train(model=moved, out=tmp_path / "cut", observer=StopAt(1), eval_problems=0)
    last = moved.rename(tmp_path / "last")
    result = train(model=last, out=tmp_path / "cut", resume=True, eval_problems=0)
    assert result.config.model == str(last)


# What goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1e-3}, "train: unknown setting 'lr'; did you mean learning_rate.$"),
        ({"beta": 0.1}, r"did you mean objective = 'grpo\(kl=0.04\)'"),
        ({"max_completion_length": 9}, "did you mean max_tokens"),
        ({"sampling": {"temprature": 1}}, "sampling: unknown key 'temprature'; did you mean 'te"),
        ({"sampling": 3}, "train: sampling must be a dict, not 3"),
        ({"model": object}, "train: model must be a text, not <class 'object'>"),
        ({"learning_rat": 1e-3}, "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
        ({"steps": "4"}, "train: steps must be a whole number, not '4'"),
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"task": []}, "task: the list of problems is empty"),
        ({"task": 3}, "task: must be an expression, a task or a list, not int"),
        ({"task": ["1+1"]}, "the list of problems, number 1: must be a dict or a Problem, not str"),
        ({"task": PROBLEMS[0]}, "a list of dicts, or .* not dict with 'question'"),
        ({"task": {}}, "a list of dicts, or .* not dict with 'nothing'"),
        (
            {"task": [{"question": "1+1?"}]},
            "the list of problems has no column 'answer'; known are question",
        ),
        (
            {"task": [*PROBLEMS, {"question": "2+2?"}]},
            "the list of problems, number 57: 'answer' is missing \\(bad rows: 1 of",
        ),
        (
            {"task": [{"question": " ", "answer": 1}]},
            "number 1: 'question' is empty \\(bad rows: 1 of 1",
        ),
        (
            {"task": [{"question": "1?", "answer": 1, "x": object()}]},
            "number 1: JSON cannot hold it .a object",
        ),
        ({"task": PROBLEMS[:1]}, "no problem for the split 'test'.* set eval_problems=0"),
        ({"task": {"train": PROBLEMS, "test": []}}, "the problems of 'test' is empty"),
        ({"reward": []}, "reward: the list is empty"),
        ({"reward": 3}, "reward: must be an expression such as 'accuracy', a function or a term"),
        ({"reward": "acuracy"}, "unknown reward 'acuracy'; did you mean 'accuracy'"),
        ({"reward": ["accuracy", "accuracy"]}, "accuracy is there twice"),
        ({"reward": lambda completions: 0.5}, "lambda: the function returned 0.5, no list"),
        ({"reward": lambda completions, level: [1.0]}, "the problems have no column 'level'"),
        ({"update": "lst(1)"}, "unknown update 'lst'; did you mean 'last'"),
        ({"update": updates.UPDATES["lora"]}, "update: must be an expression or an object"),
        ({"objective": 3}, "objective: must be an expression or an object"),
        ({"resume": True, "overwrite": True}, "resume and overwrite exclude each other"),
        ({"resume": True}, "is not a run folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_is_one_line(train: Train, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(**changes, **{} if "task" in changes else {"eval_problems": 0})
    assert "\n" not in str(caught.value)


# Problems ----------------------------------------------------------------------------------


def test_problems_keep_their_columns_and_numbers() -> None:
    made = tasks.of(
        [
            {"prompt": "3?", "answer": np.int64(3), "hard": np.array([1, 2]), "id": 7},
            {"problem": "4?", "answer": 4.0, "difficulty": 2},
            Problem("mine", "5?", "5", 0.5, {"numbers": (2, 3)}),
        ]
    )
    assert isinstance(made, GivenTask)
    found = {p.question: p for shelf in made._loaded().shelf.values() for p in shelf}
    assert found["3?"] == Problem("given/problems/7", "3?", "3", None, found["3?"].data)
    assert found["3?"].data == {"hard": [1, 2], "id": 7}
    assert (found["4?"].answer, found["4?"].difficulty) == ("4", 2.0)
    assert (found["5?"].id, found["5?"].difficulty) == ("given/problems/mine", 0.5)
    assert found["5?"].data["numbers"] == [2, 3]


def test_a_list_is_divided_as_a_file_of_it_is(tmp_path: Path) -> None:
    made, path = tasks.of(PROBLEMS), tmp_path / "problems.jsonl"
    assert isinstance(made, GivenTask)
    made.write(runs.Run(tmp_path))
    file = tasks.parse(f"file({str(path)!r})")
    for split in ("train", "tune", "test"):
        assert made.size(split) == file.size(split)
        ours = {made.problem(split, 0, index).question for index in range(made.size(split) or 0)}
        assert ours == {file.problem(split, 0, i).question for i in range(file.size(split) or 0)}
    assert made.grade(made.problem("train", 0, 0), "<answer>-1</answer>").strict is False


def test_parts_say_what_is_tested() -> None:
    made = tasks.of({"train": PROBLEMS[:40], "test": PROBLEMS[35:]})
    assert made.size("test") == 21, "all of it"
    assert (made.size("train") or 0) + (made.size("tune") or 0) == 35, "without what is tested"
    (note,) = tasks.notes(made)
    assert note.startswith("given: 5 problems are also in a split that is held out")


def test_a_data_set_of_hugging_face_is_a_list() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(PROBLEMS)
    assert tasks.of(rows) == tasks.of(PROBLEMS)
    parts = datasets.DatasetDict({"train": rows, "test": rows})
    assert tasks.of(parts).size("test") == 56


# Rewards -----------------------------------------------------------------------------------


def score(reward: rewards.Reward, *texts: str) -> list[dict[str, float]]:
    task, problem = tasks.parse("arithmetic"), Problem("p", "3+4?", "7")
    group = [Completion((5,), (0.0,), text, True) for text in texts]
    faults: list[str] = []
    found = reward.score_group(task, problem, group, faults)
    assert faults == []
    return found


async def later(completions: list[str], **columns: Any) -> list[float]:
    """A reward that waits."""
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


def test_async_functions_also_where_a_loop_runs() -> None:
    reward = rewards.of(later)
    wanted = [{"test_face:later": 1.0}, {"test_face:later": 2.0}]
    assert score(reward, "a", "bb") == wanted

    async def cell() -> list[dict[str, float]]:
        return score(reward, "a", "bb")

    assert asyncio.run(cell()) == wanted


def test_a_cell_that_is_run_again_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = rewards.parse("test_face:digits_of")
    assert score(reward, "a") == [{"test_face:digits_of": 1.0}]
    monkeypatch.setattr(sys.modules[__name__], "digits_of", lambda completions: [9.0])
    assert score(reward, "a") == [{"test_face:digits_of": 9.0}]


def test_functions_without_a_name_are_numbered() -> None:
    half, whole = (lambda completions: [0.5]), (lambda completions: [1.0])
    reward = rewards.of([half, whole, "accuracy"])
    assert score(reward, "7") == [{"accuracy": 0.0, "lambda": 0.5, "lambda_2": 1.0}]
    assert reward.total(score(reward, "7")[0]) == 1.5
    with pytest.raises(UserError, match="lambda is there twice"):
        rewards.of([half, half])
    assert expression("reward", reward) == "given('accuracy + lambda + lambda_2')"


def test_a_function_never_has_the_name_of_a_metric() -> None:
    made = {name: (lambda completions: [0.5]) for name in ("accuracy", "mean", "errors")}
    for name, function in made.items():
        function.__name__ = name
        function.__qualname__ = f"here.<locals>.{name}"
    wanted = {"accuracy": 0.0, "accuracy_2": 0.5, "errors_2": 0.5, "mean_2": 0.5}
    for parts in ([*made.values(), "accuracy"], ["accuracy", *made.values()]):
        assert score(rewards.of(parts), "7") == [wanted]
    assert score(rewards.of(made["accuracy"]), "7") == [{"accuracy_2": 0.5}]
    twice = [made["accuracy"], made["accuracy"]]
    with pytest.raises(UserError, match="accuracy_2 is there twice"):
        rewards.of(twice)


def test_a_result_is_evaluated_on_a_task_of_ones_own(train: Train) -> None:
    result = train(task=Sums(), reward="accuracy", steps=1, eval_problems=0)
    assert result.config.task.startswith("given(")
    assert result.evaluate(problems=1, samples=1, progress=False).num_problems == 1


def test_a_config_and_progress(quick: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = modicum.train(quick, steps=1, eval_problems=0, seed=3)
    assert (result.config.steps, result.config.seed, result.config.reward) == (1, 3, "digits")
    assert "step 1/1" in capsys.readouterr().err
    modicum.train(quick, steps=1, eval_problems=0, overwrite=True, progress=False)
    assert "step" not in capsys.readouterr().err


def test_whole_sections_and_settings_by_name(quick: Any) -> None:
    from modicum.settings import tables

    given = {"sampling": {"top_p": 0.5, "top_k": 3}, "top_k": 4, "batch": quick.batch}
    made = tables(modicum.TrainConfig, given, "train")
    assert made["sampling"] == {"top_p": 0.5, "top_k": 4}
    assert made["batch"]["group_size"] == 4


def test_errors_name_arguments_and_not_options(train: Train) -> None:
    train(steps=1, eval_problems=0)
    with pytest.raises(UserError) as caught:
        train(steps=1, eval_problems=0)
    assert str(caught.value).endswith(
        "a finished run; overwrite=True starts anew, resume=True with more steps goes on with it,"
        " out takes another"
    )


def test_a_run_goes_on_from_elsewhere_with_a_reward_that_is_a_file(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "mine.py").write_text(
        "def size(completions):\n    return [float(len(text)) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    reward = "rewards/mine.py:size"
    with pytest.raises(MemoryError):
        train(reward=reward, task="arithmetic", observer=StopAt(0), eval_problems=0)
    monkeypatch.chdir(tmp_path / "rewards")
    result = modicum.train(out=tmp_path / "run", resume=True, progress=False)
    assert (result.config.reward, len(result.metrics)) == (reward, 2)
    assert f"reward/{reward}" in result.metrics[1]


def test_type_checkers_see_every_name() -> None:
    tree = ast.parse((ROOT / "src/modicum/__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    aliases = [a for node in checked.body if isinstance(node, ast.ImportFrom) for a in node.names]
    assert sorted(a.asname or a.name for a in aliases) == sorted(modicum.__all__)


@pytest.mark.parametrize("call", ["load", "report", "compare", "evaluate"])
def test_what_is_no_run_is_one_line(call: str) -> None:
    with pytest.raises(UserError, match=r"a folder or the result of a run is needed, not \[\]"):
        getattr(modicum, call)([])


def test_parts_without_objects_change_nothing(quick: Any) -> None:
    assert RunParts().named(quick) == quick
    assert [str(part) for part in RunParts().resolve(quick)][:3] == ["arithmetic", "full", "digits"]


def test_a_past_config_is_read_without_torch(train: Train) -> None:
    result = train(steps=1, eval_problems=0)
    code = (
        "import sys, modicum\n"
        f"result = modicum.load({str(result.folder)!r})\n"
        "result.metrics, result.config, repr(result), result._repr_html_()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    python(code)
    assert past_config(result.folder).steps == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": 3}, "train: out must be a text, not 3"),
        ({"out": None}, "train: out must be a text, not None"),
        ({"sampling": "greedy"}, "train: sampling must be a dict, not 'greedy'"),
        ({"batch": None}, "train: batch must be a dict, not None"),
        ({"actor.optim.lr": 1e-6}, "unknown setting 'actor.optim.lr'; did you mean learning_rate"),
    ],
)
def test_wrong_settings_in_python_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^(?s:.*){message}"):
        modicum.train(**settings)
