"""The agreement proof: honest runs go on, and every planted fault is found."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import random_model
from modicum import runs
from modicum.config import Compute, Optimizer, Sampling, Steps, TrainConfig
from modicum.engine import agreement
from modicum.engine.agreement import Agreement
from modicum.engine.slopes import Scored, Slope
from modicum.engine.version import adapter_layers, require_origin, version_of
from modicum.models.linear import widened
from modicum.models.load import load
from modicum.training import step
from modicum.training.loop import run_step, train
from modicum.training.session import Session, prepare
from modicum.types import Group, Origin, Row, RunStopped

_spec = importlib.util.spec_from_file_location(
    "faults", Path(__file__).parents[1] / "scripts" / "faults.py"
)
assert _spec is not None and _spec.loader is not None
faults = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(faults)


SLOW = pytest.mark.slow  # bf16 on a CPU takes seconds a run


# Versions --------------------------------------------------------------------------------


def test_a_version_is_of_every_bit() -> None:
    tensors = {"a": torch.tensor([1.0, -2.0, 3.5]), "b": torch.ones(2, 2).bfloat16()}
    first = version_of(tensors)
    assert first == version_of({"b": tensors["b"].clone(), "a": tensors["a"].clone()})
    assert first != version_of({"a": tensors["a"], "c": tensors["b"]})
    for name in tensors:
        bits = torch.int32 if name == "a" else torch.int16
        changed = {n: t.clone() for n, t in tensors.items()}
        changed[name].view(-1).view(bits)[1] += 1
        assert version_of(changed) != first
    # Two that move by as much in opposite ways.
    moved = torch.tensor([1.0, -2.0, 3.5]).view(torch.int32)
    moved[0] += 1
    moved[2] -= 1
    assert version_of(tensors | {"a": moved.view(torch.float32)}) != first


def test_an_adapter_that_is_off_or_merged_has_another_version(bare: TrainConfig) -> None:
    session = prepare(replace(bare, update="lora(rank=2)"))
    policy, base = session.policy, session.policy.model.base_model
    right = policy.changed.version
    assert len(policy.adapters) == len(adapter_layers(policy.model)) > 0
    with session.prepared.reference():
        assert policy.changed.version != right
    base.merge_adapter()  # type: ignore[operator, union-attr]
    assert policy.changed.version != right
    base.unmerge_adapter()  # type: ignore[operator, union-attr]
    assert policy.changed.version == right


def _origins(session: Session) -> tuple[list[Group], Origin]:
    groups = step.sample_groups(session, 0)
    origin = groups[0].completions[0].origin
    assert origin is not None
    return groups, origin


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "0123456789abcdef"}, "drawn from other weights"),
        ({"temperature": 0.97}, "drawn at"),
        ({"top_p": 0.9}, "drawn at"),
        ({"top_k": 3}, "drawn at"),
        (None, r"does not say .* needs its origin = types.Origin\("),
    ],
)
def test_completions_say_where_they_come_from(
    bare: TrainConfig, change: dict[str, Any] | None, said: str
) -> None:
    session = prepare(bare)
    groups, origin = _origins(session)
    sampling = session.config.sampling
    require_origin(groups, sampling, session.policy.changed.version)
    other = None if change is None else replace(origin, **change)
    odd = replace(groups[-1].completions[-1], origin=other)
    last = replace(groups[-1], completions=(*groups[-1].completions[:-1], odd))
    with pytest.raises(RunStopped, match=said):
        require_origin([*groups[:-1], last], sampling, session.policy.changed.version)


def test_weights_that_move_after_sampling_are_found(bare: TrainConfig) -> None:
    session = prepare(bare)
    groups, _ = _origins(session)
    with torch.no_grad():
        next(iter(session.prepared.active.values())).view(-1)[3] += 1e-3
    with pytest.raises(RunStopped, match="the sampler is stale"):
        require_origin(groups, session.config.sampling, session.policy.changed.version)


# Without rounding ------------------------------------------------------------------------


def test_a_head_is_wide_before_its_model_asks_for_its_dtype() -> None:
    """Mamba's forward makes states of the dtype that its head has then."""
    model = random_model("mamba", layers=1).to(torch.bfloat16)
    wide, ids_BT = deepcopy(model).float(), torch.arange(2, 12)[None]
    with torch.no_grad(), widened(model):
        assert torch.equal(model(ids_BT).logits, wide(ids_BT).logits)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_widened_model_is_its_fp32_copy_and_comes_back() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    model: Any = load("tiny", device="cpu", dtype="bf16").model
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    copy: Any = load("tiny", device="cpu", dtype="bf16").model.float()
    with torch.no_grad():
        rounded = model(input_ids=ids).logits
        with widened(model):
            wide = model(input_ids=ids).logits
        wanted = copy(input_ids=ids).logits
    assert wide.dtype == torch.float32
    assert torch.equal(wide, wanted)
    assert not torch.equal(rounded.float(), wanted)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_one_layer_is_wide_at_a_time_and_none_after_an_error() -> None:
    model: Any = load("tiny", device="cpu", dtype="bf16").model
    seen: list[int] = []

    def look(*_: Any) -> None:
        wide = [n for n, p in model.named_parameters() if p.dtype == torch.float32]
        seen.append(len({name.split(".")[2] for name in wide}))
        if len(seen) == 3:
            raise KeyError("stop")

    for layer in model.model.layers:
        layer.mlp.register_forward_hook(look)
    with pytest.raises(KeyError), torch.no_grad(), widened(model):
        model(input_ids=torch.tensor([[5, 6]]))
    assert seen == [1, 1, 1]
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


