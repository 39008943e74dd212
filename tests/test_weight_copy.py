"""The sampler's copy of the weights: what it computes, when it is laid out, and how it is proved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import metrics_of, tensors_of
from modicum import updates
from modicum.config import Compute, Sampling, TrainConfig
from modicum.engine import Policy, policy_of
from modicum.engine.split import SplitEngine
from modicum.models import weight_copy
from modicum.models.load import load
from modicum.models.weight_copy import FusedLinear, WeightCopy
from modicum.plan import hardware, overall
from modicum.training.loop import Observer, train
from modicum.types import RunStopped, UserError
from modicum.updates import Prepared
from test_decoder import PROMPTS, VARIANTS, decoder_of, model_of

KEYS: list[tuple[object, ...]] = [("test", 0), ("test", 1), ("test", 2)]
SHORT = Sampling(max_tokens=8)


def policy(update: str, dtype: Any = "fp32", laid: bool = True) -> tuple[Policy, Prepared]:
    """The tiny base, whose adapter, if it has one, is no longer at zero."""
    loaded = load("tiny", "cpu", dtype)
    prepared = updates.parse(update).apply(loaded.model)
    made = policy_of(loaded, prepared, Compute(sampler=f"local(weight_copy={laid})", dtype=dtype))
    move(made, prepared)
    return made, prepared


def move(of: Policy, prepared: Prepared) -> None:
    """Change what trains, as a step would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in prepared.trainable.values():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(0.02 * noise.to(tensor.dtype))
    of.follow(prepared)


def laid(of: Policy) -> WeightCopy:
    assert isinstance(of.scorer, SplitEngine) and of.scorer.weight_copy is not None
    return of.scorer.weight_copy


def sample(of: Policy) -> list[Any]:
    found = of.sample([(40, 41, 42, 43), (50,), (60, 61, 62)], KEYS, 2, SHORT)
    return [completion for group in found for completion in group]


