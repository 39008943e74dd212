"""The sizes of a run that its settings leave to the program: tokens, batches, checkpointing.

Whatever is given is kept. What is chosen follows from the model, the update, the problems and the
memory of the device: completions twice as long as the worked solutions of the problems, and the
largest batches that fit such completions. `search` asks the planner, so what it finds fits there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from modicum import tasks
from modicum.config import TrainConfig
from modicum.models.decoder import view
from modicum.models.load import TINY, choose_device, locate
from modicum.parts import RunParts
from modicum.plan.hardware import GIB, Machine, free_memory
from modicum.plan.memory import Memory, Subject, estimate
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

MICRO_BATCH, ROLLOUT_BATCH = 64, 512
"""Of a model that is small beside the memory, and on a CPU at most: more is no faster there."""
TINY_TOKENS, TOKENS, UNIT = 80, 512, 256
"""Of the shipped base; where nothing says more; and what lengths are rounded up to."""
UNKNOWN, OF_HOST = 16 * GIB, 0.85
"""Memory that is assumed where nothing says it; the share of a host's that a run may take."""
FEW_ROWS = 8  # completions of a micro-batch: with fewer, checkpointing is the faster way
SHARED = {"evaluation", "sampling"}
"""The phases in which rollouts are held; the others have micro-batches."""
FIXED = ("weights", "masters", "optimizer", "reference", "schedule", "gradients", "libraries")
"""Parts that neither the batch nor checkpointing changes."""
OPTIONS = {
    "micro_batch": "batch",
    "rollout_batch": "batch",
    "max_tokens": "sampling",
    "checkpointing": "compute",
    "dtype": "compute",
    "update": "",
}


@dataclass(frozen=True)
class Chosen:
    """A value that was chosen, and why, in words."""

    value: Any
    why: str


Choices = dict[str, Chosen]


def settle(
    config: TrainConfig,
    parts: RunParts | None = None,
    machine: Machine | None = None,
    prompt: int | None = None,
) -> tuple[TrainConfig, Choices]:
    """The config with a value for every size that it leaves to the program, and the choices.

    Sizes fit the `machine`; without one, what is free on the device that the run would get here.
    Prompts are those of the task, or of `prompt` tokens.
    """
    parts, found = parts or RunParts(), Choices()
    free = [name for name, table in OPTIONS.items() if table and _is_free(config, table, name)]
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
        machine = Machine(f"free on {where}", where.type, free_memory(where), None)
    room = (machine.memory or UNKNOWN) * (OF_HOST if machine.device == "cpu" else 1)
    if simple_enough:
        simple = changed(config, **{name: names[name] for name in free})
        model_config = config_of(config.model, config.trust, config.base)
        most = generous_bound(simple, model_config, config.sampling.max_tokens)
        if config.trust.trust_remote_code or (most is not None and most < room):
            why = f"{room / GIB:.3g} GiB are far more than it takes"
            return simple, found | {name: Chosen(names[name], why) for name in free}
    subject = Subject.of(config, parts)
    lengths = lengths_of(config, prompt, parts.task)
    made, memory = search(config, lengths, machine, free, subject, room)
    why = f"{memory.peak.total / GIB:.3g} of {room / GIB:.3g} GiB are planned for"
    if "checkpointing" in free and made.compute.checkpointing:
        why += f"; without checkpointing not even {FEW_ROWS} completions fit"
    return made, found | {name: Chosen(_value(made, name), why) for name in free}


def search(
    config: TrainConfig,
    lengths: Lengths,
    machine: Machine,
    free: Sequence[str],
    subject: Subject,
    room: float,
) -> tuple[TrainConfig, Memory]:
    """The config with the largest batches that fit `room`, as far as they are `free`.

    Activations are recomputed where less than `FEW_ROWS` completions fit without. Where nothing
    fits, the smallest. Also what it takes.
    """
    switches = [False, True] if "checkpointing" in free else [config.compute.checkpointing]
    if not _recomputes(config, subject) and "checkpointing" in free:
        switches = [False]
    step = config.batch.prompts_per_step * config.batch.group_size
    for switch in switches:
        tried = _batches(
            changed(config, checkpointing=switch), lengths, machine, free, subject, room
        )
        made, memory = tried
        enough = min(FEW_ROWS, step) if "micro_batch" in free else made.batch.micro_batch
        if _hopeless(memory, room):
            break
        if memory.peak.total <= room and made.batch.micro_batch >= enough:
            break
    return tried


def _hopeless(memory: Memory, room: float) -> bool:
    """Whether what no batch changes is too much already."""
    return any(sum(p.parts.get(part, 0) for part in FIXED) > room for p in memory.phases)


