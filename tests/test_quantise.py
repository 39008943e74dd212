"""A trunk in 4 bits: what is packed, what is computed with it, and every use of its numbers."""

from __future__ import annotations

import re
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import Fails, metrics_of, tensors_of
from modicum import export, runs, updates
from modicum.config import Compute, Optimizer, Sampling, TrainConfig
from modicum.engine import make, policy_of
from modicum.engine.logprobs import logprobs
from modicum.face import evaluate
from modicum.models import four_bit
from modicum.models.four_bit import FourBit, count, numbers, packed, packed_bytes, unpack
from modicum.models.identity import weights_hash
from modicum.models.load import Loaded, load
from modicum.parts import past_config
from modicum.plan.memory import Subject
from modicum.plan.shapes import num_bytes, rested
from modicum.training.checkpoint import reload
from modicum.training.loop import Observer, train
from modicum.types import Row, RunStopped, UserError
from modicum.updates import UPDATES, Prepared
from modicum.updates.targets import rest
from test_decoder import VARIANTS, model_of

bitsandbytes = pytest.importorskip("bitsandbytes")

# The sixteen numbers of NF4 (arXiv 2305.14314, appendix E), to seven digits.
CODE = (
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
)
IDS = torch.arange(2, 42).reshape(2, 20)
CPU = torch.device("cpu")
ROWS = [Row((40, 41, 42), (50, 51, 52, 53), (), 1.0), Row((60,), (61, 62), (), 1.0, 1)]


def layer(rows: list[list[float]], how: bool = False, dtype: Any = torch.float32) -> FourBit:
    whole = nn.Linear(len(rows[0]), len(rows), bias=False, dtype=dtype)
    with torch.no_grad():
        whole.weight.copy_(torch.tensor(rows))
    return FourBit(whole, how)


def resting(update: str, name: str = "tiny", how: Any = "nf4") -> tuple[Loaded, Prepared]:
    """A model with what rests under an update in 4 bits; what trains is no longer at its start."""
    config = TrainConfig(model=name, update=update, compute=Compute(quantise=how))
    made = updates.parse(update)
    loaded = load(name, "cpu", pack=rested(config, made))
    prepared = made.apply(loaded.model)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in prepared.trainable.values():
            tensor.add_(0.02 * torch.randn(tensor.shape, generator=draw))
    return loaded, prepared


@torch.inference_mode()
def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    return model.eval()(input_ids=ids).logits.float()


def nf4(config: TrainConfig, update: str, **compute: Any) -> TrainConfig:
    where = replace(config.compute, quantise="nf4", **compute)
    return replace(config, update=update, compute=where, optimizer=Optimizer(learning_rate=1e-2))


# One layer ---------------------------------------------------------------------------------


