"""Evaluation: a fixed set, graded by the task, the same however it is batched."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from helpers import Fails, make_run, replace_base
from modicum import cli, stats, tasks
from modicum.config import Sampling
from modicum.engine import policy_of
from modicum.evaluate import Evaluation, compare, evaluate, grade, held_out, summarise
from modicum.models.load import Loaded, load
from modicum.runs import read_lines
from modicum.types import Completion, UserError

SHORT = Sampling(max_tokens=24)


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load("tiny", device="cpu")


def test_the_same_however_it_is_batched(tiny: Loaded) -> None:
    task = tasks.parse("arithmetic(terms=2, digits=1)")
    found = [
        evaluate(policy_of(tiny, rollout_batch=size), task, SHORT, num_problems=9, samples=2)
        for size in (1, 6, 512)
    ]
    assert found[0].scores == found[1].scores == found[2].scores
    assert found[0] == found[2]


def test_the_noise_seed_changes_samples_and_not_problems(tiny: Loaded) -> None:
    task = tasks.parse("arithmetic")
    one, two = (
        evaluate(policy_of(tiny), task, SHORT, num_problems=24, samples=4, seed=s) for s in (0, 1)
    )
    assert one.greedy == two.greedy
    assert one.scores != two.scores


def test_json_gives_the_evaluation_back(tiny: Loaded) -> None:
    found = evaluate(policy_of(tiny), tasks.parse("countdown"), SHORT, num_problems=3, samples=2)
    assert Evaluation.from_json({**asdict(found), "step": 3, "name": "x"}) == found


def completion(text: str, length: int, finished: bool = True) -> Completion:
    return Completion(tuple(range(length)), (0.0,) * length, text, finished)


def card(groups: list[list[Completion]], best: list[Completion]) -> Evaluation:
    task = tasks.parse("arithmetic(terms=2, digits=1)")
    problems = held_out(task, "test", len(groups))
    greedy = [group[0] for group in grade(task, problems, [[c] for c in best])]
    return summarise(str(task), problems, grade(task, problems, groups), greedy, SHORT, "test")


def two_problems() -> list[str]:
    task = tasks.parse("arithmetic(terms=2, digits=1)")
    return [problem.answer for problem in held_out(task, "test", 2)]


def test_numbers_by_hand() -> None:
    gold = two_problems()
    right = [completion(f"<think>x</think><answer>{g}</answer>", 4) for g in gold]
    drawn = [
        [right[0], completion("no", 2), right[0], completion("", 6, False)],
        [completion(gold[1], 1)] * 4,  # right, but not marked
    ]
    found = card(drawn, [right[0], completion(gold[1], 1)])
    assert found.scores == [0.5, 0.0]
    assert found.lenient_scores == [0.5, 1.0]
    assert found.accuracy == 0.25
    assert found.standard_error == pytest.approx(0.25)
    assert found.lenient == pytest.approx(6 / 8)
    assert found.format == pytest.approx(2 / 8)
    assert found.truncated == pytest.approx(1 / 8)
    assert found.length == pytest.approx((4 + 2 + 4 + 6 + 4) / 8)
    assert (found.greedy, found.greedy_lenient) == (0.5, 1.0)
    assert found.greedy_scores == [1.0, 0.0]
    assert {k: v[0] for k, v in found.pass_at.items()} == pytest.approx(
        {"1": 0.25, "2": (1 - 1 / 6) / 2, "4": 0.5}
    )
    # The two right answers of the first problem are the only votes.
    assert {k: v[0] for k, v in found.maj_at.items()} == pytest.approx(
        {"1": 0.25, "2": (1 - 1 / 6) / 2, "4": 0.5}
    )
    assert found.low <= found.accuracy <= found.high


def test_equal_answers_are_one_vote_however_they_are_written() -> None:
    gold = two_problems()
    texts = [
        (r"\boxed{1000}", r"\boxed{1,000}", rf"\boxed{{{gold[0]}}}", "1000"),
        (rf"\boxed{{{gold[1]}}}", rf"\boxed{{{gold[1]}.0}}", r"\boxed{7x}", r"\boxed{8y}"),
    ]
    drawn = [[completion(text, 1) for text in group] for group in texts]
    found = card(drawn, [group[0] for group in drawn])
    assert found.maj_at["4"][0] == 0.5  # 1000 wins the first, the right answer the second


@pytest.mark.parametrize(
    ("votes", "k", "expected"),
    [
        (["a", "a", "b"], 3, 1.0),
        (["a", "b"], 2, 0.5),
        (["a", "b", "c"], 3, 1 / 3),
        (["b", "b", "a"], 3, 0.0),
        (["b", None, "a", None], 4, 0.5),
        ([None, None], 2, 0.0),
        (["a", None], 1, 0.5),
        (["a", "a", "b"], 2, (1 + 0.5 + 0.5) / 3),
    ],
)
def test_majority_by_hand(votes: list[str | None], k: int, expected: float) -> None:
    assert stats.majority_at_k(votes, "a", k) == pytest.approx(expected)


def test_majority_of_many_subsets_is_near_its_mean_and_repeats() -> None:
    votes: list[str | None] = ["a"] * 12 + ["b"] * 8
    found = stats.majority_at_k(votes, "a", 3, key="x", draws=1000)
    exact = stats.majority_at_k(votes, "a", 3, draws=2000)
    assert found == stats.majority_at_k(votes, "a", 3, key="x", draws=1000) != exact
    assert found == pytest.approx(exact, abs=0.05)
    for k in (0, 21):
        with pytest.raises(UserError, match="maj@"):
            stats.majority_at_k(votes, "a", k)


def test_a_comparison_is_paired_and_needs_the_same_problems() -> None:
    gold = two_problems()
    right, wrong = (
        [[completion(rf"\boxed{{{text}}}", 1)] for text in texts] for texts in (gold, ["x", "y"])
    )
    better, worse = (card(group, [g[0] for g in group]) for group in (right, wrong))
    mixed = card([right[0], wrong[1]], [right[0][0], wrong[1][0]])
    assert compare(better, worse).accuracy.mean == 1.0
    found = compare(mixed, worse)
    assert (found.accuracy.mean, found.better, found.worse) == (0.5, 1, 0)
    assert compare(worse, mixed).greedy.mean == -0.5
    with pytest.raises(UserError, match="split"):
        compare(better, replace(worse, split="tune"))
    with pytest.raises(UserError, match="different problems"):
        compare(better, replace(worse, ids=["other", "ids"]))


def test_completions_are_written_and_models_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    for name, seed in (("a", "0"), ("b", "1")):
        sizes = ("--problems", "3", "--samples", "2", "--max-tokens", "8", "--seed", seed)
        assert cli.run(["evaluate", *sizes, "--out", str(tmp_path / name)]) == 0
    kept = read_lines(tmp_path / "a" / "completions.jsonl")
    assert [row["sample"] for row in kept] == ["greedy", 0, 1] * 3
    assert {"gold", "completion", "strict", "lenient", "extracted", "finished"} <= kept[0].keys()
    capsys.readouterr()
    assert cli.run(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_problems"] == 3
    assert "no evaluation" in fails("compare", tmp_path, tmp_path / "b")
    (tmp_path / "a" / "evaluation.json").write_text("{}")
    assert "not an evaluation" in fails("compare", tmp_path / "a", tmp_path / "b")
    assert "holds no evaluation" in fails("evaluate", "--out", tmp_path)


def test_a_small_split_is_used_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"question": "q{i}", "answer": "{i}"}}\n' for i in range(60)))
    task = tasks.parse(f"file({str(path)!r})")
    size = task.size("test")
    assert size is not None
    problems = held_out(task, "test", 1000)
    assert len(problems) == size == len({p.id for p in problems})


def test_a_problem_is_held_out_once() -> None:
    task = tasks.parse("addition(below=6)")
    questions = [p.question for p in held_out(task, "test", 64)]
    drawn = {task.problem("test", 0, index).question for index in range(1000)}
    assert len(questions) == len(set(questions)) < 64
    assert set(questions) == drawn
    assert held_out(task, "test", 2) == held_out(task, "test", 64)[:2]


def test_an_unknown_split_is_refused(tiny: Loaded) -> None:
    with pytest.raises(UserError, match="the split is 'dev'"):
        evaluate(policy_of(tiny), tasks.parse("arithmetic"), SHORT, split="dev")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_told_as_such(value: float) -> None:
    loaded = load("tiny", device="cpu")
    loaded.model.model.norm.weight.data.fill_(value)
    with pytest.raises(UserError, match="logits are not numbers"):
        evaluate(policy_of(loaded), tasks.parse("arithmetic"), SHORT, num_problems=2, samples=1)


def test_temperature_zero_samples_once(tiny: Loaded) -> None:
    found = evaluate(
        policy_of(tiny),
        tasks.parse("arithmetic"),
        replace(SHORT, temperature=0.0),
        num_problems=5,
    )
    assert found.accuracy == found.greedy and found.samples_per_problem == 1


# A run whose files are not what they were ------------------------------------------------------

FEW = ("--problems", "2", "--samples", "1")
ROWS = "".join(f'{{"question": "What is {i}+1?", "answer": {i + 1}}}\n' for i in range(60))


@pytest.fixture
def own(folders: dict[str, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A finished sparse run, and its base, which a test may change."""
    base = shutil.copytree(folders["qwen2"], tmp_path / "base")
    options = ("--update", "sparse(keep=0.1)", "--eval-problems", "0", "--no-anatomy")
    return make_run(tmp_path / "run", base, *options), base


