"""`modicum.evaluate` and `modicum.compare`, which the commands of these names call too."""

from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from dataclasses import asdict, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import modicum.evaluate as scorecard
from modicum import tasks
from modicum.config import Compute, Held, Sampling, Steps, TrainConfig, Trust, from_mapping
from modicum.evaluate import Comparison, Evaluation
from modicum.face.training import TrainResult, folder_of, in_python
from modicum.limits import Natural, Positive
from modicum.options import merge
from modicum.parts import RunParts, past_bases, past_config, past_task, problems_changed
from modicum.runs import Run, entries, make_folder
from modicum.settings import Settings, chosen, digits, tables
from modicum.types import UserError

if TYPE_CHECKING:
    from modicum.training.loop import Observer
    from modicum.training.session import Session

ONLY_TRAINING = ("trunk_bytes", "checkpointing", "agreement_every", "quantise")
OF_RUN = ("task", "model", "base", "sampling", "compute", "trust")
Source = str | Path | TrainResult | Evaluation  # a run, a folder of `evaluate(out=...)`, ...


class EvaluateConfig(Settings):
    """What to evaluate and how."""

    model: str = "tiny"
    """`tiny`, a local folder (a model or a PEFT adapter), a GGUF file, or a hub id; with a RUN,
    where its base is now if it has moved."""
    base: str = ""
    """Where the base of `model` is, if that is an adapter; empty: where the adapter says."""
    task: str = "arithmetic"
    """Problems, as an expression; a RUN uses its own unless this is given."""
    split: Literal["train", "tune", "test"] = "test"
    """Which problems."""
    problems: Positive = 256
    """How many."""
    samples: Positive = 4
    """Sampled completions of each; pass@k goes up to this k."""
    seed: Natural = 0
    """Of the sampling noise."""
    batch: Natural = chosen(digits(0))
    """Completions sampled at the same time: memory, not the result; auto: what fits."""
    out: str = ""
    """A folder for evaluation.json and completions.jsonl; `modicum compare` reads it."""
    sampling: Sampling = field(default_factory=Sampling)
    compute: Compute = field(default_factory=Compute)
    trust: Trust = field(default_factory=Trust)


@in_python()
def evaluate(
    model: str | Path | TrainResult = "tiny",
    *,
    task: str | tasks.Task | Iterable[Any] | None = None,
    base: str | Path = "",
    progress: bool = True,
    **settings: Any,
) -> Evaluation:
    """Accuracy, pass@k and maj@k of a model or of a run's policy on held-out problems.

    `model` is what `train` takes, a run folder or the result of a run. `base` says where the base of
    a run is now, if it has moved, or that of an adapter. `settings` are those of `EvaluateConfig`."""
    from modicum.display import Display

    name, own = folder_of(model), model.parts if isinstance(model, TrainResult) else None
    run = name if (name / "config.toml").is_file() else None
    at = base or (model.base if isinstance(model, TrainResult) else "") if run else name
    named: dict[str, Any] = {"model": at} if at else {}
    named |= {"base": str(base)} if base and not run else {}
    named |= {"task": task} if isinstance(task, str) else {}
    config = settled(tables(EvaluateConfig, {**settings, **named}, "evaluate"), run, "evaluate")
    parts = own or RunParts()
    parts = RunParts(parts.task if task is None else tasks.of(task), parts.update)
    with Display() if progress else nullcontext() as shown:
        return perform(config, run, shown, parts)


def settled(given: dict[str, Any], run: Path | None, where: str) -> EvaluateConfig:
    """The settings; those of a run are below those given."""
    if odd := [name for name in ONLY_TRAINING if name in given.get("compute", {})]:
        raise UserError(f"{where}: {odd[0]} is for training; an evaluation does not read it")
    past = asdict(past_config(run)) if run else {}
    below = {name: past[name] for name in OF_RUN if run}
    return from_mapping(EvaluateConfig, merge(below, given), where)


