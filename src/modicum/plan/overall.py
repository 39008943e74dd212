"""The plan of a run: memory by part and phase, FLOPs, time, and whether it fits a machine.

Times are a roofline's: an estimate (docs/plan.md), of shares that docs/engine.md measured on a CPU
and that are assumed on a GPU."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean as mean
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from modicum import parallel
from modicum.config import TrainConfig
from modicum.engine import Changed
from modicum.engine import make as make_engine
from modicum.engine.flops import CriticWork, FlopCounter, StepFlops
from modicum.engine.samplers import num_trunk_bytes
from modicum.models.four_bit import count
from modicum.models.load import DTYPES
from modicum.plan import sizes
from modicum.plan.hardware import Machine
from modicum.plan.memory import Memory, Subject, estimate
from modicum.plan.shapes import Lengths, cache_numbers, lengths_of, num_bytes
from modicum.report.words import aligned, filled, on_one_line
from modicum.serving.members import parse
from modicum.types import Batch, Completion, Frozen, Group, Problem, Row

MOST_SETS = 16  # of those that a schedule may choose
SHARE = {"cpu": 0.7, "cuda": 0.4}  # of the peak rate of matrix products
BANDWIDTH_SHARE = {"cpu": 0.7, "cuda": 0.6}
LAYER_SECONDS = {"cpu": 3e-4, "cuda": 5e-4}  # of eager calls


class Times(Frozen):
    """Seconds: of a step's two halves, and of the run with its evaluations."""

    sampling: float
    training: float
    evaluation: float  # of one evaluation
    run: float
    step: float  # sampling and training


