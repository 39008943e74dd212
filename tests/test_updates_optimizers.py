"""Optimizers as updates: steps by hand and by the papers' formulas, state, grammar, errors."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import random_model
from modicum import runs, updates
from modicum.config import Compute, Optimizer, TrainConfig
from modicum.training import checkpoint, session
from modicum.training.step import backward, optimizer_step
from modicum.types import UserError
from modicum.updates import members as rules
from modicum.updates.base import Method, Prepared
from modicum.updates.matrices import Apollo, ApolloMini, GaLore, Muon, basis_of, flattened
from modicum.updates.members import AdamWRule
from modicum.updates.optimizers import Optimized, Sgd
from modicum.updates.preview import preview
from rows import batch_of
from test_updates import take_steps

MATRIX = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.2.mlp.down_proj.weight"
SETTINGS = Optimizer(weight_decay=0.1, beta1=0.8, beta2=0.95)
RATE = 0.01


def optimizer_of(rule: Any, tensors: dict[str, Tensor], settings: Optimizer = SETTINGS) -> Any:
    group = {"params": list(tensors.values()), "names": list(tensors), "lr": RATE}
    return rule.make([group], settings)


def move(rule: Any, start: Tensor, gradients: list[Tensor], name: str = MATRIX) -> list[Tensor]:
    """The values of a tensor after each step, without weight decay."""
    tensor = nn.Parameter(start.clone())
    optimizer = optimizer_of(rule, {name: tensor}, replace(SETTINGS, weight_decay=0.0))
    found = []
    for gradient in gradients:
        tensor.grad = gradient.clone()
        optimizer.step()
        found.append(tensor.detach().clone())
    return found


def drawn(*shape: int, count: int = 6, seed: int = 0) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.tensor(rng.normal(size=shape), dtype=torch.float32) for _ in range(count)]


# SGD -------------------------------------------------------------------------------------


def test_sgd_by_hand() -> None:
    """b1 = 2, b2 = 0.5 * 2 + 4 = 5; with decay 0.1 the gradient of w = 1 gets 0.1 more."""
    start, gradients = torch.ones(1), [torch.tensor([2.0]), torch.tensor([4.0])]
    plain = move(Sgd(), start, gradients)
    assert [v.item() for v in plain] == pytest.approx([1 - 0.02, 1 - 0.06])
    heavy = move(Sgd(0.5), start, gradients)
    assert [v.item() for v in heavy] == pytest.approx([1 - 0.02, 1 - 0.07])
    tensor = nn.Parameter(torch.ones(1))
    tensor.grad = torch.tensor([2.0])
    optimizer_of(Sgd(), {"w": tensor}).step()
    assert tensor.item() == pytest.approx(1 - 0.01 * 2.1)


def test_sgd_keeps_nothing_without_momentum(folders: dict[str, Path]) -> None:
    for text, numbers in [("sgd @ last(1)", 0), ("sgd(momentum=0.5) @ last(1)", 1)]:
        made = session.prepare(
            replace(TrainConfig(), model=str(folders["llama"]), update=text, steps=1)
        )
        take_steps(made, 0, 1)
        assert made.optimization.state_bytes() == 4 * numbers * made.trainable_parameters
        assert preview(updates.parse(text), made.config.model).optimizer_bytes == (
            4 * numbers * made.trainable_parameters
        )


@pytest.mark.parametrize("shape", [(5, 7), (7, 5)])
@pytest.mark.parametrize(
    "rule",
    [
        AdamWRule(),
        Sgd(),
        Sgd(0.5),
        GaLore(rank=2, every=2, scale=0.5).rule(0),
        Apollo(2, 3, 2.0).rule(0),
        ApolloMini(every=3, scale=128.0).rule(0),
        Muon().rule(0),
    ],
    ids=["adamw", "sgd", "momentum", "galore", "apollo", "apollo_mini", "muon"],
)
def test_a_rule_says_how_far_a_step_goes(
    rule: Any, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change proof counts on it: of every number, in every step, over the rate."""
    monkeypatch.setattr(rules, "PIECE", 16)
    monkeypatch.setattr(rules, "FAR", float("inf"))
    (start,) = drawn(*shape, count=1, seed=9)
    tensor = nn.Parameter(start)
    optimizer = optimizer_of(rule, {MATRIX: tensor})
    (group,) = optimizer.param_groups
    for gradient in drawn(*shape):
        tensor.grad, before = gradient.clone(), tensor.detach().clone()
        kept = dict(optimizer.state.get(tensor, {}))
        said = rule.spacings(MATRIX, tensor, kept, group)
        assert torch.equal(tensor, before) and torch.equal(tensor.grad, gradient)
        optimizer.step()
        assert bool(rule.state_bytes(MATRIX, tensor.shape)) == bool(optimizer.state.get(tensor))
        height = before.abs()
        spacing = torch.nextafter(height, torch.tensor(float("inf"))) - height
        went = ((tensor.detach() - before).abs() / spacing).max().item()
        assert said == pytest.approx(went, rel=1e-3) and said > 1000


