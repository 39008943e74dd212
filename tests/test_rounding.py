"""Masters are rounded into the model by chance: the draw, its proof, runs that are resumed."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers import Fails, metrics_of, tensors_of
from modicum import cli, runs
from modicum.config import Compute, Held, Optimizer, TrainConfig
from modicum.models.precision import InPlace, Masters
from modicum.models.rounding import key_of, neighbours, noise_at, noise_from, rounded
from modicum.training import checkpoint, session, step
from modicum.training.loop import Observer, train
from modicum.training.optimization import Arrival, sample
from modicum.types import RunStopped, UserError
from modicum.updates import UPDATES
from modicum.updates.proofs import fingerprints
from rows import batch_of
from schedules import session_of, walk

BF16 = torch.bfloat16
KEY = (1, -2)
CPU = torch.device("cpu")
UP = "model.layers.2.mlp.up_proj.weight"
N = 2**16


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.int16)


# The draw --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lower", "spacing"),
    [
        (1.0, 2.0**-7),
        (-0.25, -(2.0**-9)),
        (0.0, 2.0**-133),  # among its subnormal numbers
        (2.0**-127, 2.0**-133),
    ],
)
@pytest.mark.parametrize("chance", [1 / 256, 0.25, 0.5, 0.875])
def test_the_chance_is_the_remainder(lower: float, spacing: float, chance: float) -> None:
    """Of 65,536 equal values so many go up, to five standard deviations; none goes elsewhere."""
    value = lower + chance * spacing
    found = rounded(torch.full((N,), value), BF16, KEY).double()
    up = found == lower + spacing
    assert (up | (found == lower)).all()
    assert abs(int(up.sum()) - N * chance) < 5 * math.sqrt(N * chance * (1 - chance))


def test_one_weight_is_right_on_average_over_steps() -> None:
    """0.3 of a spacing above 1 over 4,000 steps; to nearest it would be 1 in each."""
    value = torch.tensor([1 + 0.3 * 2.0**-7])
    drawn = [rounded(value, BF16, key_of(0, step, "w")).item() for step in range(4000)]
    assert (sum(drawn) / 4000 - 1) * 2**7 == pytest.approx(0.3, abs=0.036)


@pytest.mark.parametrize(
    ("value", "beside"),
    [
        (1.001, (1.0, 1.0078125)),
        (-1.001, (-1.0, -1.0078125)),
        (0.9999, (0.99609375, 1.0)),
        (1e-40, (9.183550e-41, 1.8367099e-40)),
    ],
)
def test_the_two_numbers_beside_a_value(value: float, beside: tuple[float, float]) -> None:
    found = [float(side) for side in neighbours(torch.tensor([value]), BF16)]
    assert found == pytest.approx(beside, rel=1e-6, abs=0)
    drawn = rounded(torch.full((N,), value), BF16, KEY)
    assert sorted(set(drawn.tolist())) == sorted(found)


def test_what_bf16_holds_stays() -> None:
    """All of its 65,536 numbers, zero and minus zero, subnormal ones and infinity with them."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(BF16)
    found = rounded(every.float(), BF16, KEY)
    known = ~every.isnan()
    assert torch.equal(bits(found)[known], bits(every)[known])
    assert found[~known].isnan().all()
    assert int(known.sum()) == 2**16 - 2 * 127


def test_only_what_is_infinite_to_nearest_becomes_infinite() -> None:
    largest = torch.finfo(BF16).max
    for sign in (1, -1):
        found = rounded(torch.full((N,), sign * 3.396177e38), BF16, KEY)
        assert found.unique().tolist() == [sign * largest]
        found = rounded(torch.full((N,), sign * 3.396178e38), BF16, KEY)
        assert found.unique().tolist() == [sign * math.inf]


def test_what_is_not_a_number_spoils_nothing_beside_it() -> None:
    values = torch.tensor([1.0, math.nan, math.inf, -math.inf, -2.0])
    # A nan whose bits all lie below a bf16 mantissa.
    values[1:2].view(torch.int32).fill_(0x7F800001)
    found = rounded(values, BF16, KEY)
    assert found[1].isnan()
    assert found[[0, 2, 3, 4]].tolist() == [1.0, math.inf, -math.inf, -2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_drawn_for_a_dtype_as_fine(dtype: torch.dtype) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(values, dtype, KEY), values.to(dtype))


