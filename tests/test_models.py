"""The shipped base, its corpus and tokenizer, pretraining, and loading what users name."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modicum.models.load import TINY, Loaded, choose_device, end_tokens, load
from modicum.tasks.arithmetic import Arithmetic
from modicum.tasks.base import split_of
from modicum.types import UserError

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import tiny_tokenizer
from pretrain_tiny import CHECKPOINT, PretrainConfig, main, pretrain, rate_at
from tiny_corpus import FORMS, Mixture, answer_text, documents, work_of

SMALL = PretrainConfig(
    steps=6,
    decay_steps=6,
    documents_per_step=8,
    micro_batches=2,
    warmup_steps=2,
    layers=1,
    hidden=16,
    intermediate=16,
)


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load("tiny", device="cpu")


def test_tiny_is_what_the_docs_say(tiny: Loaded) -> None:
    size = sum(p.numel() for p in tiny.model.parameters())
    assert 0.9e6 <= size <= 3e6
    assert tiny.model.config.model_type == "qwen2"
    assert sum(f.stat().st_size for f in TINY.iterdir()) < 8e6
    assert {f.suffix for f in TINY.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert all(p.dtype == torch.float32 for p in tiny.model.parameters())


def test_the_recipe_beside_the_weights_is_the_default_of_pretrain() -> None:
    recipe = json.loads((TINY / "recipe.json").read_text())
    mixture = Mixture(**recipe.pop("mixture"))
    assert PretrainConfig(**recipe, mixture=mixture) == PretrainConfig()


def test_tags_are_single_tokens_and_every_text_comes_back(tiny: Loaded) -> None:
    tokenizer = tiny.tokenizer
    for tag in tiny_tokenizer.TAGS:
        assert len(tokenizer(tag)["input_ids"]) == 1
    for text in (
        "<think>1+2=3</think><answer>3</answer>",
        "na\u00efve \u2019 \u65e5\u672c\t\n\n  x",
        "12345",
        "",
    ):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer("1234")["input_ids"]) == 4
    assert tiny.end_tokens == (tokenizer.eos_token_id,)


def test_the_tokenizer_is_made_the_same_way_again(tiny: Loaded) -> None:
    config = PretrainConfig()
    again = tiny_tokenizer.build(documents(config.seed, 0, 2000, config.mixture))
    assert again.get_vocab() == tiny.tokenizer.get_vocab()


def test_work_ends_in_the_answer_and_every_link_is_right() -> None:
    task = Arithmetic(terms=5, digits=1)
    for index in range(50):
        problem = task.problem("train", 0, index)
        links = work_of(problem).split("=")
        assert len(links) == 4 and links[-1] == problem.answer
        # Terms and signs are a trusted sum of the task's own making.
        values = {
            sum(map(int, link.replace("-", " -").replace("+", " +").split())) for link in links
        }
        assert values == {int(problem.answer)}
        lengths = [len(link.replace("-", " -").replace("+", " +").split()) for link in links]
        assert all(a == b + 1 for a, b in pairwise(lengths))


def test_documents_repeat_and_leave_the_held_out_splits_alone() -> None:
    mixture = Mixture()
    assert documents(0, 3, 50, mixture) == documents(0, 3, 50, mixture)
    assert documents(0, 3, 50, mixture) != documents(0, 4, 50, mixture)
    questions = [
        d.split("\n")[0] for d in documents(0, 0, 400, mixture) if d.startswith("What is ")
    ]
    assert len(questions) > 200
    for question in questions:
        chain = question.removeprefix("What is ").removesuffix("?")
        key = " ".join(sorted(("+" + chain.replace("-", " -").replace("+", " +")).split()))
        assert split_of(key) == "train"


def test_the_four_forms(tiny: Loaded) -> None:
    from modicum.answers import format_ok, grade

    problem = Arithmetic(terms=3, digits=1).problem("train", 0, 0)
    texts = {form: answer_text(problem, form) for form in FORMS}
    verdicts = {form: grade(text, problem.answer).strict for form, text in texts.items()}
    assert verdicts == {
        "direct_tagged": True,
        "direct_plain": False,
        "worked_tagged": True,
        "worked_plain": False,
    }
    assert [form for form, text in texts.items() if format_ok(text)] == ["worked_tagged"]
    mixture = Mixture()
    assert sum(getattr(mixture, form) for form in FORMS) == pytest.approx(1)


def test_pretraining_repeats_and_resumes(tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"a": [], "b": []}
    for name in ("a", "b"):
        pretrain(SMALL, tmp_path / name, lambda s, loss, p, left, n=name: losses[n].append(loss))
    assert losses["a"] == losses["b"] and losses["a"][-1] < losses["a"][0]

    class Cut(Exception):
        pass

    def stop(step: int, loss: float, pace: float, left: float) -> None:
        if step == 4:
            raise Cut

    with pytest.raises(Cut):
        pretrain(SMALL, tmp_path / "c", stop, checkpoint_every=2)
    assert (tmp_path / "c" / CHECKPOINT).exists()
    rest: list[int] = []
    pretrain(SMALL, tmp_path / "c", lambda s, *_: rest.append(s), checkpoint_every=2)
    assert rest == [4, 5]
    whole, resumed = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("a", "c"))
    assert whole == resumed
    assert not (tmp_path / "c" / CHECKPOINT).exists()


def test_the_rate_warms_up_and_decays() -> None:
    rates = [
        rate_at(step, replace(SMALL, steps=100, decay_steps=100, warmup_steps=10))
        for step in range(100)
    ]
    assert rates[9] == max(rates) == SMALL.learning_rate
    assert rates[0] == pytest.approx(SMALL.learning_rate / 10)
    assert 0.05 <= rates[-1] / SMALL.learning_rate < 0.06


def test_end_tokens_come_from_tokenizer_config_and_generation_config(tiny: Loaded) -> None:
    model = SimpleNamespace(
        config=SimpleNamespace(eos_token_id=[7, 8]),
        generation_config=SimpleNamespace(eos_token_id=9),
    )
    assert end_tokens(model, SimpleNamespace(eos_token_id=3)) == (3, 7, 8, 9)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: shutil.rmtree(d), "there is no model folder"),
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "model.safetensors").write_bytes(b"short"), "cannot load the model"),
        (
            lambda d: (d / "config.json").write_text(
                '{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'
            ),
            "not a causal",
        ),
        (lambda d: (d / "tokenizer.json").unlink(), "no usable tokenizer"),
    ],
    ids=["missing", "no config", "cut weights", "bert", "no tokenizer"],
)
def test_broken_folders_are_one_line(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_hub_id_without_network_says_what_helps() -> None:
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        load("nobody/nothing")


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="not a device"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            choose_device("cuda")


def test_a_wrong_recipe_is_one_line(tmp_path: Path) -> None:
    for args, message in (
        ([], "--out"),
        (["--out", "x", "--heads", "3"], "heads must be even"),
        (["--out", "x", "--steps", "0"], "steps must be at least 1"),
        (["--out", str(TINY)], "holds a finished model"),
    ):
        with pytest.raises(UserError, match=message) as found:
            main(args)
        assert "\n" not in str(found.value)