# GaLore ----------------------------------------------------------------------------------


def test_galore_by_hand() -> None:
    """Adam's first step is the sign; only the first singular direction is seen."""
    gradient = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    rule = GaLore(rank=1, every=5, scale=0.25).rule(0)
    (wide,) = move(rule, torch.zeros(2, 3), [gradient])
    assert wide.tolist() == [pytest.approx([-RATE * 0.25, 0, 0]), [0, 0, 0]]
    (tall,) = move(rule, torch.zeros(3, 2), [-gradient.T])
    assert tall.tolist() == [pytest.approx([RATE * 0.25, 0]), [0, 0], [0, 0]]


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6)])
def test_galore_is_the_formula(shape: tuple[int, int]) -> None:
    """Written anew in numpy: new bases every two steps, moments kept through them."""
    rank, every, scale = 2, 2, 0.5
    gradients, start = drawn(*shape), drawn(*shape, seed=1)[0]
    weight, first, second = start.double().numpy().copy(), 0.0, 0.0
    expected = []
    for step, gradient in enumerate(gradients):
        g = gradient.double().numpy()
        if step % every == 0:
            u, _, vt = np.linalg.svd(g, full_matrices=False)
            basis = vt[:rank].T if shape[0] >= shape[1] else u[:, :rank]
            for column in range(rank):
                basis[:, column] *= np.sign(basis[np.abs(basis[:, column]).argmax(), column])
        low = g @ basis if shape[0] >= shape[1] else basis.T @ g
        first = SETTINGS.beta1 * first + (1 - SETTINGS.beta1) * low
        second = SETTINGS.beta2 * second + (1 - SETTINGS.beta2) * low**2
        t = step + 1
        adam = (first / (1 - SETTINGS.beta1**t)) / (
            np.sqrt(second / (1 - SETTINGS.beta2**t)) + 1e-8
        )
        weight -= RATE * scale * (adam @ basis.T if shape[0] >= shape[1] else basis @ adam)
        expected.append(weight.copy())
    found = move(GaLore(rank, every, scale).rule(0), start, gradients)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-4, atol=1e-6)


