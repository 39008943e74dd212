"""Adapters beside LoRA against their formulas, their errors and their cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from conftest import random_model
from modicum import updates
from modicum.config import Compute, TrainConfig
from modicum.models.precision import Masters
from modicum.training.loop import train
from modicum.types import RunStopped, UserError
from modicum.updates import UPDATES
from modicum.updates.adapter import Adapter
from modicum.updates.preview import preview
from modicum.updates.proofs import ChangeProof

IDS = torch.tensor([[40, 41, 42, 43, 44, 45], [50, 51, 52, 53, 54, 55]])
MEMBERS = [cls for cls in UPDATES.values() if issubclass(cls, Adapter)]
ADAPTERS = [cls.examples[0] for cls in MEMBERS]
PLACED = [text for cls in MEMBERS for text in cls.examples if "@" in text]
OURS = ["vera(rank=6)", "miss(rank=4)", "ia3", "lntuning", "oft(block_size=8)"]
OURS += ["shira(rank=2)", "tinylora"]
Q, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def adapted(text: str, family: str = "llama", seed: int = 0, noise: float = 0.0) -> Any:
    """The adapter applied; with `noise` on what trains, so that it does something."""
    prepared = updates.parse(text).apply(random_model(family), seed)
    stir(prepared, noise)
    return prepared


@torch.no_grad()
def stir(prepared: Any, noise: float) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in prepared.trainable.values():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)


def layer_of(prepared: Any, name: str) -> Any:
    return prepared.model.get_submodule(f"base_model.model.{name}")


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS).logits.float()


def change(text: str, name: str, family: str = "llama") -> tuple[Any, Tensor]:
    """The adapter's layer, and by how much merging changes the weight of its base."""
    prepared = adapted(text, family, noise=0.1)
    layer = layer_of(prepared, name)
    before = layer.base_layer.weight.detach().clone()
    parts = {n: t.detach().clone() for n, t in [*layer.named_parameters(), *layer.named_buffers()]}
    merged = prepared.merged().get_submodule(name).weight.detach()
    return parts, merged - before


# Formulas --------------------------------------------------------------------------------