def test_a_run_on_another_base_is_not_evaluated(own: tuple[Path, Path], fails: Fails) -> None:
    run, base = own
    template = base / "chat_template.jinja"
    kept = template.read_text()
    template.write_text(kept + "?")
    line = fails("evaluate", run, *FEW)
    assert "was trained on another tokenizer or chat template" in line
    template.write_text(kept)
    replace_base(base)
    line = fails("evaluate", run, *FEW)
    assert "was trained on another base model: its hash differs" in line
    assert str(base) in line


def test_a_run_is_evaluated_from_where_its_base_is_now(
    own: tuple[Path, Path], tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = own

    def scores(*options: str) -> list[float]:
        capsys.readouterr()
        assert cli.run(["evaluate", str(run), *FEW, "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    before = scores()
    moved = base.rename(tmp_path / "moved")
    line = fails("evaluate", run, *FEW)
    assert "there is no model folder" in line
    assert "the base of" in line and "--model NEW says where it is now" in line
    assert scores("--model", str(moved)) == before
    assert "no model folder nonsense" in fails("evaluate", run, *FEW, "--model", "nonsense")
    assert "another base model" in fails("evaluate", run, *FEW, "--model", "tiny")


@pytest.mark.parametrize("option", ["--agreement-every=3", "--checkpointing", "--trunk-bytes=9"])
def test_what_an_evaluation_does_not_read_is_refused(
    own: tuple[Path, Path], fails: Fails, option: str
) -> None:
    for what in ((own[0],), ()):
        assert "is for training; an evaluation does not read it" in fails("evaluate", *what, option)


def test_whom_to_trust_is_read_beside_a_run(own: tuple[Path, Path], fails: Fails) -> None:
    from safetensors.torch import load_file

    run, base = own
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    assert "--pickled-weights reads" in fails("evaluate", run, *FEW)
    assert cli.run(["evaluate", str(run), *FEW, "--pickled-weights"]) == 0


def test_problems_of_a_run_are_found_and_changes_are_noted(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.jsonl").write_text(ROWS)
    options = ("--eval-problems", "0", "--no-anatomy", "--task", "file('here.jsonl')")
    make_run(Path("run"), folders["qwen2"], *options)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    changed = "the problems of file('here.jsonl') have changed since the run began"

    def said(*more: str) -> str:
        capsys.readouterr()
        assert cli.run(["evaluate", "../run", *FEW, *more]) == 0
        found = capsys.readouterr()
        assert "file('here.jsonl'), split test" in found.out
        return " ".join(found.err.split())

    assert "changed" not in said()
    (tmp_path / "here.jsonl").write_text(ROWS.replace('"answer": 9}', '"answer": 8}'))
    assert changed in said()
    Path("here.jsonl").write_text(ROWS)  # what is here comes first
    assert "changed" not in said()


@pytest.mark.parametrize("objective", ["grpo", "grpo(kl=0.04)"])
@pytest.mark.parametrize("update, rate", [("full", "1e-3"), ("lora(rank=2)", "1e-2")])
def test_the_evaluation_of_a_run_is_that_of_the_trained_policy(
    update: str, rate: str, objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Large steps, which change many answers: `trained` is not `base`, but what `evaluate` finds."""
    out, size = tmp_path / "run", ["--max-tokens", "24"]
    task = ["--task", "arithmetic(terms=2,digits=1)"]
    how = ["--update", update, "--learning-rate", rate, "--objective", objective]
    short = ["--steps", "2", "--prompts-per-step", "4", "--group-size", "4", "--no-anatomy"]
    held = ["--eval-problems", "8", "--eval-samples", "2", "--reward", "random"]
    assert cli.run(["train", *task, *how, *short, *held, *size, "--out", str(out), "--json"]) == 0
    found = json.loads((out / "result.json").read_text())
    base, trained = found["base"], found["trained"]
    assert base["scores"] != trained["scores"] and base["greedy"] != trained["greedy"]
    said = [read_lines(out / f"completions-{name}.jsonl") for name in ("base", "trained")]
    assert sum(one != other for one, other in zip(*said, strict=True)) > len(said[0]) / 2
    capsys.readouterr()
    again = [*task, *size, "--problems", "8", "--samples", "2", "--out", str(tmp_path / "again")]
    assert cli.run(["evaluate", str(out), *again, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    same = shown.keys() & trained.keys()
    assert {"scores", "greedy", "accuracy", "length", "pass_at"} <= same
    assert {key: shown[key] for key in same} == {key: trained[key] for key in same}
    assert read_lines(tmp_path / "again" / "completions.jsonl") == said[1]