class RunPlan(Frozen):
    """What a run will need."""

    ranks: int  # processes of the run; what follows is of each, but for `trained` and `parameters`
    model: str
    update: str
    dtype: str
    machine: Machine
    lengths: Lengths
    trained: int  # numbers that train at a time, on average
    parameters: int
    memory: Memory
    flops: StepFlops
    run_flops: float  # of all steps, evaluations left out
    times: Times | None  # None: the rates of the machine are not known
    options: str  # the sizes that are planned for, as options of the command line
    chosen: dict[str, Any]  # those that were left to the program: {value, why} by name
    advice: str  # if it does not fit: the options with which it does, in one line, and its peak
    assumptions: tuple[str, ...]
    fits: bool | None  # whether the peak is within the machine's memory; None: that is not known

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; bytes, FLOPs and seconds."""
        found = dataclasses.asdict(self)
        peak = self.memory.peak
        found["memory"] = {
            "peak_bytes": peak.total,
            "peak_phase": peak.name,
            "parts": self.memory.largest,
            "phases": {phase.name: dict(phase.parts) for phase in self.memory.phases},
        }
        found["flops"]["total"] = self.flops.total
        return found

    def text(self) -> str:
        """The plan for a reader."""
        held = [{**phase.parts, "all": phase.total} for phase in self.memory.phases]
        largest = self.memory.largest
        names = [*sorted(largest, key=lambda part: -largest[part]), "all"]
        head = ["MiB", *(phase.name for phase in self.memory.phases)]
        sizes = [[n, *(f"{of.get(n, 0) / 2**20:,.0f}" for of in held)] for n in names]
        return filled("plan.txt", plan=self, phases=[head, *sizes])


def make(
    config: TrainConfig,
    machine: Machine,
    lengths: Lengths | None = None,
    advise: bool = True,
    prompt: int | None = None,
) -> RunPlan:
    """The plan of a run on a machine, whose memory the sizes follow that are left to the program.

    Of a run of several processes it is the plan of one, on one device of the machine. Without `lengths` prompts are as long as the task's are (or `prompt` tokens) and every
    completion has `max_tokens`. `advise` looks for what would make it fit, if it does not."""
    team = parallel.parse(config.compute.parallel)
    ranks = machine.count if team.several else 1
    config = shared(config, ranks)
    subject = Subject.of(config)
    pieces = ranks if team.in_pieces else 1
    subject = replace(subject, pieces=pieces, apart=team.apart, memory=machine.memory)
    team.masters_fit(subject.prepared)
    config, chosen = sizes.settle(config, machine=machine, prompt=prompt, subject=subject)
    given = lengths or lengths_of(config, prompt)
    memory = estimate(config, given, machine.device, subject)
    prepared, schedule = subject.prepared, subject.prepared.schedule
    typical = schedule.typical(prepared.trainable)
    numbers = {name: schedule.size(name, p) for name, p in prepared.trainable.items()}
    weights = list(prepared.model.parameters())
    flops, token = _flops(config, subject, given)
    cache = DTYPES[config.compute.dtype].itemsize * cache_numbers(subject.config)
    decoder = DecodingCost(subject.layers, num_bytes(weights), token, cache)
    on = {"share": SHARE[machine.device], "bandwidth_share": BANDWIDTH_SHARE[machine.device]}
    more = {"machine": machine, "lengths": given, "ranks": ranks}
    more["here"] = parse(config.compute.sampler).in_process
    said = filled("assumptions.txt", **on, **more, config=config)
    fits = None if machine.memory is None else memory.peak.total <= machine.memory
    told = sizes.advice(config, machine, given, subject) if advise and fits is False else ""
    return RunPlan(
        ranks=ranks,
        model=config.model,
        update=config.update,
        dtype=config.compute.dtype,
        machine=machine,
        lengths=given,
        trained=round(mean(sum(numbers[n] for n in names) for names in typical)),
        parameters=sum(map(count, weights)),
        memory=memory,
        flops=flops,
        run_flops=flops.total * config.steps,
        times=times(config, decoder, flops, given, machine),
        options=sizes.line(config, [n for n in sizes.OPTIONS if n not in ("dtype", "update")]),
        chosen=sizes.told(chosen),
        advice=told,
        assumptions=tuple(map(on_one_line, said.strip().split("\n\n"))),
        fits=fits,
    )


def shared(config: TrainConfig, ranks: int) -> TrainConfig:
    """The run as the process with the largest share of its problems has it."""
    batch, held = config.batch, config.evaluation
    prompts, problems = (-(-n // ranks) for n in (batch.prompts_per_step, held.eval_problems))
    batch = replace(batch, prompts_per_step=prompts)
    return replace(config, batch=batch, evaluation=replace(held, eval_problems=problems))


def _flops(config: TrainConfig, subject: Subject, lengths: Lengths) -> tuple[StepFlops, float]:
    """The FLOPs of a step, the mean over what may train at a time; of a token's forward."""
    compute, batch, prepared = config.compute, config.batch, subject.prepared
    engine = make_engine(prepared.model, torch.device("meta"), prepared.lowest_layer, compute)
    goal = subject.objective
    counter = FlopCounter(prepared, engine, batch, goal.needs_reference, goal.entropy_share < 1)
    counter.judged = subject.judge is not None
    if goal.has_critic:
        counter.critic = CriticWork(goal, engine, subject.critic, batch, SimpleNamespace())
    limit = config.sampling.max_tokens
    prompts = lengths.prompts(batch.prompts_per_step)
    room = num_trunk_bytes(engine, prompts, batch.group_size, limit) <= compute.trunk_bytes
    room = room and parse(compute.sampler).in_process
    found = []
    typical = prepared.schedule.typical(prepared.trainable)
    for names in typical[:: -(-len(typical) // MOST_SETS)]:
        prepared.activate(names)
        engine.follow(Changed(prepared.active, prepared.lowest_layer))
        if counter.critic:
            known = (prepared.lowest_layer, prepared.lowest_ever, engine.splits)
            counter.critic.at.depth = goal.depth(*known)
        groups, rows = _step(config, lengths, kept=room and prepared.lowest_layer > 0)
        found.append(counter.step(groups, rows, batch.updates_per_rollout))
    parts = zip(*((f.sampling, f.training, f.critic) for f in found), strict=True)
    return StepFlops(*map(mean, parts)), counter.token


def _step(config: TrainConfig, lengths: Lengths, kept: bool) -> tuple[list[Group], Batch]:
    """The groups of a step in which every row has a signal."""
    count, size = config.batch.prompts_per_step, config.batch.group_size
    problem = Problem("", "", "")
    drawn = lengths.completions(count * size)
    completions = [Completion(tokens, (), "", True, trunk=kept or None) for tokens in drawn]
    members = (tuple(completions[at : at + size]) for at in range(0, count * size, size))
    groups = [Group(problem, *of) for of in zip(lengths.prompts(count), members, strict=True)]
    pairs = [(n, group, c) for n, group in enumerate(groups) for c in group.completions]
    rows = [Row(group.prompt, c.tokens, (), 1.0, n, c.trunk) for n, group, c in pairs]
    tokens = sum(len(row.tokens) for row in rows)
    return groups, Batch(tuple(rows), len(rows), tokens, frozenset(range(count)))


class DecodingCost(NamedTuple):
    """What decoding costs in a model."""

    layers: int
    weight_bytes: int
    token_flops: float  # forward FLOPs of one token, scores left out
    cache_bytes: int  # of keys and values, for a token


def times(
    config: TrainConfig, decoder: DecodingCost, flops: StepFlops, lengths: Lengths, machine: Machine
) -> Times | None:
    """The times of a run on a machine; None where its rates are not known."""
    if (rates := machine.rates) is None:
        return None
    on = machine.device
    rate = rates.flops(config.compute.dtype) * SHARE[on]
    bandwidth = rates.bandwidth * BANDWIDTH_SHARE[on]

    def sampled(prompts: int, group: int) -> float:
        together = max(1, config.batch.rollout_batch // group)
        total = 0.0
        for start in range(0, prompts, together):
            count = min(together, prompts - start)
            # Rows leave as they end, so that on average this many live.
            rows = count * group * lengths.completion / lengths.longest
            held = count * lengths.prompt + rows * lengths.longest / 2
            token = max(
                rows * decoder.token_flops / rate,
                (decoder.weight_bytes + held * decoder.cache_bytes) / bandwidth,
                decoder.layers * LAYER_SECONDS[on],
            )
            total += count * lengths.prompt * decoder.token_flops / rate + lengths.longest * token
        return total

    batch, held = config.batch, config.evaluation
    sampling = sampled(batch.prompts_per_step, batch.group_size)
    training = (flops.training + flops.critic) / rate
    evaluation = 0.0
    if held.eval_problems:
        evaluation = sampled(held.eval_problems, 1) + sampled(held.eval_problems, held.eval_samples)
    between = (config.steps - 1) // held.eval_every if held.eval_every else 0
    run = config.steps * (sampling + training) + (2 + between) * evaluation
    return Times(sampling, training, evaluation, run, sampling + training)


# For a reader ----------------------------------------------------------------------------


def table(plans: Sequence[RunPlan], markdown: bool = False) -> str:
    """A line a plan: what trains, peak memory, FLOPs and seconds of a step."""
    text = filled("plans.txt", plans=plans, markdown=markdown)
    if markdown:
        return "\n".join(f"| {line} |" for line in text.splitlines())
    return "\n".join(aligned([line.split(" | ") for line in text.splitlines()], str.ljust))
