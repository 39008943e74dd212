"""`modicum difficulty`, `pairs` and `reward-model`: what an untrained model writes, and a reward of it."""

import hashlib
import json
import random
import re
import statistics
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modicum.answers import STYLES
from modicum.commands import printed
from modicum.commands.train import settings
from modicum.config import TrainConfig
from modicum.report.words import say
from modicum.rewards.terms import REPORT
from modicum.runs import Run, check_new, make_folder, read_object
from modicum.types import Completion, Problem, UserError

if TYPE_CHECKING:
    from modicum.training.session import Session

OF_A_LEVEL, CHUNK = 64, 32  # problems
PROBLEMS, FORWARD, WITNESSES = 1024, 16, 2  # pairs of a forward, and for a witness
FIT = ("pairs", "loss", "epochs", "rank", "targets", "shuffle_labels")  # how a reward model learns
RATES = (1e-5, 1e-4)  # of all weights, of a LoRA
Made = dict[str, Any]  # what `gather` has in its file
Enter = Callable[[Made, Problem, Any, Sequence[Completion]], None]


def run(found: Namespace) -> int:
    """Measure, and print the shares of right answers."""
    from modicum.curricula.base import RANKED, turns_of

    session = drawer(settings(found))
    task = session.task
    size, turns = task.size("train"), turns_of(task)
    if size is None and turns == 1:
        such = "name levels, such as those of arithmetic(terms=(2, 3, 4, 5))"
        raise UserError(f"the problems of {task} do not come again; {such}")

    def enter(made: dict[str, Any], problem: Problem, _: Any, group: Sequence[Completion]) -> None:
        unit = problem.id.rsplit("/", 3)[0] if size is None else problem.id
        right, of = made["rates"].get(unit, (0, 0))
        right += sum(task.grade(problem, c.text).strict for c in group)
        made["rates"][unit] = [right, of + len(group)]

    count = turns * (found.problems or (OF_A_LEVEL if size is None else RANKED))
    path, made = gather(session, "difficulty", count, found, {"rates": {}}, enter)
    rates = ((right / of, unit) for unit, (right, of) in made["rates"].items())
    ranked = sorted(rates, reverse=True)
    shown = ranked if len(ranked) <= 12 else [*ranked[:3], *ranked[-3:]]
    mean = statistics.fmean(rate for rate, _ in ranked)
    text = say("rates", file=path, mean=mean, ranked=ranked, **made)
    lines = (f"  {rate:6.1%}  {unit}" for rate, unit in shown)
    return printed(found.json, {"file": str(path), **made}, "\n".join([text, *lines]))


def drawer(config: TrainConfig) -> "Session":
    """The session of a run of which only what draws is needed."""
    from modicum.training.session import prepare

    held = replace(config.evaluation, eval_problems=0)
    config = replace(config, update="last(1)", curriculum="uniform", reward="accuracy")
    return prepare(replace(config, objective="grpo", evaluation=held))


def gather(
    session: "Session", purpose: str, count: int, asked: Namespace, fresh: Made, enter: Enter
) -> tuple[Path, Made]:
    """The file of what was drawn for a `purpose` on the first `count` train problems, and its content.

    That begins as `fresh`, and `enter` puts a problem, its prompt and its completions in; what an
    earlier call has drawn is there. UserError where that was of other settings."""
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
    key = json.loads(json.dumps(key | {"samples": asked.samples, "seed": config.seed}))
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    words = re.sub(r"[^a-z0-9]+", "-", f"{Path(config.model).name} {key['task']}".lower())
    name = f"{purpose}/{words[:60].strip('-')}-{digest}.json"
    if (path := Path(asked.file or name).expanduser()).is_dir():
        raise UserError(f"--file: {path} is a folder; it takes the name of a file")
    begun = {"model": config.model, **key, "done": 0, "tokens": 0, **fresh}
    made: dict[str, Any] = read_object(path) if path.is_file() else begun
    if other := [name for name, value in key.items() if made.get(name) != value]:
        raise UserError(f"{path} was measured with another {other[0]}; --file takes another name")
    make_folder(path.parent)
    form = session.policy.tokenizer, sampling, session.examples
    with Display() as display:
        while made["done"] < total:
            places = range(made["done"], min(made["done"] + CHUNK, total))
            problems = [task.problem("train", config.seed, place) for place in places]
            prompts = [encode(problem, *form) for problem in problems]
            keys = [(purpose, config.seed, problem.id) for problem in problems]
            drawn = session.policy.sample(prompts, keys, asked.samples, sampling)
            for problem, prompt, group in zip(problems, prompts, drawn, strict=True):
                enter(made, problem, prompt, group)
                made["tokens"] += sum(len(c.tokens) for c in group)
            made["done"] = places.stop
            Run(path.parent).write_text(path.name, json.dumps(made) + "\n")
            display.evaluating(purpose, made["done"], total)
    return path, made


