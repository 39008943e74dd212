"""The LoRA family but AdaLoRA: formulas by hand, what trains, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import random_model
from modicum import updates
from modicum.config import Optimizer
from modicum.models.linear import adapted
from modicum.training.optimization import Optimization
from modicum.types import UserError
from modicum.updates.adapter import AdapterPrepared
from modicum.updates.lora import lora_layers
from modicum.updates.pissa import rounded, triplets

IDS = torch.tensor([[40, 41, 42, 43, 44, 45]])


def apply(text: str, family: str = "qwen2", seed: int = 0, dtype: Any = torch.float32) -> Any:
    return updates.parse(text).apply(random_model(family).to(dtype), seed)


def one_layer(prepared: Any, name: str = "layers.2.self_attn.q_proj") -> Any:
    return next(m for n, m in lora_layers(prepared.model).items() if n.endswith(name))


def weight(name: str = "layers.2.self_attn.q_proj", family: str = "qwen2") -> Tensor:
    """The base's weight of that layer."""
    return random_model(family).get_submodule(f"model.{name}").weight.detach()


def disturb(prepared: Any, size: float = 0.1) -> None:
    """Move all that trains by random amounts."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in prepared.trainable.values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def factors(layer: Any) -> tuple[Tensor, Tensor, float]:
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    return up, down, layer.scaling["default"]


# Scales, rates and what trains -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("lora", 32 / 8),
        ("lora(rank=4, alpha=8)", 2.0),
        ("rslora(rank=9, alpha=12)", 12 / 3),
        ("loraplus(rank=2)", 16.0),
        ("lorafa(rank=2)", 16.0),
        ("dora(rank=2)", 16.0),
        ("loraxs(rank=4)", 4.0),
    ],
)
def test_the_scale(text: str, scale: float) -> None:
    assert one_layer(apply(text)).scaling["default"] == pytest.approx(scale)


def test_b_steps_ratio_times_as_far_as_a() -> None:
    """Adam's first step is the learning rate, whatever the gradient."""
    prepared = apply("loraplus(rank=2, ratio=8)")
    before = {n: p.detach().clone() for n, p in prepared.trainable.items()}
    held = Optimization(prepared, Optimizer(weight_decay=0.0))
    for parameter in prepared.trainable.values():
        parameter.grad = torch.full_like(parameter, 0.3)
    held.step(0.0, 1e-3)
    for name, old in before.items():
        far = 8e-3 if ".lora_B." in name else 1e-3
        moved = old - prepared.trainable[name]
        torch.testing.assert_close(moved, torch.full_like(old, far), rtol=1e-3, atol=0.0)


def kept_shapes(layer: Any) -> list[tuple[int, ...]]:
    """What autograd keeps for backward of one forward of 5 tokens."""
    found: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(5, 32))
    return found


def test_lora_fa_keeps_a_and_no_wide_input() -> None:
    """Only B trains; of the input only what A makes of it is kept for backward."""
    fa, plain = apply("lorafa(rank=2)"), apply("lora(rank=2)")
    assert fa.trainable.keys() == {n for n in plain.trainable if ".lora_B." in n}
    for name in plain.trainable.keys() - fa.trainable.keys():
        assert torch.equal(fa.frozen[name], plain.trainable[name])
        assert fa.frozen[name].abs().max() > 0
    assert (5, 32) in kept_shapes(one_layer(plain))
    assert (5, 2) in kept_shapes(one_layer(fa)) and (5, 32) not in kept_shapes(one_layer(fa))


@pytest.mark.parametrize("text", ["rslora(rank=3)", "dora(rank=3)", "pissa(rank=3)", "loraxs"])
def test_the_faster_forward_is_pefts(text: str) -> None:
    prepared = apply(text)
    disturb(prepared)
    layer, x = one_layer(prepared), torch.randn(5, 32)
    torch.testing.assert_close(adapted(layer, x), type(layer).forward(layer, x))
    with prepared.model.disable_adapter():
        torch.testing.assert_close(adapted(layer, x), layer.base_layer(x))


