"""Learned rewards: pairs, losses, what a reward model is worth, and its score in a run."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Fails, metrics_of, replace_base, tensors_of
from modicum import cli, learned, rewards, runs, stats
from modicum.commands import difficulty
from modicum.config import TrainConfig
from modicum.engine import Policy
from modicum.engine.reward import beside, classifier, in_parts, scores
from modicum.learned import Preference, paired, pairwise, pointwise, split
from modicum.models.adapters import quiet as quiet_peft
from modicum.plan import hardware, overall
from modicum.report.figures import curves
from modicum.report.read import LoggedSample, RunRecord
from modicum.study import design
from modicum.training.loop import Observer, train
from modicum.training.session import Session, prepare
from modicum.types import Completion, Grade, RunStopped, UserError

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("quiet")


# Losses, and what scores are worth ----------------------------------------------------------


def test_the_losses() -> None:
    chosen, rejected = torch.tensor([[1.0, 0, 0, 3], [0, 0, 1, -1]])
    plain = pairwise(chosen, rejected, center=0.0).tolist()
    assert plain == pytest.approx([0.3133, 0.6931, 1.3133, 0.0181], abs=5e-5)
    both = torch.tensor([[1.0, 3], [0, -1]])
    centred = pairwise(*both, center=0.01) - pairwise(*both, center=0.0)
    assert centred.mean().item() == pytest.approx(0.025, abs=1e-6)
    # The mean of what each answer costs alone: ln(1 + e^-3) and ln(1 + e^-1) are 0.0486 and 0.3133.
    assert pointwise(chosen, rejected).tolist() == pytest.approx(
        [0.5032, 0.6931, 1.0032, 0.1809], abs=5e-5
    )


def test_best_of_n() -> None:
    assert [round(stats.best_of_kl(n), 4) for n in (1, 4, 16, 64)] == [0, 0.6363, 1.8351, 3.1745]
    samples = [(0.9, 1.0), (0.5, 0.0), (0.1, 1.0), (0.0, 0.0)]
    # The best two-in-four: 3 of 6 draws have the first, 2 the second without it, 1 the third.
    assert [stats.best_of(samples, n) for n in (1, 2, 4)] == [0.5, pytest.approx(4 / 6), 1.0]
    assert stats.best_of([(1.0, 1.0), (1.0, 0.0)], 2) == 0.5
    with pytest.raises(UserError, match="best of 5 needs at least 5 samples a problem, not 4"):
        stats.best_of(samples, 5)


def test_the_area_under_the_curve() -> None:
    assert stats.auc([0.9, 0.2, 0.5], [True, False, False]) == 1.0
    assert stats.auc([0.5, 0.5, 0.1, 0.9], [True, False, True, False]) == 0.125
    assert stats.auc([0.3, 0.4], [True, True]) is None


def pair(
    question: str, chosen: Sequence[int], rejected: Sequence[int], weight: float = 1.0
) -> Preference:
    said = (chosen, f"yes{chosen}"), (rejected, f"no{rejected}")
    return Preference(question, (3, 4), *said, weight)


def test_a_report_counts_problems_and_not_pairs() -> None:
    tests = [pair("a", [5] * 4, [6] * 4), pair("a", [7], [8] * 4), pair("b", [9] * 5, [10] * 4)]
    both = [(1.0, 0.0), (0.5, 0.5), (0.2, 0.6)]
    found = learned.judge(tests, both, lambda text: "8" in text)
    assert found["accuracy"] == 0.375  # of (1 + 1/2) / 2 and 0
    assert found["pairs"] == 3
    assert found["rivals"] == {"longer": 0.625, "shorter": 0.375, "format": 0.375, "answer": 0.5}
    assert found["mismatched_pairs"] == 1
    assert found["mismatched"] == 0.5  # 1 token against 4; 5 against 4 is within a quarter
    assert found["beats"] is False
    assert found["median"] == 0.5
    # a: 1 and 0.5 against 0 and 0.5; b: 0.2 against 0.6.
    assert found["auc"] == pytest.approx((3.5 / 4 + 0) / 2)


def test_answers_alone_are_a_rival() -> None:
    def said(right: str, wrong: str) -> Preference:
        texts = (((5,), f"So <answer>{right}</answer>"), ((6,), f"Then <answer>{wrong}</answer>"))
        return Preference(f"{right} or {wrong}?", (3,), *texts)

    # In training 7 is right twice and wrong once, 1 wrong twice: (2+1)/(1+1), 1/(2+1), else 1.
    train = [said("7", "1"), said("7", "1"), said("3", "7")]
    tests = [said("7", "8"), said("1", "8"), said("8", "9")]
    found = learned.judge(tests, [(1.0, 0.0)] * 3, bool, train)
    assert found["rivals"]["answer"] == 0.5  # right, wrong, a tie


def test_what_is_right_everywhere_beats_its_rivals() -> None:
    tests = [pair(f"q{n}", [5], [6]) for n in range(30)]
    found = learned.judge(tests, [(0.1, 0.0)] * 30, lambda text: True)
    assert found["rivals"] == {"longer": 0.5, "shorter": 0.5, "format": 0.5, "answer": 0.5}
    assert (found["accuracy"], found["beats"], found["auc"]) == (1.0, True, 1.0)
    assert found["mismatched"] is None


# Pairs --------------------------------------------------------------------------------------


def said(text: str, tokens: int, strict: bool, **other: Any) -> tuple[Completion, Grade]:
    known = {"lenient": strict, "finished": True, "extracted": "7"} | other
    finished = known.pop("finished")
    return Completion((5,) * tokens, (0.0,) * tokens, text, finished), Grade(
        strict, reason="", **known
    )


def test_pairs_are_of_clear_verdicts_that_differ() -> None:
    group = [
        said("right", 4, True),
        said("right", 4, True),  # again
        said("cut", 4, True, finished=False),
        said("lenient", 4, False, lenient=True),
        said("nothing", 4, False, extracted=None),
        said("wrong", 4, False),
    ]
    (found,) = paired("q", (1, 2), group, 0)
    assert (found.chosen, found.rejected) == (((5,) * 4, "right"), ((5,) * 4, "wrong"))
    assert (found.question, found.prompt, found.weight, found.matched) == ("q", (1, 2), 1.0, True)
    assert paired("q", (1, 2), group[:5], 0) == []


def test_at_most_four_pairs_of_equal_lengths_first() -> None:
    right = [said(f"right {n}", 10, True) for n in range(3)]
    wrong = [said("near", 9, False), *(said(f"far {n}", 30, False) for n in range(4))]
    found = paired("q", (1,), [*right, *wrong], 0)
    assert len(found) == 4 and {p.weight for p in found} == {0.25}
    assert [p.matched for p in found] == [True, True, True, False]
    assert found == paired("q", (1,), [*right, *wrong], 0)
    others = [paired("q", (1,), [*right, *wrong], seed) for seed in range(1, 6)]
    assert any(other != found for other in others)


def test_lengths_match_within_a_quarter_of_the_log() -> None:
    matched = [pair("q", [1] * n, [2] * 100).matched for n in (77, 78, 128, 129)]
    assert matched == [False, True, True, False]  # e^-0.25 is 0.7788, e^0.25 is 1.284


def test_parts_share_no_problem() -> None:
    pairs = [pair(f"What is {n} + 1?", [5], [6 + m]) for n in range(400) for m in range(2)]
    parts = split(pairs, 0)
    assert {part: len(of) for part, of in parts.items()} == {"train": 612, "tune": 84, "test": 104}
    asked = {part: {p.question for p in of} for part, of in parts.items()}
    assert asked["train"].isdisjoint(asked["tune"] | asked["test"])
    assert asked["tune"].isdisjoint(asked["test"])
    assert split(pairs[::-1], 0)["test"][::-1] == parts["test"]
    assert split(pairs, 1)["test"] != parts["test"]
    assert split([pair("\ud800", [1], [2])], 0)


def ids(where: str, *texts: str) -> list[tuple[int, ...]]:
    return [tuple(map(ord, text)) for text in texts]


def test_preferences_as_the_hub_has_them(tmp_path: Path) -> None:
    chat = {"role": "user", "content": "three?"}
    rows = [
        {"prompt": "one?", "chosen": "a", "rejected": "b"},
        {"prompt": "one?", "chosen": "a", "rejected": "c"},
        {"prompt": "two?", "chosen": "a", "rejected": "a"},
        {
            "prompt": [chat],
            "chosen": [chat | {"content": "x"}],
            "rejected": [chat | {"content": "y"}],
        },
    ]
    path = tmp_path / "preferences.jsonl"
    path.write_text(runs.to_lines(rows))
    found, told = learned.read(str(path), ids)
    assert told == {}
    assert found == [
        Preference("one?", (111, 110, 101, 63), ((97,), "a"), ((98,), "b"), 0.5),
        Preference("one?", (111, 110, 101, 63), ((97,), "a"), ((99,), "c"), 0.5),
        Preference("three?", (116, 104, 114, 101, 101, 63), ((120,), "x"), ((121,), "y"), 1.0),
    ]
    import datasets

    datasets.Dataset.from_list(rows[:2]).save_to_disk(str(tmp_path / "saved"))
    datasets.Dataset.from_list(rows[:2]).to_parquet(str(tmp_path / "rows.parquet"))
    for name in ("saved", "rows.parquet"):
        assert learned.read(str(tmp_path / name), ids)[0] == found[:2]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("p.jsonl", '{"prompt": "a", "chosen": "b"}\n', "no column 'rejected'"),
        (
            "p.jsonl",
            '{"prompt": "a", "chosen": "b", "rejected": 3}\n',
            "line 1: 'rejected' must be",
        ),
        (
            "p.jsonl",
            '{"prompt": "a", "chosen": "", "rejected": "b"}\n',
            "line 1: 'chosen' is empty",
        ),
        ("p.jsonl", "", "holds no rows"),
        ("p.json", '{"rates": {}}', "no file of modicum pairs"),
        ("p.txt", "a", "files end in"),
        (None, "", "there is no file"),
    ],
)
def test_files_that_hold_no_pairs(name: str | None, text: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / (name or "none.jsonl")
    if name:
        path.write_text(text)
    with pytest.raises(UserError, match=error):
        learned.read(str(path), ids)


# The commands -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_model(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A LoRA and a whole reward model of a random base, that like one sign and not another."""
    home = tmp_path_factory.mktemp("reward")
    rows = [{"prompt": f"{n}?", "chosen": f"<a>{n}", "rejected": f"<b>{n}"} for n in range(160)]
    (home / "rows.jsonl").write_text(runs.to_lines(rows))
    made = {"rows": home / "rows.jsonl"}
    for name, rank, rate in (("lora", "8", "1e-2"), ("whole", "0", "3e-3")):
        made[name] = home / name
        words = ["--pairs", made["rows"], "--model", folders["qwen2"], "--out", made[name]]
        with contextlib.redirect_stdout(None):
            options = ["--rank", rank, "--learning-rate", rate, "--epochs", "2", "--json"]
            assert cli.run(["reward-model", *map(str, words), *options]) == 0
    return made