def _batches(
    config: TrainConfig,
    lengths: Lengths,
    machine: Machine,
    free: Sequence[str],
    subject: Subject,
    room: float,
) -> tuple[TrainConfig, Memory]:
    """The largest batches: memory is nearly linear in them, so few are tried, both at once."""
    batch, held = config.batch, config.evaluation
    step = batch.prompts_per_step * batch.group_size
    most = {"micro_batch": step, "rollout_batch": max(step, held.eval_problems * held.eval_samples)}
    if machine.device == "cpu":
        most = {"micro_batch": min(step, MICRO_BATCH), "rollout_batch": ROLLOUT_BATCH}
    least = {"micro_batch": 1, "rollout_batch": max(batch.group_size, held.eval_samples)}
    sizes = {name: _sizes(least[name], most[name]) for name in most if name in free}
    low = dict.fromkeys(sizes, 0)  # fits, or is the smallest
    high = {name: len(of) for name, of in sizes.items()}  # does not fit
    tried: dict[str, dict[int, int]] = {name: {} for name in sizes}
    at = {name: len(of) - 1 for name, of in sizes.items()}
    while True:
        made = changed(config, **{name: sizes[name][place] for name, place in at.items()})
        memory = estimate(made, lengths, machine.device, subject, exact=False)
        for name, place in at.items():
            ours = [p.total for p in memory.phases if (p.name in SHARED) == (name != "micro_batch")]
            tried[name][place] = most_of_all = max(ours, default=0)
            if most_of_all <= room:
                low[name] = max(low[name], place)
            else:
                high[name] = max(1, min(high[name], place))
                low[name] = min(low[name], high[name] - 1)
        if _hopeless(memory, room):
            high = dict.fromkeys(sizes, 1)
            low = dict.fromkeys(sizes, 0)
        last, at = at, {n: _next(sizes[n], tried[n], low[n], high[n], room) for n in sizes}
        if at == last:
            return made, memory


def _recomputes(config: TrainConfig, subject: Subject) -> bool:
    return config.compute.engine != "library" and view(subject.prepared.model) is not None


def _next(sizes: Sequence[int], tried: dict[int, int], low: int, high: int, room: float) -> int:
    """The place of the size to try next, between one that fits and one that does not."""
    if high - low <= 1:
        return low
    if len(tried) == 1:
        return max(0, (low + high) // 2 - 1)
    (a, one), (b, two) = sorted(tried.items())[-2:]
    slope = (two - one) / (sizes[b] - sizes[a])
    most = sizes[a] + (room - one) / slope if slope > 0 else sizes[high - 1]
    within = [place for place in range(low + 1, high) if sizes[place] <= most]
    return max(within, default=low + 1)


def _sizes(least: int, most: int) -> list[int]:
    """Powers of two from `least`, and `most` itself."""
    powers = [2**n for n in range(20) if least <= 2**n < most]
    return [*powers, max(least, most)]


def changed(config: TrainConfig, **values: Any) -> TrainConfig:
    """The config with other values of OPTIONS."""
    for name, value in values.items():
        table = OPTIONS[name]
        new = replace(getattr(config, table), **{name: value}) if table else value
        config = replace(config, **{table or name: new})
    return config


def _is_free(config: TrainConfig, table: str, name: str) -> bool:
    section = getattr(config, table)
    return any(is_auto(f, getattr(section, name)) for f in fields(section) if f.name == name)


def _value(config: TrainConfig, name: str) -> Any:
    return getattr(getattr(config, OPTIONS[name]) if OPTIONS[name] else config, name)


def _tokens(config: TrainConfig, parts: RunParts, hub: bool) -> Chosen:
    """The longest completion: by the problems, and what the model's positions leave.

    With `hub` tokenizer and problems are fetched that are not here, as the run would do.
    """
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
        if isinstance(value, bool):
            shown.append(f"--{option}" if value else f"--no-{option}")
        else:
            shown.append(f"--{option} '{value}'" if name == "update" else f"--{option} {value}")
    return " ".join(shown)


def note(config: TrainConfig, found: Choices) -> str:
    """The choices in one line."""
    names = [name for name, chosen in found.items() if chosen.value is not False]
    why = "; ".join(dict.fromkeys(chosen.why for chosen in found.values()))
    return f"chosen: {', '.join(line(config, [name]) for name in names)}, because {why}"


def told(found: Choices) -> dict[str, Any]:
    """The choices as JSON values."""
    return {name: asdict(chosen) for name, chosen in found.items()}
