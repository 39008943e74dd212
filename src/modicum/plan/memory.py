"""Memory of a run by part and phase, from its config alone.

What lives for a while, masters and gradients come from the engine's own code (`trace`), the rest from
shapes (docs/plan.md). Of sets that a schedule may choose, the one that reaches lowest and the largest
are planned, and the larger plan counts. What is no tensor: `libraries`, and `allocator`: on a CPU the
holes of glibc's heap (`heap`) in the phases that it grows in, on a GPU an assumed share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from modicum import objectives, rewards, updates
from modicum.config import TrainConfig
from modicum.engine import samplers
from modicum.models.decoder import view
from modicum.models.four_bit import numbers
from modicum.models.load import DTYPES
from modicum.parallel import Team
from modicum.parts import RunParts, require_group
from modicum.plan.live import peaks, tops
from modicum.plan.shapes import Lengths, config_of, num_bytes, prepare
from modicum.plan.trace import ResidentBytes, Trace
from modicum.serving.members import parse
from modicum.types import Frozen, Problem
from modicum.updates.base import Prepared
from modicum.updates.layout import depth
from modicum.updates.preview import optimizer_bytes

MASTER = 4  # bytes of an fp32 number
# Code that is loaded when it is first used, thread pools; the context of a GPU.
LIBRARIES = {"cpu": 41 * 2**20, "cuda": 500 * 2**20}
BF16_KERNELS = 110 * 2**20  # that oneDNN compiles and keeps for products in bf16 on a CPU
TOKENIZER = 1024  # bytes of the host for each token of the vocabulary
# Of what lives, where the heap is not gone through; more than in all rows of benchmarks/plan.py.
ROUGH_HOLES = 0.6
DIVIDED = ("training", "optimizer step")  # when layers lie in pieces, if ever
SAMPLED = ("evaluation", "sampling")  # while a server is awake
LASTING = ("optimizer", "masters", "schedule")
# By how much the heap grows further, as a share of what comes and goes: later passes are of other
# lengths and find the holes of the first too small, the more so where a step has several
# micro-batches, which are sorted by length. Found on some rows of benchmarks/plan.py.
LATER_PASSES, LATER_PARTS = 0.12, 0.44
CUDA_SLACK = 0.08  # that torch's caching allocator cannot use again, of what lives (assumed)


class Phase(Frozen):
    """What is held at the fullest moment of a phase, in bytes by part."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())


class Memory(Frozen):
    """The phases of a run; the fullest one decides."""

    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        """The fullest phase."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def largest(self) -> dict[str, int]:
        """The most that each part takes in any phase."""
        names = {name for phase in self.phases for name in phase.parts}
        return {name: max(p.parts.get(name, 0) for p in self.phases) for name in sorted(names)}


@dataclass
class Subject:
    """What is planned for, whatever its sizes: the model without memory, under the update."""

    config: Any  # the model's, of Hugging Face
    prepared: Prepared
    objective: Any
    critic: Prepared | None = None  # the model of a critic that has one of its own
    judge: rewards.Learned | None = None  # a learned reward
    memory: int | None = None  # of the machine; a vLLM server of the run takes a share
    pieces: int = 1  # in which masters and optimizer state lie, one a process
    apart: Any = Team().apart  # of a prepared model what lies in pieces in training, by layer
    known: dict[Any, Memory] = field(default_factory=dict)  # what was estimated
    parts: RunParts = field(default_factory=RunParts)  # objects in the place of expressions

    @classmethod
    def of(cls, config: TrainConfig, parts: RunParts | None = None) -> Self:
        """That of a run; `parts` are objects in the place of its expressions."""
        parts = parts or RunParts()
        found = config_of(config.model, config.trust, config.base)
        goal: Any = parts.objective or objectives.parse(config.objective)
        require_group(goal, config)
        own = goal.has_critic and goal.owns
        critic = prepare(config, found, updates.parse(goal.critic)) if own else None
        text = config.reward if "learned" in config.reward else "accuracy"
        terms = [term for _, term in (parts.reward or rewards.parse(text)).terms]
        judge = next((term for term in terms if isinstance(term, rewards.Learned)), None)
        if judge:
            judge.require(Problem("", "", ""))
        return cls(found, prepare(config, found, parts.update), goal, critic, judge, parts=parts)

    @property
    def reference_bytes(self) -> int:
        """Of the first values of what trains, which a KL and a learned reward read."""
        return self.prepared.reference_bytes(self.objective.needs_reference or bool(self.judge))

    @property
    def weight_bytes(self) -> int:
        """Of all parameters and buffers of the model."""
        model = self.prepared.model
        return num_bytes([*model.parameters(), *model.buffers()])

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return int(self.config.get_text_config().num_hidden_layers)


def estimate(
    config: TrainConfig,
    lengths: Lengths,
    device: str = "cpu",
    subject: Subject | None = None,
    exact: bool = True,
) -> Memory:
    """The memory of a run whose prompts and completions have such lengths.

    Without `exact` the holes of a CPU's heap are a share of what lives, which is quicker."""
    subject = subject or Subject.of(config)
    asked = (config, lengths, device, exact and device == "cpu")
    if asked not in subject.known:
        sets = planned_sets(subject.prepared)
        plans = [_of_set(subject, config, lengths, device, exact) for _ in sets]
        subject.known[asked] = max(plans, key=lambda memory: memory.peak.total)
    return subject.known[asked]


