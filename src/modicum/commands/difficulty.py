"""`modicum difficulty`."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from modicum.commands.train import read
from modicum.config import TrainConfig
from modicum.limits import Natural, Positive
from modicum.options import show
from modicum.report.words import say
from modicum.runs import Run, make_folder, read_object
from modicum.settings import Settings
from modicum.types import Completion, Problem, UserError

if TYPE_CHECKING:
    from modicum.training.session import Session

OF_A_LEVEL, CHUNK = 64, 32  # problems


@dataclass(frozen=True)
class Options(Settings):
    """What to measure."""

    problems: Natural = 0
    """Train problems, of each level if there are several; 0: all up to 10,000, or 64 of a level
    (1,024 for pairs)."""
    samples: Positive = 16
    """Completions of each, drawn as in training."""
    file: str = ""
    """Where to write; empty makes a name under difficulty/ from model, task and sampling."""


def run(args: list[str]) -> int:
    """Measure, and print the shares of right answers."""
    found, options, config = read("difficulty", args, Options)
    path, made = measure(config, options)
    ranked = sorted(
        ((right / of, unit) for unit, (right, of) in made["rates"].items()), reverse=True
    )
    shown = ranked if len(ranked) <= 12 else [*ranked[:3], *ranked[-3:]]
    text = say("rates", file=path, mean=fmean(r for r, _ in ranked), ranked=ranked, **made)
    lines = (f"  {rate:6.1%}  {unit}" for rate, unit in shown)
    show(found.json, {"file": str(path), **made}, "\n".join([text, *lines]))
    return 0


def measure(config: TrainConfig, options: Options) -> tuple[Path, dict[str, Any]]:
    """The file and what is in it, with what was measured before."""
    from modicum.curricula.base import RANKED, turns_of

    session = drawer(config)
    task = session.task
    size, turns = task.size("train"), turns_of(task)
    if size is None and turns == 1:
        raise UserError(
            f"the problems of {task} do not come again; name levels, such as those of"
            " arithmetic(terms=(2, 3, 4, 5))"
        )

    def enter(made: dict[str, Any], problem: Problem, _: Any, group: Sequence[Completion]) -> None:
        unit = problem.id.rsplit("/", 3)[0] if size is None else problem.id
        right, of = made["rates"].get(unit, (0, 0))
        right += sum(task.grade(problem, c.text).strict for c in group)
        made["rates"][unit] = [right, of + len(group)]

    count = turns * (options.problems or (OF_A_LEVEL if size is None else RANKED))
    return gather(session, "difficulty", count, options, {"rates": {}}, enter)


def drawer(config: TrainConfig) -> "Session":
    """The session of a run of which only what draws is needed."""
    from modicum.training.session import prepare

    held = replace(config.evaluation, eval_problems=0)
    config = replace(config, update="last(1)", curriculum="uniform", reward="accuracy")
    return prepare(replace(config, objective="grpo", evaluation=held))


def gather(
    session: "Session",
    purpose: str,
    count: int,
    options: Options,
    fresh: dict[str, Any],
    enter: Callable[[dict[str, Any], Problem, Any, Sequence[Completion]], None],
) -> tuple[Path, dict[str, Any]]:
    """The file of what was drawn for a `purpose` on the first `count` train problems, and its content.

    That begins as `fresh`, and `enter` puts a problem, its prompt and its completions in; what an
    earlier call has drawn is there. UserError where that was of other settings.
    """
    from modicum import tasks
    from modicum.display import Display
    from modicum.tasks.examples import without
    from modicum.tasks.prompts import encode

    config, sampling = session.config, session.config.sampling
    task = without(session.task, session.examples)
    size = task.size("train")
    total = count if size is None else min(count, size)
    key: dict[str, Any] = {"base": dict(session.identity.hashes), "task": str(session.task)}
    key |= {"problems": tasks.fingerprint(session.task), "sampling": asdict(sampling)}
    key = json.loads(json.dumps(key | {"samples": options.samples, "seed": config.seed}))
    path = Path(options.file or _name(purpose, config.model, key)).expanduser()
    if path.is_dir():
        raise UserError(f"--file: {path} is a folder; it takes the name of a file")
    begun = {"model": config.model, **key, "done": 0, "tokens": 0, **fresh}
    made: dict[str, Any] = read_object(path) if path.is_file() else begun
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
            keys = [(purpose, config.seed, problem.id) for problem in problems]
            drawn = session.policy.sample(prompts, keys, options.samples, sampling)
            for problem, prompt, group in zip(problems, prompts, drawn, strict=True):
                enter(made, problem, prompt, group)
                made["tokens"] += sum(len(c.tokens) for c in group)
            made["done"] = places.stop
            Run(path.parent).write_text(path.name, json.dumps(made) + "\n")
            display.evaluating(purpose, made["done"], total)
    return path, made


def _name(purpose: str, model: str, key: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    words = re.sub(r"[^a-z0-9]+", "-", f"{Path(model).name} {key['task']}".lower())
    return f"{purpose}/{words[:60].strip('-')}-{digest}.json"