def test_the_report_of_a_reward_model(reward_model: dict[str, Path]) -> None:
    report = runs.read_object(reward_model["lora"] / "reward_model.json")
    assert report["beats"] and report["accuracy"] > 0.9
    assert report["rivals"] == {"longer": 0.5, "shorter": 0.5, "format": 0.5, "answer": 0.5}
    assert report["pairs"] == 13 and report["learning_rate"] == 0.01
    assert report["options"]["rank"] == 8 and len(report["witness"]) == 2
    facts = runs.read_object(reward_model["lora"] / "adapter_config.json")
    assert (facts["r"], facts["lora_alpha"], facts["lora_dropout"]) == (8, 16, 0.0)
    assert facts["task_type"] == "SEQ_CLS" and "score" in facts["modules_to_save"]
    assert runs.read_object(reward_model["whole"] / "config.json")["architectures"] == [
        "Qwen2ForSequenceClassification"
    ]


def test_labels_are_shuffled_and_what_learns_nothing_is_refused(
    reward_model: dict[str, Path],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["--pairs", reward_model["rows"], "--model", folders["qwen2"], "--out", tmp_path / "x"]
    taught: list[Preference] = []
    monkeypatch.setattr(learned, "fit", lambda model, pairs, *_: taught.extend(pairs))
    assert cli.run(["reward-model", *map(str, words), "--shuffle-labels", "--epochs", "2"]) == 1
    turned = sum(pair.chosen[1].startswith("<b>") for pair in taught)
    assert len(taught) == 2 * 126 and 0.4 < turned / len(taught) < 0.6
    # The head begins at zero: all scores are equal.
    report = runs.read_object(tmp_path / "x" / "reward_model.json")
    assert (report["accuracy"], report["median"], report["beats"]) == (0.5, 0.0, False)
    with pytest.raises(UserError, match=r"does not put it above trivial rivals .*'format': 0.5"):
        session_of(folders["qwen2"], "last(1)", tmp_path / "x")
    forced = f"learned({str(tmp_path / 'x')!r}, force=True)"
    config = replace(TrainConfig(), model=str(folders["qwen2"]), update="last(1)", reward=forced)
    assert prepare(config).reward.learned == forced


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--targets", "query"], "targets: No modules were targeted"),
        (["--rank", "-1"], "rank must be at least 0"),
        (["--learning-rate", "9"], "the gradient is not finite; a smaller --learning-rate"),
        (["--loss", "dpo"], "loss is 'dpo'"),
    ],
)
def test_what_cannot_be_trained(
    words: list[str],
    error: str,
    reward_model: dict[str, Path],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Fails,
) -> None:
    if "9" in words:
        monkeypatch.setattr(learned, "pairwise", lambda one, two: (one - two) * math.inf)
    base = ["--pairs", reward_model["rows"], "--model", folders["qwen2"], "--out", tmp_path / "x"]
    assert error in fails("reward-model", *base, *words, late=True)
    assert not (tmp_path / "x").exists()


