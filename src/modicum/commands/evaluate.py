"""`modicum evaluate`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modicum.config import Compute, Sampling, at_least, from_mapping
from modicum.options import Parser, add_options, given, merge

EXAMPLES = """
modicum evaluate --model tiny
modicum evaluate runs/last1 --samples 16
modicum evaluate --model models/SmolLM2-135M-Instruct --task "gsm8k(path='data')" --problems 100
modicum evaluate runs/last1 --json
"""


@dataclass(frozen=True)
class Options:
    """What to evaluate and how."""

    model: str = "tiny"
    """`tiny`, a local folder, or a hub id; a RUN uses its own."""
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
    sampling: Sampling = field(default_factory=Sampling)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        at_least(self, problems=1, samples=1, seed=0)


def run(args: list[str]) -> int:
    """Evaluate a model or the trained policy of a run."""
    parser = Parser("evaluate", "Accuracy and pass@k on held-out problems.", EXAMPLES)
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="a run folder; none evaluates --model"
    )
    parser.add_argument("--json", action="store_true", help="print the evaluation as JSON")
    add_options(parser, Options, "evaluation")
    found = parser.read(args)
    tables = given(Options, found)

    from modicum import tasks
    from modicum.display import Display
    from modicum.engine import make
    from modicum.evaluate import evaluate
    from modicum.models.load import load
    from modicum.session import past_config, reload

    display = Display()
    if found.run:
        past = past_config(Path(found.run))
        own = {"task": past.task, "model": past.model}
        own |= {"sampling": _table(past.sampling), "compute": _table(past.compute)}
        options = from_mapping(Options, merge(own, tables), "options")
        session = reload(Path(found.run), options.compute)
        engine, loaded = session.engine, session.loaded
    else:
        options = from_mapping(Options, tables, "options")
        loaded = load(options.model, options.compute.device, options.compute.dtype)
        engine = make(loaded.model, loaded.device, kind=options.compute.engine)
    name = found.run or options.model
    try:
        result = evaluate(
            engine,
            loaded,
            tasks.parse(options.task),
            options.sampling,
            options.split,
            options.problems,
            options.samples,
            options.seed,
            progress=lambda done, total: display.evaluating(name, done, total),
        )
    finally:
        display.close()
    if found.json:
        print(json.dumps({"model": name, "task": options.task, **result.to_json()}))
        return 0
    print(
        f"{name} on {options.task}, split {result.split}: {result.num_problems} problems x"
        f" {result.samples_per_problem} samples at temperature {result.temperature:g},"
        f" top_p {options.sampling.top_p:g}, at most {options.sampling.max_tokens} tokens"
    )
    print(f"accuracy  {result.accuracy:.1%}  [{result.low:.1%}, {result.high:.1%}]  (strict)")
    print(f"lenient   {result.lenient:.1%}")
    print(f"greedy    {result.greedy:.1%}  [{result.greedy_low:.1%}, {result.greedy_high:.1%}]")
    for k, (mean, low, high) in result.pass_at.items():
        print(f"pass@{k:<4} {mean:.1%}  [{low:.1%}, {high:.1%}]")
    print(f"format    {result.format:.1%}")
    print(f"truncated {result.truncated:.1%}")
    print(f"length    {result.length:.1f} tokens")
    return 0


def _table(section: Any) -> dict[str, Any]:
    return dict(vars(section))
