"""modicum.anatomy: what changed in the weights; and how a run and its report show it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from conftest import random_model
from modicum import anatomy
from modicum.config import Compute, Optimizer, Records, TrainConfig
from modicum.report import load as load_run
from modicum.report import page, write
from modicum.report.figures import changes
from modicum.training.loop import train
from modicum.types import UserError
from modicum.updates.layout import Place

UP = "model.layers.1.mlp.up_proj.weight"  # 48 x 32
HIDDEN, VOCABULARY = 32, 282


def changed(edit: Any, family: str = "qwen2") -> tuple[dict[str, anatomy.Change], dict[str, Any]]:
    """The changes by name, and their summary, after `edit(parameters)`."""
    policy, base = random_model(family), random_model(family)
    with torch.no_grad():
        edit(dict(policy.named_parameters()))
    found = anatomy.measure(policy, base)
    return {c.name: c for c in found}, anatomy.summary(found, "fp32")


def test_a_sparse_change_is_counted_at_every_threshold() -> None:
    def edit(of: dict[str, Any]) -> None:
        weight = of[UP]
        weight.fill_(0.0)
        weight[0, 0], weight[1, 1], weight[2, 2], weight[3, 3] = 1.0, 3e-5, 3e-7, 3e-9

    policy, base = random_model("qwen2"), random_model("qwen2")
    with torch.no_grad():
        edit(dict(policy.named_parameters()))
        dict(base.named_parameters())[UP].fill_(0.0)
    changes = {c.name: c for c in anatomy.measure(policy, base)}
    one = changes[UP]
    # 1, 3e-5, 3e-7 and 3e-9.
    assert dict(one.changed) == {"0": 4, "1e-8": 3, "1e-5": 2, "bf16": 4}
    assert one.norm == pytest.approx((1 + 9e-10) ** 0.5)
    assert one.largest == 1.0
    assert one.base_norm == 0.0
    assert [n for n, c in changes.items() if c.moved] == [UP]
    found = anatomy.summary(list(changes.values()), "fp32")
    total = sum(p.numel() for p in base.parameters())
    assert found["entries"] == total
    assert found["entries_in_changed"] == 48 * 32
    assert found["changed"] == {k: n / total for k, n in one.changed.items()}
    share = found["parts"]["mlp"]["norm"] / _norm(base, 1)
    assert found["map"]["mlp"] == pytest.approx([0.0, share, 0.0])


def _norm(model: Any, layer: int) -> float:
    """The norm of the mlp weights of a layer."""
    mine = [p for n, p in model.named_parameters() if f".{layer}.mlp." in n]
    return float(torch.cat([p.detach().double().flatten() for p in mine]).norm())


def test_a_change_below_the_spacing_of_bf16_is_seen_in_fp32_only() -> None:
    def edit(of: dict[str, Any]) -> None:
        of[UP].fill_(1.0)
        of[UP][:, 0] += 2.0**-10  # bf16 has 2^-7 at 1
        of[UP][:, 1] += 2.0**-6

    policy, base = random_model("qwen2"), random_model("qwen2")
    with torch.no_grad():
        edit(dict(policy.named_parameters()))
        dict(base.named_parameters())[UP].fill_(1.0)
    one = next(c for c in anatomy.measure(policy, base) if c.name == UP)
    assert dict(one.changed) == {"0": 96, "1e-8": 96, "1e-5": 96, "bf16": 48}


def effective_rank(change: torch.Tensor, noise: float = 0.0) -> float:
    return anatomy.directions(anatomy.singular_values(change, noise))[0]


def test_the_effective_rank_of_known_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(n, 8, generator=generator, dtype=torch.float64))[0]
        for n in (40, 24)
    )

    def made(*values: float) -> torch.Tensor:
        count = len(values)
        return (left[:, :count] * torch.tensor(values)) @ right[:, :count].T

    assert effective_rank(made(3.0)) == pytest.approx(1.0, abs=1e-9)
    assert effective_rank(made(3.0, 3.0)) == pytest.approx(2.0, abs=1e-9)
    assert effective_rank(made(*[0.1] * 8).T) == pytest.approx(8.0, abs=1e-9)
    # Shares 3/4 and 1/4: exp(3/4 ln 4/3 + 1/4 ln 4) = 4 / 3^(3/4).
    assert effective_rank(made(3.0, 1.0)) == pytest.approx(4 / 3**0.75, abs=1e-9)
    assert effective_rank(torch.eye(5)) == pytest.approx(5.0, abs=1e-9)
    # More rows than are taken at a time.
    tall = torch.zeros(anatomy.ROWS + 3, 2)
    tall[0, 0] = tall[-1, 1] = 1.0
    assert effective_rank(tall) == pytest.approx(2.0, abs=1e-9)


def test_rounding_does_not_count_as_a_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 100, generator=generator)
    change = 1e-3 * torch.outer(
        torch.randn(200, generator=generator), torch.randn(100, generator=generator)
    )
    stored = (weight + change) - weight
    noise = anatomy.HALF_SPACING * (200**0.5 + 100**0.5)
    assert effective_rank(stored, noise) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(stored) > 1.001
    assert effective_rank(stored - change, noise) == 0.0


def test_a_large_matrix_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(anatomy.LARGEST_SIDE, "cpu", 31)
    changes, found = changed(lambda of: of[UP].add_(1.0))
    assert changes[UP].effective_rank is None
    assert changes[UP].changed["0"] == 48 * 32
    assert found["parts"]["mlp"]["too_large"] == found["parts"]["mlp"]["matrices_changed"] == 1
    assert found["parts"]["mlp"]["effective_rank"] is None


@pytest.mark.parametrize(
    ("layer", "parts", "expected"),
    [
        (0, {"attention"}, "attention"),
        (0, {"attention", "bias"}, "bias"),
        (0, {"attention", "norm"}, "norm"),
        (0, {"mlp"}, "mlp"),
        (0, set(), "other"),
        (None, {"embedding", "head"}, "embedding"),
        (None, {"head"}, "head"),
        (None, {"norm"}, "final norm"),
        (None, set(), "other"),
    ],
)
def test_every_tensor_is_of_one_part(layer: int | None, parts: set[str], expected: str) -> None:
    assert anatomy.part_of(Place(layer, frozenset(parts))) == expected


@pytest.mark.parametrize(("family", "head"), [("qwen2", 0), ("llama", VOCABULARY * HIDDEN)])
def test_a_tied_embedding_is_counted_once(family: str, head: int) -> None:
    _, found = changed(lambda of: of["model.embed_tokens.weight"].add_(0.5), family)
    assert found["parts"]["embedding"]["changed"]["0"] == 1.0
    assert found["parts"]["embedding"]["entries"] == VOCABULARY * HIDDEN
    assert found["parts"].get("head", {"entries": 0})["entries"] == head
    assert found["entries_in_changed"] == VOCABULARY * HIDDEN


def test_other_names_than_the_base_are_a_fault_of_ours() -> None:
    with pytest.raises(AssertionError, match="lm_head"):
        anatomy.measure(random_model("llama"), random_model("qwen2"))


# In a run --------------------------------------------------------------------------------


def run(quick: TrainConfig, update: str, **changes: Any) -> dict[str, Any]:
    return train(
        replace(quick, update=update, steps=2, optimizer=Optimizer(learning_rate=1e-2), **changes)
    )["anatomy"]


def test_a_run_of_one_layer_changed_that_layer_alone(quick: TrainConfig) -> None:
    found = run(quick, "last(1)")
    folder = Path(quick.out)
    assert json.loads((folder / "result.json").read_text())["anatomy"] == found
    tensors = json.loads((folder / "anatomy.json").read_text())["tensors"]
    assert {t["layer"] for t in tensors if t["changed"]["0"]} == {2}
    assert all(t["norm"] == 0.0 for t in tensors if t["layer"] != 2)
    assert [layer["norm"] > 0 for layer in found["layers"]] == [False, False, True]
    assert found["parts"]["embedding"]["relative_norm"] == 0.0
    assert found["tensors_changed"] == sum(t["layer"] == 2 for t in tensors)
    assert 0 < found["changed"]["0"] <= found["entries_in_changed"] / found["entries"]
    assert 1 < found["parts"]["mlp"]["effective_rank"] <= HIDDEN


def test_an_adapters_change_has_its_rank(quick: TrainConfig) -> None:
    found = run(quick, "lora(rank=2)")
    for part in ("attention", "mlp"):
        assert 1.0 <= found["parts"][part]["effective_rank"] <= 2.0
        assert found["parts"][part]["too_large"] == 0
    assert found["parts"]["norm"]["changed"]["0"] == 0.0
    tensors = json.loads((Path(quick.out) / "anatomy.json").read_text())["tensors"]
    assert max(t["effective_rank"] or 0.0 for t in tensors) <= 2.0
    assert not [t["name"] for t in tensors if "lora" in t["name"]]


def test_a_bf16_run_is_measured_by_what_the_model_holds(quick: TrainConfig) -> None:
    found = run(quick, "last(1)", compute=Compute(dtype="bf16"))
    assert found["dtype"] == "bf16"
    assert found["changed"]["bf16"] == found["changed"]["0"] > 0


def test_no_anatomy_and_no_steps(quick: TrainConfig) -> None:
    off = train(replace(quick, steps=0, records=Records(anatomy=False)))
    assert "anatomy" not in off
    assert not (Path(quick.out) / "anatomy.json").exists()
    found = train(replace(quick, steps=0), overwrite=True)["anatomy"]
    assert found["tensors_changed"] == 0
    assert set(found["changed"].values()) == {0.0}


def test_no_trouble_with_the_anatomy_costs_the_result(
    quick: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("modicum.anatomy.measure", fails)
    train(replace(quick, steps=0))
    found = json.loads((Path(quick.out) / "result.json").read_text())
    assert found["steps"] == 0 and "anatomy" not in found


# In the report ---------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pdf")
def test_the_report_shows_it(quick: TrainConfig, tmp_path: Path) -> None:
    folders = []
    for name, update in (("a", "last(1)"), ("b", "lora(rank=2)")):
        run(quick, update, out=str(tmp_path / name))
        folders.append(tmp_path / name)
    off = replace(quick, steps=1, records=Records(anatomy=False), out=str(tmp_path / "c"))
    train(off)
    records = [load_run(folder) for folder in [*folders, tmp_path / "c"]]
    found = [record.result.anatomy if record.result else None for record in records]
    rows = dict(changes.measures(found))
    assert rows["Tensors changed"] == ["12 of 38", "21 of 38", "—"]
    assert rows["Effective rank, mlp (of full rank)"][1].endswith("(6%)")
    assert changes.measures([None]) == []
    shown = [(record.update, a) for record, a in zip(records, found, strict=True)]
    drawing = changes.figure(shown)
    assert drawing is not None
    (drawn,) = page.draw([drawing]).values()
    assert ElementTree.fromstring(drawn.svg).tag.endswith("svg")
    # Four parts of one layer, and two parts of three layers.
    assert drawn.broad.count("fill: var(--series-0") == 4 + 6
    assert changes.figure([("full", None)]) is None
    text = write([*folders, tmp_path / "c"], tmp_path / "report.html").read_text()
    assert "<h2>What changed in the weights</h2>" in text
    assert "by layer and part" in text


def test_a_broken_anatomy_names_the_file_and_the_key(quick: TrainConfig) -> None:
    run(quick, "last(1)")
    path = Path(quick.out) / "result.json"
    data = json.loads(path.read_text())
    data["anatomy"]["changed"]["0"] = "many"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"result\.json: anatomy: changed: '0' must be a number"):
        load_run(path.parent)
    data["anatomy"]["changed"]["0"] = 0.5
    data["anatomy"].pop("parts")
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="anatomy: 'parts' is missing"):
        load_run(path.parent)


# How many directions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "participation", "ninety"),
    [
        ([3.0, 1.0], 100 / 82, 1),
        ([1.0] * 4, 4.0, 4),
        ([1.0] * 10, 10.0, 9),
        ([2.0, 1.0, 1.0], 36 / 18, 3),
        ([], 0.0, 0),
    ],
)
def test_directions_by_hand(values: list[float], participation: float, ninety: int) -> None:
    _, found, count = anatomy.directions(torch.tensor(values, dtype=torch.float64))
    assert (found, count) == (pytest.approx(participation), ninety)


FALLS = [0.2, 0.3, 0.5, 0.6, 0.8, 0.7, 0.4, 0.3, 0.1, 0.0]


def test_a_fall_of_the_reward() -> None:
    assert anatomy.fallen(FALLS) == (pytest.approx(0.75), pytest.approx(0.05))
    assert anatomy.fallen(sorted(FALLS)) is None
    assert anatomy.fallen(FALLS[:9]) is None


def test_the_alarm_of_a_collapse() -> None:
    def change(participation: float, shape: tuple[int, ...] = (70, 80)) -> anatomy.Change:
        ranks = (2.0, participation, 2)
        return anatomy.Change(UP, 1, "mlp", shape, 1, {"0": 1}, 1.0, 1.0, 1.0, *ranks, min(shape))

    told = anatomy.alarm([change(1.5), change(9.0)], None, FALLS)
    assert "from 0.75 to 0.05" in told and "1 of 2 changes" in told and UP in told
    assert anatomy.alarm([change(1.5)], 64, FALLS)
    assert not anatomy.alarm([change(1.5)], 63, FALLS), "an adapter of few directions"
    assert not anatomy.alarm([change(3.0)], None, FALLS)
    assert not anatomy.alarm([change(1.5, (63, 80))], None, FALLS)
    assert not anatomy.alarm([change(1.5)], None, sorted(FALLS))