def test_pairs_are_drawn_once_and_charged(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: Fails,
) -> None:
    """An interrupted command goes on; the tokens are the sampler's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(difficulty, "CHUNK", 2)
    words = ["pairs", "--model", "tiny", "--problems", "4", "--samples", "6", "--json"]
    counted: list[int] = []
    real = Policy.sample

    def sample(self: Policy, *args: Any, **settings: Any) -> Any:
        if len(counted) == 1:
            raise KeyboardInterrupt
        found = real(self, *args, **settings)
        counted.append(sum(len(c.tokens) for group in found for c in group))
        return found

    monkeypatch.setattr(Policy, "sample", sample)
    with pytest.raises(KeyboardInterrupt):
        cli.run(words)
    (path,) = (tmp_path / "pairs").iterdir()
    half = runs.read_object(path)
    assert half["done"] == 2 and half["tokens"] == counted[0]
    monkeypatch.setattr(Policy, "sample", real)
    assert cli.run(words) == 0
    told = json.loads(capsys.readouterr().out)
    whole = runs.read_object(path)
    assert whole["done"] == 4 and whole["tokens"] > counted[0] and told["tokens"] == whole["tokens"]
    assert sum(told["pairs"].values()) == len(whole["pairs"]) > 0
    assert whole["pairs"][: len(half["pairs"])] == half["pairs"]
    found, made = learned.read(str(path), ids)
    assert made["base"]["base_hash"] and {p.weight for p in found} <= {1, 0.5, 1 / 3, 0.25}
    monkeypatch.setattr(Policy, "sample", None)
    assert cli.run(words) == 0
    model = ("--model", folders["qwen2"])
    assert "another base" in fails("reward-model", "--pairs", path, "--out", "x", *model, late=True)
    assert "--samples must be at least 2" in fails("pairs", "--samples", "1")
    assert "too few" in fails("reward-model", "--pairs", path, "--out", "x", late=True)
    assert "needs --pairs FILE and --out FOLDER" in fails("reward-model", "--pairs", path)


def test_scores_come_in_halves_where_memory_runs_out() -> None:
    asked: list[int] = []

    def score(prompt: Any, answers: Any) -> torch.Tensor:
        asked.append(len(answers))
        if len(answers) > most:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return torch.tensor([float(len(of)) for of in answers])

    most, rows = 2, [(1,), (1, 2), (1, 2, 3), (1,), (1, 2)]
    assert in_parts(score, (9,), rows).tolist() == [1, 2, 3, 1, 2]
    assert asked == [5, 2, 3, 1, 2]
    most = 0
    with pytest.raises(UserError, match="while the reward model scored one completion"):
        in_parts(score, (9,), rows)
    with pytest.raises(RuntimeError, match="another"):
        in_parts(lambda *_: (_ for _ in ()).throw(RuntimeError("another")), (9,), rows)


# Scores -------------------------------------------------------------------------------------


def session_of(base: Path, update: str, path: Path | str, **settings: Any) -> Session:
    config = TrainConfig(model=str(base), update=update, reward=f"learned({str(path)!r})")
    held = replace(config.evaluation, eval_problems=0)
    batch = replace(config.batch, micro_batch=8, rollout_batch=8)
    return prepare(replace(config, evaluation=held, batch=batch, **settings))


def completions(*rows: Sequence[int]) -> list[Completion]:
    return [Completion(tuple(row), (0.0,) * len(row), "x", True) for row in rows]


def shake(session: Session) -> None:
    """Change what trains, as training would."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in session.prepared.trainable.values():
            parameter.add_(0.3 * torch.randn_like(parameter))