def test_the_code_is_that_of_the_paper() -> None:
    found = numbers(layer([list(CODE)]).weight)
    torch.testing.assert_close(found, torch.tensor([CODE]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_by_hand(dtype: torch.dtype) -> None:
    """The largest is 0.6; in sixteenths of the code the numbers are 12, 6, 9 and 0."""
    made = layer([[0.3, -0.05, 0.12, -0.6]], dtype=dtype)
    assert made.weight.flatten().tolist() == [12 << 4 | 6, 9 << 4 | 0]
    found, largest = numbers(made.weight), float(torch.tensor(0.6, dtype=dtype))
    wanted = torch.tensor([[0.26443, -0.05463, 0.09656, -0.6]]) * (largest / 0.6)
    torch.testing.assert_close(found, wanted.to(dtype), atol=1e-5, rtol=1e-7)
    assert (count(made.weight), count(torch.zeros(3, 5))) == (4, 15)


@pytest.mark.parametrize(("double", "bits"), [(False, 4.5), (True, 4.127)])
def test_the_bytes_of_a_weight(double: bool, bits: float) -> None:
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    made = layer(weight.tolist(), double).weight
    state = made.quant_state
    held = made.nbytes + state.absmax.nbytes
    held += state.state2.absmax.nbytes + state.offset.nbytes if double else 0
    assert held == packed_bytes(weight.numel(), double)
    assert 8 * held / weight.numel() == pytest.approx(bits, abs=1e-3)
    error = (numbers(made) - weight).norm() / weight.norm()
    assert 0.09 < error < 0.096  # of normal numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_unpacked_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    whole = nn.Linear(96, 40, dtype=dtype)
    model = nn.Sequential(FourBit(whole, False))
    x = torch.randn(1, 7, 96, dtype=dtype, requires_grad=True)
    found = model(x)
    got = torch.autograd.grad(found.square().sum(), [x, whole.bias])
    unpack(model)
    assert type(model[0]) is nn.Linear and model[0].bias is whole.bias
    wanted = model(x)
    assert torch.equal(found, wanted)
    for one, other in zip(
        got, torch.autograd.grad(wanted.square().sum(), [x, whole.bias]), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert not torch.equal(model[0].weight, whole.weight)


def test_in_fp32_a_layer_has_the_numbers_of_its_own_dtype() -> None:
    """So that a model is widened with its own weights (docs/agreement.md)."""
    made = layer(torch.randn(8, 64).tolist(), dtype=torch.bfloat16)
    x = torch.randn(3, 64)
    assert torch.equal(made(x), x @ numbers(made.weight).float().T)


# Models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_known_family_calls_what_is_packed(variant: str) -> None:
    model, update = deepcopy(model_of(variant)), updates.parse("last(1)")
    prepared, before = update.apply(model), sum(p.numel() for p in model.parameters())
    ids, whole = IDS % 60, logits(model, IDS % 60)
    rest(prepared, update, "nf4")
    assert packed(model) and sum(map(count, model.parameters())) == before
    found = logits(model, ids)
    unpack(model)
    torch.testing.assert_close(found, logits(model, ids), atol=1e-5, rtol=1e-5)
    assert (found - whole).abs().max() > 1e-3


@pytest.mark.parametrize("name", UPDATES)
def test_every_update_is_refused_or_right(name: str, folders: dict[str, Path]) -> None:
    """What reads the base's weights says so: else its model would not be that of the numbers."""
    text, family = UPDATES[name].examples[0], "qwen2"
    if "by='run'" in text:
        pytest.skip("needs a run")
    try:
        _, prepared = resting(text, str(folders[family]))
    except UserError as error:
        assert "quantise: " in str(error)
        return
    model: Any = prepared.model
    assert packed(model)
    out = model.eval()(input_ids=IDS).logits
    out.square().mean().backward()
    assert any(p.grad is not None for p in prepared.active.values())
    found = out.detach()
    unpack(model)
    torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=1e-5)


def test_what_rests() -> None:
    _, prepared = resting("last(1)")
    model: Any = prepared.model
    top = model.config.num_hidden_layers - 1
    kinds = {name: type(m) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, kind in kinds.items():
        assert (kind is nn.Linear) is (name == "lm_head" or f".{top}." in name), name
    assert all(p.is_floating_point() for p in prepared.trainable.values())
    _, prepared = resting("lora(rank=2) @ last(1)")
    found = packed(prepared.model)
    assert len(found) == 7 * (top + 1)
    assert sum(name.endswith(".base_layer") for name in found) == 7


def test_hashes_are_of_numbers() -> None:
    """Other bytes for the same numbers are no change; other numbers are."""
    one, _ = resting("last(1)")
    other = deepcopy(one.model)
    before = weights_hash(one.model)
    assert weights_hash(other) == before
    weight: Any = other.get_submodule(packed(other)[0]).weight
    state = weight.quant_state
    weight.data = 0xFF - weight.data  # the code is not symmetric, so that a sign is no way back
    assert weights_hash(other) != before
    weight.data = 0xFF - weight.data
    assert weights_hash(other) == before
    state.absmax[0] *= 2
    assert weights_hash(other) != before


@pytest.mark.parametrize("update", ["last(2)", "lora(rank=2) @ last(2)"])
def test_kept_trunks_are_those_of_a_forward(update: str) -> None:
    loaded, prepared = resting(update)
    policy = policy_of(loaded, prepared, Compute(trunk_bytes=2**30))
    prompts, keys = [(40, 41, 42), (60,)], [("t", 0), ("t", 1)]
    groups = policy.sample(prompts, keys, 2, Sampling(max_tokens=6), keep_trunk=True)
    rows = [
        Row(prompt, c.tokens, (), 1.0, number, c.trunk)
        for number, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
        for c in group
    ]
    assert all(row.trunk is not None for row in rows)
    kept, again = (
        policy.scorer.trunk(policy.scorer.pack(of))
        for of in (rows, [replace(row, trunk=None) for row in rows])
    )
    assert kept is not None and again is not None
    torch.testing.assert_close(kept, again, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("update", ["last(1)", "lora(rank=2)"])
def test_both_engines_and_the_copy_agree(update: str) -> None:
    loaded, prepared = resting(update)
    found = []
    for kind in ("split", "library"):
        engine = make(prepared.model, CPU, prepared.lowest_layer, Compute(engine=kind))
        found.append(torch.cat([t.flatten() for t in logprobs(engine, ROWS, Sampling())[:1]]))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    drawn = []
    for copied in (False, True):
        sampler = f"local(weight_copy={copied})"
        policy = policy_of(loaded, prepared, Compute(sampler=sampler))
        drawn.append(policy.sample([(40, 41)], [("t", 0)], 4, Sampling(max_tokens=8)))
        policy.sampler.prove()
    assert [c.tokens for c in drawn[0][0]] == [c.tokens for c in drawn[1][0]]


# Runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("update", ["last(1)", "lora(rank=2)"])
def test_a_run_trains_on_what_rests(
    update: str, dtype: str, quick: TrainConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = nf4(quick, update, dtype=dtype, agreement_every=1)
    whole = train(replace(config, compute=replace(config.compute, quantise=""), out=str(tmp_path)))
    heard = Notes()
    found = train(config, heard)
    assert "frozen ones are bit-identical" in found["change_proof"]
    assert any(text.endswith("so rounded, they are the run's base") for text in heard.notes)
    for key in ("total_parameters", "trainable_parameters", "base_hash"):
        assert found[key] == whole[key]
    assert found["flops"] == pytest.approx(whole["flops"], rel=0.5)
    changes = runs.read_object(Path(config.out) / "anatomy.json")["tensors"]
    moved = {c["name"] for c in changes if c["changed"]["0"]}
    top = "model.layers.2."
    assert moved and all(name.startswith(top) for name in moved) is (update == "last(1)")
    if update == "last(1)":
        assert len(moved) == found["trainable_tensors"]
    else:
        assert all(name.endswith("_proj.weight") for name in moved)

    # The policy of the folder, and what is exported of it.
    again = evaluate(config.out, problems=4, samples=2, progress=False)
    assert list(again.scores) == found["trained"]["scores"]
    policy: Any = reload(Path(config.out)).prepared.model
    wanted = logits(policy)
    export.export_run(Path(config.out), tmp_path / "made", "merged", False)
    from transformers import AutoModelForCausalLM

    made: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype="auto")
    room = 1e-5 if dtype == "fp32" else 0.05
    assert (logits(made) - wanted).abs().max() <= room * wanted.abs().max()
    base: Any = load(str(folders["qwen2"]), "cpu", dtype).model
    name = "model.layers.0.mlp.up_proj"
    if update == "last(1)":
        rounded = numbers(FourBit(base.get_submodule(name), False).weight)
        assert torch.equal(made.get_submodule(name).weight, rounded)


class Notes(Observer):
    """Keeps what it is told, and may end the run."""

    def __init__(self, after: int = -1) -> None:
        self.after, self.notes = after, list[str]()

    def step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] + 1 == self.after:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("update", ["last(1)", "lora(rank=2)"])
def test_a_run_that_goes_on_is_the_uncut_one(
    update: str, bare: TrainConfig, tmp_path: Path
) -> None:
    config = nf4(bare, update, dtype="bf16")
    whole = replace(config, out=str(tmp_path / "whole"))
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(config, Notes(3))
    train(config, resume=True)
    assert metrics_of(Path(config.out)) == metrics_of(Path(whole.out))
    assert tensors_of(Path(config.out)) == tensors_of(Path(whole.out))
    other = replace(config, compute=replace(config.compute, quantise="nf4_double"), steps=6)
    with pytest.raises(UserError, match=re.escape("compute.quantise = 'nf4'), not compute.quan")):
        train(other, resume=True)


def test_a_checkpoint_knows_its_quantisation(bare: TrainConfig) -> None:
    config = nf4(bare, "last(1)")
    train(config)
    now = past_config(Path(config.out))
    with pytest.raises(UserError, match="does not train, is not what it was"):
        reload(Path(config.out), replace(now, compute=replace(now.compute, quantise="")))


def test_an_adapter_goes_on_over_a_packed_base(
    bare: TrainConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    train(replace(bare, update="lora(rank=2)", optimizer=Optimizer(learning_rate=1e-2)))
    export.export_run(Path(bare.out), tmp_path / "made", "adapter", False)
    config = nf4(bare, "lora(rank=2)")
    config = replace(config, model=str(tmp_path / "made"), base=str(folders["qwen2"]))
    config = replace(config, records=replace(config.records, anatomy=True))
    found = train(replace(config, out=str(tmp_path / "on")))
    assert found["anatomy"]["tensors_changed"] == 21


# Faults ------------------------------------------------------------------------------------


def repack(model: nn.Module) -> None:
    """What bitsandbytes' own layer does on some CPUs when it is first called without gradients."""
    weight: Any = model.get_submodule(packed(model)[0]).weight
    convert, dtype = (
        bitsandbytes.functional._convert_weight_packed_for_cpu,
        weight.quant_state.dtype,
    )
    weight.data, weight.quant_state = convert(weight.data, weight.quant_state)
    weight.quant_state.dtype = dtype  # it says bf16


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    config = TrainConfig(update="lora(rank=2)", steps=1, out=str(out), task="arithmetic(terms=2)")
    config = replace(config, sampling=Sampling(max_tokens=24), compute=Compute(quantise="nf4"))
    held, records = (
        replace(config.evaluation, eval_problems=0),
        replace(config.records, anatomy=False),
    )
    batch = replace(config.batch, prompts_per_step=4, group_size=4)
    train(replace(config, evaluation=held, records=records, batch=batch))
    return out


def test_packed_otherwise_a_base_is_found_to_have_changed(tiny_run: Path) -> None:
    session = reload(tiny_run)
    repack(session.policy.model)
    with pytest.raises(RunStopped, match="should be frozen and has changed"):
        session.prove("now")


@pytest.mark.parametrize("fault", ["packed otherwise", "on the base in 16 bits"])
def test_an_export_of_other_numbers_is_found(
    fault: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Any) -> None:
        if fault == "packed otherwise":
            repack(model)
            unpack(model)
            return
        base: Any = load("tiny", "cpu").model
        for name in packed(model):
            own = base.get_submodule(four_bit.plain(name))
            model.set_submodule(name, own)

    monkeypatch.setattr(export, "unpack", broken)
    with pytest.raises(RunStopped, match="gives other logits"):
        export.export_run(tiny_run, tmp_path / "out", "merged", False)
    assert not (tmp_path / "out").exists()


# Refusals ----------------------------------------------------------------------------------

READS = "begins with the base's weights or calculates with them"
NONE = "may train every linear layer of the model, so that none rests"


@pytest.mark.parametrize(
    ("update", "text"),
    [
        *((u, READS) for u in ("pissa(rank=2)", "olora(rank=2)", "dora(rank=2) @ last(1)")),
        *((u, READS) for u in ("loraxs(rank=2)", "tinylora", "shira(rank=2)")),
        *((u, NONE) for u in ("full", "galore(rank=2)", "sparse(keep=0.1)", "badam(every=1)")),
        *((u, NONE) for u in ("lisa(layers=1, every=1)", "autofreeze", "slimfit(rate=0.5)")),
    ],
)
def test_what_cannot_be_is_one_line(update: str, text: str, fails: Fails) -> None:
    for command in ("train", "plan"):
        more = ("--hardware", "24GB") if command == "plan" else ("--steps", "1")
        said = fails(command, "--update", update, "--quantise", "nf4", *more)
        assert said.startswith("error: quantise: ") and text in said and said.count("\n") <= 1


def test_where_some_layers_rest_schedules_and_masks_go() -> None:
    for update in (
        "badam(every=1) @ last(2)",
        "galore(rank=2) @ last(1)",
        "sparse(keep=0.1) @ last(1)",
    ):
        _, prepared = resting(update)
        assert packed(prepared.model)


def test_other_refusals(
    fails: Fails, bare: TrainConfig, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = fails("export", tiny_run, "--out", tiny_run.parent / "out", "--format", "adapter")
    assert "makes another model on the whole base; --format merged" in said
    assert "quantise is for training" in fails("evaluate", "tiny", "--quantise", "nf4")
    critic = "ppo(critic='lora(rank=2)')"
    said = fails("train", "--update", "last(1)", "--quantise", "nf4", "--objective", critic)
    assert "has a model of its own" in said
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = fails("train", "--update", "last(1)", "--quantise", "nf4")
    assert said == "error: quantise needs bitsandbytes: pip install 'modicum[nf4]'"
    assert Subject.of(nf4(bare, "last(1)")).layers == 3  # a plan does not need it


def test_studies_have_one_base(tmp_path: Path) -> None:
    from modicum.study import design

    tables: dict[str, Any] = {
        "question": "?",
        "arms": ["lora(rank=1)", "last(1)"],
        "control": "lora(rank=1)",
        "budget": {"unit": "steps", "amount": 2},
        "config": {"compute": {"quantise": "nf4"}},
    }
    study = design.parse(tables, "here")
    adapter, last = design.arms(study)
    assert design.config(study, adapter, 0, tmp_path, None).compute.quantise == "nf4"
    with pytest.raises(UserError, match="a study has one base"):
        design.config(study, last, 0, tmp_path, None)


# Plans -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "double"), [("nf4", False), ("nf4_double", True)])
def test_a_plan_knows_the_bytes(how: Any, double: bool) -> None:
    """Those of the model as it is packed, and of the base before."""
    config = TrainConfig(update="last(1)", compute=Compute(quantise=how))
    model = Subject.of(config).prepared.model
    loaded, _ = resting("last(1)", how=how)
    held = num_bytes([*loaded.model.parameters(), *loaded.model.buffers()])
    for name in packed(loaded.model):
        state: Any = loaded.model.get_submodule(name).weight.quant_state
        held += state.absmax.nbytes
        held += state.state2.absmax.nbytes + state.offset.nbytes if double else 0
    assert num_bytes([*model.parameters(), *model.buffers()]) == held
    whole = Subject.of(replace(config, compute=Compute())).prepared.model
    assert sum(map(count, model.parameters())) == sum(p.numel() for p in whole.parameters())
    saved = num_bytes([*whole.parameters()]) - num_bytes([*model.parameters()])
    size = sum(count(model.get_submodule(name).weight) for name in packed(model))
    assert saved == pytest.approx(size * (32 - (4.127 if double else 4.5)) / 8, rel=5e-3)