def test_without_a_key_it_is_the_nearest() -> None:
    values = torch.tensor([1.001, 1.0040, 1.0070])
    assert rounded(values, BF16, None).tolist() == [1.0, 1.0078125, 1.0078125]


# The noise -------------------------------------------------------------------------------


def test_the_noise_is_these_numbers() -> None:
    """As whole numbers in plain Python give them; also past the 32nd bit of the index."""
    assert noise_from(KEY, 0, 8, CPU).tolist() == [
        -9063,
        -24546,
        7631,
        6188,
        25985,
        1723,
        -23954,
        -2979,
    ]
    assert noise_from(KEY, 2**16, 4, CPU).tolist() == [11121, -29488, -8120, 28299]
    assert noise_from(KEY, 2**34, 4, CPU).tolist() == [19393, 22055, 1836, -6766]
    index = torch.tensor([3, 2**34 + 1, 0, 2**16])
    assert noise_at(KEY, index).tolist() == [6188, 22055, -9063, 11121]


def test_the_key_is_these_numbers_and_of_seed_step_and_name() -> None:
    assert key_of(0, 1, "w") == (550182489, -1995483444)
    assert key_of(1, 1, "w") == (-1183489525, 7948068)
    assert key_of(0, 2, "w") == (-393957024, 780121836)
    assert key_of(0, 1, "v") == (104394959, -859256594)