ROWS = [(9, 8, 7, 0), (30, 31, 0), (5, 0), (30, 31, 32, 33, 34, 35)]


def by_library(folder: Path, base: Path, sequences: Sequence[Sequence[int]]) -> list[float]:
    """Scores by PEFT and transformers alone: the head on the state of the last token."""
    import peft
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    with quiet_peft():
        model = peft.PeftModel.from_pretrained(model, str(folder)).eval().base_model.model
    head = model.score.modules_to_save["default"].weight
    with torch.no_grad():
        states = [model.model(torch.tensor([of])).last_hidden_state[0, -1] for of in sequences]
    return [float(head[0] @ state) for state in states]


@pytest.mark.parametrize(
    ("update", "engine"),
    [
        ("full", "auto"),
        ("last(1)", "auto"),
        ("full", "library"),
        ("lora(rank=2)", "auto"),
        ("lora(rank=2)", "library"),
        ("pissa(rank=2)", "auto"),
        ("ia3", "auto"),
        ("oft(block_size=4)", "auto"),
    ],
)
def test_scores_are_those_of_the_library_whatever_trains(
    update: str, engine: Any, reward_model: dict[str, Path], folders: dict[str, Path]
) -> None:
    """On the original base, after training too, with the policy as it is afterwards."""
    compute = replace(TrainConfig().compute, engine=engine)
    session = session_of(folders["qwen2"], update, reward_model["lora"], compute=compute)
    before = {n: p.detach().clone() for n, p in session.policy.model.named_parameters()}
    score = beside(reward_model["lora"], session.policy, session.prepared)
    prompt = (20, 21, 22)
    wanted = by_library(reward_model["lora"], folders["qwen2"], [prompt + row for row in ROWS])
    assert np.ptp(wanted) > 0.1
    with torch.no_grad():
        assert score(prompt, ROWS).tolist() == pytest.approx(wanted, abs=1e-4)
        shake(session)
        trained = {n: p.detach().clone() for n, p in session.policy.model.named_parameters()}
        assert score(prompt, ROWS).tolist() == pytest.approx(wanted, abs=1e-4)
        # Alone as among others, whatever their lengths.
        for row, value in zip(ROWS, wanted, strict=True):
            assert score(prompt, [row]).tolist() == pytest.approx([value], abs=1e-4)
    after = dict(session.policy.model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in trained.items())
    assert after.keys() == before.keys() and not any("score" in name for name in after)
    assert session.prepared.frozen.keys() | session.prepared.trainable.keys() == after.keys()


