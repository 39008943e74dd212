"""Fixtures: small random models of several families, and a quick train config."""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

# A test never reaches for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
# One worker a core: more threads would only wait for each other. Set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nor does it leave plans with the user.
os.environ["MODICUM_CACHE"] = ""

import pytest

from helpers import Fails, make_run
from modicum import cli
from modicum.options import Parser

FAMILIES = ("qwen2", "llama", "qwen3")

# Imports make much and drop little: the collector waits until they are done.
gc.disable()


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look at it."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup() -> None:
    """So does what the tests before have imported: every run collects when it begins."""
    if len(sys.modules) > Imported.count + 200:
        Imported.count = len(sys.modules)
        gc.collect()
        gc.freeze()


class Imported:
    """How many modules there were when the collector was last told."""

    count = 0


def random_model(family: str, seed: int = 0, layers: int = 3, **changes: Any) -> Any:
    """A tiny random causal language model with the tiny base's vocabulary.

    qwen2 has tied embeddings and biases, llama is untied, qwen3 has q/k norms.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 282,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": family != "llama",
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 1,
        **changes,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
        # Larger weights than the default make the distributions differ from uniform.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    parameter.normal_(0.0, 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model folder for every family, with the tiny base's tokenizer."""
    from transformers import AutoTokenizer

    from modicum.models.load import TINY

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        random_model(family).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[family] = folder
    return made


@pytest.fixture
def quick(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A TrainConfig of 4 short steps on a random model; `replace` it for more.

    Its reward is `digits`, a term that exists only here: the share of digits among the
    characters. A random model is never right, but it differs in this within a group.
    """
    from modicum import rewards
    from modicum.config import Held, Records, Sampling, Steps, TrainConfig

    class Digits(rewards.Term):
        name: ClassVar[str] = "digits"

        def score(self, task: Any, problem: Any, completion: Any) -> float:
            text = completion.text
            return sum(c.isascii() and c.isdigit() for c in text) / max(1, len(text))

    monkeypatch.setitem(rewards.REWARDS, "digits", Digits)
    return replace(
        TrainConfig(),
        model=str(folders["qwen2"]),
        reward="digits",
        steps=4,
        out=str(tmp_path / "run"),
        sampling=Sampling(max_tokens=8),
        batch=Steps(prompts_per_step=2, group_size=4),
        evaluation=Held(eval_problems=4, eval_samples=2),
        records=Records(checkpoint_every=2, samples_every=2),
    )


@pytest.fixture
def bare(quick: Any) -> Any:
    """`quick` without evaluations and anatomy, for what looks at steps."""
    from modicum.config import Held

    records = replace(quick.records, anatomy=False)
    return replace(quick, evaluation=Held(eval_problems=0), records=records)


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    """Progress bars of transformers are off, as `main` has them before it imports them."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    logging.set_verbosity(level)


@pytest.fixture(scope="module")
def no_pdf() -> Iterator[None]:
    """Half of a figure's time goes into the fonts of its PDF, which tests/test_report.py reads."""
    from modicum.report import style

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "pdf", lambda figure: b"%PDF stand-in")
        yield


@pytest.fixture(scope="module")
def dense(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that trained the last layer."""
    out = tmp_path_factory.mktemp("runs") / "dense"
    return make_run(out, folders["qwen2"], "--update", "last(1)")


@pytest.fixture(scope="module")
def unfinished(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint and without a result."""
    out = make_run(tmp_path_factory.mktemp("runs") / "cut", folders["llama"], "--update", "last(1)")
    (out / "result.json").unlink()
    return out


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Runs a command that must fail with one line on stderr and code 2; returns the line.

    With `late` the run had begun and had said so: then the line is the last one.
    """

    def call(*args: object, late: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["modicum", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert ended.value.code == 2
        assert out == ""
        lines = err.splitlines()
        assert lines[-1].startswith("error: ")
        assert len([line for line in lines if line.startswith("error:")]) == 1
        assert late or len(lines) == 1, err
        assert "Traceback" not in err
        return lines[-1]

    return call


@pytest.fixture
def broken(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a model folder in which one file has other content (None: is missing)."""

    def make(name: str, content: bytes | Callable[[bytes], bytes] | None) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(folders["qwen2"], folder)
        old = (folder / name).read_bytes()
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content(old))
        return folder

    return make


# Help ------------------------------------------------------------------------------------


class Parsed(BaseException):
    def __init__(self, found: argparse.Namespace) -> None:
        self.found = found


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a command reads from its arguments, before it does anything."""
    real = Parser.read

    def read(parser: Parser, args: list[str]) -> None:
        raise Parsed(real(parser, args))

    def call(args: list[str]) -> argparse.Namespace:
        monkeypatch.setattr(Parser, "read", read)
        with pytest.raises(Parsed) as ended:
            cli.run(args)
        return ended.value.found

    return call