def test_a_basis_is_orthogonal_and_has_one_sign() -> None:
    (gradient,) = drawn(6, 9, count=1)
    basis = basis_of(gradient, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(basis, basis_of(-gradient, 3))
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(basis, basis_of(gradient.T.contiguous(), 3), atol=1e-5, rtol=0)


def test_a_zero_gradient_makes_no_basis() -> None:
    rule = GaLore(rank=1, every=2, scale=1.0).rule(0)
    tensor = nn.Parameter(torch.zeros(2, 3))
    optimizer = optimizer_of(rule, {MATRIX: tensor}, replace(SETTINGS, weight_decay=0.0))
    made, moved = [], []
    nothing, (one, other) = torch.zeros(2, 3), drawn(2, 3, count=2)
    for gradient in [nothing, one, one, nothing, other]:
        before = tensor.detach().clone()
        tensor.grad = gradient.clone()
        optimizer.step()
        made.append(int(optimizer.state[tensor]["basis_made"]))
        moved.append(not torch.equal(before, tensor))
    assert made == [-2, 1, 1, 1, 4]
    assert moved[0] is False and all(moved[1:3])
    torch.testing.assert_close(optimizer.state[tensor]["basis"], basis_of(other, 1))


# APOLLO ----------------------------------------------------------------------------------


def projection(rule: Any, name: str, step: int, wide: Tensor) -> Tensor:
    return rule.projection(name, step, wide)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_apollos_first_step_by_hand(shape: tuple[int, int]) -> None:
    """Adam(R) is the sign of R at first, so s_j = sqrt(r) / |R_j|."""
    (gradient,) = drawn(*shape, count=1)
    wide = gradient if shape[0] < shape[1] else gradient.T
    channels = Apollo(2, 5, 4.0).rule(3)
    low = projection(channels, MATRIX, 1, wide) @ wide
    step = 2.0 * wide * sqrt(2) / low.norm(dim=0)
    (found,) = move(channels, torch.zeros(shape), [gradient])
    torch.testing.assert_close(found, -RATE * (step if shape[0] < shape[1] else step.T))
    whole = ApolloMini(every=5, scale=4.0).rule(3)
    low = projection(whole, MATRIX, 1, wide) @ wide
    (found,) = move(whole, torch.zeros(shape), [gradient])
    torch.testing.assert_close(found, -RATE * 2.0 * gradient * sqrt(max(shape)) / low.norm())


def test_the_norm_grows_by_a_hundredth_at_most() -> None:
    """Under one gradient Adam's raw size goes 0.2/sqrt(.05), 0.36/sqrt(.0975); 1.01 is let through."""
    (gradient,) = drawn(4, 6, count=1)
    rule = Apollo(2, 5, 1.0).rule(0)
    first, second = move(rule, torch.zeros(4, 6), [gradient] * 2)
    raw = [0.2 / sqrt(0.05), 0.36 / sqrt(0.0975)]
    assert raw[1] > 1.01 * raw[0]
    torch.testing.assert_close(second - first, first * 1.01 * raw[0] / raw[1])
    third = move(rule, torch.zeros(4, 6), [gradient, 0.01 * gradient])[1]
    assert (third - first).norm() < 0.9 * (second - first).norm(), "what shrinks may"


def test_a_zero_gradient_does_not_count_for_the_limit() -> None:
    nothing, (gradient,) = torch.zeros(4, 6), drawn(4, 6, count=1)
    rule = Apollo(2, 5, 1.0).rule(0)
    values = move(rule, torch.zeros(4, 6), [nothing, gradient, nothing, gradient])
    assert torch.equal(values[0], torch.zeros(4, 6)) and torch.equal(values[2], values[1])
    assert (values[3] - values[2]).norm() > 0.3 * (values[1] - values[0]).norm() > 0


def test_projections_are_drawn_by_seed_name_and_number_and_not_kept() -> None:
    wide = torch.zeros(50, 60)
    rule = Apollo(40, 3, 1.0).rule(0)
    first = projection(rule, "a", 1, wide)
    assert torch.equal(first, projection(rule, "a", 3, wide))
    others = [projection(rule, "a", 4, wide), projection(rule, "b", 1, wide)]
    others.append(projection(rule.rule(1), "a", 1, wide))
    assert not any(torch.equal(first, other) for other in others)
    assert first.std().item() == pytest.approx(1 / sqrt(40), rel=0.05)
    tensor = nn.Parameter(torch.zeros(50, 60))
    optimizer = optimizer_of(rule, {MATRIX: tensor})
    tensor.grad = drawn(50, 60, count=1)[0]
    optimizer.step()
    shapes = {key: tuple(value.shape) for key, value in optimizer.state[tensor].items()}
    assert shapes == {"step": (), "norm": (), "exp_avg": (40, 60), "exp_avg_sq": (40, 60)}


# Both ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [GaLore(4, 2, 0.25).rule(0), Apollo(4, 2, 1.0).rule(0)], ids=["galore", "apollo"]
)
def test_all_else_gets_torchs_adamw(rule: Any) -> None:
    """Vectors, the embedding, and matrices of no more than `rank` rows; with weight decay."""
    shapes = {"model.layers.0.input_layernorm.weight": (9,), "model.embed_tokens.weight": (8, 9)}
    shapes |= {MATRIX: (4, 9), "lm_head.weight": (9, 8)}
    ours = {name: nn.Parameter(drawn(*shape, seed=5)[0]) for name, shape in shapes.items()}
    theirs = [nn.Parameter(tensor.detach().clone()) for tensor in ours.values()]
    one = optimizer_of(rule, ours)
    betas = (SETTINGS.beta1, SETTINGS.beta2)
    other = torch.optim.AdamW(theirs, lr=RATE, betas=betas, eps=SETTINGS.epsilon, weight_decay=0.1)
    for step in range(4):
        for mine, its in zip(ours.values(), theirs, strict=True):
            mine.grad = drawn(*mine.shape, seed=10 + step)[0]
            its.grad = mine.grad.clone()
        one.step()
        other.step()
    for mine, its in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "rule, numbers",
    [
        (GaLore(2, 1, 1.0).rule(0), 2 * 4 + 2 * 2 * 6),
        (Apollo(2, 1, 1.0).rule(0), 2 * 2 * 6),
        (Muon().rule(0), 4 * 6),
    ],
    ids=["galore", "apollo", "muon"],
)
def test_bytes_of_state_by_hand(rule: Any, numbers: int) -> None:
    for shape in [(4, 6), (6, 4)]:
        tensor = nn.Parameter(torch.zeros(shape))
        optimizer = optimizer_of(rule, {MATRIX: tensor})
        tensor.grad = torch.ones(shape)
        optimizer.step()
        kept = [v for v in optimizer.state[tensor].values() if v.dim()]
        assert sum(v.numel() * v.element_size() for v in kept) == 4 * numbers
        assert rule.state_bytes(MATRIX, tensor.shape) == 4 * numbers
    assert rule.state_bytes("model.norm.weight", torch.Size([6])) == 8 * 6
    assert rule.state_bytes("lm_head.weight", torch.Size([6, 4])) == 8 * 24


