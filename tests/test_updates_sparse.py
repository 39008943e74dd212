"""Sparse masks: which entries, by hand; nothing else moves; warm-up, past runs, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import random_model
from modicum import runs, updates
from modicum.config import Compute, Held, Optimizer, TrainConfig
from modicum.models.precision import Masters
from modicum.training import checkpoint, session, step
from modicum.training.loop import train
from modicum.types import RunStopped, UserError
from modicum.updates.preview import preview
from modicum.updates.schedule import count
from modicum.updates.sparse import best
from test_updates import batch_of, take_steps

DOWN = "model.layers.2.mlp.down_proj.weight"


def session_of(folder: Path, text: str, **changes: Any) -> session.Session:
    settings = Optimizer(learning_rate=1e-2, weight_decay=0.1)
    config = replace(TrainConfig(), model=str(folder), update=text, steps=5, optimizer=settings)
    return session.prepare(replace(config, **changes))


def entries_of(text: str, family: str = "llama", seed: int = 0) -> dict[str, Tensor]:
    return dict(updates.parse(text).apply(random_model(family), seed).schedule.entries)


def bits(tensor: Tensor) -> Tensor:
    kinds = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
    return tensor.detach().clone().view(kinds[tensor.dtype])


# Which entries ---------------------------------------------------------------------------


def test_the_best_by_hand() -> None:
    assert best(torch.tensor([[1.0, 3.0, 3.0], [2.0, 3.0, 0.0]]), 2).tolist() == [1, 2]
    assert best(torch.tensor([1.0, 3.0, 2.0, 3.0]), 3).tolist() == [1, 2, 3]
    assert best(torch.zeros(5), 2).tolist() == [0, 1]
    assert [count(0.05, n) for n in (1, 20, 29, 31, 1000)] == [1, 1, 1, 2, 50]
    assert count(1.0, 7) == 7


@pytest.mark.parametrize("by", ["smallest", "largest"])
def test_entries_by_size(by: str) -> None:
    model = random_model("llama")
    for name, where in entries_of(f"sparse(keep=0.1, by='{by}')").items():
        sizes = model.get_parameter(name).abs().flatten()
        inside = torch.zeros_like(sizes, dtype=torch.bool).index_fill(0, where, value=True)
        assert len(where) == count(0.1, len(sizes)) == inside.sum()
        low, high = (inside, ~inside) if by == "smallest" else (~inside, inside)
        assert sizes[low].max() <= sizes[high].min()


def test_random_entries_are_nested_and_drawn_by_seed_and_name() -> None:
    few, many = entries_of("sparse(keep=0.03)"), entries_of("sparse(keep=0.2)")
    for name in few:
        assert set(few[name].tolist()) < set(many[name].tolist()) or len(few[name]) == 1
    again, other = entries_of("sparse(keep=0.2)"), entries_of("sparse(keep=0.2)", seed=1)
    assert all(torch.equal(many[name], again[name]) for name in many)
    assert not torch.equal(many[DOWN], other[DOWN])
    assert not torch.equal(many[DOWN], many[DOWN.replace(".2.", ".1.")])


def test_a_selection_says_where() -> None:
    prepared = updates.parse("sparse @ (last(1) & parts(mlp))").apply(random_model("llama"))
    assert prepared.trainable.keys() == prepared.schedule.entries.keys()
    assert set(prepared.trainable) == {
        f"model.layers.2.mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    }


def test_the_preview_counts_entries(folders: dict[str, Path]) -> None:
    """48 x 32 numbers in each of three matrices: 154 of each, one whole gradient at a time."""
    for text in ("sparse(keep=0.1)", "sparse(keep=0.1, by='fisher')"):
        shown = preview(updates.parse(f"{text} @ (last(1) & parts(mlp))"), str(folders["llama"]))
        assert shown.parameters == shown.ever == 3 * 154
        assert shown.optimizer_bytes == 8 * 3 * 154
        assert shown.gradient_bytes == 4 * (3 * 154 + 48 * 32)


# Nothing else moves ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "text", ["sparse(keep=0.1)", "sgd(momentum=0.9) @ sparse(keep=0.1, by='largest')"]
)
def test_all_other_entries_keep_their_bits(text: str, dtype: Any, folders: dict[str, Path]) -> None:
    """Under momentum and weight decay; the optimizer holds what is kept and no more."""
    made = session_of(folders["qwen2"], text, compute=Compute("cpu", dtype))
    before = {name: bits(p) for name, p in made.prepared.trainable.items()}
    take_steps(made, 0, 3)
    moved = 0
    for name, parameter in made.prepared.trainable.items():
        where = made.optimization.entries[name]
        changed = (bits(parameter) != before[name]).flatten()
        moved += int(changed[where].sum())
        assert not changed.index_fill(0, where, value=False).any(), name
        assert parameter.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    # Steps of SGD are small beside the spacing of bf16, so that few show there.
    assert moved > 100
    made.proof.check("test")
    for name, tensor in made.optimization.tensors().items():
        owner = name.split("/")[-1]
        assert tensor.dim() == 0 or tensor.shape == made.optimization.entries[owner].shape, name


def test_a_change_outside_the_mask_stops_the_run(folders: dict[str, Path]) -> None:
    made = session_of(folders["llama"], "sparse(keep=0.1)")
    take_steps(made, 0, 2)
    made.proof.check("test")
    outside = next(i for i in range(48 * 32) if i not in made.optimization.entries[DOWN])
    with torch.no_grad():
        made.prepared.trainable[DOWN].view(-1)[outside] += 1e-6
    with pytest.raises(RunStopped, match=f"{DOWN} has changed where it should not train"):
        made.proof.check("test")


def test_decay_pulls_to_the_base() -> None:
    """A difference of 1 shrinks by rate x decay; the weight of 8 stays near 9."""
    parameter = nn.Parameter(torch.full((4,), 8.0))
    masters = Masters({"w": parameter}, {"w": torch.tensor([2])})
    (difference,) = masters.tensors.values()
    with torch.no_grad():
        difference += 1.0
    optimizer = torch.optim.AdamW([difference], lr=0.1, weight_decay=0.5)
    difference.grad = torch.zeros(1)
    optimizer.step()
    masters.publish()
    assert parameter.tolist() == pytest.approx([8, 8, 8.95, 8])


def test_the_whole_gradient_is_gone_when_backward_ends() -> None:
    """Entry 1 of w has the gradients 3 and 5 from two passes, summed in fp32."""
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    masters = Masters({"w": parameter}, {"w": torch.tensor([1])})
    for factor in (3.0, 5.0):
        (parameter * torch.tensor([1.0, factor, 7.0], dtype=torch.bfloat16)).sum().backward()
        assert parameter.grad is None
    masters.collect()
    assert masters.tensors["w"].grad is not None
    assert masters.tensors["w"].grad.tolist() == [8.0]
    masters.drop(["w"])
    (parameter * 2).sum().backward()
    assert parameter.grad is not None, "a master that was dropped takes no gradients"


# Warm-up ---------------------------------------------------------------------------------


def gradients_by_group(made: session.Session) -> list[dict[str, Tensor]]:
    """Of each group alone, by the plain way: a batch of its rows with the counts of the whole."""
    batch, found = batch_of(made), []
    for number in (0, 1):
        rows = tuple(row for row in batch.rows if row.group == number)
        step.backward(made, replace(batch, rows=rows), {})
        found.append({name: g.clone() for name, g in made.optimization.gradients().items()})
        made.optimization.clear()
    return found


@pytest.mark.parametrize(
    "by, score",
    [
        ("fisher", lambda one, other, weight: one**2 + other**2),
        ("taylor", lambda one, other, weight: (weight * (one + other)).abs()),
    ],
)
def test_measured_entries_by_hand(
    by: str, score: Callable[..., Tensor], folders: dict[str, Path]
) -> None:
    """Weights do not move in the warm-up, so that every step measures the same here."""
    plain = session_of(folders["llama"], "last(2)")
    one, other = gradients_by_group(plain)
    made = session_of(folders["llama"], f"sparse(keep=0.1, by='{by}', warmup=2) @ last(2)")
    before = {name: p.detach().clone() for name, p in made.prepared.trainable.items()}
    take_steps(made, 0, 2)
    assert all(torch.equal(p, before[n]) for n, p in made.prepared.trainable.items())
    assert made.counters.optimizer_steps == 0 and not made.proof.pushed
    decided = step.switch(made)
    assert decided is not None
    groups = {"fisher": 4, "taylor": 0}[by]
    assert decided["evidence"] == {"steps": 2, "groups": groups, "entries": decided["parameters"]}
    for name, weight in before.items():
        scores = score(one[name], other[name], weight).flatten()
        where = made.optimization.entries[name]
        inside = torch.zeros_like(scores, dtype=torch.bool).index_fill(0, where, value=True)
        assert inside.sum() == count(0.1, len(scores))
        assert scores[inside].min() >= scores[~inside].max() * (1 - 1e-4), name
    take_steps(made, 2, 4)
    assert step.switch(made) is None and made.counters.optimizer_steps == 2
    assert made.proof.check("test").startswith("18 of 18")


def test_a_resume_in_the_warm_up_goes_on_measuring(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    text = "sparse(keep=0.1, by='fisher', warmup=2) @ last(1)"
    whole, cut = session_of(folders["llama"], text), session_of(folders["llama"], text)
    take_steps(whole, 0, 4)
    take_steps(cut, 0, 1)
    folder = checkpoint.save(cut, runs.Run(tmp_path), 1)
    again = session_of(folders["llama"], text)
    checkpoint.restore(again, folder)
    schedule: Any = again.prepared.schedule
    assert schedule.holds and schedule.state() == {"seen": 1, "groups": 2, "decided": False}
    take_steps(again, 1, 4)
    found, wanted = again.optimization.tensors(), whole.optimization.tensors()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# Entries of a past run -------------------------------------------------------------------


@pytest.fixture
def past(quick: Any) -> Path:
    """A finished run that moved the last layer."""
    train(replace(quick, update="last(1)", steps=2, evaluation=Held(eval_problems=0)))
    return Path(quick.out)


def test_entries_of_a_past_run(past: Path, folders: dict[str, Path]) -> None:
    """Those that moved farthest; the others of a tensor moved no farther."""
    from safetensors.torch import load_file

    moved = load_file(runs.checkpoints(past)[-1] / "tensors.safetensors")
    text = f"sparse(keep=0.1, by='run', run='{past}') @ last(1)"
    assert preview(updates.parse(text), str(folders["qwen2"])).share < 0.05
    made = session_of(folders["qwen2"], text)
    assert made.prepared.trainable
    for name, parameter in made.prepared.trainable.items():
        far = (moved[f"value/{name}"] - parameter.detach()).abs().flatten()
        where = made.optimization.entries[name]
        inside = torch.zeros_like(far, dtype=torch.bool).index_fill(0, where, value=True)
        assert far[inside].min() >= far[~inside].max() and far[inside].max() > 0
    take_steps(made, 0, 1)
    made.proof.check("test")


def test_a_past_run_must_fit(past: Path, quick: Any, tmp_path: Path) -> None:
    def apply(folder: object, model: Any, where: str = "last(1)") -> None:
        updates.parse(f"sparse(by='run', run='{folder}') @ {where}").apply(model)

    with pytest.raises(UserError, match="not a run folder"):
        apply(tmp_path / "nothing", random_model("qwen2"))
    with pytest.raises(UserError, match=r"24 tensors of this selection not .*layers\.0"):
        apply(past, random_model("qwen2"), "first(2)")
    with pytest.raises(UserError, match="another base model"):
        apply(past, random_model("qwen2", seed=1))
    with pytest.raises(
        UserError, match=r"no whole tensors of this model: .*bias is .* there and not here"
    ):
        apply(past, random_model("llama"))
    with pytest.raises(UserError, match=r"no whole tensors of this model: .* there and \(32, 40\)"):
        apply(past, random_model("qwen2", intermediate_size=40))
    (past / "result.json").unlink()
    with pytest.raises(UserError, match="no finished run"):
        apply(past, random_model("qwen2"))
    train(replace(quick, update="lora(rank=2)", steps=1), overwrite=True)
    with pytest.raises(UserError, match=r"trained lora\(rank=2\) .* a dense run of it fits"):
        apply(past, random_model("qwen2"))


def test_a_past_run_of_everything_must_be_of_this_model(
    quick: Any, folders: dict[str, Path]
) -> None:
    """Its checkpoint holds no frozen tensor; the hash of its base says which one it was."""
    train(replace(quick, update="full", steps=1))
    text = f"sparse(by='run', run='{quick.out}') @ last(1)"
    session_of(folders["qwen2"], text)
    updates.parse(text).apply(random_model("qwen2"))  # the same weights from elsewhere
    changed = random_model("qwen2")
    with torch.no_grad():
        changed.model.norm.weight[3] += 1e-3
    for other in (changed, random_model("qwen2").to(torch.bfloat16)):
        with pytest.raises(UserError, match="was trained on another base model: its hash differs"):
            updates.parse(text).apply(other)


# Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("sparse(keep=0)", "keep is a share, above 0 and at most 1 .*not 0"),
        ("sparse(keep=5)", "keep is a share"),
        ("sparse(by='fischer')", "did you mean 'fisher'"),
        ("sparse(by='run')", "run='FOLDER' belong together"),
        ("sparse(run='runs/x')", "by='run' and run='FOLDER'"),
        ("sparse(by='taylor', warmup=0)", "warmup must be at least 1 and at most 1000000"),
        ("sparse @ lora", "cannot be joined"),
    ],
)
def test_what_does_not_fit_is_a_user_error(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        updates.parse(text)


def test_a_warm_up_must_leave_steps_to_train_in(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="warmup of 5 steps leaves none of 5"):
        session_of(folders["llama"], "sparse(by='fisher')")
