"""Updates: the contract of every member on every family, selections by hand, and errors."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from conftest import FAMILIES, random_model
from helpers import engine_of
from modicum import runs, updates
from modicum.config import Optimizer, TrainConfig
from modicum.engine.logprobs import logprobs
from modicum.models.load import load
from modicum.training import checkpoint, session, step
from modicum.types import Row, UserError
from modicum.updates import UPDATES
from modicum.updates.adapter import AdapterPrepared
from modicum.updates.preview import preview
from modicum.updates.proofs import combined, fingerprints
from modicum.updates.schedule import Schedule
from rows import IDS, batch_of

EXPRESSIONS = [text for cls in UPDATES.values() for text in cls.examples]
REFUSED = [("llama", "bitfit"), ("qwen3", "bitfit")]
"""What a family cannot do: these have no biases."""
FIRST = [cls.examples[0] for cls in UPDATES.values()]
# The usual form of each on the shipped base (tied, with biases), a random untied one, and one
# with q/k norms; the other forms on the untied one.
EVERYWHERE = [
    (family, text)
    for family in ("tiny", "llama", "qwen3")
    for text in (EXPRESSIONS if family == "llama" else FIRST)
    if (family, text.split("(")[0]) not in REFUSED
]
STEPS, LONG = 5, 20
CHANGES = [
    cls.examples[0]
    for cls in UPDATES.values()
    if cls.kind in ("schedules, masks", "optimizers") or cls.name == "adalora"
]
"""What keeps more from step to step than Adam's moments, or changes what trains."""
SHARES = ["full", "first(2)", "last(1)", "middle(1)", "layers(0, -1)", "parts(attention, norm)"]
SHARES += ["last(1) + parts(norm)", "last(2) & parts(mlp)", "parts(head)", "lora(rank=2)"]
SHARES += ["lora(rank=2) @ last(1)", "parts(norm)", "parts(embedding)", "layers(1) & parts(mlp)"]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def equal(found: Tensor, wanted: Tensor, prepared: Any) -> bool:
    """Bit for bit; an adapter adds a product that rounding may leave beside zero."""
    if isinstance(prepared, AdapterPrepared):
        largest = float(wanted.abs().max())
        return bool(
            (found - wanted).abs().max() <= prepared.adapter.start_tolerance * max(1.0, largest)
        )
    return torch.equal(found, wanted)


@dataclass
class Trained:
    """A session after three optimizer steps, and what was there before them."""

    text: str
    session: session.Session
    base: Tensor
    at_start: Tensor
    reference_at_start: Tensor
    frozen: dict[str, Tensor]
    values: dict[str, Tensor]
    active: set[str]
    """What trained in one of the steps."""
    saved: Path = Path()
    """The checkpoint after `num_saved` of them."""
    num_saved: int = 0


# Of q/k norms an adapter in linear layers knows nothing: slow.
LINEAR = [cls.examples[0] for cls in UPDATES.values() if cls.kind == "adapters"]
LINEAR = [text for text in LINEAR if text.split("(")[0] not in ("lora", "ia3", "lntuning")]
CASES = [
    pytest.param((family, text), marks=[pytest.mark.slow] * (family == "qwen3" and text in LINEAR))
    for family, text in EVERYWHERE
]


