"""The LoRA family but AdaLoRA: formulas by hand, what trains, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import random_model
from modicum import updates
from modicum.config import Optimizer
from modicum.models.linear import adapted, adapted_layers
from modicum.training.optimization import Optimization
from modicum.types import UserError
from modicum.updates.adapter import AdapterPrepared
from modicum.updates.lora import rounded, triplets

IDS = torch.tensor([[40, 41, 42, 43, 44, 45]])


def apply(text: str, family: str = "qwen2", seed: int = 0, dtype: Any = torch.float32) -> Any:
    return updates.parse(text).apply(random_model(family).to(dtype), seed)


def one_layer(prepared: Any, name: str = "layers.2.self_attn.q_proj") -> Any:
    return next(m for n, m in prepared.model.named_modules() if n.endswith(name))


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
    assert all(type(m.lora_B["default"]) is torch.nn.Linear for m in adapted_layers(plain))


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


# Layers that are no nn.Linear ------------------------------------------------------------

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MIXTURE = {
    **{"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"num_local_experts": 4, "num_experts_per_tok": 2},
}


def odd_model(family: str) -> Any:
    """A random model whose matrices are not all linear layers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = GPT2 | {"vocab_size": 60} if family == "gpt2" else MIXTURE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **sizes, bos_token_id=0, eos_token_id=0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "ln" not in name and "norm" not in name:
                    parameter.normal_(0.0, 0.2)
    return model


@torch.no_grad()
def moved(text: str, family: str) -> tuple[Any, list[float]]:
    """An update, and how far logits are: start and base, on and base, off and base, merged and on."""
    model, ids = odd_model(family), torch.tensor([[3, 5, 7, 9, 11, 2]])

    def logits(of: Any) -> torch.Tensor:
        return of(input_ids=ids, use_cache=False).logits

    base = logits(model)
    prepared = updates.parse(text).apply(model, seed=0)
    states = [logits(prepared.model)]
    prepared.keep_reference()
    for parameter in prepared.trainable.values():
        parameter.add_(
            0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        )
    states.append(logits(prepared.model))
    with prepared.reference():
        states.append(logits(prepared.model))
    apart = [float((state - base).abs().max()) for state in states]
    return prepared, [*apart, float((logits(prepared.merged()) - states[1]).abs().max())]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        # Inputs and outputs of the four matrices of a layer: 32 to 96, 32, 128 and 128 to 32.
        ("lora(rank=2)", 2 * 2 * (128 + 64 + 160 + 160)),
        ("lora(rank=2) @ (last(1) & parts(mlp))", 2 * (160 + 160)),
        ("lorafa(rank=2)", 2 * 2 * (96 + 32 + 128 + 32)),
        ("dora(rank=2)", 2 * 2 * (128 + 64 + 160 + 160) + 2 * (96 + 32 + 128 + 32)),
        ("pissa(rank=2)", 2 * 2 * (128 + 64 + 160 + 160)),
        ("olora(rank=2, alpha=2)", 2 * 2 * (128 + 64 + 160 + 160)),
        ("loraxs(rank=4)", 2 * 4 * 16),
        ("adalora(rank=2, init_rank=3)", 2 * 3 * (129 + 65 + 161 + 161)),
        ("vera(rank=16)", 2 * (4 * 16 + 96 + 32 + 128 + 32)),
        ("tinylora", 13),
    ],
)
def test_adapters_go_into_gpt2s_turned_layers(text: str, numbers: int) -> None:
    prepared, (start, on, off, merged) = moved(text, "gpt2")
    assert sum(p.numel() for p in prepared.trainable.values()) == numbers
    assert start < (1e-3 if "xs" in text else 1e-5) and on > 1e-3 and merged < 1e-5
    assert off < 1e-5 or not prepared.reference_is_bare
    assert prepared.notes == [] or prepared.rewrites_base


@pytest.mark.parametrize("text", ["miss(rank=4)", "oft(block_size=8)", "shira(rank=2)"])
def test_what_peft_puts_into_no_turned_layer_is_one_line(text: str) -> None:
    with pytest.raises(UserError) as error:
        updates.parse(text).apply(odd_model("gpt2"))
    name = text.partition("(")[0]
    assert str(error.value) == (
        f"{text}: PEFT puts no {name} into a layer of the kind Conv1D (transformer.h.0.attn.c_attn);"
        " lora fits"
    )


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_adapted_when_they_are_asked_for(family: str) -> None:
    """A and B of rank 2 for each of four experts, in both tensors; all get a gradient."""
    plain, _ = moved("lora(rank=2)", family)
    attention = 2 * 2 * ((32 + 32) * 2 + (32 + 16) * 2)
    assert sum(p.numel() for p in plain.trainable.values()) == attention
    (note,) = plain.notes
    assert note.startswith("the adapter does not reach 86% of the numbers in the matrices of these")
    assert "model.layers.*.mlp.experts.gate_up_proj, model.layers.*.mlp.experts.down_proj" in note
    assert note.endswith("lora(experts=True) takes the experts in")

    prepared, (start, on, off, merged) = moved("lora(rank=2, experts=True)", family)
    more = 2 * 4 * 2 * ((32 + 96) + (48 + 32))
    assert sum(p.numel() for p in prepared.trainable.values()) == attention + more
    assert prepared.notes == []
    assert start == 0 and off == 0 and on > 1e-2 and merged < 1e-5
    again = updates.parse("lora(rank=2, experts=True)").apply(odd_model(family))
    again.model(input_ids=torch.arange(2, 22)[None], use_cache=False).logits.sum().backward()
    assert all(p.grad is not None for p in again.active.values())

    chosen = updates.parse("lora(rank=2, experts=True) @ (last(1) & parts(mlp))")
    names = chosen.apply(odd_model(family)).trainable
    assert len(names) == 4 and all(".layers.1.mlp.experts." in name for name in names)


def test_experts_that_are_not_there_are_one_line() -> None:
    with pytest.raises(UserError, match="this model has no experts in one tensor"):
        updates.parse("lora(experts=True)").apply(odd_model("gpt2"))