# Slopes ----------------------------------------------------------------------------------


def test_a_slope_by_hand() -> None:
    """Two groups of two tokens: x d = 2 + 4 and 3 + 0, x x = 1 + 4 and 9 + 1."""
    slope = Slope()
    x_N, d_N = np.array([1.0, 2.0, 3.0, 1.0]), np.array([2.0, 2.0, 1.0, 0.0])
    slope.add(d_N, x_N, np.zeros(4), np.array([0, 0, 1, 1]))
    size, error, limit = slope.estimate()
    assert size == pytest.approx(9 / 15)
    # Residuals of the groups: 6 - 0.6 * 5 = 3 and 3 - 0.6 * 10 = -3; 2 / (2 - 1) for two groups.
    assert error == pytest.approx((2 * (9 + 9)) ** 0.5 / 15)
    assert limit > 1e5  # one degree of freedom proves nothing
    # A floor of known rounding: x x s s = (1 + 4 + 9 + 1) * 4.
    slope = Slope()
    slope.add(0.6 * x_N, x_N, np.full(4, 2.0), np.array([0, 0, 1, 1]))
    assert slope.estimate()[:2] == pytest.approx((0.6, 60**0.5 / 15))
    # A second check counts whole, the first 0.9 of it.
    slope.add(np.zeros(4), x_N, np.zeros(4), np.array([0, 0, 1, 1]))
    assert slope.estimate()[0] == pytest.approx(0.9 * 9 / (1.9 * 15))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("", None),
        ("base", "of the base, without what was trained: slope"),
        ("twice", "of what was trained applied twice: slope"),
        ("previous", "of the step before: slope"),
        ("temperature", "of a lower temperature: slope"),
        ("shift", "of another cut of the distribution: slope"),
    ],
)
def test_slopes_tell_what_the_sampler_drew_from(fault: str, said: str | None) -> None:
    """A sampler elsewhere, of which only log-probs are known: rounding of 0.03, steps of 0.02."""
    draw = np.random.default_rng(0)
    proof = Agreement("bf16", 10)
    proof.own, proof.noise, proof.measured = 0.05, 0.03, True
    stopped, text = None, ""
    for number in range(10):
        exact_N = np.log(draw.uniform(0.05, 0.95, 240))
        entropy_N = draw.uniform(0.2, 1.5, 240)
        of_step_N, of_run_N = draw.normal(0, 0.02, 240), draw.normal(0, 0.02 * number, 240)
        others = {"base": exact_N - of_run_N, "previous": exact_N - of_step_N}
        policy_N = {
            "base": others["base"],
            "twice": exact_N + of_run_N,
            "previous": others["previous"],
            "temperature": exact_N + 0.03 * (exact_N + entropy_N),
            "shift": exact_N - 0.03,
        }.get(fault, exact_N)
        sampler_N = policy_N + draw.normal(0, 0.03, 240)
        rows = [
            Row((1,), (2,) * 10, tuple(sampler_N[i : i + 10]), 0.0, group=i // 20)
            for i in range(0, 240, 10)
        ]
        found = Scored(rows, entropy_N, {"exact": exact_N}, others)
        trainer_N = exact_N + draw.normal(0, 0.03, 240)
        try:
            proof._follow("trainer", trainer_N - sampler_N, found)
        except RunStopped as error:
            stopped, text = number, str(error)
            break
    assert (stopped is None) == (said is None), text
    if said is not None:
        assert said in text and "standard error" in text


# Whole runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("fault", list(faults.FAULTS))
def test_planted_faults_are_found(fault: str, dtype: str) -> None:
    """At a rate of 1e-5, where a step moves log-probs by 3e-4 and bf16 rounds by 4e-3."""
    config = faults.config_of("tiny", "lora(rank=8)", dtype, 0, fault == "top_p")
    found = faults.run(config, fault, 4)
    assert found["found"] in (1, 2), found
    assert "agreement proof" in found["said"]


@pytest.mark.parametrize(
    ("dtype", "update"),
    [
        *(("fp32", text) for text in ("full", "lora(rank=8)", "pissa(rank=2)", "dora(rank=2)")),
        *(("bf16", text) for text in ("full", "lora(rank=8)")),
        *(pytest.param("bf16", text, marks=SLOW) for text in ("pissa(rank=2)", "dora(rank=2)")),
    ],
)
def test_honest_runs_go_on(update: str, dtype: str) -> None:
    faults.RATES.setdefault(update, 1e-3)
    found = faults.run(faults.config_of("tiny", update, dtype, 3, False), "", 3)
    assert found["found"] is None, found["said"]
    assert 0 < found["exact"] < agreement.EXACT / 5


# Update, its rate, seed, (prompts, completions of each, tokens), settings, dtype.
HONEST: list[Any] = [
    ("full", None, 9, (1, 2, 4), {}, "bf16"),  # a handful of tokens says little of the rounding
    ("last(1)", 1e-2, 354, (2, 4, 12), {"temperature": 0.01, "top_k": 20}, "fp32"),
]
SLOW_HONEST: list[Any] = [
    ("lora(rank=2)", 3e-2, 2, (2, 4, 12), {}, "bf16"),  # and it grows with what is learnt
    ("full", 1e-4, 0, (4, 8, 12), {"top_k": 1}, "bf16"),  # ties let a second token in
    ("full", 1e-4, 1, (4, 8, 12), {"top_p": 0.3}, "bf16"),
    ("lntuning", None, 194, (2, 2, 6), {"temperature": 0.01, "top_k": 20}, "bf16"),
]
HONEST += [pytest.param(*case, marks=SLOW) for case in SLOW_HONEST]


@pytest.mark.parametrize(("update", "rate", "seed", "sizes", "sampling", "dtype"), HONEST)
def test_few_tokens_large_rates_and_cuts_are_no_faults(
    bare: TrainConfig,
    update: str,
    rate: float | None,
    seed: int,
    sizes: tuple[int, int, int],
    sampling: dict[str, Any],
    dtype: Any,
) -> None:
    prompts, members, tokens = sizes
    config = replace(
        bare,
        model="tiny",
        task="arithmetic(terms=3,digits=1)",
        reward="random",
        update=update,
        seed=seed,
        steps=8,
        sampling=Sampling(max_tokens=tokens, **sampling),
        batch=Steps(prompts_per_step=prompts, group_size=members),
        optimizer=Optimizer(learning_rate=rate),
        compute=Compute("cpu", dtype, agreement_every=1),
    )
    assert train(config)["steps"] == 8


def test_rounding_is_measured_at_every_check_with_room_for_few_tokens() -> None:
    proof = Agreement("bf16", 10)
    half_N = np.log(np.full(2, 0.5))
    proof._measure(half_N + 0.01, half_N)
    # Rounding 0.02, doubt 2 x (0.5 + 0.001); the room has 4 more of 0.25.
    assert proof.own == pytest.approx(0.02 / 1.002)
    assert proof.room == pytest.approx((1 + 0.02) / (4 + 1.002))
    # Ten times as much, in many tokens: what was before fades, and room is for what is now.
    many_N = np.log(np.full(400, 0.5))
    proof._measure(many_N + 0.1, many_N)
    assert proof.own == pytest.approx((0.9 * 0.02 + 40) / (0.9 * 1.002 + 200.4))
    assert proof.room == pytest.approx((1 + 40) / (4 + 200.4))
    assert Agreement("fp32", 10, Sampling(temperature=0.01)).own == pytest.approx(2.5e-3)


def test_one_token_that_rounding_takes_to_nothing_is_no_stale_policy() -> None:
    proof = Agreement("bf16", 10)
    proof.own = proof.room = 0.05
    rows = [Row((1,), (2,) * 24, (-5.5,) * 24, 1.0, group=number) for number in range(2)]
    trainer_N = np.full(48, -5.5)
    trainer_N[7] = -28.0
    assert proof.trained(rows, trainer_N, np.ones(48)) == pytest.approx(22.5 / 48)
    # All of them together are another matter.
    with pytest.raises(RunStopped, match="not sampled from the current policy"):
        proof.trained(rows, np.full(48, -6.0), np.ones(48))


def test_a_slope_of_one_group_proves_nothing() -> None:
    """Of four groups only one has any x: a single token let in by a tie."""
    slope = Slope()
    x_N = np.array([0.2, 0.0, 0.0, 0.0])
    slope.add(3.5 * x_N, x_N, np.full(4, 1e-3), np.arange(4))
    size, error, limit = slope.estimate()
    assert size == pytest.approx(3.5)
    assert limit * error > 1e3


def test_the_library_is_asked_in_the_first_steps_and_then_every_few() -> None:
    assert [n for n in range(40) if Agreement("fp32", 15).due(n)] == [*range(5), 15, 30]
    assert not any(Agreement("fp32", 0).due(n) for n in range(40))


def test_frozen_layers_that_differ_from_the_library_stop_the_run(bare: TrainConfig) -> None:
    """What training cannot see: the trunk that sampler and trainer share."""
    session = prepare(replace(bare, update="last(1)"))
    groups = step.sample_groups(session, 0)
    rest = (session.policy, session.prepared, groups, 0)
    assert session.agreement.check(*rest) < 1e-5
    with torch.no_grad():
        session.prepared.frozen["model.layers.0.mlp.up_proj.weight"].mul_(1.1)
    with pytest.raises(RunStopped, match="of sampler and library differ"):
        session.agreement.check(*rest)


@pytest.mark.parametrize("part", [1, 2])
def test_a_loss_that_is_no_number_is_skipped_and_no_stale_policy(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """NaN in the hidden states of a micro-batch, in the first update of a rollout."""
    calls: list[int] = []
    sampling = Sampling(max_tokens=12)  # both groups have a signal
    batch = replace(bare.batch, micro_batch=4)
    session = prepare(replace(bare, batch=batch, sampling=sampling))
    real = session.policy.scorer.hidden

    def hidden(pack: Any, trunk: Any) -> Any:
        found = real(pack, trunk)
        calls.append(1)
        return found * float("nan") if len(calls) == part else found

    due = replace(session.config, compute=replace(session.config.compute, agreement_every=0))
    session.config, session.agreement.every = due, 0
    monkeypatch.setattr(session.policy.scorer, "hidden", hidden)
    run = runs.Run.create(Path(bare.out), "", True)
    run_step(session, run, 0)
    assert session.counters.skipped == 1
    run_step(session, run, 1)
    assert (session.counters.skipped, session.counters.optimizer_steps) == (1, 2)


def test_a_token_at_the_edge_of_a_cut_is_no_fault() -> None:
    """Rounding lets one token more into top-p at one of 64 places, and into all for a fault."""
    sampler_N = np.full(64, -0.7)
    rows = [Row((1,), (2,) * 64, tuple(sampler_N), 1.0)]
    edge_N, all_N = sampler_N.copy(), sampler_N - 0.001
    edge_N[5] -= 0.05
    Agreement("fp32", 10, Sampling(top_p=0.9)).trained(rows, edge_N, np.full(64, 0.5))
    for sampling, trainer_N in ((Sampling(), edge_N), (Sampling(top_p=0.9), all_N)):
        with pytest.raises(RunStopped, match="sampler and trainer differ"):
            Agreement("fp32", 10, sampling).trained(rows, trainer_N, np.full(64, 0.5))


def test_a_check_that_gets_no_numbers_leaves_them_to_the_step(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN for as long as the library is asked and for the first update: skipped, not stopped."""
    session = prepare(bare)
    real = session.policy.scorer.hidden
    monkeypatch.setattr(session.policy.scorer, "hidden", lambda *a: real(*a) * float("nan"))
    run = runs.Run.create(Path(bare.out), "", True)
    run_step(session, run, 0)
    assert session.counters.skipped == 1
    monkeypatch.setattr(session.policy.scorer, "hidden", real)
    run_step(session, run, 1)
    assert (session.counters.skipped, session.counters.optimizer_steps) == (1, 2)


def test_a_sampler_that_gives_no_numbers_is_told_as_that(bare: TrainConfig) -> None:
    proof, rows = Agreement("fp32", 10), [Row((1,), (2, 3), (float("nan"), -1.0), 1.0)]
    with pytest.raises(RunStopped, match=r"1 of 2 log-probs of sampler are nan"):
        proof.trained(rows, np.array([-1.0, -1.0]), np.array([0.5, 0.5]))


def test_the_proof_is_in_checkpoints_and_results(bare: TrainConfig) -> None:
    config = replace(bare, update="lora(rank=2)", steps=3, compute=Compute("cpu", "bf16"))
    result = train(config)
    assert "in fp32 sampler, trainer and library differ by at most" in result["agreement_proof"]
    _, state = runs.read_checkpoint(runs.checkpoints(Path(bare.out))[-1])
    again = Agreement("bf16", 10)
    again.load(state["agreement"])
    assert again.state() == state["agreement"]
    assert not any("previous" in name for name in again.slopes)  # a resumed run starts it anew
    assert again.measured and 0.001 < again.own < 0.2
    assert {"library base", "trainer temperature", "training shift"} <= again.slopes.keys()
    off = replace(config.compute, agreement_every=0)
    assert train(replace(config, compute=off), overwrite=True)["agreement_proof"] == "not asked"


def test_greedy_and_cut_settings_of_the_sampler_are_its_own(bare: TrainConfig) -> None:
    session = prepare(bare)
    drawn = session.policy.sample(
        [(5, 6)], [("x",)], 2, Sampling(temperature=0.5, top_k=4, max_tokens=4)
    )
    origin = drawn[0][0].origin
    assert origin is not None
    assert (origin.temperature, origin.top_p, origin.top_k) == (0.5, 1.0, 4)
    assert isinstance(session.policy.model, nn.Module)