@pytest.fixture(scope="module", params=CASES, ids=lambda p: f"{p[0]}-{p[1]}")
def trained(
    request: pytest.FixtureRequest,
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    return take_first_steps(*request.param, folders, tmp_path_factory.mktemp("run"))


def take_first_steps(family: str, text: str, folders: dict[str, Path], out: Path) -> Trained:
    """A few steps with weight decay on rows made by hand, under a KL term; saved in `out`."""
    config = replace(
        TrainConfig(),
        model=str(folders.get(family, family)),
        update=text,
        objective="grpo(kl=0.05)",
        steps=LONG if family == "llama" and text in CHANGES else STEPS,
        optimizer=Optimizer(learning_rate=1e-2, weight_decay=0.1),
    )
    made = session.prepare(config)
    model = made.prepared.model
    with made.prepared.reference():
        reference = logits(model)
    found = Trained(
        text,
        made,
        logits(base_model(family)),
        logits(model),
        reference,
        {n: p.detach().clone() for n, p in made.prepared.frozen.items()},
        {n: p.detach().clone() for n, p in made.prepared.trainable.items()},
        set(),
    )
    # What changes its mind on the way is resumed early; three steps show what does not.
    found.num_saved = config.steps - 3 if type(made.prepared.schedule) is Schedule else 2
    found.active |= take_steps(made, 0, found.num_saved)
    found.saved = checkpoint.save(made, runs.Run(out), found.num_saved)
    found.active |= take_steps(made, found.num_saved, config.steps)
    return found


def take_steps(made: session.Session, first: int, last: int) -> set[str]:
    """Optimizer steps `first` .. `last` - 1; the names of what trained in one of them."""
    active: set[str] = set()
    for _ in range(first, last):
        step.switch(made)
        active |= made.prepared.active.keys()
        step.optimizer_step(made, step.backward(made, batch_of(made), {})["loss"])
    assert made.counters.skipped == 0
    return active


def base_model(family: str) -> Any:
    """The model before anything was done to it."""
    if family == "tiny":
        return load("tiny", "cpu", "fp32").model
    return random_model(family)


def test_every_member_is_tested() -> None:
    """Under an expression that begins with its name, and that is applied to the tiny base below."""
    for name, cls in UPDATES.items():
        assert cls.examples[0].split("(")[0].split(" ")[0] == name
        assert ("tiny", cls.examples[0]) in EVERYWHERE


@pytest.mark.parametrize(("family", "text"), REFUSED)
def test_what_a_family_cannot_do_is_refused(family: str, text: str) -> None:
    if text in UPDATES:
        with pytest.raises(UserError, match="no bias"):
            updates.parse(text).apply(random_model(family), 0)


@pytest.mark.parametrize("text", [*EXPRESSIONS, "(first(1) + last(1)) & parts(mlp)"])
def test_text_round_trip(text: str) -> None:
    made = updates.parse(text)
    assert updates.parse(str(made)) == made
    assert str(made) == text


def test_nothing_changes_at_step_0(trained: Trained) -> None:
    prepared = trained.session.prepared
    assert equal(trained.at_start, trained.base, prepared)
    assert equal(trained.reference_at_start, trained.base, prepared)


def test_exactly_what_is_declared_trains(trained: Trained) -> None:
    prepared = trained.session.prepared
    flags = {n for n, p in prepared.model.named_parameters() if p.requires_grad}
    assert flags == prepared.active.keys()
    assert prepared.active.keys() <= prepared.trainable.keys()
    assert not prepared.trainable.keys() & prepared.frozen.keys()
    everything = dict(prepared.model.named_parameters())
    assert prepared.trainable.keys() | prepared.frozen.keys() == everything.keys()
    assert all(p.grad is None and not p.requires_grad for p in prepared.frozen.values())
    resting = prepared.trainable.keys() - prepared.active.keys()
    assert all(prepared.trainable[name].grad is None for name in resting)
    groups = trained.session.optimization.optimizer.param_groups
    held = [id(tensor) for group in groups for tensor in group["params"]]
    masters = trained.session.optimization.masters.tensors
    assert sorted(held) == sorted(id(masters[name]) for name in prepared.active)


def test_only_declared_tensors_move(trained: Trained) -> None:
    """LORA-10: weight decay and momentum reach nothing else."""
    prepared = trained.session.prepared
    for name, before in trained.frozen.items():
        assert torch.equal(prepared.frozen[name], before), name
    moved = {n for n, old in trained.values.items() if not torch.equal(prepared.trainable[n], old)}
    assert moved
    assert moved <= trained.active
    proof = trained.session.proof
    assert moved >= proof.pushed - prepared.schedule.may_return
    assert not torch.allclose(logits(prepared.model), trained.base, atol=1e-3)
    count, frozen = len(prepared.trainable), len(prepared.frozen)
    said = proof.check("test")
    assert f"of {count} trainable tensors changed" in said
    assert said.endswith(f"{frozen} frozen ones are bit-identical")


def test_the_base_keeps_its_hash(trained: Trained) -> None:
    prepared = trained.session.prepared
    assert combined(fingerprints(prepared.frozen)) == trained.session.proof.at_start


def test_the_reference_is_the_base_and_the_policy_comes_back(trained: Trained) -> None:
    prepared = trained.session.prepared
    before = logits(prepared.model)
    flags = {n: p.requires_grad for n, p in prepared.model.named_parameters()}
    with pytest.raises(KeyError, match="inside"), prepared.reference():
        assert equal(logits(prepared.model), trained.base, prepared)
        raise KeyError("inside")
    assert torch.equal(logits(prepared.model), before)
    assert {n: p.requires_grad for n, p in prepared.model.named_parameters()} == flags


def test_the_merged_model_is_the_policy(trained: Trained) -> None:
    prepared = copy.deepcopy(trained.session.prepared)
    policy = logits(prepared.model)
    merged = prepared.merged()
    assert not hasattr(merged, "peft_config")
    torch.testing.assert_close(logits(merged), policy, atol=1e-5, rtol=1e-5)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_the_preview_counts_what_is_there(trained: Trained) -> None:
    """Made from the config alone, it names the tensors that really train."""
    made = trained.session
    shown = preview(updates.parse(trained.text), made.config.model)
    assert shown.names == sorted(made.prepared.trainable)
    assert shown.ever == made.trainable_parameters
    assert shown.total_parameters == made.total_parameters
    assert str(shown.tensors) in shown.text() and f"{shown.parameters:,}" in shown.text()
    # On average over a schedule; a short one has not come round.
    if type(made.prepared.schedule) is Schedule:
        assert shown.parameters == made.trainable_parameters
        assert shown.share == made.trainable_parameters / made.total_parameters
        assert shown.optimizer_bytes == made.optimization.state_bytes()


def test_resuming_from_a_checkpoint_changes_nothing(trained: Trained) -> None:
    """What was saved on the way, taken up by a session of its own: the same bits."""
    second = session.prepare(trained.session.config)
    assert checkpoint.restore(second, trained.saved) == trained.num_saved
    whole = trained.session
    take_steps(second, trained.num_saved, whole.config.steps)
    assert second.prepared.active.keys() == whole.prepared.active.keys()
    wanted, found = whole.optimization.tensors(), second.optimization.tensors()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    for name, parameter in whole.prepared.trainable.items():
        assert torch.equal(second.prepared.trainable[name], parameter), name
    assert second.prepared.schedule.state() == whole.prepared.schedule.state()
    assert second.proof.check("test") == whole.proof.check("test")


@pytest.mark.parametrize(
    ("text", "bare", "trunk", "without_kl", "with_kl"),
    [
        # A layer of the random llama has 2 x 32 x 32 + 2 x 16 x 32 + 3 x 48 x 32 + 2 x 32 numbers.
        ("last(1)", False, True, 0, 4 * 7744),
        ("badam(order='descending')", False, False, 0, 4 * 3 * 7744),
        ("lora(rank=2) @ last(1)", True, True, 0, 0),
        # Rank 1: (in + out) of the seven linear layers, kept in any case.
        ("pissa(rank=1) @ last(1)", False, True, 4 * 464, 4 * 464),
    ],
)
def test_what_the_reference_is(
    text: str, bare: bool, trunk: bool, without_kl: int, with_kl: int
) -> None:
    prepared = updates.parse(text).apply(random_model("llama"), 0)
    assert (prepared.reference_is_bare, prepared.trunk_is_reference) == (bare, trunk)
    assert prepared.reference_bytes(kl=False) == without_kl
    assert prepared.reference_bytes(kl=True) == with_kl


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("last(1) + parts(norm)", "layers"),
        ("parts(norm) + last(1)", "layers"),
        ("parts(norm) & parts(attention)", "parts of layers"),
        ("parts(norm) + full", "parts of layers"),
        ("lora @ last(2)", "adapters"),
        ("sparse @ parts(mlp)", "schedules, masks"),
        ("sgd", "optimizers"),
        ("sgd @ last(2)", "optimizers"),
        ("sgd @ (lisa @ last(2))", "schedules, masks"),
        ("galore @ (lora @ last(2))", "adapters"),
    ],
)
def test_what_is_joined_is_of_the_kind_that_says_most(text: str, kind: str) -> None:
    assert updates.parse(text).kind == kind


