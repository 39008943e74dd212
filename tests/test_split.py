"""The fast engine against the plain one: same numbers, less work, less memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import random_model
from helpers import engine_of
from modicum import runs, updates
from modicum.config import Compute, Sampling, Steps, TrainConfig
from modicum.engine import logprobs, make
from modicum.engine.base import tokens_of
from modicum.engine.samplers import num_trunk_bytes
from modicum.engine.sampling import distribution, token_logprobs
from modicum.models.attention import _Spread
from modicum.training import step
from modicum.training.loop import train
from modicum.training.session import Session, prepare
from modicum.types import Row, UserError
from modicum.updates.products import backward_products

# Lowest trained layer: the embedding, 0, the last, above the layers; adapters and unions.
UPDATES = [
    *("full", "first(1)", "last(1)", "last(2) & parts(mlp)", "parts(norm)", "parts(head)"),
    *("lora(rank=2)", "lora(rank=2) @ last(1)", "layers(1)"),
]
ENGINES = {
    "kept": Compute(),
    "run again": Compute(trunk_bytes=0),
    "checkpointing": Compute(checkpointing=True),
}


def made_of(quick: TrainConfig, folder: Path, update: str, compute: Compute) -> Session:
    config = replace(quick, model=str(folder), update=update, objective="grpo(kl=0.1)")
    sizes = Steps(prompts_per_step=3, group_size=4, micro_batch=5)
    return prepare(replace(config, compute=compute, batch=sizes))


def gradients(made: Session) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and sums of the second step, when the policy is no longer the reference."""
    for number in range(2):
        groups = step.sample_groups(made, number)
        _, totals = step.score(made.task, made.reward, groups, [])
        batch = step.make_batch(made.objective, groups, totals)
        sums = step.backward(made, batch, {})
        if number == 0:
            step.optimizer_step(made, 0.0)
    held = {
        n: t.grad.clone()
        for n, t in made.optimization.masters.tensors.items()
        if t.grad is not None
    }
    return held, sums


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("update", UPDATES)
def test_a_step_is_that_of_the_plain_path(
    quick: TrainConfig, folders: dict[str, Path], family: str, update: str
) -> None:
    """Gradients to 1e-5 of their size, whether trunks are kept, run again, or recomputed."""
    if family == "qwen3" and "head" in update:
        pytest.skip("tied: it is the embedding, as in full")
    plain, sums = gradients(made_of(quick, folders[family], update, Compute(engine="library")))
    for name, compute in ENGINES.items():
        found, others = gradients(made_of(quick, folders[family], update, compute))
        assert found.keys() == plain.keys()
        for tensor, wanted in plain.items():
            error = (found[tensor] - wanted).norm() / wanted.norm().clamp(min=1e-12)
            assert error < 1e-5, (name, tensor)
        assert others == pytest.approx(sums, rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("update", ["full", "last(1)", "lora(rank=2)"])
def test_learning_is_that_of_the_plain_path(bare: TrainConfig, tmp_path: Path, update: str) -> None:
    curves = []
    for kind in ("split", "library"):
        compute = Compute(engine=kind)  # type: ignore[arg-type]
        out = tmp_path / kind
        train(replace(bare, update=update, compute=compute, out=str(out)))
        lines = runs.read_lines(out / "metrics.jsonl")
        keys = ("reward/mean", "policy/grad_norm", "policy/entropy", "completions/length_mean")
        curves.append([line.get(key, 0.0) for line in lines for key in keys])
    assert curves[0] == pytest.approx(curves[1], rel=1e-3, abs=1e-5)


# Work ------------------------------------------------------------------------------------


def calls(made: Session) -> dict[str, list[int]]:
    """How often each layer runs in sampling and in training."""
    counts = {"now": [0] * made.policy.scorer.decoder.num_layers}  # type: ignore[attr-defined]

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            counts["now"][index] += 1

        return hook

    for index, layer in enumerate(made.policy.scorer.decoder.layers):  # type: ignore[attr-defined]
        layer.register_forward_pre_hook(count(index))
    groups = step.sample_groups(made, 0)
    found = {"sampling": counts["now"][:]}
    counts["now"] = [0] * len(counts["now"])
    totals = torch.arange(12.0).view(3, 4)
    step.backward(made, step.make_batch(made.objective, groups, totals), {})
    return found | {"training": counts["now"]}


def test_the_trunk_is_run_once(quick: TrainConfig, folders: dict[str, Path]) -> None:
    """12 rows in micro-batches of 5 are three passes, each for reference and policy."""
    kept = calls(made_of(quick, folders["llama"], "last(1)", Compute()))
    assert kept["training"] == [0, 0, 6]
    again = calls(made_of(quick, folders["llama"], "last(1)", Compute(trunk_bytes=0)))
    assert again["training"] == [3, 3, 6]
    assert again["sampling"] == kept["sampling"]


def test_checkpointing_is_above_the_trunk_alone(
    quick: TrainConfig, folders: dict[str, Path]
) -> None:
    compute = Compute(checkpointing=True)
    assert calls(made_of(quick, folders["llama"], "last(1)", compute))["training"] == [0, 0, 9]


def test_trunks_are_kept_within_their_budget(quick: TrainConfig, folders: dict[str, Path]) -> None:
    made = made_of(quick, folders["llama"], "last(1)", Compute())
    groups = step.sample_groups(made, 0)
    prompts = [group.prompt for group in groups]
    needed = num_trunk_bytes(made.policy.scorer, prompts, 4, made.config.sampling.max_tokens)
    for group in groups:
        for completion in group.completions:
            assert completion.trunk.prompt.shape == (len(group.prompt), 32)
            assert completion.trunk.completion.shape == (len(completion.tokens) - 1, 32)
    for budget, held in ((needed, True), (needed - 1, False)):
        made.policy.sampler.trunk_bytes = budget  # type: ignore[attr-defined]
        (first, *_) = step.sample_groups(made, 0)
        assert (first.completions[0].trunk is not None) == held


LINEAR = ("mm", "addmm")


@pytest.mark.parametrize("update", UPDATES)
def test_backward_costs_what_the_model_says(update: str) -> None:
    """F.2 of docs/updates.md, on tokens laid end to end: within 2 %, here exactly."""
    model = random_model("llama", layers=4)
    prepared = updates.parse(update).apply(model, 0)
    lowest = prepared.lowest_layer
    engine: Any = engine_of(prepared.model, "split", lowest)
    rows = [Row((40, 41, 42), (50, 60 + i, 70, 80), (0.0,) * 4, 1.0) for i in range(6)]
    pack = engine.pack(rows)
    hidden = engine.hidden(pack, engine.trunk(pack))
    with FlopCounterMode(display=False) as counter:
        logprobs.backward(engine, hidden, tokens_of(rows, engine.device), Sampling(), take)
    counts = counter.get_flop_counts()["Global"]
    found = sum(n for op, n in counts.items() if str(op).split(".")[-1] in LINEAR)
    tokens, predicted = 3 + 6 * 3, 6 * 4
    head = engine.decoder.head
    wanted = 2 * head.weight.numel() * predicted  # its forward, inside the same phase
    for product in backward_products(prepared, prepared.trainable, 4):
        rows_of = predicted if product.module is head else tokens
        wanted += 2 * product.passes * product.numbers * rows_of
    assert found == pytest.approx(wanted, rel=0.02)


def take(logprob: Tensor, part: slice) -> Tensor:
    """A loss with a weight of its own for every token."""
    return (logprob * torch.arange(part.start, part.start + len(logprob))).sum()


# Memory ----------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The largest tensor, in numbers, that any operation makes."""

    size = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor) and not value._is_view():
                self.size = max(self.size, value.numel())
        return out