def perform(
    config: EvaluateConfig,
    run: Path | None,
    observer: "Observer | None" = None,
    parts: RunParts | None = None,
    past: "Callable[[Path, TrainConfig, RunParts], Session] | None" = None,
) -> Evaluation:
    """Evaluate the policy of `run`, or the model that the config names; written to `out`.

    `past` gives another policy of the run than its newest, `parts` what no expression names."""
    from modicum.engine import policy_of
    from modicum.evaluate import evaluate, held_out
    from modicum.models.load import inner, load
    from modicum.serving import members
    from modicum.tasks import prompts
    from modicum.tasks.examples import Sizes, draw
    from modicum.training.checkpoint import reload

    parts = parts or RunParts()
    name = str(run or config.model)
    own = run is not None and config.task == past_config(run).task
    task = parts.task or (past_task(run, config.task) if run and own else tasks.parse(config.task))
    folder = _folder(config.out) if config.out else None
    members.parse(config.compute.sampler).require()  # before a model loads
    config, sized = _sized(config, RunParts(task), run)
    if run is not None:
        was = past_bases(run, past_config(run), config.model, config.base)
        batch = replace(was.batch, rollout_batch=config.batch)
        now = replace(was, compute=config.compute, trust=config.trust, batch=batch)
        policy = (past or reload)(run, now, parts).policy
    else:
        compute = config.compute
        loaded = load(config.model, compute.device, compute.dtype, config.trust, config.base)
        policy = policy_of(loaded, None, config.compute, config.batch)
    asked = () if task.size(config.split) is None else held_out(task, config.split, config.problems)
    examples = draw(task, config.sampling)
    form = policy.tokenizer, config.sampling
    task = Sizes(*form, examples, inner(policy.model).config).settle(task, asked)
    what = config.sampling, config.split, config.problems, config.samples, config.seed
    progress = partial(observer.evaluating, name) if observer else None
    keep = partial(folder.write_lines, "completions.jsonl") if folder else None
    with closing(policy.sampler):
        found = evaluate(policy, task, *what, progress=progress, keep=keep, examples=examples)
    if folder is not None:
        folder.write("evaluation.json", values_of(config, name, found))
    if observer is not None:
        changed = problems_changed(run, task) if run and own else ""
        told = [*tasks.notes(task), *sized, *prompts.notes(*form), *policy.scorer.notes, changed]
        for note in filter(None, told):
            observer.note(note)
    return found


def _sized(
    config: EvaluateConfig, parts: RunParts, run: Path | None
) -> tuple[EvaluateConfig, list[str]]:
    """The config with the sizes that are left to the program, and what to say of them."""
    from modicum.plan import sizes

    at = past_bases(run, past_config(run), config.model, config.base) if run else config
    how: dict[str, Any] = {name: getattr(config, name) for name in ("task", "sampling", "trust")}
    how["batch"] = Steps(micro_batch=1, rollout_batch=config.batch)
    how["compute"] = replace(config.compute, checkpointing=False)
    how["evaluation"] = Held(config.problems, config.samples)
    like = TrainConfig(model=at.model, base=at.base, update="last(1)", **how)
    like, found = sizes.settle(like, parts)
    found = {name: found[name] for name in ("max_tokens", "rollout_batch") if name in found}
    now = replace(config, sampling=like.sampling, batch=like.batch.rollout_batch)
    return now, [sizes.note(like, found).replace("--rollout-batch", "--batch")] if found else []


def values_of(config: EvaluateConfig, name: str, found: Evaluation) -> dict[str, Any]:
    """The evaluation and how it was made, as JSON values."""
    return {"model": name, **asdict(found), "sampling": asdict(config.sampling)}


def _folder(out: str) -> Run:
    run = Run(Path(out).expanduser())
    if entries(run.folder) and not (run.folder / "evaluation.json").is_file():
        raise UserError(f"{out} is not empty and holds no evaluation; name another with --out")
    make_folder(run.folder)
    return run


def compare(after: Source, before: Source | None = None) -> Comparison:
    """The paired difference `after` - `before`, problem by problem, with intervals.

    Each is a run, a folder of `evaluate(out=...)`, or an evaluation. A run without `before`
    is compared with its own base. UserError when they answered different problems."""
    was = evaluation_of(before or after, "trained" if before else "base")
    return scorecard.compare(evaluation_of(after), was)


def evaluation_of(source: Source, name: str = "trained") -> Evaluation:
    """The evaluation that is kept in a folder; of a run the one with this name."""
    return source if isinstance(source, Evaluation) else scorecard.read(folder_of(source), name)