# What backward costs ---------------------------------------------------------------------


def backward_work(family: str, text: str) -> int:
    """Multiplications of matrices in backward, attention scores (bmm) left out."""
    model = random_model(family, attn_implementation="eager")
    prepared = updates.parse(text).apply(model, 0)
    out = prepared.model(input_ids=IDS).logits.sum()
    with FlopCounterMode(display=False) as counter:
        out.backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if str(op).split(".")[-1] in ("mm", "addmm"))


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_previewed_share_of_backward_is_measured(family: str, folders: dict[str, Path]) -> None:
    """The formula counts the same products, so they agree exactly."""
    full = backward_work(family, "full")
    for text in SHARES:
        shown = preview(updates.parse(text), str(folders[family]))
        assert backward_work(family, text) / full == pytest.approx(shown.backward_share, rel=1e-6)
    assert backward_work(family, "last(1)") < 0.7 * full


@pytest.mark.parametrize(
    "text, first", [("last(1)", 2), ("last(2) & parts(mlp)", 1), ("first(1)", 0), ("full", 0)]
)
def test_backward_stops_at_the_lowest_layer(text: str, first: int) -> None:
    """No state that comes into a layer below or at the lowest trained one has a graph."""
    model = random_model("qwen3")
    prepared = updates.parse(text).apply(model, 0)
    seen: list[bool] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].requires_grad))
    rows = [Row((40, 41), (42, 43), (0.0, 0.0), 1.0)]
    logprobs(engine_of(prepared.model), rows, TrainConfig().sampling)[0].sum().backward()
    wanted = [text == "full" or layer > first for layer in range(3)]
    assert seen == wanted