# DoRA ------------------------------------------------------------------------------------


def test_dora_by_hand() -> None:
    """y = m (W + s B A) x / |W + s B A|, row by row, and its gradients with the norm fixed."""
    prepared = apply("dora(rank=2)")
    disturb(prepared)
    layer, x, pull = one_layer(prepared), torch.randn(5, 32), torch.randn(5, 32)
    length = layer.lora_magnitude_vector["default"].weight
    up, down, scale = factors(layer)
    whole = layer.base_layer.weight + scale * up @ down
    direction = whole / whole.detach().norm(dim=1, keepdim=True)
    wanted = x @ (length[:, None] * direction).mT + layer.base_layer.bias
    torch.testing.assert_close(layer(x), wanted)
    trained = [length, up, down]
    assert {id(p) for p in trained} <= {id(p) for p in prepared.trainable.values()}
    for found, by_hand in zip(
        torch.autograd.grad((layer(x) * pull).sum(), trained),
        torch.autograd.grad((wanted * pull).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(found, by_hand)


def test_dora_starts_at_the_base_in_bf16() -> None:
    """The lengths are those of the rounded weights, in fp32."""
    prepared = apply("dora(rank=2)", dtype=torch.bfloat16)
    layer = one_layer(prepared)
    length = layer.lora_magnitude_vector["default"].weight
    assert length.dtype == torch.float32
    assert torch.equal(length, layer.base_layer.weight.float().norm(dim=1))
    base = random_model("qwen2").to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(prepared.model(input_ids=IDS).logits, base(input_ids=IDS).logits)


# PiSSA, OLoRA, LoRA-XS -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"])
def test_pissa_takes_the_principal_part(name: str) -> None:
    """Balanced factors; what is left has the rest of the singular values."""
    before = weight(f"layers.2.{name}")
    layer = one_layer(apply("pissa(rank=3)"), f"layers.2.{name}")
    up, down, scale = factors(layer)
    left, sizes, right = torch.linalg.svd(before, full_matrices=False)
    part = (left[:, :3] * sizes[:3]) @ right[:3]
    torch.testing.assert_close(scale * up @ down, part, atol=2e-3, rtol=0.0)
    torch.testing.assert_close(layer.base_layer.weight + scale * up @ down, before)
    rest = torch.linalg.svdvals(layer.base_layer.weight)
    torch.testing.assert_close(rest[: len(sizes) - 3], sizes[3:], atol=2e-3, rtol=0.0)
    diagonal = torch.diag(sizes[:3] / scale)
    torch.testing.assert_close(up.mT @ up, diagonal, atol=2e-3, rtol=0.0)
    torch.testing.assert_close(down @ down.mT, diagonal, atol=2e-3, rtol=0.0)


def test_olora_takes_the_first_part_of_qr() -> None:
    before = weight()
    up, down, scale = factors(one_layer(apply("olora(rank=3, alpha=6)")))
    assert scale == 2.0
    orthogonal, upper = torch.linalg.qr(before)
    part = orthogonal[:, :3] @ upper[:3]
    torch.testing.assert_close(up @ down, part, atol=2e-3, rtol=0.0)
    torch.testing.assert_close(up.mT @ up, torch.eye(3), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(down[:, :3].tril(-1), torch.zeros(3, 3), atol=1e-4, rtol=0.0)
    left = one_layer(apply("olora(rank=3, alpha=6)")).base_layer.weight
    torch.testing.assert_close(left, before - 2.0 * (up @ down), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (15, 15)])
def test_triplets_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    left, sizes, right = triplets(matrix, 5)
    wanted = torch.linalg.svd(matrix.double(), full_matrices=False)
    torch.testing.assert_close(sizes, wanted[1][:5])
    torch.testing.assert_close(
        (left * sizes) @ right.mT, (wanted[0][:, :5] * wanted[1][:5]) @ wanted[2][:5]
    )
    torch.testing.assert_close(left.mT @ left, torch.eye(5).double(), atol=1e-10, rtol=0.0)
    assert (right.gather(0, right.abs().argmax(0, keepdim=True)) > 0).all()


def test_rounding_takes_noise_away_and_makes_products_exact() -> None:
    """So the base that is left does not depend on the order in which sums are made."""
    generator = torch.Generator().manual_seed(5)
    exact = torch.randn(64, 8, generator=generator).double()
    noise = 1e-13 * torch.randn(64, 8, generator=generator).double()
    one, other = rounded(exact, 0), rounded(exact + noise, 0)
    assert torch.equal(one, other)
    assert (one - exact).abs().max() < 2.0**-12
    product, order = one.double() @ one.double().mT, [3, 1, 7, 0, 2, 6, 5, 4]
    summed = torch.zeros(64, 64, dtype=torch.float64)
    for k in order:
        summed += torch.outer(one[:, k].double(), one[:, k].double())
    assert torch.equal(product, summed)


def test_who_rewrites_the_base_says_so() -> None:
    for text, rewrites in (("pissa(rank=2)", True), ("olora(rank=2)", True), ("loraxs", False)):
        prepared = apply(text)
        assert isinstance(prepared, AdapterPrepared)
        assert any("not the base" in note for note in prepared.notes) == rewrites


def test_lora_xs_by_hand() -> None:
    """s U S R V^T, of which R alone trains and gets s (U S)^T G V for a gradient G."""
    prepared = apply("loraxs(rank=3, alpha=6)")
    layer, before = one_layer(prepared), weight()
    cores = {n: p for n, p in prepared.trainable.items() if n.endswith("lora_B.default.core")}
    assert cores.keys() == prepared.trainable.keys()
    assert sum(p.numel() for p in cores.values()) == 9 * 3 * 7
    spread = float(torch.cat([p.detach().flatten() for p in cores.values()]).std())
    assert spread == pytest.approx(1e-5, rel=0.2)
    core = layer.lora_B["default"].core
    with torch.no_grad():
        core.add_(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    left, sizes, right = triplets(before, 3)
    left, right = (left * sizes).float(), right.float()
    x, pull = torch.randn(5, 32), torch.randn(5, 32)
    change = 2.0 * left @ core.detach() @ right.mT
    torch.testing.assert_close(layer(x) - layer.base_layer(x), x @ change.mT, atol=5e-3, rtol=1e-3)
    (layer(x) * pull).sum().backward()
    by_hand = 2.0 * left.mT @ (pull.mT @ x) @ right
    torch.testing.assert_close(core.grad, by_hand, atol=2e-2, rtol=1e-3)
    assert torch.equal(layer.base_layer.weight, before)


def test_lora_xs_is_drawn_from_the_seed_and_exported_as_lora() -> None:
    one, same, other = (apply("loraxs(rank=3)", seed=s).trainable for s in (1, 1, 2))
    for name, core in one.items():
        assert torch.equal(core, same[name]) and not torch.equal(core, other[name])
    prepared = apply("loraxs(rank=3)")
    disturb(prepared)
    with torch.no_grad():
        before = prepared.model(input_ids=IDS).logits
        plain = prepared.exportable()
        torch.testing.assert_close(plain(input_ids=IDS).logits, before)
    assert not any("core" in name for name in plain.state_dict())
    assert all(type(m.lora_B["default"]) is torch.nn.Linear for m in lora_layers(plain).values())


# Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pissa(rank=17)", r"pissa\(rank=17\): .*k_proj is 16 x 32, so rank can be at most 16"),
        ("olora(rank=17) @ parts(attention)", "k_proj is 16 x 32"),
        ("loraxs(rank=17)", "rank can be at most 16"),
        ("loraplus(ratio=0)", "ratio must be above 0"),
        ("rslora(rank=0)", "rank must be at least 1 and at most 1024"),
        ("dora(alpha=0)", "alpha must be at least 1"),
        ("dora @ parts(norm)", "no linear layer"),
    ],
)
def test_what_does_not_fit_is_a_user_error(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        apply(text)
