"""The sizes of a run that its settings leave to the program: tokens, batches, checkpointing.

Completions twice as long as the worked solutions of the problems, and the largest batches with which
such completions fit by the planner's own account (`search`). Whatever is given is kept.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from modicum import tasks
from modicum.config import TrainConfig
from modicum.models.decoder import view
from modicum.models.load import TINY, choose_device, locate
from modicum.parts import RunParts
from modicum.plan.hardware import GIB, Machine, free_memory
from modicum.plan.memory import Memory, Phase, Subject, estimate, floor
from modicum.plan.shapes import (
    Lengths,
    config_of,
    generous_bound,
    lengths_of,
    problems_of,
    tokenizer_of,
)
from modicum.resuming import is_auto
from modicum.tasks.examples import thought_of

# Of a model that is small beside the memory, and on a CPU at most: more is no faster there.
MICRO_BATCH, ROLLOUT_BATCH = 64, 512
TINY_TOKENS, TOKENS = 80, 512  # of the shipped base; where nothing says more
UNIT = 256  # that lengths are rounded up to
UNKNOWN = 16 * GIB  # memory that is assumed where nothing says it
# Of memory, for sizes: a plan is right to within 15 %, and a host kills what takes too much.
SHARE = {"cpu": 0.85, "cuda": 0.9}
BATCHES = ("micro_batch", "rollout_batch")
FEW_ROWS = 8  # completions of a micro-batch: with fewer, checkpointing is the faster way
SHARED = {"evaluation", "sampling"}  # phases that hold rollouts; the others have micro-batches
# Parts that neither the batch nor checkpointing changes.
FIXED = ("weights", "masters", "optimizer", "reference", "schedule", "gradients", "libraries")
FIXED += ("critic",)
# By how much the room is exceeded on a line through one point, or two, where no point is needed.
SURE_OF_ONE, SURE_OF_TWO = 1.5, 1.05
OPTIONS = {"micro_batch": "batch", "rollout_batch": "batch", "max_tokens": "sampling"}
OPTIONS |= {"checkpointing": "compute", "dtype": "compute", "update": ""}


@dataclass(frozen=True)
class Chosen:
    """A value that was chosen, and why, in words."""

    value: Any
    why: str


Choices = dict[str, Chosen]
# Of a batch's sizes that were tried: all bytes of the fullest phase, and those of FIXED in it.
Points = dict[int, tuple[int, int]]


def settle(
    config: TrainConfig,
    parts: RunParts | None = None,
    machine: Machine | None = None,
    prompt: int | None = None,
    subject: Subject | None = None,
) -> tuple[TrainConfig, Choices]:
    """The config with a value for every size that it leaves to the program, and the choices.

    Sizes fit the `machine`, or without one what is free here. `prompt` is its tokens, if known.
    """
    parts, found = parts or RunParts(), Choices()
    tables = [getattr(config, table) for table in dict.fromkeys(filter(None, OPTIONS.values()))]
    autos = {f.name for t in tables for f in fields(t) if is_auto(f, getattr(t, f.name))}
    free = [name for name in OPTIONS if name in autos]
    if "max_tokens" in free:
        found["max_tokens"] = _tokens(config, parts, hub=machine is None)
        config = changed(config, max_tokens=found["max_tokens"].value)
        free.remove("max_tokens")
    if not free:
        return config, found
    names = {"micro_batch": MICRO_BATCH, "rollout_batch": ROLLOUT_BATCH, "checkpointing": False}
    simple_enough = machine is None or machine.device == "cpu"
    if machine is None:
        where = choose_device(config.compute.device)
        kind = "cpu" if where.type == "cpu" else "cuda"  # of another accelerator nothing is known
        machine = Machine(f"free on {where}", kind, free_memory(where), None)
    room = room_of(machine)
    if simple_enough:
        simple = changed(config, **{name: names[name] for name in free})
        model_config = config_of(config.model, config.trust, config.base)
        most = generous_bound(simple, model_config, config.sampling.max_tokens)
        if config.trust.trust_remote_code or (most is not None and most < room):
            why = f"{room / GIB:.3g} GiB are far more than it takes"
            return simple, found | {name: Chosen(names[name], why) for name in free}
    subject = subject or Subject.of(config, parts)
    lengths = lengths_of(config, prompt, parts.task)
    made, memory = search(config, lengths, machine, free, subject)
    of = f"{room / GIB:.3g} GiB, which are {SHARE[machine.device]:.0%} of the memory"
    why = f"{memory.peak.total / GIB:.3g} GiB are planned for, of {of}"
    if "checkpointing" in free and made.compute.checkpointing:
        why += f"; without checkpointing not even {FEW_ROWS} completions fit"
    return made, found | {name: Chosen(_value(made, name), why) for name in free}


def room_of(machine: Machine) -> float:
    """The bytes of a machine that sizes are chosen for."""
    return (machine.memory or UNKNOWN) * SHARE[machine.device]


def search(
    config: TrainConfig, lengths: Lengths, machine: Machine, free: Sequence[str], subject: Subject
) -> tuple[TrainConfig, Memory]:
    """The config with the largest batches that fit the machine, as far as they are `free`.

    Activations are recomputed where less than `FEW_ROWS` completions fit without. Where nothing
    fits, the smallest. Also what it takes.
    """
    room, switch, other = room_of(machine), config.compute.checkpointing, False
    if "checkpointing" in free:
        switch = False
        other = config.compute.engine != "library" and view(subject.prepared.model) is not None
    sizes = {name: _sizes(name, config, machine.device) for name in BATCHES if name in free}
    smallest = {name: of[0] for name, of in sizes.items()}
    hopeless = floor(subject, config, machine.device) > room
    enough = min([FEW_ROWS, *sizes.get("micro_batch", [])[-1:]])
    # The more rows train, the longer a trace takes; how many are sampled costs it nothing.
    first = {"micro_batch": enough, "rollout_batch": 10**9}
    at = {k: min([n for n in of if n >= first[k]], default=of[-1]) for k, of in sizes.items()}
    at = smallest if hopeless else at
    if "micro_batch" not in sizes:
        enough = config.batch.micro_batch
    tried: dict[str, Points] = {name: {} for name in BATCHES}
    while True:
        made = changed(config, checkpointing=switch, **at)
        memory = estimate(made, lengths, machine.device, subject, exact=False)
        for name, points in tried.items():
            # What the fullest of the phases takes that this batch changes, and what of it is fixed.
            ours = [p for p in memory.phases if (p.name in SHARED) == (name != "micro_batch")]
            fullest = max(ours, key=lambda phase: phase.total, default=Phase("", {}))
            points[getattr(made.batch, name)] = fullest.total, _fixed(fullest)
        hopeless = hopeless or any(_fixed(phase) > room for phase in memory.phases)
        over = [n for n, (total, _) in tried["micro_batch"].items() if total > room]
        if other and not hopeless and min(over, default=enough + 1) <= enough:
            switch, other, tried["micro_batch"] = True, False, {}  # less than enough fit
            continue
        last, at = at, {name: _next(of, tried[name], room) for name, of in sizes.items()}
        at = smallest if hopeless else at
        if at == last:
            return made, memory


def _fixed(phase: Phase) -> int:
    return sum(phase.parts.get(part, 0) for part in FIXED)


def _next(sizes: Sequence[int], points: Points, room: float) -> int:
    """The largest size that fits, if a point or surely the line says so; or what to try next."""
    # The fullest of phases that are linear in the batch: beyond two points it is above their line.
    (low, (one, fixed)), *more = sorted(points.items())[-2:]
    # Without a second point the line goes through what is fixed.
    high, (two, _) = more[0] if more else (0, (fixed, 0))
    slope = (two - one) / (high - low)
    fit = [n for n in sizes if n in points and points[n][0] <= room]
    over = [n for n in sizes if n in points and points[n][0] > room]
    sure = SURE_OF_TWO if more and not over else SURE_OF_ONE
    between = [n for n in sizes if max(fit, default=0) < n < min(over, default=10**9)]
    line = {n: one + slope * (n - low) for n in between}
    likely = [n for n in between if line[n] <= room * (sure if fit else 1)]
    if likely:
        surely = [n for n in likely if line[n] <= room]
        return max(surely) if surely else min(likely)
    return max(fit) if fit else sizes[0]


def _sizes(name: str, config: TrainConfig, device: str) -> list[int]:
    batch, held = config.batch, config.evaluation
    least, most = 1, batch.prompts_per_step * batch.group_size
    if name == "rollout_batch":
        least = max(batch.group_size, held.eval_samples)
        most = max(most, held.eval_problems * held.eval_samples)
        most = ROLLOUT_BATCH if device == "cpu" else most
    elif device == "cpu":
        most = min(most, MICRO_BATCH)
    powers = [2**n for n in range(20) if least <= 2**n < most]
    return [*powers, max(least, most)]


def changed(config: TrainConfig, **values: Any) -> TrainConfig:
    """The config with other values of OPTIONS."""
    for name, value in values.items():
        table = OPTIONS[name]
        new = replace(getattr(config, table), **{name: value}) if table else value
        config = replace(config, **{table or name: new})
    return config


def _value(config: TrainConfig, name: str) -> Any:
    return getattr(getattr(config, OPTIONS[name]) if OPTIONS[name] else config, name)


def _tokens(config: TrainConfig, parts: RunParts, hub: bool) -> Chosen:
    """The longest completion, by problems and positions; with `hub` they may be fetched."""
    if locate(config.model, config.trust, config.base).place == str(TINY):
        return Chosen(TINY_TOKENS, "the shipped base writes less than 80 tokens")
    task, tokenizer = parts.task or tasks.parse(config.task), tokenizer_of(config, hub)
    tokens, why = getattr(task, "completion_tokens", TOKENS), f"{task} takes that many"
    if tokens == TOKENS and tokenizer is not None:
        texts = [thought_of(task, problem) for problem in problems_of(config, task)[1]]
        if any(texts):
            lengths = sorted(len(tokenizer(text)["input_ids"]) for text in filter(None, texts))
            long = lengths[int(0.95 * (len(lengths) - 1))]
            tokens = -(-2 * long // UNIT) * UNIT
            why = f"19 of 20 worked solutions have at most {long} tokens, and models write more"
    text_config = config_of(config.model, config.trust, config.base).get_text_config()
    positions = getattr(text_config, "max_position_embeddings", 0) or 10**9
    most = max(positions - config.sampling.max_prompt_tokens, positions // 2)
    if tokens > most:
        return Chosen(most, f"the model has {positions} positions for prompt and completion")
    return Chosen(tokens, why)


# For a reader ----------------------------------------------------------------------------


def line(config: TrainConfig, names: Sequence[str]) -> str:
    """These settings as options of the command line."""
    shown = []
    for name in names:
        value, option = _value(config, name), name.replace("_", "-")
        text = f" '{value}'" if name == "update" else f" {value}"
        switch = f"--{option}" if value else f"--no-{option}"
        shown.append(switch if isinstance(value, bool) else f"--{option}{text}")
    return " ".join(shown)


def note(config: TrainConfig, found: Choices) -> str:
    """The choices in one line."""
    names = [name for name, chosen in found.items() if chosen.value is not False]
    why = "; ".join(dict.fromkeys(chosen.why for chosen in found.values()))
    return f"chosen: {', '.join(line(config, [name]) for name in names)}, because {why}"


def told(found: Choices) -> dict[str, Any]:
    """The choices as JSON values."""
    return {name: asdict(chosen) for name, chosen in found.items()}
