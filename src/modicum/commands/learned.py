"""`modicum pairs` and `reward-model`: what a learned reward is made of, and the model."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from modicum.answers import STYLES
from modicum.commands.difficulty import Options, drawer, gather
from modicum.commands.train import read
from modicum.config import TrainConfig
from modicum.limits import Natural, Positive
from modicum.options import show
from modicum.report.words import say
from modicum.rewards.terms import REPORT
from modicum.runs import Run, check_new, make_folder
from modicum.settings import Settings
from modicum.types import Problem, UserError

PROBLEMS, FORWARD, WITNESSES = 1024, 16, 2  # pairs of a forward, and for a witness
RATES = (1e-5, 1e-4)  # of all weights, of a LoRA


@dataclass(frozen=True)
class FitOptions(Settings):
    """How to learn from pairs; --prompts-per-step pairs are a step."""

    pairs: str = ""
    """The file of `modicum pairs`, or rows of `prompt, chosen, rejected`: a file, or a folder."""
    loss: Literal["pairwise", "pointwise"] = "pairwise"
    """Which of two is better (Bradley-Terry), or each alone, right or wrong (cross-entropy)."""
    epochs: Positive = 1
    """How often every pair is seen."""
    rank: Natural = 8
    """Of the LoRA, whose alpha is twice that; 0 trains all weights instead."""
    targets: str = "q_proj, k_proj, v_proj, o_proj"
    """Layers that it is in, as PEFT names them; all-linear: all."""
    shuffle_labels: bool = False
    """Toss a coin for which answer is the better one: a placebo."""


def run_pairs(args: list[str]) -> int:
    """Draw completions of the untrained model and pair right with wrong ones."""
    found, options, config = read("pairs", args, Options)
    if options.samples < 2:
        raise UserError(
            "pairs: a pair is two completions of a problem; --samples must be at least 2"
        )

    from modicum.learned import Preference, paired, split

    session = drawer(config)

    def enter(made: dict[str, Any], problem: Problem, prompt: Any, of: Sequence[Any]) -> None:
        told = [(c, session.task.grade(problem, c.text)) for c in of]
        if all(problem.question != question for question, *_ in made["pairs"]):
            made["pairs"] += paired(problem.question, prompt, told, config.seed)

    count = options.problems or PROBLEMS
    path, made = gather(session, "pairs", count, options, {"pairs": []}, enter)
    parts = split([Preference(*pair) for pair in made["pairs"]], config.seed)
    told: dict[str, Any] = {**made, "pairs": {part: len(of) for part, of in parts.items()}}
    show(found.json, {"file": str(path), **told}, say("pairs", file=path, **told))
    return 0


def run_reward_model(args: list[str]) -> int:
    """Train a reward model and say what it is worth; 1 if it does not beat its rivals."""
    found, options, config = read("reward-model", args, FitOptions)
    report = reward_model(config, options)
    show(found.json, report, say("reward_model", folder=config.out, **report))
    return int(not report["beats"])


def reward_model(config: TrainConfig, options: FitOptions) -> dict[str, Any]:
    """Train and write the reward model in `config.out`; its report."""
    import torch

    from modicum import learned
    from modicum.engine.reward import classifier
    from modicum.models.load import load, locate
    from modicum.tasks.prompts import encode

    if not (options.pairs and config.out):
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

    found, told = learned.read(options.pairs, encoded)
    if "base" in told:
        loaded.identity.require(told["base"], f"{options.pairs} is of", config.model)
    train, _, tests = learned.split(found, seed).values()
    if not (train and tests):
        raise UserError(f"{options.pairs}: {len(found)} pairs are too few to train and test on")
    seen, style, taught = train[: len(tests)], STYLES.get(config.sampling.style), train
    if options.shuffle_labels:
        turned = [p._replace(chosen=p.rejected, rejected=p.chosen) for p in train]
        taught = [coin.choice(both) for both in zip(train, turned, strict=True)]
    order = [pair for _ in range(options.epochs) for pair in coin.sample(taught, len(taught))]
    model = classifier(source.place, loaded.device, torch.float32, num_labels=1)
    model = learned.adapted(model, options.rank, options.targets, seed)
    many = told.get("done", 0) * told.get("samples", 0)
    rate = config.optimizer.learning_rate or RATES[options.rank > 0]
    sizes = config.batch.prompts_per_step, config.batch.micro_batch // 2 or FORWARD
    learned.fit(model, order, getattr(learned, options.loss), rate, sizes)
    with torch.no_grad():
        both = torch.cat([*learned.scored(model, tests + seen, sizes[1])]).tolist()
    formed = style.format_ok if style else bool
    report = learned.judge(tests, both[: len(tests)], formed, train)
    report |= {
        "seen": statistics.fmean(learned.by_problem(seen, both[len(tests) :])),
        **{"model": config.model, "base": dict(loaded.identity.hashes), "seed": seed},
        **{"options": asdict(options), "learning_rate": rate},
        "spent": told and {"completions": many, "tokens": told["tokens"]},
        "witness": [*zip(tests[:WITNESSES], both, strict=False)],
    }
    make_folder(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Run(folder).write(REPORT, report)
    return report