# Selections by hand ----------------------------------------------------------------------

ATTENTION = [f"self_attn.{m}_proj.weight" for m in "qkvo"]
BIAS = [f"self_attn.{m}_proj.bias" for m in "qkv"]
MLP = [f"mlp.{m}_proj.weight" for m in ("gate", "up", "down")]
NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]
QK = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
WHOLE = {
    "llama": ATTENTION + MLP + NORMS,
    "qwen2": ATTENTION + BIAS + MLP + NORMS,
    "qwen3": ATTENTION + QK + MLP + NORMS,
}


def inside(layers: list[int], names: list[str]) -> set[str]:
    return {f"model.layers.{layer}.{name}" for layer in layers for name in names}


EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_selections_by_hand(family: str) -> None:
    whole, tied = WHOLE[family], family != "llama"
    attention = [name for name in whole if "self_attn" in name]
    norms = [name for name in whole if "norm" in name]
    head = EMBEDDING if tied else HEAD
    expected = {
        "full": inside([0, 1, 2], whole) | {EMBEDDING, NORM, head},
        "first(1)": inside([0], whole),
        "first(3)": inside([0, 1, 2], whole),
        "last(2)": inside([1, 2], whole),
        "middle(1)": inside([1], whole),
        "middle(2)": inside([0, 1], whole),
        "layers(-1, 0)": inside([0, 2], whole),
        "layers(1, 1, -2)": inside([1], whole),
        "parts(attention)": inside([0, 1, 2], attention),
        "parts(mlp)": inside([0, 1, 2], MLP),
        "parts(norm)": inside([0, 1, 2], norms) | {NORM},
        "parts(embedding)": {EMBEDDING},
        "parts(head)": {head},
        "last(1) + parts(head)": inside([2], whole) | {head},
        "first(2) & parts(mlp, norm)": inside([0, 1], MLP + norms),
        "last(1) & first(2) + parts(mlp)": inside([2], MLP),
    }
    if family == "qwen2":
        expected["parts(bias)"] = inside([0, 1, 2], BIAS)
    for text, names in expected.items():
        assert set(updates.parse(text).apply(random_model(family), 0).trainable) == names, text