def test_vera_is_two_vectors_around_shared_matrices() -> None:
    parts, found = change("vera(rank=6)", DOWN)
    down, up = parts["vera_A.default"][:, :48], parts["vera_B.default"][:32]
    wanted = (parts["vera_lambda_b.default"][:, None] * up) @ (
        parts["vera_lambda_d.default"][:, None] * down
    )
    torch.testing.assert_close(found, wanted)
    prepared = adapted("vera(rank=6, d_initial=0.25)")
    first, other = layer_of(prepared, Q), layer_of(prepared, DOWN)
    assert first.vera_A["default"] is other.vera_A["default"]
    assert (first.vera_lambda_d["default"] == 0.25).all()
    assert not first.vera_lambda_b["default"].any()
    drawn = [
        layer_of(adapted("vera(rank=6)", seed=seed), Q).vera_A["default"] for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("rank", [4, 5])
def test_miss_repeats_one_matrix_along_the_input(rank: int) -> None:
    """Entry (o, i) changes by D[i mod rank, o]; 5 divides none of the inputs."""
    parts, found = change(f"miss(rank={rank})", DOWN)
    block = parts["miss_block.default"]
    assert block.shape == (rank, 32)
    torch.testing.assert_close(found, block[torch.arange(48) % rank].T)


def test_ia3_scales_keys_values_and_the_input_of_down() -> None:
    """On the family with biases: an output's bias is scaled too, as the formula has it."""
    prepared = adapted("ia3", "qwen2", noise=0.1)
    places = {n.split(".ia3_l")[0].rpartition(".")[2] for n in prepared.trainable}
    assert places == {"k_proj", "v_proj", "down_proj"}
    assert len(prepared.trainable) == 9
    layer = layer_of(prepared, "model.layers.0.self_attn.k_proj")
    x = torch.randn(2, 32)
    base = layer.base_layer
    scale = layer.ia3_l["default"].flatten()
    torch.testing.assert_close(layer(x), scale * (x @ base.weight.T + base.bias))
    down = layer_of(prepared, DOWN)
    x = torch.randn(2, 48)
    scale = down.ia3_l["default"].flatten()
    assert len(scale) == 48
    torch.testing.assert_close(down(x), (x * scale) @ down.base_layer.weight.T)


def test_lntuning_takes_every_norm() -> None:
    found = {
        n.removeprefix("base_model.model.").replace(".ln_tuning_layers.default", "")
        for n in adapted("lntuning", "qwen3").trainable
    }
    assert found == set(updates.parse("parts(norm)").apply(random_model("qwen3")).trainable)
    assert "model.norm.weight" in found and "model.layers.0.self_attn.k_norm.weight" in found


def test_lntuning_moves_as_the_norms_themselves_do() -> None:
    """Gradients are those of `parts(norm)`."""
    found = []
    for text in ("lntuning", "parts(norm)"):
        prepared = updates.parse(text).apply(random_model("qwen3"), 0)
        prepared.model(input_ids=IDS).logits.square().mean().backward()
        found.append([p.grad for _, p in sorted(prepared.trainable.items())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_oft_rotates_the_input() -> None:
    """The exact rotation is orthogonal, so rows keep their norms; the series almost."""
    for text, error in (("oft(block_size=8, exact=True)", 1e-5), ("oft(block_size=8)", 1e-2)):
        prepared = adapted(text, noise=0.05)
        layer = layer_of(prepared, DOWN)
        rotation = layer.oft_R["default"].get_weight().detach()
        assert float((rotation @ rotation.T - torch.eye(48)).abs().max()) < error
        inside = torch.block_diag(*[torch.ones(8, 8)] * 6).bool()
        assert not rotation[~inside].any() and rotation[inside].all()
        x = torch.randn(3, 48)
        torch.testing.assert_close(layer(x), (x @ rotation) @ layer.base_layer.weight.T)
        before = layer.base_layer.weight.detach().norm(dim=1)
        after = prepared.merged().get_submodule(DOWN).weight.detach().norm(dim=1)
        assert float((after / before - 1).abs().max()) < error


def test_the_series_of_oft_ends_at_the_fourth_power() -> None:
    """I + 2Q + 2Q^2 + 2Q^3 + Q^4, from the trained triangle; the error grows as |Q|^4."""
    errors = []
    for noise in (0.02, 0.04):
        module = layer_of(adapted("oft(block_size=8)", noise=noise), Q).oft_R["default"]
        skew = torch.zeros(4, 8, 8)
        rows, columns = torch.triu_indices(8, 8, 1)
        skew[:, rows, columns] = module.weight.detach()
        skew = skew - skew.mT
        powers = [torch.linalg.matrix_power(skew, k) for k in range(5)]
        wanted = powers[0] + 2 * (powers[1] + powers[2] + powers[3]) + powers[4]
        rotation = module.get_weight().detach()
        torch.testing.assert_close(rotation, torch.block_diag(*wanted))
        wide = torch.block_diag(*wanted.double())
        exact = torch.block_diag(*torch.linalg.solve(powers[0] - skew, powers[0] + skew).double())
        errors.append(float((wide - exact).norm()))
    assert 15 < errors[1] / errors[0] < 17


def test_shira_trains_as_many_entries_as_a_lora_and_no_others() -> None:
    _, found = change("shira(rank=2)", DOWN)
    assert int((found != 0).sum()) == 2 * (32 + 48)
    prepared = adapted("shira(rank=2)")
    up, gate = (layer_of(prepared, f"model.layers.1.mlp.{n}_proj") for n in ("up", "gate"))
    assert up.trained_entries.shape == (2, 160)
    assert not torch.equal(up.trained_entries, gate.trained_entries)  # one shape, two draws
    same, other = (layer_of(adapted("shira(rank=2)", seed=s), DOWN) for s in (0, 1))
    here = layer_of(prepared, DOWN).trained_entries
    assert torch.equal(here, same.trained_entries)
    assert not torch.equal(here, other.trained_entries)


def test_tinylora_steers_the_largest_directions() -> None:
    """W + B R A by hand: the signs of singular vectors cancel in no R but a diagonal one."""
    prepared = adapted("tinylora(rank=2, u=5)", noise=0.3)
    ((_, vector),) = prepared.trainable.items()
    layer = layer_of(prepared, DOWN)
    weight = layer.base_layer.weight.detach().clone()
    left, sizes, right = torch.linalg.svd(weight.double())
    signs = left[:, :2].gather(0, left[:, :2].abs().argmax(0, keepdim=True)).sign()
    up = left[:, :2] * signs * sizes[:2].sqrt()
    down = (right[:2].T * signs * sizes[:2].sqrt()).T
    fixed = layer.tinylora_P["default"].double()
    assert fixed.shape == (5, 2, 2)
    core = (vector.detach().double()[:, None, None] * fixed).sum(0)
    after = prepared.merged().get_submodule(DOWN).weight.detach()
    torch.testing.assert_close(after, (weight + up @ core @ down).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "text, numbers, lowest",
    [
        ("tinylora", [13], 0),
        ("tinylora @ last(2)", [13], 1),
        ("tinylora(u=4, weight_tying=0.0)", [4] * 21, 0),
        ("tinylora(u=4, weight_tying=0.0) @ (last(1) & parts(mlp))", [4] * 3, 2),
        ("tinylora(u=4, weight_tying=0.9)", [4] * 2, 0),
    ],
)
def test_tinylora_shares_its_numbers(text: str, numbers: list[int], lowest: int) -> None:
    """PEFT names all of them after the first layer, which is the lowest: the trunk is right."""
    prepared = adapted(text)
    assert [p.numel() for p in prepared.trainable.values()] == numbers
    assert prepared.lowest_layer == lowest


def test_tinylora_draws_other_matrices_for_every_layer_and_seed() -> None:
    """PEFT counts seeds up by layer, so neighbouring seeds must not be neighbours there."""
    drawn = [
        module.tinylora_P["default"]
        for seed in (0, 1)
        for module in adapted("tinylora", seed=seed).model.modules()
        if hasattr(module, "tinylora_P")
    ]
    assert len({tuple(matrix.flatten().tolist()) for matrix in drawn}) == len(drawn) == 42


@pytest.mark.parametrize(
    "family, text, words",
    [
        ("llama", "vera(rank=0)", "vera: rank must be at least 1 and at most 65536, not 0"),
        ("llama", "vera(d_initial=0.0)", "above 0"),
        ("llama", "miss(rank=33)", r"q_proj has 32 numbers; rank is at most that"),
        ("llama", "miss(rank=0)", "at least 1"),
        ("llama", "oft", r"down_proj has 48 numbers, which blocks of 32 .*divisors of 16 fit"),
        ("llama", "oft(block_size=1)", "at least 2"),
        ("llama", "shira(rank=11)", r"k_proj has 512 entries.*rank is at most 10 there"),
        ("llama", "shira(rank=0)", "at least 1"),
        ("llama", "tinylora(u=0)", "u must be at least 1"),
        ("llama", "tinylora(weight_tying=1.5)", "at least 0 and at most 1, not 1.5"),
        ("llama", "ia3 @ parts(norm)", "no linear layer"),
        ("llama", "lora @ parts(norm)", "no linear layer"),
        ("llama", "ia3 @ parts(head)", r"ia3 goes into k_proj.*parts\(head\) has none"),
        ("llama", "lntuning @ parts(mlp)", r"lntuning: parts\(mlp\) has no norm"),
        ("qwen2", "vera(rank=4) @ full", "head is tied"),
        ("phi3", "ia3", r"no layers of their own.*qkv_proj.*ia3 @ parts\(mlp\)"),
    ],
)
def test_what_does_not_fit_is_a_user_error(family: str, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        updates.parse(text).apply(random_model(family), 0)


@pytest.mark.parametrize("text", ["vera(rank=4)", "miss(rank=4)", "oft(block_size=4)", "tinylora"])
def test_a_head_of_its_own_takes_an_adapter(text: str) -> None:
    prepared = adapted(f"{text} @ parts(head)", noise=0.1)
    assert prepared.lowest_layer == 3
    policy = logits(prepared.model)
    torch.testing.assert_close(logits(prepared.merged()), policy, atol=1e-5, rtol=1e-5)


# Proofs, precision -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, buffer",
    [("vera(rank=6)", "vera_A"), ("tinylora", "tinylora_P"), ("shira(rank=2)", "trained_entries")],
)
def test_the_change_proof_watches_buffers(text: str, buffer: str) -> None:
    """What an adapter has drawn is no parameter, and may not change either."""
    prepared = adapted(text)
    proof = ChangeProof(prepared, Masters(prepared.trainable))
    proof.check("before")
    (tensor, *_) = [b for n, b in prepared.model.named_buffers() if buffer in n]
    tensor.flatten()[0] += 1
    with pytest.raises(RunStopped, match=rf"change proof \(after\): the buffer .*{buffer}"):
        proof.check("after")


@pytest.mark.parametrize("text", OURS)
def test_a_bf16_run_agrees_with_itself(text: str, quick: TrainConfig) -> None:
    """Sampling and training see one policy within the tolerance, and all that trains moves."""
    config = replace(
        quick,
        update=text,
        steps=1,
        compute=Compute("cpu", "bf16"),
        evaluation=replace(quick.evaluation, eval_problems=0),
    )
    train(config)
    result = json.loads((Path(config.out) / "result.json").read_text())
    assert 0 < result["agreement_max"] < 0.05


# What backward costs ---------------------------------------------------------------------


def backward_work(family: str, text: str, copies: int = 1) -> tuple[int, int]:
    """Multiplications in backward: of matrices, and of stacks of them (bmm)."""
    model = random_model(family, attn_implementation="eager")
    prepared = updates.parse(text).apply(model, 0)
    out = prepared.model(input_ids=IDS.repeat(copies, 1)).logits.sum()
    with FlopCounterMode(display=False) as counter:
        out.backward()
    counts = {str(op).split(".")[-1]: n for op, n in counter.get_flop_counts()["Global"].items()}
    return counts.get("mm", 0) + counts.get("addmm", 0), counts.get("bmm", 0)


@pytest.mark.parametrize("text", [*ADAPTERS, *PLACED])
def test_the_previewed_share_of_backward_is_measured(text: str, folders: dict[str, Path]) -> None:
    """The same products, so they agree exactly; OFT's are stacks, as those of attention."""
    full, _ = backward_work("qwen2", "full")
    found, _ = backward_work("qwen2", text)
    shown = preview(updates.parse(text), str(folders["qwen2"])).backward_share
    if text.startswith("oft"):
        found += rotations(text)
    assert found / full == pytest.approx(shown, rel=1e-6)


def rotations(text: str) -> int:
    """What turning the input costs: the stacks but for those of attention, which LoRA has alone.

    From twice the tokens against once, as making a rotation does not grow with them.
    """
    where = text.partition(" @ ")[2]
    lora = f"lora(rank=2) @ {where}" if where else "lora(rank=2)"
    once, twice = [
        backward_work("qwen2", text, n)[1] - backward_work("qwen2", lora, n)[1] for n in (1, 2)
    ]
    return twice - once
