"""`modicum evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from modicum.config import Compute, Sampling, Trust, at_least, from_mapping
from modicum.options import Parser, add_options, given, merge, show
from modicum.runs import Run, make_folder
from modicum.scorecard import Evaluation
from modicum.types import UserError

EXAMPLES = """
modicum evaluate --model tiny
modicum evaluate runs/last1 --samples 16
modicum evaluate --model models/SmolLM2-135M-Instruct --task "gsm8k(path='data')" --problems 100
modicum evaluate runs/last1 --json
modicum evaluate runs/last1 --out runs/last1-test      # keeps every completion
"""


@dataclass(frozen=True)
class Options:
    """What to evaluate and how."""

    model: str = "tiny"
    """`tiny`, a local folder, a GGUF file, or a hub id; a RUN uses its own."""
    task: str = "arithmetic"
    """Problems, as an expression; a RUN uses its own unless this is given."""
    split: Literal["train", "tune", "test"] = "test"
    """Which problems."""
    problems: int = 256
    """How many."""
    samples: int = 4
    """Sampled completions of each; pass@k goes up to this k."""
    seed: int = 0
    """Of the sampling noise."""
    batch: int = 512
    """Completions sampled at the same time; it changes memory, not the result."""
    out: str = ""
    """A folder for evaluation.json and completions.jsonl; `modicum compare` reads it."""
    sampling: Sampling = field(default_factory=Sampling)
    compute: Compute = field(default_factory=Compute)
    trust: Trust = field(default_factory=Trust)

    def __post_init__(self) -> None:
        at_least(self, problems=1, samples=1, seed=0, batch=1)


def run(args: list[str]) -> int:
    """Evaluate a model or the trained policy of a run."""
    parser = Parser("evaluate", "Accuracy and pass@k on held-out problems.", EXAMPLES)
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="a run folder; none evaluates --model"
    )
    add_options(parser, Options, "evaluation")
    found = parser.read(args)
    tables = given(Options, found)

    from modicum import tasks
    from modicum.display import Display
    from modicum.engine import policy_of
    from modicum.evaluate import evaluate
    from modicum.models.load import load
    from modicum.training.checkpoint import past_config, reload

    display = Display()
    if found.run:
        past = past_config(Path(found.run))
        own = {"task": past.task, "model": past.model}
        own |= {"sampling": dict(vars(past.sampling)), "compute": dict(vars(past.compute))}
        options = from_mapping(Options, merge(own, tables), "options")
        policy = reload(Path(found.run), options.compute, options.batch).policy
    else:
        options = from_mapping(Options, tables, "options")
        loaded = load(options.model, options.compute.device, options.compute.dtype, options.trust)
        policy = policy_of(loaded, None, options.compute, options.batch)
    name = found.run or options.model
    folder = _folder(options.out) if options.out else None
    task = tasks.parse(options.task)
    try:
        result = evaluate(
            policy,
            task,
            options.sampling,
            options.split,
            options.problems,
            options.samples,
            options.seed,
            progress=lambda done, total: display.evaluating(name, done, total),
            keep=None if folder is None else partial(folder.write_lines, "completions.jsonl"),
        )
    finally:
        display.close()
    values = {"model": name, **result.to_json(), "sampling": dict(vars(options.sampling))}
    if folder is not None:
        folder.write("evaluation.json", values)
    for note in tasks.notes(task):
        display.note(note)
    show(found.json, values, text_of(name, result, options.sampling))
    return 0


def _folder(out: str) -> Run:
    """The folder to write to; one that holds other things than an evaluation is refused."""
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "evaluation.json").is_file():
        raise UserError(f"{out} is not empty and holds no evaluation; name another with --out")
    make_folder(folder)
    return Run(folder)


def text_of(name: str, found: Evaluation, sampling: Sampling) -> str:
    """The evaluation as lines to read."""
    error = "" if found.standard_error is None else f", standard error {found.standard_error:.1%}"
    lines = [
        f"{name} on {found.task}, split {found.split}: {found.num_problems} problems x"
        f" {found.samples_per_problem} samples at temperature {found.temperature:g},"
        f" top_p {sampling.top_p:g}, at most {sampling.max_tokens} tokens",
        _line("accuracy", found.accuracy, found.low, found.high)
        + f"  strict, avg@{found.samples_per_problem}{error}",
        _line("lenient", found.lenient, found.lenient_low, found.lenient_high),
        _line("greedy", found.greedy, found.greedy_low, found.greedy_high)
        + f"  strict; lenient {found.greedy_lenient:.1%}",
        *(_line(f"pass@{k}", *band) for k, band in found.pass_at.items()),
        *(_line(f"maj@{k}", *band) for k, band in found.maj_at.items()),
        f"format    {found.format:.1%}  of the samples are in the style {sampling.style}",
        f"truncated {found.truncated:.1%}",
        f"length    {found.length:.1f} tokens",
    ]
    if found.truncated > 0.05:
        lines.append("note: completions were cut; a larger --max-tokens may change the numbers")
    return "\n".join(lines)


def _line(name: str, mean: float, low: float, high: float) -> str:
    return f"{name:<9} {mean:.1%}  [{low:.1%}, {high:.1%}]"