def test_scores_on_a_base_in_bf16(reward_model: dict[str, Path], folders: dict[str, Path]) -> None:
    compute = replace(TrainConfig().compute, dtype="bf16")
    session = session_of(folders["qwen2"], "last(1)", reward_model["lora"], compute=compute)
    wide = session_of(folders["qwen2"], "last(1)", reward_model["lora"])
    assert score_of(session) == pytest.approx(score_of(wide), abs=0.05)


def test_a_score_is_about_the_median(
    reward_model: dict[str, Path], folders: dict[str, Path]
) -> None:
    session = session_of(folders["qwen2"], "last(1)", reward_model["lora"])
    ((_, term),) = session.reward.terms
    problem = session.task.problem("train", 0, 0)
    faults: list[str] = []
    found = term.score_group(session.task, problem, completions(*ROWS), faults)
    median = runs.read_object(reward_model["lora"] / "reward_model.json")["median"]
    from modicum.tasks.prompts import encode

    prompt = encode(problem, session.policy.tokenizer, session.config.sampling)
    raw = by_library(reward_model["lora"], folders["qwen2"], [prompt + row for row in ROWS])
    assert faults == []
    assert found == pytest.approx([1 / (1 + math.exp(median - s)) for s in raw], abs=1e-4)
    alone = rewards.Learned(str(reward_model["lora"]))
    with pytest.raises(UserError, match="it scores in a run, with its model in memory"):
        alone.score_group(session.task, problem, completions(*ROWS), [])