def test_logits_never_exist_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of 151,936: the largest tensor is a chunk, or the head's own gradient."""
    vocabulary = 151_936
    model = random_model("qwen2", vocab_size=vocabulary, layers=1, hidden_size=16)
    engine = engine_of(model, "split")
    rows = [Row((5, 6), tuple(range(10, 26)), (0.0,) * 16, 1.0) for _ in range(8)]
    chunk = 12 * vocabulary
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 4 * chunk)
    with Largest() as seen:
        pack = engine.pack(rows)
        tokens_N = tokens_of(rows, engine.device)
        logprobs.backward(engine, engine.hidden(pack, None), tokens_N, Sampling(), take)
    assert seen.size <= max(chunk, vocabulary * 16)
    assert len(tokens_N) * vocabulary > 10 * seen.size / 2


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=20, top_p=0.9)])
def test_the_heads_chunks_change_nothing(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row((5, 6), (10 + i, 11, 12), (0.0,) * 3, 1.0) for i in range(5)]
    found = []
    for size in (10**9, 4 * 282 * 4, 1):
        model = random_model("llama")
        engine = engine_of(model, "split")
        pack, tokens_N = engine.pack(rows), tokens_of(rows, engine.device)
        monkeypatch.setattr(logprobs, "CHUNK_BYTES", size)
        values = logprobs.backward(engine, engine.hidden(pack, None), tokens_N, sampling, take)
        found.append((values, {n: p.grad for n, p in model.named_parameters()}))
    model = random_model("llama")
    plain, _ = logprobs.logprobs(engine_of(model, "library"), rows, sampling)
    take(plain, slice(0, 15)).backward()
    for values, held in found:
        torch.testing.assert_close(values[0], plain.detach(), atol=1e-5, rtol=1e-5)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            error = (held[name] - parameter.grad).norm() / parameter.grad.norm()
            assert error < 1e-5, name


# Pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_logprobs_are_those_of_the_distribution(temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(6, 40, generator=draw)).requires_grad_()
    tokens, weights = torch.randint(0, 40, (6,), generator=draw), torch.linspace(-1, 2, 6)
    sampling = Sampling(temperature=temperature)
    found, entropy = token_logprobs(logits, tokens, sampling)
    (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
    all_NV = distribution(logits, sampling)
    wanted = all_NV.gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(entropy, -(all_NV.exp() * all_NV).sum(-1).detach())
    (expected,) = torch.autograd.grad((wanted * weights).sum(), logits)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)
    assert not entropy.requires_grad


def test_spreading_tokens_has_the_gradient_of_reading_them() -> None:
    x = torch.randn(5, 2, 3, requires_grad=True)
    tokens, real = torch.tensor([0, 1, 1, 2, 3, 4]), torch.tensor([0, 1, 3, 4, 5])
    weights = torch.randn(6, 2, 3)
    weights[2] = 0.0  # the gradient of what fills a table
    (found,) = torch.autograd.grad((_Spread.apply(x, tokens, real) * weights).sum(), x)
    (wanted,) = torch.autograd.grad((x[tokens] * weights).sum(), x)
    torch.testing.assert_close(found, wanted)


# Proof and errors ------------------------------------------------------------------------


def test_unknown_families_run_on_the_librarys_forward() -> None:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes))
    cpu = torch.device("cpu")
    assert type(make(model, cpu)).__name__ == "LibraryEngine"
    with pytest.raises(UserError, match="engine split: the architecture 'gpt2'"):
        make(model, cpu, compute=Compute(engine="split"))
    with pytest.raises(UserError, match="gradient checkpointing needs engine split"):
        make(model, cpu, compute=Compute(checkpointing=True))
