"""The sizes of a run that its settings leave to the program, and whether a run fits at all.

Completions twice as long as the worked solutions of the problems, and the largest batches with which
such completions fit by the planner's own account (`search`). Whatever is given is kept. A run is
refused (`check`) where at completions of at most `SHORT` tokens the plan is above the free memory by
more than `MARGIN`. Longer ones may end it later; `modicum plan` shows it at `max_tokens`."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import cache
from typing import Any

from modicum.config import TrainConfig
from modicum.models.decoder import view
from modicum.models.load import choose_device
from modicum.parts import RunParts
from modicum.plan.hardware import GIB, Machine, free_memory
from modicum.plan.memory import SAMPLED, Memory, Phase, Subject, estimate, floor
from modicum.plan.shapes import Lengths, completion_tokens, config_of, generous_bound, lengths_of
from modicum.serving.members import parse
from modicum.settings import is_auto
from modicum.types import Frozen, UserError

# Of a model that is small beside the memory, and on a CPU at most: more is no faster there.
MICRO_BATCH, ROLLOUT_BATCH = 64, 512
UNKNOWN = 16 * GIB  # memory that is assumed where nothing says it
# Of memory, for sizes: a plan is right to within 15 %, and a host kills what takes too much.
SHARE = {"cpu": 0.85, "cuda": 0.9}
BATCHES = ("micro_batch", "rollout_batch")
FEW_ROWS = 8  # completions of a micro-batch: with fewer, checkpointing is the faster way
# Parts that neither the batch nor checkpointing changes.
FIXED = ("weights", "masters", "optimizer", "reference", "schedule", "gradients", "libraries")
FIXED += ("critic", "server")
# By how much the room is exceeded on a line through one point, or two, where no point is needed.
SURE_OF_ONE, SURE_OF_TWO = 1.5, 1.05
ADVISED = (*BATCHES, "checkpointing")
SHORT, MARGIN = 64, 1.15  # of `check`
OPTIONS = {"micro_batch": "batch", "rollout_batch": "batch", "max_tokens": "sampling"}
OPTIONS |= {"checkpointing": "compute", "dtype": "compute", "update": ""}


class Chosen(Frozen):
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

    Sizes fit the `machine`, or without one what is free here. `prompt` is its tokens, if known."""
    parts, found = parts or RunParts(), Choices()
    tables = [getattr(config, table) for table in dict.fromkeys(filter(None, OPTIONS.values()))]
    autos = {f.name for t in tables for f in fields(t) if is_auto(f, getattr(t, f.name))}
    free = [name for name in OPTIONS if name in autos]
    if "max_tokens" in free:
        found["max_tokens"] = Chosen(*completion_tokens(config, parts.task, machine is None))
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
        served, _ = parse(config.compute.sampler).held(machine.memory or 0, machine.device)
        if config.trust.trust_remote_code or (most is not None and most < room - served):
            why = f"{(room - served) / GIB:.3g} GiB are far more than it takes"
            return simple, found | {name: Chosen(names[name], why) for name in free}
    subject = replace(subject or Subject.of(config, parts), memory=machine.memory)
    made, memory = search(config, lengths_of(config, prompt, parts.task), machine, free, subject)
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
    fits, the smallest. Also what it takes."""
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
            ours = [p for p in memory.phases if (p.name in SAMPLED) == (name != "micro_batch")]
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


def advice(config: TrainConfig, machine: Machine, lengths: Lengths, subject: Subject) -> str:
    """The options of the largest batches that fit, in one line, and what they come to.

    Where none fit, in 16 bits, and then with as many of the last layers as fit (docs/engine.md)."""
    assert machine.memory is not None
    room, fixed = room_of(machine), subject.parts.update is not None
    low = {"dtype": "bf16" if machine.bf16 else "fp16"}
    dtype = low if config.compute.dtype == "fp32" else {}

    @cache
    def sized(last: int = 0, **more: str) -> tuple[str, float]:
        more |= {"update": f"last({last})"} if last else {}
        now = changed(config, **more)
        of = subject
        if more:
            of = Subject.of(now, subject.parts)
            of.pieces, of.apart, of.memory = subject.pieces, subject.apart, subject.memory
        if last != 1 and not fixed and (least := floor(of, now, machine.device)) > room:
            return "", least
        made, memory = search(now, lengths, machine, ADVISED, of)
        names = [name for name in ADVISED if name != "checkpointing" or made.compute.checkpointing]
        total = memory.peak.total
        return f"with {line(made, [*names, *more])}: {total / GIB:.2f} GiB", total

    tried = [sized(), *([sized(**dtype)] if dtype else [])]
    if tried[-1][1] > room and not fixed:
        layers = range(1, subject.layers + 1)
        most = bisect(layers, False, key=lambda n: sized(n, **dtype)[1] > room)
        tried.append(sized(max(1, most), **dtype))
    text, total = next((found for found in tried if found[1] <= room), tried[-1])
    if total <= machine.memory:
        return f"{text}, fits"
    return f"{text}; not even so: it takes a smaller model, shorter completions or more memory"


def check(config: TrainConfig, parts: RunParts | None = None) -> None:
    """UserError when the run certainly cannot fit the device that it would get here.

    Reads the model's config alone (UserError without); one that does not say enough is let through."""
    where = choose_device(config.compute.device)
    room = free_memory(where)
    if room is None or config.trust.trust_remote_code:
        return
    longest = min(config.sampling.max_tokens, SHORT)
    most = generous_bound(config, config_of(config.model, config.trust, config.base), longest)
    if most is None or most < room:
        return
    lengths, subject = Lengths(SHORT, SHORT, longest, longest), Subject.of(config, parts)
    subject.memory = room
    peak = estimate(config, lengths, where.type, subject).peak
    if peak.total <= MARGIN * room:
        return
    largest, most_held = max(peak.parts.items(), key=lambda pair: pair[1])
    # The room with the margin, so that what is named is not refused in turn.
    roomy = Machine(str(where), where.type, round(MARGIN * room), None)
    free = f"{room / GIB:.1f} GiB are free (the largest part: {largest}, {most_held / GIB:.1f} GiB)"
    needed, hint = f"{peak.total / GIB:.1f} GiB on {where}", advice(config, roomy, lengths, subject)
    raise UserError(f"the run needs about {needed}, where {free}; {hint}")


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