def test_a_classifier_reads_the_last_token_though_it_pads_with_it(
    reward_model: dict[str, Path], tmp_path: Path
) -> None:
    """A folder that pads with the end token, as many do."""
    folder = shutil.copytree(reward_model["whole"], tmp_path / "whole")
    facts = runs.read_object(folder / "config.json") | {"pad_token_id": 0, "eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(facts))
    model = classifier(str(folder), torch.device("cpu"), torch.float32)
    rows = [(20, 21, *row) for row in ROWS]
    with torch.no_grad():
        wanted = [
            float(model.score(model.model(torch.tensor([row])).last_hidden_state)[0, -1, 0])
            for row in rows
        ]
        assert scores(model, rows).tolist() == pytest.approx(wanted, abs=1e-5)
        # The fault itself: padded with the end token, another one is read.
        model.config.pad_token_id = 0
        whole = torch.tensor([rows[0]])
        read = float(model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits)
    assert abs(read - wanted[0]) > 1e-3


def test_a_whole_reward_model_is_a_term_too(
    reward_model: dict[str, Path], folders: dict[str, Path]
) -> None:
    session = session_of(folders["qwen2"], "full", reward_model["whole"])
    shake(session)
    ((_, term),) = session.reward.terms
    problem = session.task.problem("train", 0, 0)
    found = term.score_group(session.task, problem, completions(*ROWS), [])
    alone = [term.score_group(session.task, problem, [c], [])[0] for c in completions(*ROWS)]
    assert found == pytest.approx(alone, abs=1e-5) and len(set(found)) == 4


def test_a_classifier_of_others_has_its_own_chat(
    reward_model: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(reward_model["whole"], tmp_path / "whole")
    (folder / "reward_model.json").unlink()
    session = session_of(folders["llama"], "last(1)", folder)
    ((_, term),) = session.reward.terms
    problem = replace(session.task.problem("train", 0, 0), question="1+1?")
    texts = [replace(c, text=text) for c, text in zip(completions(*ROWS[:2]), "ab", strict=True)]
    found = term.score_group(session.task, problem, texts, [])
    model = classifier(str(folder), torch.device("cpu"), torch.float32)
    tokenizer = session.policy.tokenizer
    turns = [
        [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": text}]
        for text in "ab"
    ]
    rows = [tokenizer(tokenizer.apply_chat_template(t, tokenize=False))["input_ids"] for t in turns]
    with torch.no_grad():
        wanted = [float(scores(model, [row]).sigmoid()) for row in rows]
    assert found == pytest.approx(wanted, abs=1e-5) and found[0] != found[1]


# What is not there, or another --------------------------------------------------------------


def test_reward_models_that_cannot_be(
    reward_model: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    def fails(path: Path, error: str, base: str = "qwen2") -> None:
        with pytest.raises(UserError, match=error):
            session_of(folders[base], "last(1)", path)

    fails(tmp_path / "none", "holds no reward model; modicum reward-model makes one")
    fails(folders["qwen2"], "is no reward model of one label")
    fails(reward_model["lora"], "trained on another", base="llama")
    folder = shutil.copytree(reward_model["lora"], tmp_path / "lora")
    (folder / "reward_model.json").unlink()
    with pytest.raises(UserError, match="k_proj has other sizes"):
        session_of(Path("tiny"), "last(1)", folder)
    facts = runs.read_object(folder / "adapter_config.json")
    (folder / "adapter_config.json").write_text(json.dumps(facts | {"use_dora": True}))
    fails(folder, "only a plain LoRA can score beside a policy")
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    fails(folder, "is no reward model for this base")


def test_another_base_is_refused(
    reward_model: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    base = shutil.copytree(folders["qwen2"], tmp_path / "base")
    replace_base(base)
    with pytest.raises(UserError, match="lora was trained on another base model"):
        session_of(base, "last(1)", reward_model["lora"])


# Planted faults -----------------------------------------------------------------------------


def score_of(session: Session) -> list[float]:
    ((_, term),) = session.reward.terms
    problem = session.task.problem("train", 0, 0)
    return term.score_group(session.task, problem, completions(*ROWS), [])


def test_both_adapters_at_once_are_found(
    reward_model: dict[str, Path], folders: dict[str, Path]
) -> None:
    session = session_of(folders["qwen2"], "lora(rank=2)", reward_model["lora"])
    shake(session)
    session.prepared.reference = contextlib.nullcontext  # type: ignore[method-assign]
    with pytest.raises(RunStopped, match=r"reward proof: .* another adapter acts"):
        score_of(session)


def test_a_policy_in_the_place_of_the_base_is_found(
    reward_model: dict[str, Path], folders: dict[str, Path]
) -> None:
    session = session_of(folders["qwen2"], "full", reward_model["lora"])
    shake(session)
    session.prepared.reference = contextlib.nullcontext  # type: ignore[method-assign]
    with pytest.raises(RunStopped, match="its base is not as it was"):
        score_of(session)


def test_a_reward_model_that_is_merged_into_the_base_is_found(
    reward_model: dict[str, Path], folders: dict[str, Path]
) -> None:
    """By the change proof, whatever scores say."""
    from safetensors.torch import load_file

    session = session_of(folders["qwen2"], "lora(rank=2)", reward_model["lora"])
    score_of(session)
    assert session.proof.check("now")
    held = load_file(reward_model["lora"] / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    up, down = held[f"{name}.lora_B.weight"], held[f"{name}.lora_A.weight"]
    weight = session.policy.model.get_parameter(f"{name}.base_layer.weight")
    with torch.no_grad():
        weight.add_(2 * up @ down)
    with pytest.raises(RunStopped, match=r"q_proj.base_layer.weight should be frozen"):
        session.proof.check("then")


def test_a_wrong_token_is_found(
    reward_model: dict[str, Path], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score of the token before the last one, or of what stands after it."""
    from modicum.engine import reward

    real = reward.last_states
    session = session_of(folders["qwen2"], "last(1)", reward_model["lora"])
    monkeypatch.setattr(
        reward, "last_states", lambda s, p, rows: real(s, p, [(*r, 1) for r in rows])
    )
    with pytest.raises(RunStopped, match="reward proof"):
        score_of(session)


# In a run -----------------------------------------------------------------------------------


@pytest.fixture
def config(bare: TrainConfig, reward_model: dict[str, Path]) -> TrainConfig:
    optimizer = replace(bare.optimizer, learning_rate=1e-2)
    path = str(reward_model["lora"])
    made = replace(bare, reward=f"learned({path!r})", objective="dr_grpo", optimizer=optimizer)
    return replace(made, batch=replace(made.batch, micro_batch=8, rollout_batch=8))


class Crash(Observer):
    """In the third step, a step after the checkpoint."""

    def step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] == 2:
            raise MemoryError


@pytest.mark.parametrize("update", ["last(1)", "lora(rank=2)"])
def test_a_resumed_run_is_the_uncut_one(config: TrainConfig, update: str, tmp_path: Path) -> None:
    whole = replace(config, update=update, out=str(tmp_path / "whole"))
    train(whole)
    cut = replace(whole, out=str(tmp_path / "cut"))
    with pytest.raises(MemoryError):
        train(cut, Crash())
    train(cut, resume=True)
    lines = metrics_of(tmp_path / "whole")
    assert lines == metrics_of(tmp_path / "cut") and len(lines) == 4
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("whole", "cut")]
    assert samples[0] == samples[1]
    assert tensors_of(tmp_path / "whole") == tensors_of(tmp_path / "cut")


def test_gold_stands_beside_the_score(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, update="last(1)", steps=2))
    lines = metrics_of(Path(config.out))
    for line in lines:
        assert line["gold/strict"] == line["gold/lenient"] == 0  # a random model
        assert line["gold/proxy"] == pytest.approx(line[f"reward/{config.reward}"])
        assert line["gold/spread"] > 0 and "gold/auc" not in line
    assert abs(lines[0]["gold/kl"]) < 1e-4 < abs(lines[1]["gold/kl"])
    sample = runs.read_lines(Path(config.out) / "samples.jsonl")[0]
    assert sample["logged"] == {"strict": False, "lenient": False}
    train(replace(config, update="last(1)", reward="digits", steps=1, out=str(tmp_path / "plain")))
    (plain,) = metrics_of(tmp_path / "plain")
    assert not [key for key in plain if key.startswith("gold/")]
    # A forward of the layers for all 8 completions, once a group, beside what is trained.
    assert lines[0]["flops/training"] > plain["flops/training"]


def test_a_plan_counts_the_reward_model(config: TrainConfig, reward_model: dict[str, Path]) -> None:
    """Its factors, the first values of what trains, which it reads, and its forward."""
    learned_, plain = (
        overall.make(replace(config, update="last(1)", reward=reward), hardware.parse("48 GB"))
        for reward in (config.reward, "random")
    )
    parts, without = learned_.memory.largest, plain.memory.largest
    (file,) = reward_model["lora"].glob("*.safetensors")
    assert parts["reward model"] == file.stat().st_size and "reward model" not in without
    assert parts["reference"] > without.get("reference", 0) == 0
    assert learned_.flops.training > plain.flops.training
    with pytest.raises(UserError, match="nowhere holds no reward model"):
        overall.make(replace(config, reward="learned('nowhere')"), hardware.parse("48 GB"))
    assert learned_.flops.sampling == plain.flops.sampling


def test_the_tokens_of_the_pairs_are_the_runs_as_well(
    config: TrainConfig, reward_model: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(reward_model["lora"], tmp_path / "charged")
    report = runs.read_object(folder / "reward_model.json")
    report["spent"] = {"completions": 30, "tokens": 1000}
    (folder / "reward_model.json").write_text(json.dumps(report))
    ledger = train(replace(config, reward=f"learned({str(folder)!r})", steps=1))["ledger"]
    assert ledger["pairs"] == {"completions": 30, "tokens": 1000}
    (line,) = metrics_of(Path(config.out))
    assert line["tokens/generated"] == 1000 + 8 * line["completions/length_mean"]


def test_gold_against_the_root_of_the_kl() -> None:
    columns = {
        "step": np.arange(4.0),
        "tokens": 100 * np.arange(1.0, 5.0),
        "gold/kl": np.array([-0.1, 1.0, 4.0, 9.0]),
        "gold/strict": np.array([0.2, 0.4, 0.6, 0.3]),
        "gold/proxy": np.array([0.5, 0.6, 0.7, 0.9]),
    }
    x, y, proxy, tokens = curves.gold_curve(columns)
    assert x.tolist() == [0, 1, 2, 3] and y.tolist() == [20, 40, 60, 30]
    assert proxy.tolist() == [50, 60, 70, 90] and tokens.tolist() == [100, 200, 300, 400]
    samples = tuple(
        LoggedSample(step, "", question, scores={"learned('x')": s}, logged={"strict": r})
        for step in (0, 9)
        for question in ("a", "b")
        for s, r in ((0.9, question == "a"), (0.2, False), (0.1, False), (0.3, step == 9))
    )
    record = RunRecord(Path(), {"update": "full"}, columns, samples, None, {})
    points = list(curves.best_of(record))
    assert points == [(0.0, 12.5), (pytest.approx(0.79768, abs=1e-5), 50.0)]
    made = curves.gold(
        {"a run": record, "another": replace(record, metrics={"step": columns["step"]})}
    )
    assert made is not None
    assert made.label == (
        "a run: most correct completions (60.0 %) at a KL of 4.00 nats, after 300 tokens; 30.0 % at"
        " the end, 30.0 points below. To the peak the score rose 0.50 points for each of gold."
        # The normal equations by hand: 14 a - 12.66 b = 130 and 12.66 a - 12.784 b = 88.41.
        " d(29.0 - 21.8 ln d) fits the gain, d the root of the KL; it is highest at a KL of 1.93 nats."
    )
    assert made.draw(False) and made.draw(True)
    assert curves.gold({"plain": replace(record, metrics={"step": columns["step"]})}) is None


@pytest.mark.parametrize("name", ["rewards", "lora"])
def test_the_studies_parse(name: str) -> None:
    study = design.read(ROOT / "studies" / "perl" / f"{name}.toml")
    assert study.control in study.arms and len(study.seeds) == 5
    for arm in design.arms(study):
        assert rewards.parse(design.config(study, arm, 0, Path("x"), None).reward)


def test_the_check_of_the_page_runs() -> None:
    text = (ROOT / "docs" / "learned_reward.md").read_text()
    (check,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert "assert " in check and len(check.strip().splitlines()) <= 10
    exec(check, {})