def test_decay_is_decoupled_from_the_direction() -> None:
    (gradient,), (start,) = drawn(4, 6, count=1), drawn(4, 6, count=1, seed=1)
    for rule in (GaLore(2, 1, 1.0).rule(0), Apollo(2, 1, 1.0).rule(0)):
        tensor = nn.Parameter(start.clone())
        tensor.grad = gradient.clone()
        optimizer_of(rule, {MATRIX: tensor}).step()
        (without,) = move(rule, start, [gradient])
        torch.testing.assert_close(tensor.detach(), without - RATE * 0.1 * start)


# Expressions -----------------------------------------------------------------------------


def test_an_optimizer_takes_any_update() -> None:
    for text, shown in [
        ("(sgd @ lora) @ last(2)", "sgd @ (lora @ last(2))"),
        ("sgd @ lora @ last(2)", "sgd @ (lora @ last(2))"),
        ("sgd @ (last(1) + parts(norm))", "sgd @ (last(1) + parts(norm))"),
        ("galore(rank=4) @ lisa(layers=1)", "galore(rank=4) @ lisa(layers=1)"),
    ]:
        made = updates.parse(text)
        assert isinstance(made, Optimized) and str(made) == shown
        assert updates.parse(shown) == made
    sgd, both = updates.parse("sgd"), updates.parse("sgd @ lora")
    assert (both.faster, sgd.faster) == (200, 200)
    assert updates.parse("sgd(momentum=0.75)").faster == 50
    whole = updates.parse("sgd").apply(random_model("llama"))
    assert isinstance(whole.rule, Sgd) and not whole.frozen


class Own(Method):
    """A method that brings an optimizer."""

    name = "own"

    def apply(self, model: nn.Module, seed: int = 0, where: Any = None) -> Any:
        prepared = Prepared(model, dict(model.named_parameters()))
        prepared.rule = Sgd()
        return prepared


