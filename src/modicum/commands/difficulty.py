"""`modicum difficulty`."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modicum.commands.train import add_sources, settings
from modicum.config import TrainConfig, from_mapping
from modicum.limits import Natural, Positive
from modicum.options import Parser, add_options, given, show
from modicum.runs import Run, make_folder, read_object
from modicum.settings import Settings
from modicum.types import UserError

OF_A_LEVEL, CHUNK = 64, 32  # problems


@dataclass(frozen=True)
class Options(Settings):
    """What to measure."""

    problems: Natural = 0
    """Train problems, of each level if there are several; 0: all up to 10,000, or 64 of a level."""
    samples: Positive = 16
    """Completions of each, drawn as in training."""
    file: str = ""
    """Where to write; empty makes a name under difficulty/ from model, task and sampling."""


def run(args: list[str]) -> int:
    """Measure, and print the shares of right answers."""
    parser = Parser("difficulty")
    add_sources(parser)
    add_options(parser, Options, "difficulty")
    add_options(parser, TrainConfig)
    found = parser.read(args)
    options = from_mapping(Options, given(Options, found), "options")
    path, made = measure(settings(found, {}), options)
    show(found.json, {"file": str(path), **made}, text_of(path, made))
    return 0


def measure(config: TrainConfig, options: Options) -> tuple[Path, dict[str, Any]]:
    """The file and what is in it, with what was measured before."""
    from modicum import tasks
    from modicum.curricula.base import RANKED, turns_of
    from modicum.display import Display
    from modicum.tasks.examples import without
    from modicum.tasks.prompts import encode
    from modicum.training.session import prepare

    held = replace(config.evaluation, eval_problems=0)
    # Of a run only what draws is needed.
    config = replace(config, update="last(1)", curriculum="uniform", reward="accuracy")
    session = prepare(replace(config, objective="grpo", evaluation=held))
    task, sampling = without(session.task, session.examples), session.config.sampling
    size, turns = task.size("train"), turns_of(task)
    if size is None and turns == 1:
        raise UserError(
            f"the problems of {task} do not come again; name levels, such as those of"
            " arithmetic(terms=(2, 3, 4, 5))"
        )
    count = options.problems or (OF_A_LEVEL if size is None else RANKED)
    total = count * turns if size is None else min(count, size)
    key: dict[str, Any] = {"base": dict(session.identity.hashes), "task": str(session.task)}
    key |= {"problems": tasks.fingerprint(session.task), "sampling": asdict(sampling)}
    key = json.loads(json.dumps(key | {"samples": options.samples, "seed": config.seed}))
    path = Path(options.file or _name(config.model, key)).expanduser()
    if path.is_dir():
        raise UserError(f"--file: {path} is a folder; it takes the name of a file")
    fresh = {"model": config.model, **key, "done": 0, "tokens": 0, "rates": {}}
    made: dict[str, Any] = read_object(path) if path.is_file() else fresh
    if other := [name for name, value in key.items() if made.get(name) != value]:
        raise UserError(f"{path} was measured with another {other[0]}; --file takes another name")
    make_folder(path.parent)
    with Display() as display:
        while made["done"] < total:
            places = range(made["done"], min(made["done"] + CHUNK, total))
            problems = [task.problem("train", config.seed, place) for place in places]
            prompts = [
                encode(p, session.policy.tokenizer, sampling, session.examples) for p in problems
            ]
            keys = [("difficulty", config.seed, problem.id) for problem in problems]
            drawn = session.policy.sample(prompts, keys, options.samples, sampling)
            for problem, completions in zip(problems, drawn, strict=True):
                unit = problem.id.rsplit("/", 3)[0] if size is None else problem.id
                right, of = made["rates"].get(unit, (0, 0))
                right += sum(task.grade(problem, c.text).strict for c in completions)
                made["rates"][unit] = [right, of + len(completions)]
                made["tokens"] += sum(len(c.tokens) for c in completions)
            made["done"] = places.stop
            Run(path.parent).write(path.name, made)
            display.evaluating("difficulty", made["done"], total)
    return path, made


def _name(model: str, key: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    words = re.sub(r"[^a-z0-9]+", "-", f"{Path(model).name} {key['task']}".lower())
    return f"difficulty/{words[:60].strip('-')}-{digest}.json"


def text_of(path: Path, made: dict[str, Any]) -> str:
    """What was measured, as lines to read."""
    rates = {unit: right / of for unit, (right, of) in made["rates"].items()}
    ranked = sorted(rates.items(), key=lambda item: -item[1])
    shown = ranked if len(ranked) <= 12 else [*ranked[:3], *ranked[-3:]]
    nothing, all_right = (sum(r == end for r in rates.values()) for end in (0, 1))
    return "\n".join(
        [
            f"{made['task']}: {made['done']} problems x {made['samples']} completions of"
            f" {made['model']}, {made['tokens']:,} tokens; {len(rates)} rates, mean"
            f" {sum(rates.values()) / len(rates):.1%}, {nothing} at 0 and {all_right} at 100%",
            *(f"  {rate:6.1%}  {unit}" for unit, rate in shown),
            f"use it: --curriculum \"easy_to_hard(difficulty='{path}')\"",
        ]
    )