# What it computes ---------------------------------------------------------------------------


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_copy_computes_what_the_layers_do(
    variant: str, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed for oneDNN, and laid end to end."""
    if not packs:
        monkeypatch.setattr(weight_copy, "blocks", lambda weight: False)
    decoder = decoder_of(model_of(variant))
    states = {n: t.clone() for n, t in decoder.decoder.state_dict().items()}
    made = WeightCopy(decoder)
    engine = SplitEngine(decoder, -1)
    prompts = [tuple(prompt.tolist()) for prompt in PROMPTS]
    found = []
    with torch.inference_mode():
        for engine.weight_copy in (None, made):
            made.refresh()
            decoding = engine.decode(prompts, 2, 5, keep=False)
            for step in range(4):
                decoding.advance(torch.arange(7 * step + 1, 7 * step + 7))
            found.append(decoding.logits_BV)
    torch.testing.assert_close(found[1], found[0], atol=3e-5, rtol=0)
    assert all(torch.equal(states[n], t) for n, t in decoder.decoder.state_dict().items())
    made.check()


def test_layers_that_read_the_same_are_one_product() -> None:
    decoder = decoder_of(model_of("llama biases tied"))
    made = WeightCopy(decoder)
    assert sorted({tuple(product.sizes) for product in made.products.values()}) == [
        *((32,), (32, 16, 16), (48, 48), (60,)),
    ]
    assert len(made.products) == 4 * decoder.num_layers + 1  # q k v, o, gate up, down; the head


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "update", ["full", "last(1)", "lora(rank=4)", "dora(rank=4)", "pissa(rank=4)", "ia3", "vera"]
)
def test_it_samples_what_the_policy_does(
    update: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (with_copy, _), (without, _) = (policy(update, dtype, flag) for flag in (True, False))
    wanted, begun, real = sample(without), set[int](), FusedLinear._all

    def counted(self: FusedLinear, x: Tensor) -> list[Tensor]:
        begun.add(id(self))
        return real(self, x)

    monkeypatch.setattr(FusedLinear, "_all", counted)
    found = sample(with_copy)
    assert len(begun) == len(laid(with_copy).products)
    with_copy.sampler.prove()
    if dtype == "fp32":
        assert [c.tokens for c in found] == [c.tokens for c in wanted]
    close = 1e-4 if dtype == "fp32" else 0.2
    for one, other in zip(found, wanted, strict=True):
        assert one.origin == other.origin
        assert one.logprobs[0] == pytest.approx(other.logprobs[0], abs=close)


def test_an_adapter_that_is_off_is_off() -> None:
    """What has no adapter at work is left to the layers themselves."""
    made, prepared = policy("lora(rank=4)")
    engine: Any = made.scorer
    laid(made).refresh()
    found = []
    with torch.inference_mode(), prepared.reference():
        for engine.weight_copy in (laid(made), None):
            decoding = engine.decode([(40, 41)], 1, 3, keep=False)
            decoding.advance(torch.tensor([5]))
            found.append(decoding.logits_BV)
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


# When it is laid out ------------------------------------------------------------------------


def test_only_what_changed_is_laid_out_again() -> None:
    made, prepared = policy("last(1)")
    copy = laid(made)
    assert copy.refresh() == len(copy.products) == 4 * made.scorer.decoder.num_layers + 1  # type: ignore[attr-defined]
    assert copy.refresh() == 0
    move(made, prepared)
    assert copy.refresh() == 4
    with torch.no_grad():
        prepared.trainable[next(n for n in prepared.trainable if "k_proj" in n)].mul_(2)
    assert copy.refresh() == 1


def test_small_models_have_no_copy_unless_asked() -> None:
    loaded = load("tiny", "cpu")
    assert policy_of(loaded).scorer.weight_copy is None  # type: ignore[attr-defined]
    assert policy_of(loaded, None, Compute(engine="library")).scorer.weight_copy is None  # type: ignore[attr-defined]
    asked = Compute(engine="library", sampler="local(weight_copy=True)")
    with pytest.raises(UserError, match=r"local\(weight_copy=True\): only engine split decodes so"):
        policy_of(loaded, None, asked)


def test_a_plan_has_the_copy() -> None:
    config = replace(TrainConfig(), compute=Compute(sampler="local(weight_copy=True)"))
    parts = overall.make(config, hardware.parse("48 GB")).memory.largest
    # Six layers of q 128 x 128, k and v 64 x 128, o 128 x 128, three of 288 x 128, and the head.
    layer = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 288 * 128
    assert parts["sampler's copy"] == 4 * (6 * layer + 282 * 128)
    without = replace(config, compute=Compute())
    assert "sampler's copy" not in overall.make(without, hardware.parse("48 GB")).memory.largest


# How it is proved ---------------------------------------------------------------------------


def missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second product is laid out once and never again."""
    real = FusedLinear.refresh

    def refresh(self: FusedLinear, moved: Any) -> bool:
        return (self.held is None or len(self.layers) != 2) and real(self, moved)

    monkeypatch.setattr(FusedLinear, "refresh", refresh)


def stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is laid out at the start and not after a step."""
    real = WeightCopy.refresh
    monkeypatch.setattr(
        WeightCopy, "refresh", lambda self, version="": 0 if self.version else real(self, version)
    )


def scaled(times: float) -> Callable[[pytest.MonkeyPatch], None]:
    """The adapter is folded in with another scale; by 2 it is there twice."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        def whole(self: FusedLinear, layer: Any, base: nn.Linear) -> Tensor:
            if layer is base or not self.folds:
                return base.weight
            delta = layer.get_delta_weight(layer.active_adapters[0])
            return base.weight + times * delta

        monkeypatch.setattr(FusedLinear, "_whole", whole)

    return plant


def folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, too."""

    def whole(self: FusedLinear, layer: Any, base: nn.Linear) -> Tensor:
        delta = 0 if layer is base else layer.get_delta_weight("default")
        return (base.weight + delta).to(base.weight.dtype)

    monkeypatch.setattr(FusedLinear, "_whole", whole)


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A of the adapters is as it was at the start."""
    real = FusedLinear.refresh

    def refresh(self: FusedLinear, moved: Any) -> bool:
        before, done = self.low, real(self, moved)
        self.low = self.low if before is None else before
        return done

    monkeypatch.setattr(FusedLinear, "refresh", refresh)


@pytest.mark.parametrize(
    ("plant", "update", "dtype", "error"),
    [
        (stale, "last(1)", "fp32", "other weights .* stale"),
        (stale, "last(1)", "bf16", "other weights .* stale"),
        (stale, "lora(rank=4)", "bf16", "other weights .* stale"),
        (missed, "last(1)", "fp32", "copy of .*gate_proj.* its weight is another"),
        (missed, "last(1)", "bf16", "copy of .*gate_proj.* its weight is another"),
        (missed, "lora(rank=4)", "fp32", "copy of .*gate_proj.* its weight with the adapter"),
        (scaled(1.1), "lora(rank=4)", "fp32", "its weight with the adapter is another"),
        (scaled(2), "lora(rank=4)", "fp32", "its weight with the adapter is another"),
        (folded, "lora(rank=4)", "bf16", "its weight is another"),
        (unread, "lora(rank=4)", "bf16", "its adapter's A is another"),
    ],
)
def test_planted_faults_are_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    update: str,
    dtype: Any,
    error: str,
    bare: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    optimizer = replace(bare.optimizer, learning_rate=1e-2)
    compute = replace(bare.compute, sampler="local(weight_copy=True)", dtype=dtype)
    config = replace(bare, update=update, steps=4, optimizer=optimizer, compute=compute)
    with pytest.raises(RunStopped, match=error):
        train(replace(config, reward="random"))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("update", ["last(1)", "lora(rank=4)", "lisa(every=1)", "sparse(keep=0.1)"])
def test_honest_runs_go_on(update: str, dtype: Any, bare: TrainConfig) -> None:
    optimizer = replace(bare.optimizer, learning_rate=1e-3)
    compute = replace(bare.compute, sampler="local(weight_copy=True)", dtype=dtype)
    config = replace(bare, update=update, steps=3, optimizer=optimizer, compute=compute)
    train(replace(config, reward="random"))
    assert len(metrics_of(Path(config.out))) == 3


@pytest.mark.parametrize("update", ["last(1)", "lora(rank=4)"])
def test_a_resumed_run_is_the_uncut_one(update: str, bare: TrainConfig, tmp_path: Path) -> None:
    class Crash(Observer):
        def step(self, metrics: dict[str, float]) -> None:
            if metrics["step"] == 2:
                raise MemoryError

    compute = replace(bare.compute, sampler="local(weight_copy=True)")
    records = replace(bare.records, checkpoint_every=2)
    settings = {"compute": compute, "records": records, "reward": "random", "steps": 4}
    config = replace(bare, update=update, **settings, out=str(tmp_path / "whole"))
    train(config)
    cut = replace(config, out=str(tmp_path / "cut"))
    with pytest.raises(MemoryError):
        train(cut, Crash())
    train(cut, resume=True)
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")
    assert tensors_of(tmp_path / "whole") == tensors_of(tmp_path / "cut")