def floor(subject: Subject, config: TrainConfig, device: str) -> int:
    """Bytes below which no batch brings a run: weights, reference, and what the optimizer keeps."""
    prepared = subject.prepared
    least = max(sum(_held(subject, config, device).optimizer) for _ in planned_sets(prepared))
    return subject.weight_bytes + subject.reference_bytes + least


def planned_sets(prepared: Prepared) -> Iterator[frozenset[str]]:
    """The sets to plan for, made active: the largest that may train at a time, and the lowest."""
    schedule, trainable = prepared.schedule, prepared.trainable
    layers: int = prepared.model.config.num_hidden_layers  # type: ignore[union-attr, assignment]

    def lowest(names: frozenset[str]) -> int:
        return min(depth(name, layers) for name in names)

    typical = schedule.typical(trainable)
    largest = max(typical, key=lambda names: sum(schedule.size(n, trainable[n]) for n in names))
    deepest = min(typical, key=lowest)
    for names in [largest] if lowest(largest) == lowest(deepest) else [largest, deepest]:
        prepared.activate(names)
        yield names


def _of_set(
    subject: Subject, config: TrainConfig, lengths: Lengths, device: str, exact: bool
) -> Memory:
    static = {"weights": subject.weight_bytes, "reference": subject.reference_bytes}
    if subject.judge:
        files = subject.judge.file.parent.glob("*.safetensors")
        static["reward model"] = sum(file.stat().st_size for file in files)
    decoder, sampler = view(subject.prepared.model), parse(config.compute.sampler)
    if decoder and config.compute.engine != "library" and isinstance(sampler, samplers.Local):
        copied = sampler.copied(decoder, device)
        static |= {"sampler's copy": copied.num_bytes} if copied else {}
    loading = _loading(subject, config) if device != "cuda" else {}
    most, grown = _traced(subject, config, lengths, device, exact)
    found = {"loading": loading} | most
    lasting = {part: most["training"].get(part, 0) for part in LASTING}
    if not sampler.in_process:
        found["sampling"] = lasting
    if subject.objective.has_critic:
        static["critic"], passing = _critic(subject, config, lengths, device)
        found["critic"] = {**lasting, "activations": passing}
    libraries = LIBRARIES[device]
    if device == "cpu":
        libraries += TOKENIZER * subject.config.get_text_config().vocab_size
        libraries += BF16_KERNELS if config.compute.dtype != "fp32" else 0
    sizes = [num_bytes(tensors) for tensors in subject.apart(subject.prepared).values()]
    away = max(0, sum(sizes) - sum(sizes) // subject.pieces - max([0, *sizes]))  # one is whole
    batch = config.batch
    several = batch.micro_batch < batch.prompts_per_step * batch.group_size
    later = LATER_PARTS if several else LATER_PASSES
    phases = []
    drawing, resting = sampler.held(subject.memory or 0, device)
    for name, moving in found.items():
        live = sum(moving.values())
        unused = round((ROUGH_HOLES if grown is None else CUDA_SLACK) * live)
        if grown is not None and device == "cpu":
            # What glibc's heap has beside what lives, and by how much it grows further.
            top, stays = grown.get(name, 0), sum(moving.get(part, 0) for part in LASTING)
            unused = max(0, round(top - live + later * (top - stays)))
        parts = {**static, **moving, "allocator": unused, "libraries": libraries}
        parts["server"] = drawing if name in SAMPLED else resting
        parts["weights"] -= away * (name in DIVIDED)
        phases.append(Phase(name, {part: size for part, size in parts.items() if size}))
    return Memory(tuple(phases))


def _loading(subject: Subject, config: TrainConfig) -> dict[str, int]:
    """What there is beside the weights; those that are to rest in 4 bits are whole first."""
    stored = getattr(subject.config, "dtype", None) or torch.float32
    wanted, model = DTYPES[config.compute.dtype], subject.prepared.model
    whole = num_bytes([*map(numbers, [*model.parameters(), *model.buffers()])])
    more = 0 if stored == wanted else whole * stored.itemsize // wanted.itemsize
    more += whole - subject.weight_bytes
    return {"file": more} if more else {}


def _critic(subject: Subject, config: TrainConfig, lengths: Lengths, on: str) -> tuple[int, int]:
    """What a critic holds in all phases, and what lives besides while it learns."""
    text, own, batch = subject.config.get_text_config(), subject.critic, config.batch
    if own is None:
        reader = subject.objective.reader(text.hidden_size)
        tokens = sum(map(len, lengths.completions(batch.prompts_per_step * batch.group_size)))
        states = tokens * text.hidden_size * DTYPES[config.compute.dtype].itemsize
        return 3 * num_bytes(list(reader.parameters())), states
    like = Subject(subject.config, own, objectives.parse("dapo"))
    phases = estimate(config, lengths, on, like, exact=False).phases
    parts = next(phase.parts for phase in phases if phase.name == "training")
    # An adapter shares what the policy does not train.
    apart = own.adapter is not None and subject.prepared.adapter is None
    moved = [*own.trainable.values(), *(subject.prepared.trainable.values() if apart else ())]
    held = num_bytes(moved) + parts.get("optimizer", 0) + parts.get("masters", 0)
    return held, sum(parts.get(name, 0) for name in ("activations", "gradients", "trunk"))


def _traced(
    subject: Subject, config: TrainConfig, lengths: Lengths, device: str, exact: bool
) -> tuple[dict[str, dict[str, int]], dict[str, int] | None]:
    """What lives by phase and part, and what a CPU's heap grew to, if that is gone through."""
    prepared = subject.prepared
    apart = [tensor for of in subject.apart(prepared).values() for tensor in of]
    trace = Trace(prepared, config, lengths, device, subject.objective, subject.pieces, apart)
    trace.run(_held(subject, config, device))
    through = tops(trace.live) if exact else None
    return peaks(trace.live), through if device == "cpu" else {}


def _held(subject: Subject, config: TrainConfig, device: str) -> ResidentBytes:
    prepared, pieces = subject.prepared, subject.pieces
    schedule, rule, trainable = prepared.schedule, prepared.rule, prepared.trainable
    names = frozenset(prepared.active)
    active = sum(trainable[n].numel() for n in names)
    if schedule.policy == "keep" or (schedule.policy == "cpu" and device != "cuda"):
        # Only what has trained by the end of the run has any.
        steps = config.steps * config.batch.updates_per_rollout
        names = names.union(*list(schedule.typical(trainable))[: max(1, steps)])
    largest = max(trainable[n].numel() for n in prepared.active)
    moments = [optimizer_bytes(prepared, name) // pieces for name in sorted(names)]
    step = (rule.step_tables * largest + schedule.step_numbers * active) // pieces
    step += largest * (pieces > 1)  # one is whole at a time, to be written into the model
    if device == "cpu" and config.optimizer.learning_rate is None:
        step = max(step, active)  # the start that steps which find the rate go back to
    return ResidentBytes(
        optimizer=tuple(size for whole in moments for size in (whole // 2, whole - whole // 2)),
        # What was measured before is kept until no group of the step is known to be skipped.
        schedule=MASTER * schedule.kept_numbers * active * (1 + schedule.ever_by_group),
        gradients=2 * MASTER * active if schedule.ever_by_group else 0,
        step=MASTER * step,
    )