def run_pairs(found: Namespace) -> int:
    """Draw completions of the untrained model and pair right with wrong ones."""
    config = settings(found)

    from modicum.learned import Preference, paired, split

    session = drawer(config)

    def enter(made: dict[str, Any], problem: Problem, prompt: Any, of: Sequence[Any]) -> None:
        told = [(c, session.task.grade(problem, c.text)) for c in of]
        if all(problem.question != question for question, *_ in made["pairs"]):
            made["pairs"] += paired(problem.question, prompt, told, config.seed)

    path, made = gather(session, "pairs", found.problems or PROBLEMS, found, {"pairs": []}, enter)
    parts = split([Preference(*pair) for pair in made["pairs"]], config.seed)
    told: dict[str, Any] = {**made, "pairs": {part: len(of) for part, of in parts.items()}}
    return printed(found.json, {"file": str(path), **told}, say("pairs", file=path, **told))


def run_reward_model(found: Namespace) -> int:
    """Train a reward model and say what it is worth; 1 if it does not beat its rivals."""
    config = settings(found)
    report = reward_model(config, {name: getattr(found, name) for name in FIT})
    text = say("reward_model", folder=config.out, **report)
    return printed(found.json, report, text, int(not report["beats"]))


def reward_model(config: TrainConfig, fit: dict[str, Any]) -> dict[str, Any]:
    """Train and write the reward model in `config.out`; its report. `fit` says how to learn from
    pairs, of which `prompts_per_step` are a step."""
    import torch

    from modicum import learned
    from modicum.engine.reward import classifier
    from modicum.models.load import load, locate
    from modicum.tasks.prompts import encode

    pairs = fit["pairs"]
    if not (pairs and config.out):
        raise UserError("reward-model needs --pairs FILE and --out FOLDER")
    check_new(folder := Path(config.out), False)
    if (source := locate(config.model, config.trust, config.base)).adapter:
        raise UserError(f"{config.model} is an adapter; a reward model needs a whole base")
    loaded = load(config.model, config.compute.device, "fp32", config.trust)
    tokenizer, seed, coin = loaded.tokenizer, config.seed, random.Random(config.seed)
    sampling = replace(config.sampling, examples=0)

    def encoded(where: str, question: str, *answers: str) -> list[Sequence[int]]:
        ids = tokenizer(answers, add_special_tokens=False, verbose=False)["input_ids"]
        prompt = encode(Problem(where, question, ""), tokenizer, sampling)
        return [prompt, *((*of, loaded.end_tokens[0]) for of in ids)]

    found, told = learned.read(pairs, encoded)
    if "base" in told:
        loaded.identity.require(told["base"], f"{pairs} is of", config.model)
    train, _, tests = learned.split(found, seed).values()
    if not (train and tests):
        raise UserError(f"{pairs}: {len(found)} pairs are too few to train and test on")
    seen, style, taught = train[: len(tests)], STYLES.get(config.sampling.style), train
    if fit["shuffle_labels"]:
        turned = [p._replace(chosen=p.rejected, rejected=p.chosen) for p in train]
        taught = [coin.choice(both) for both in zip(train, turned, strict=True)]
    order = [pair for _ in range(fit["epochs"]) for pair in coin.sample(taught, len(taught))]
    model = classifier(source.place, loaded.device, torch.float32, num_labels=1)
    model = learned.adapted(model, fit["rank"], fit["targets"], seed)
    many = told.get("done", 0) * told.get("samples", 0)
    rate = config.optimizer.learning_rate or RATES[fit["rank"] > 0]
    sizes = config.batch.prompts_per_step, config.batch.micro_batch // 2 or FORWARD
    learned.fit(model, order, getattr(learned, fit["loss"]), rate, sizes)
    with torch.no_grad():
        both = torch.cat([*learned.scored(model, tests + seen, sizes[1])]).tolist()
    report = learned.judge(tests, both[: len(tests)], style.format_ok if style else bool, train)
    report |= {
        "seen": statistics.fmean(learned.by_problem(seen, both[len(tests) :])),
        **{"model": config.model, "base": dict(loaded.identity.hashes), "seed": seed},
        **{"options": fit, "learning_rate": rate},
        "spent": told and {"completions": many, "tokens": told["tokens"]},
        "witness": [*zip(tests[:WITNESSES], both, strict=False)],
    }
    make_folder(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Run(folder).write(REPORT, report)
    return report