@pytest.mark.parametrize("size", [1, 7, 2**16, 2**17 + 3])
def test_a_part_is_rounded_as_in_the_whole(size: int) -> None:
    """Entries by their flat indices in any order, and a shard, whatever it begins with."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(size, generator=generator)
    whole = rounded(values, BF16, KEY)
    order = torch.randperm(size, generator=generator)[: size // 3 + 1]
    assert torch.equal(rounded(values[order], BF16, KEY, order), whole[order])
    shard = torch.arange(size // 2, size)
    assert torch.equal(rounded(values[shard], BF16, KEY, shard), whole[shard])
    if size % 2:
        assert torch.equal(rounded(values[None, :, None], BF16, KEY).flatten(), whole)


def test_the_number_of_threads_changes_nothing() -> None:
    values = torch.randn(2**18, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(rounded(values, BF16, KEY))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_noise_of_neighbours_steps_and_names_is_independent() -> None:
    """Correlations of 2^20 pairs are below five standard errors."""
    size = 2**20
    drawn = {}
    for seed, number, name in [(0, 1, "w"), (0, 2, "w"), (1, 1, "w"), (0, 1, "v")]:
        key = key_of(seed, number, name)
        parts = [noise_from(key, start, N, CPU).double() for start in range(0, size, N)]
        drawn[seed, number, name] = torch.cat(parts)
    first = drawn[0, 1, "w"]
    assert abs(float(first.mean()) + 0.5) < 5 * 65536 / math.sqrt(12 * size)
    pairs = [(first, other) for key, other in drawn.items() if key != (0, 1, "w")]
    pairs += [(first[:-lag], first[lag:]) for lag in (1, 2, 3, 64, 576)]
    for one, other in pairs:
        found = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
        assert abs(found) < 5 / math.sqrt(size)


# Masters ---------------------------------------------------------------------------------


def masters_of(entries: Tensor | None = None, stochastic: bool = True) -> tuple[Any, Masters]:
    """Weights of 1, and masters 0.3 of a bf16 spacing above."""
    parameter = nn.Parameter(torch.ones(4096, dtype=BF16))
    given = None if entries is None else {"w": entries}
    masters = Masters({"w": parameter}, given, seed=3, stochastic=stochastic)
    with torch.no_grad():
        masters.tensors["w"].add_(0.3 * 2.0**-7)
    return parameter, masters


def test_a_step_below_the_spacing_arrives() -> None:
    parameter, masters = masters_of()
    masters.draw(["w"], 1)
    assert 0.26 < float((parameter != 1).float().mean()) < 0.34
    first = parameter.detach().clone()
    masters.publish()
    assert torch.equal(parameter, first), "nothing is drawn anew"
    masters.draw(["w"], 2)
    assert not torch.equal(parameter, first)
    masters.draw(["w"], 1)
    assert torch.equal(parameter, first)


def test_to_nearest_it_does_not_and_nothing_is_drawn() -> None:
    parameter, masters = masters_of(stochastic=False)
    masters.draw(["w"], 1)
    assert masters.drawn == {}
    assert (parameter == 1).all()


def test_entries_are_drawn_as_they_are_in_the_whole_tensor() -> None:
    whole, masters = masters_of()
    masters.draw(["w"], 1)
    where = torch.arange(5, 4096, 7)
    some, entries = masters_of(where)
    entries.draw(["w"], 1)
    assert torch.equal(some[where], whole[where])
    assert int((some != 1).sum()) == int((whole[where] != 1).sum()) > 100


def test_fp32_and_loops_from_outside_draw_nothing() -> None:
    parameter = nn.Parameter(torch.ones(8))
    for entries in ({}, {"w": torch.tensor([1, 2])}):
        masters = Masters({"w": parameter}, entries, stochastic=True)
        masters.draw(["w"], 1)
        assert masters.drawn == {}
    held = InPlace({"w": nn.Parameter(torch.ones(8, dtype=BF16))}, {"w": torch.tensor([1, 2])})
    held.draw(["w"], 1)
    assert held.drawn == {}


# Runs ------------------------------------------------------------------------------------


class Watch(Observer):
    """Keeps the notes and the weights that were evaluated at the end; stops at a step."""

    def __init__(self, at: int = -1) -> None:
        self.at = at
        self.notes: list[str] = []
        self.scored: dict[str, str] = {}

    def begin(self, session: session.Session, first_step: int) -> None:
        self.session = session

    def step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] == self.at:
            raise MemoryError

    def evaluated(self, name: str, found: Any) -> None:
        if name == "trained":
            self.scored = weights(self.session)

    def note(self, text: str) -> None:
        self.notes.append(text)


def weights(made: session.Session) -> dict[str, str]:
    return fingerprints(dict(made.policy.model.named_parameters()))


def config_of(quick: TrainConfig, update: str, out: Path, **compute: Any) -> TrainConfig:
    """Four steps in bf16 with two optimizer steps on a rollout."""
    return replace(
        quick,
        update=update,
        out=str(out),
        evaluation=Held(eval_problems=2, eval_samples=1),
        records=replace(quick.records, anatomy=False),
        batch=replace(quick.batch, updates_per_rollout=2),
        optimizer=Optimizer(learning_rate=1e-3),
        compute=Compute("cpu", "bf16", agreement_every=0, **compute),
    )


@pytest.mark.parametrize("update", ["full", "lora(rank=2)", "badam(every=2, state='cpu')"])
def test_a_resumed_run_draws_what_the_uncut_one_drew(
    quick: TrainConfig, tmp_path: Path, update: str
) -> None:
    """And a run that is loaded again has the weights that were scored, to the bit."""
    whole, cut = Watch(), Watch(2)
    train(config_of(quick, update, tmp_path / "whole"), whole)
    config = config_of(quick, update, tmp_path / "cut")
    with pytest.raises(MemoryError):
        train(config, cut)
    train(config, cut := Watch(), resume=True)
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")
    assert tensors_of(tmp_path / "whole") == tensors_of(tmp_path / "cut")
    assert whole.scored and whole.scored == cut.scored
    # Another setting does not change what an evaluation sees.
    other = replace(config, compute=replace(config.compute, rounding="nearest"))
    made = checkpoint.reload(tmp_path / "whole", other)
    assert weights(made) == whole.scored
    made.proof.check("loaded again")
    drawn = made.optimization.masters.drawn
    coarse = {n for n, p in made.prepared.trainable.items() if p.dtype == BF16}
    assert drawn.keys() <= coarse
    assert bool(drawn) == bool(coarse)


# Adapters have fp32 numbers of their own, and selections differ in names only: slow but for two.
ALIKE = [cls for cls in UPDATES.values() if cls.kind in ("adapters", "layers", "parts of layers")]
FIRST = [
    pytest.param(cls.examples[0], marks=[pytest.mark.slow] * (cls in ALIKE))
    if cls.name not in ("lora", "adalora")
    else cls.examples[0]
    for cls in UPDATES.values()
    if cls.name != "bitfit"
]
OTHERS = [
    "last(1)",
    "lisa(layers=1, every=1, ends=False, state='keep')",
    "badam(every=1, state='cpu')",
    "slimfit(rate=0.5, state='cpu')",
    "autofreeze(intervals=5, percentile=90.0, ema=0.5, state='cpu')",
    "sparse(by='fisher', warmup=2)",
    "sgd @ lisa(layers=1, every=1, ends=False, state='keep')",
]


def take_steps(made: session.Session, number: int) -> None:
    for _ in range(number):
        step.switch(made)
        step.optimizer_step(made, step.backward(made, batch_of(made), {})["loss"])
        made.proof.check("test")


@pytest.mark.parametrize("update", [*FIRST, *OTHERS])
def test_every_update_is_resumed_in_bf16(
    update: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """After eight steps of which five were taken before: masters, state and weights, to the bit."""
    config = replace(
        TrainConfig(),
        model=str(folders["llama"]),
        update=update,
        steps=8,
        optimizer=Optimizer(learning_rate=1e-4),
        compute=Compute("cpu", "bf16"),
    )
    whole, again = session.prepare(config), session.prepare(config)
    take_steps(whole, 5)
    checkpoint.restore(again, checkpoint.save(whole, runs.Run(tmp_path), 5))
    assert weights(again) == weights(whole)
    assert again.optimization.arrived() == whole.optimization.arrived()
    take_steps(whole, 3)
    take_steps(again, 3)
    assert weights(again) == weights(whole)
    assert again.optimization.arrived() == whole.optimization.arrived()
    found = again.optimization.tensors()
    for name, tensor in whole.optimization.tensors().items():
        assert torch.equal(found[name], tensor), name
    coarse = {n for n, p in whole.prepared.trainable.items() if p.dtype == BF16}
    drawn = whole.optimization.masters.drawn
    assert drawn == again.optimization.masters.drawn
    assert drawn.keys() == coarse & whole.optimization.visited


def test_each_optimizer_step_of_a_rollout_has_noise_of_its_own(folders: dict[str, Path]) -> None:
    made = session_of(folders["llama"], "last(1)", "bf16", rate=1e-5)
    seen = []
    for number in (1, 2):
        step.optimizer_step(made, step.backward(made, batch_of(made), {})["loss"])
        master = made.optimization.masters.tensors[UP]
        assert torch.equal(
            made.prepared.trainable[UP], rounded(master, BF16, key_of(0, number, UP))
        )
        seen.append(made.prepared.trainable[UP].detach().clone())
    assert not torch.equal(*seen)
    assert made.optimization.masters.drawn == dict.fromkeys(made.prepared.trainable, 2)


@pytest.mark.parametrize("policy", ["reset", "keep", "cpu"])
def test_what_rests_keeps_its_bits(policy: str, folders: dict[str, Path]) -> None:
    made = session_of(folders["llama"], f"badam(every=1, state='{policy}')", "bf16")
    trainable, rested = made.prepared.trainable, 0
    for _ in range(6):
        before = {name: bits(p).clone() for name, p in trainable.items()}
        (active,) = walk(made, 1)
        for name, parameter in trainable.items():
            if name not in active:
                assert torch.equal(bits(parameter), before[name]), name
                rested += name in made.optimization.visited
        assert any(not torch.equal(bits(trainable[n]), before[n]) for n in active)
        made.proof.check("test")
    assert rested


def test_a_run_to_nearest_has_its_masters_to_nearest(quick: TrainConfig, tmp_path: Path) -> None:
    config = config_of(quick, "full", tmp_path / "run", rounding="nearest")
    train(config, watch := Watch())
    other = replace(config, compute=replace(config.compute, rounding="stochastic"))
    made = checkpoint.reload(tmp_path / "run", other)
    assert weights(made) == watch.scored
    for name, master in made.optimization.masters.tensors.items():
        assert torch.equal(made.prepared.trainable[name], master.to(BF16))


@pytest.mark.parametrize("drawn", [[1], {UP: "x"}, {UP: None}, 3])
def test_draws_that_cannot_be_read_are_a_user_error(
    drawn: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    made = session_of(folders["llama"], "last(1)", "bf16")
    folder = checkpoint.save(made, runs.Run(tmp_path), 0)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "drawn": drawn}))
    with pytest.raises(UserError, match="damaged: what the rounding kept cannot be read"):
        checkpoint.restore(made, folder)


def test_an_exported_model_is_the_policy_that_was_evaluated(
    quick: TrainConfig, tmp_path: Path
) -> None:
    config = config_of(quick, "full", tmp_path / "run")
    train(config, watch := Watch())
    out = tmp_path / "out"
    assert cli.run(["export", config.out, "--out", str(out), "--format", "merged"]) == 0
    written = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {BF16}
    assert fingerprints(written) == {name: watch.scored[name] for name in written}
    assert len(written) == len(watch.scored)


# The change proof ------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["last(1)", "sparse(keep=0.1)"])
def test_the_proof_finds_what_was_not_drawn(update: str, folders: dict[str, Path]) -> None:
    made = session_of(folders["llama"], update, "bf16", rate=1e-5)
    walk(made, 2)
    made.proof.check("test")
    master, parameter = made.optimization.masters.held[UP], made.prepared.trainable[UP]
    right = parameter.detach().clone()
    values = master.values.flatten()
    inner, outer = neighbours(values, BF16)
    first = int((inner != outer).nonzero()[0])
    index = first if update == "last(1)" else int(master.entries[first])  # type: ignore[attr-defined]
    flat = parameter.data.view(-1)
    here = flat[index].clone()
    flat[index] = outer[first] if here == inner[first] else inner[first]
    with pytest.raises(
        RunStopped,
        match=rf"{UP} is not its fp32 master, rounded: 1 entries are the other number beside it,"
        r" not the one drawn in optimizer step 2",
    ):
        made.proof.check("test")
    flat[index] = here * 1.5
    with pytest.raises(RunStopped, match=r"1 entries are neither of the two numbers beside it"):
        made.proof.check("test")
    nearest = master.published(None)
    assert not torch.equal(nearest, right)
    parameter.data.copy_(nearest)
    with pytest.raises(
        RunStopped, match=r"\d+ entries are the other number beside it, not the one"
    ):
        made.proof.check("test")
    parameter.data.copy_(right)
    made.proof.check("test")


def test_the_proof_of_a_run_to_nearest_asks_for_the_nearest(folders: dict[str, Path]) -> None:
    made = session_of(folders["llama"], "last(1)", "bf16", rate=1e-5)
    made.optimization.masters.stochastic = False
    walk(made, 2)
    made.proof.check("test")
    master, parameter = made.optimization.masters.held[UP], made.prepared.trainable[UP]
    parameter.data.copy_(master.published(KEY))
    with pytest.raises(RunStopped, match="the other number beside it, not the nearest"):
        made.proof.check("test")


# What has arrived ------------------------------------------------------------------------


def test_what_has_arrived_by_hand() -> None:
    """Masters went 1, 2 and 2 up, weights 0, 2 and 4: (0 + 4 + 8) of (1 + 4 + 4)."""
    parameter = nn.Parameter(torch.zeros(3, dtype=BF16))
    arrival = Arrival({"w": parameter})
    masters = Masters({"w": parameter})
    assert arrival.share(masters.held, {}) is None
    with torch.no_grad():
        masters.tensors["w"].copy_(torch.tensor([1.0, 2.0, 2.0]))
        parameter.copy_(torch.tensor([0.0, 2.0, 4.0]))
    assert arrival.share(masters.held, {}) == pytest.approx(12 / 9)
    assert arrival.share({}, {}) is None
    assert arrival.share({}, {"w": torch.tensor([2.0, 2.0, 4.0])}) == pytest.approx(20 / 24)


def test_of_entries_it_counts_from_where_they_began() -> None:
    """The entry at 1 stands at 3 and was 5 in the base."""
    parameter = nn.Parameter(torch.tensor([1.0, 5.0, 1.0], dtype=BF16))
    arrival = Arrival({"w": parameter})
    parameter.data[1] = 3.0
    masters = Masters({"w": parameter}, {"w": torch.tensor([1])})
    masters.tensors["w"].data.fill_(2.0)
    parameter.data[1] = 4.0
    assert arrival.share(masters.held, {}) == pytest.approx(0.5)


def test_the_sample_is_small_fixed_and_of_the_name() -> None:
    assert sample("w", 4096).tolist() == list(range(4096))
    large = sample("w", 10**6)
    assert 4000 < len(large) <= 4096
    assert large.tolist() == sample("w", 10**6).tolist() != sample("v", 10**6).tolist()
    assert large.min() >= 0 and large.max() < 10**6


def run_of(quick: TrainConfig, out: Path, dtype: Any, rounding: Any) -> tuple[list, list[str]]:
    config = config_of(quick, "full", out)
    compute = Compute("cpu", dtype, rounding, agreement_every=0)
    rate = Optimizer(learning_rate=1e-5)
    train(replace(config, compute=compute, optimizer=rate), watch := Watch())
    return metrics_of(out), watch.notes


def test_a_run_says_how_much_has_arrived(quick: TrainConfig, tmp_path: Path) -> None:
    lines, notes = run_of(quick, tmp_path / "stochastic", "bf16", "stochastic")
    found = [line["update/arrived"] for line in lines]
    assert all(0.8 < share < 1.2 for share in found)
    assert not [note for note in notes if "rounded away" in note]

    lines, notes = run_of(quick, tmp_path / "nearest", "bf16", "nearest")
    found = [line["update/arrived"] for line in lines]
    assert all(share < 0.5 for share in found)
    before, after = [note for note in notes if "rounded away" in note]
    assert "below the spacing of 38 tensors" in before
    assert after.startswith("after 6 optimizer steps ")
    assert 'rounding = "stochastic" or dtype = "fp32" keeps it' in after

    lines, notes = run_of(quick, tmp_path / "fp32", "fp32", "stochastic")
    assert not any("update/arrived" in line for line in lines)
    assert not [note for note in notes if "rounded away" in note]


def test_fp32_tensors_whose_steps_are_lost_are_still_named(quick: TrainConfig) -> None:
    config = replace(quick, steps=1, optimizer=Optimizer(learning_rate=1e-12))
    found = train(config, watch := Watch())
    assert "had steps too small to show in fp32" in found["change_proof"]
    assert any("what they learn may be rounded away" in note for note in watch.notes)


def test_another_rounding_is_refused(fails: Fails) -> None:
    assert "nearest" in fails("train", "--rounding", "nearset")


# The script of the comparison ------------------------------------------------------------


def test_the_script_takes_finished_runs_and_makes_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(__file__).parent.parent / "scripts" / "rounding.py"
    spec = importlib.util.spec_from_file_location("rounding_script", place)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    for seed, right in [(0, 0.25), (1, 0.75)]:
        folder = tmp_path / "runs" / f"lora-rank-8-nearest-{seed}"
        (folder / "checkpoints" / "step-000016").mkdir(parents=True)
        (folder / "result.json").write_text("{}")
        steps = [
            {"reward/accuracy": right * (step >= 12), "update/arrived": 0.5}
            | dict.fromkeys(("time/step_seconds", "time/sampling_seconds"), 2.0)
            | {"time/training_seconds": 1.0}
            for step in range(16)
        ]
        (folder / "metrics.jsonl").write_text(runs.to_lines(steps))
    out = tmp_path / "out.json"
    arguments = ["rounding.py", "--out", str(out), "--runs", str(tmp_path / "runs")]
    for only in ("lora-rank-8-nearest-0", "lora(rank=8) nearest 1", "lora-rank-8-nearest-0"):
        monkeypatch.setattr(sys, "argv", [*arguments, "--only", only])
        assert script.main() == 0
    rows = json.loads(out.read_text())
    assert [(row["seed"], row["dtype"], row["rounding"]) for row in rows] == [
        (0, "bf16", "nearest"),
        (1, "bf16", "nearest"),
    ]
    assert rows[0]["rate"] == 2.7e-4
    assert rows[0]["accuracy"] == [0.0] * 12 + [0.25] * 4
    assert not list((tmp_path / "runs").rglob("checkpoints"))
    monkeypatch.setattr(sys, "argv", [*arguments, "--table"])
    capsys.readouterr()
    assert script.main() == 0
    line = capsys.readouterr().out.splitlines()[2]
    # Two seeds: 12.7 standard errors of 0.25 to each side, and no further than 0 and 1.
    start = "| `lora(rank=8)` | bf16 | nearest | 2 | 0% ["
    assert line.startswith(start) and line.endswith("| 50% [0%, 100%] | 50% | 2.0 | 2.0 | 1.0 |")