@pytest.mark.parametrize(
    "text, targets",
    [
        ("lora", inside([0, 1, 2], ATTENTION + MLP)),
        ("lora @ middle(1)", inside([1], ATTENTION + MLP)),
        ("lora @ (last(1) & parts(attention))", inside([2], ATTENTION)),
        ("lora @ parts(head)", {HEAD}),
        ("lora @ (parts(head) + last(1))", inside([2], ATTENTION + MLP) | {HEAD}),
    ],
)
def test_adapters_go_where_they_are_told(text: str, targets: set[str]) -> None:
    prepared = updates.parse(text).apply(random_model("llama"), 0)
    places = {
        name.split(".lora_")[0].removeprefix("base_model.model.") for name in prepared.trainable
    }
    assert places == {name.removesuffix(".weight") for name in targets}
    assert len(prepared.trainable) == 2 * len(targets)


def test_adapters_are_drawn_from_the_seed() -> None:
    one, same, other = [
        updates.parse("lora(rank=2)").apply(random_model("llama"), seed).trainable
        for seed in (1, 1, 2)
    ]
    torch.manual_seed(0)
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name])
        assert torch.equal(tensor, other[name]) == ("lora_B" in name)


@pytest.mark.parametrize(
    "family, text, words",
    [
        ("llama", "parts(bias)", r"parts\(bias\) selects nothing .*3 layers.*attention.*norm"),
        ("llama", "first(1) & last(1)", "selects nothing .*3 layers"),
        ("llama", "last(4)", r"last\(4\): the model has only 3 layers"),
        ("llama", "lora @ middle(9)", r"middle\(9\): the model has only 3 layers"),
        ("llama", "layers(7)", "no layer 7; they are 0 to 2"),
        ("llama", "layers(-4)", "no layer -4; they are 0 to 2"),
        ("llama", "layers()", r"layers\(2, 3\)"),
        ("llama", "last(0)", "at least 1"),
        ("llama", "parts(atention)", "did you mean 'attention'"),
        ("llama", "parts()", "at least one of attention"),
        ("llama", "laast(1)", "did you mean 'last'"),
        ("llama", "lora(rank=0)", "rank must be at least 1 and at most 1024"),
        ("llama", "lora(alpha=0)", "alpha must be at least 1"),
        ("llama", "lora @ parts(norm)", "no linear layer"),
        ("llama", "lora + last(1)", "cannot be joined"),
        ("llama", "lora @ last(2) & parts(mlp)", "brackets may be missing"),
        ("llama", "3", "not an? update|number"),
        ("qwen2", "lora @ parts(head)", "head is tied"),
        ("qwen2", "lora @ (parts(head) + last(1))", "head is tied"),
        ("qwen2", "lora @ full", "head is tied"),
    ],
)
def test_what_cannot_be_selected_is_a_user_error(family: str, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        updates.parse(text).apply(random_model(family), 0)


def test_a_tied_head_is_the_embedding_and_the_preview_says_so(folders: dict[str, Path]) -> None:
    """Backward then runs through the whole model, and the two stay one tensor."""
    tied = preview(updates.parse("parts(head)"), str(folders["qwen2"]))
    assert tied.names == [EMBEDDING]
    assert tied.lowest_layer is None
    assert "one tensor" in tied.text() and "whole model" in tied.text()
    untied = preview(updates.parse("parts(head)"), str(folders["llama"]))
    assert untied.names == [HEAD] and untied.lowest_layer == 3 and not untied.notes
    model = random_model("qwen2")
    prepared = updates.parse("parts(head)").apply(model, 0)
    assert prepared.trainable[EMBEDDING] is model.get_output_embeddings().weight