@pytest.mark.parametrize(
    "text, words",
    [
        ("sgd @ galore", "two optimizers"),
        ("sgd @ (galore @ last(1))", "two optimizers"),
        ("sgd @ last(1) @ apollo", "two optimizers"),
        ("lora @ sgd", "cannot be joined"),
        ("sgd + last(1)", "cannot be joined"),
        ("sgd @ last(1) @ last(2)", "cannot be joined"),
        ("sgd @ last(2) & parts(mlp)", "brackets may be missing"),
        ("sgd(momentum=1)", "at least 0 and below 1, not 1"),
        ("galore(rank=0)", "galore: rank must be at least 1 and at most 4096"),
        ("apollo(every=0)", "apollo: every must be at least 1"),
        ("apollo_mini(scale=0)", "apollo_mini: scale must be above 0 and at most 1000000, not 0"),
        ("galore(rank=32)", "no matrix of a layer has more than 32 rows"),
        ("galore(rank=2) @ lora(rank=2)", "plain AdamW; take a smaller rank"),
        ("apollo @ parts(norm)", "no matrix of a layer"),
        ("galore(rank=2) @ sparse", "no matrix of a layer"),
    ],
)
def test_what_does_not_fit_is_a_user_error(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        updates.parse(text).apply(random_model("llama"), 0)


def test_an_update_with_an_optimizer_of_its_own_takes_no_second() -> None:
    with pytest.raises(UserError, match="sgd @ own: own has an optimizer of its own"):
        (updates.parse("sgd") @ Own()).apply(random_model("llama"), 0)


# Resuming what has no state --------------------------------------------------------------


def test_resting_masters_without_state_survive_a_resume(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """In bf16 the fp32 master of a layer that rests is more than the model holds of it."""
    config = replace(
        TrainConfig(),
        model=str(folders["llama"]),
        update="sgd @ lisa(layers=1, every=1, ends=False, state='keep')",
        steps=5,
        optimizer=Optimizer(learning_rate=1e-3),
        compute=Compute("cpu", "bf16"),
    )
    whole = session.prepare(config)
    take_steps(whole, 0, 3)
    resting = whole.optimization.masters.held.keys() - whole.prepared.active.keys()
    assert resting, "another layer has trained before"
    folder = checkpoint.save(whole, runs.Run(tmp_path), 3)
    take_steps(whole, 3, 5)
    again = session.prepare(config)
    checkpoint.restore(again, folder)
    assert resting <= again.optimization.masters.held.keys()
    take_steps(again, 3, 5)
    for name, tensor in whole.optimization.tensors().items():
        assert torch.equal(again.optimization.tensors()[name], tensor), name


# Muon ------------------------------------------------------------------------------------


def test_muons_singular_values() -> None:
    """After five steps of a = 3.4445, b = -4.7750, c = 2.0315."""
    found = flattened(torch.diag(torch.tensor([1.0, 0.5, 0.1, 0.01, 0.001]))).diag()
    wanted = [0.6964, 0.7654, 0.7121, 0.6989, 0.4705]
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "factor"), [((576, 576), 4.8), ((1536, 576), 7.838), ((576, 192), 4.8)]
)
def test_muons_step_has_adamws_size(shape: tuple[int, int], factor: float) -> None:
    gradient = torch.zeros(shape)
    gradient[3, 5] = 2.0  # one direction, which becomes 0.6964
    (moved,) = move(Muon().rule(0), torch.zeros(shape), [gradient])
    assert moved[3, 5].item() == pytest.approx(-RATE * 0.6964 * factor, rel=1e-3)
    assert int((moved != 0).sum()) == 1


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_muon_is_torchs(shape: tuple[int, int]) -> None:
    """Which makes its products in bf16."""
    (start,), gradients = drawn(*shape, count=1, seed=3), drawn(*shape, count=3)
    theirs = nn.Parameter(start.clone())
    how = {"weight_decay": 0.0, "momentum": 0.8, "adjust_lr_fn": "match_rms_adamw"}
    other = torch.optim.Muon([theirs], lr=RATE, **how)  # type: ignore[arg-type]
    for gradient in gradients:
        theirs.grad = gradient.clone()
        other.step()
    found = move(Muon(momentum=0.8).rule(0), start, gradients)[-1]
    assert (found - theirs).abs().max().item() < 0.05 * (found - start).abs().max().item()


def test_muon_stands_still_without_a_gradient_or_a_signal(folders: dict[str, Path]) -> None:
    first, zero = drawn(4, 6, count=1)[0], torch.zeros(4, 6)
    moved, after = move(Muon().rule(0), torch.zeros(4, 6), [first, zero])
    assert torch.equal(moved, after) and moved.any()
    config = replace(TrainConfig(), model=str(folders["llama"]), update="muon @ last(1)", steps=2)
    made = session.prepare(replace(config, optimizer=Optimizer(learning_rate=1e-2)))
    for signal, steps in [(False, 0), (True, 1)]:
        sums = backward(made, batch_of(made), {})
        optimizer_step(made, sums["loss"], signal)
        assert made.counters.optimizer_steps == steps
    assert any("2605.19282" in note for note in made.prepared.notes)


def test_muon_says_what_it_does_to_an_adapter() -> None:
    notes = updates.parse("muon @ lora(rank=2)").apply(random_model("llama")).notes
    assert any("adapter's factors" in note for note in notes)
    with pytest.raises(UserError, match="plain AdamW; leave it out"):
        updates.parse("muon @ parts(norm)").apply(random_model("llama"))


def test_muons_rest_has_a_rate_of_its_own() -> None:
    vector = nn.Parameter(torch.ones(3))
    vector.grad = torch.ones(3)
    optimizer_of(Muon(others=0.5).rule(0), {"model.norm.weight": vector}).step()
    # Decay 0.1 and a first step of Adam, both at half of the rate.
    assert vector.tolist() == pytest.approx([1 - 0.005 * 0.1 - 0.005] * 3, rel=1e-5)
