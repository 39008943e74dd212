"""What an objective, a critic, a learned reward and a curriculum cost a step.

    python benchmarks/steps.py [--pairs 30] [--only dapo] [--model models/SmolLM2-135M-Instruct]

Objectives: two sessions of the tiny base that differ in nothing else take the same steps in turn, the
first of a pair being the other one each time. The rate is so small that both sample the same tokens, and
the reward is a coin, so that nearly every group has a signal and the same rows train. Compared with
`grpo`, or with `grpo(kl=0.01)` where the objective asks for the reference. The first row compares `grpo`
with itself. Critics: `ppo` after its warm-up beside `reinforce_pp(kl=0)`, which has the same advantages
from a batch mean, under `last(1)` with the trunk kept. Learned rewards: a LoRA on the base that scores
beside a coin; what the step takes longer, and what scoring takes, each as a share of one forward of the
base over the same completions, of which every prompt is run once. Curricula: the share of a step that is spent in choosing problems and in hearing of them.
CPU seconds of this process; medians over pairs, with the 95 % interval of the median by their ranks. Writes
benchmarks/steps.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from modicum import objectives, runs
from modicum.commands.difficulty import reward_model
from modicum.config import TrainConfig
from modicum.engine.reward import last_states
from modicum.tasks import prompts
from modicum.training.loop import run_step
from modicum.training.session import Session, prepare

HERE, FOLDER = Path(__file__).parent, Path("runs/steps")
SUMS = f"file({str(HERE.parent / 'studies/curricula/sums')!r}, difficulty='terms')"
CURRICULA = (
    *("uniform", "easy_to_hard", "hard_to_easy", "competence(c0=0.6)", "e2h", "bandit"),
    *("prioritized", "pools(medium=2)", "adarft(rescale=True)", "placebo(easy_to_hard)"),
)
CRITICS = ("ppo(warmup=0)", "ppo(critic='mlp', warmup=0)", "ppo(critic='lora(rank=8)', warmup=0)")
WARM, MODEL = 3, ["tiny"]


def session_of(**settings: Any) -> Session:
    """A run that has not begun; its steps go on for longer than any of them is asked for."""
    config = TrainConfig(update="full", steps=10_000, model=MODEL[0])
    if MODEL[0] != "tiny":  # steps of seconds
        sizes = replace(config.batch, prompts_per_step=4, micro_batch=8)
        few = replace(config.sampling, max_tokens=32)
        config = replace(config, task="addition(below=20)", batch=sizes, sampling=few)
    config = replace(
        config,
        optimizer=replace(config.optimizer, learning_rate=1e-12, schedule="constant"),
        compute=replace(config.compute, agreement_every=0),
        evaluation=replace(config.evaluation, probe_every=0),
    )
    return prepare(replace(config, **settings))


def timed(session: Session, run: runs.Run, step: int) -> float:
    """CPU seconds of a step."""
    start = time.process_time()
    run_step(session, run, step)
    return time.process_time() - start


def middle(values: list[float]) -> tuple[float, float, float]:
    """The median, and its 95 % interval by ranks (of a binomial, as a normal)."""
    ranked, half = sorted(values), 0.98 * len(values) ** 0.5
    low, high = int(len(ranked) / 2 - half), int(len(ranked) / 2 + half)
    return statistics.median(ranked), ranked[max(0, low)], ranked[min(len(ranked) - 1, high)]


def objective(name: str, pairs: int, run: runs.Run) -> tuple[float, float, float]:
    """Its step over that of the reference, from pairs of steps."""
    plain = "grpo(kl=0.01)" if objectives.parse(name).needs_reference else "grpo"
    both = [session_of(reward="random", objective=text) for text in (plain, name)]
    return middle([b / a for a, b in pairs_of(*both, pairs, run)[WARM:]])


def pairs_of(
    plain: Session, other: Session, pairs: int, run: runs.Run
) -> list[tuple[float, float]]:
    """CPU seconds of steps of both, which of the two goes first in turn."""
    both, found = (plain, other), []
    for step in range(WARM + pairs):
        order = (0, 1) if step % 2 else (1, 0)
        seconds = {which: timed(both[which], run, step) for which in order}
        found.append((seconds[0], seconds[1]))
    return found


def critic(name: str, pairs: int, run: runs.Run) -> tuple[float, float, float]:
    """A step with it over one with a batch mean."""
    known = {"update": "last(1)" if MODEL[0] == "tiny" else "last(6)", "reward": "random"}
    both = [session_of(objective=text, **known) for text in ("reinforce_pp(kl=0)", name)]
    return middle([b / a for a, b in pairs_of(*both, pairs, run)[WARM:]])


def learned(name: str, pairs: int, run: runs.Run) -> tuple[float, float, float]:
    """What a step takes longer (`step`) or what scoring takes (`scoring`), in forwards."""
    rows = [{"prompt": f"{n}?", "chosen": f"{n} a", "rejected": f"{n} b"} for n in range(200)]
    (run.folder / "rows.jsonl").write_text(runs.to_lines(rows))
    fit = {"pairs": str(run.folder / "rows.jsonl"), "loss": "pairwise", "epochs": 1, "rank": 8}
    fit |= {"targets": "q_proj, k_proj, v_proj, o_proj", "shuffle_labels": False}
    if not (folder := run.folder / "judge").exists():
        reward_model(replace(TrainConfig(), model=MODEL[0], out=str(folder)), fit)
    text = f"learned({str(folder)!r}, force=True)"
    plain, judged = (session_of(update="last(1)", reward=r) for r in ("random", text))
    ((_, term),) = judged.reward.terms
    inner, spent = vars(term)["judge"], {"scoring": 0.0, "forward": 0.0}
    scorer = judged.policy.scorer

    def judge(problem: Any, group: Any) -> Any:
        start = time.process_time()
        found = inner(problem, group)
        middle = time.process_time()
        with torch.no_grad():
            prompt = prompts.encode(
                problem, judged.policy.tokenizer, judged.config.sampling, judged.examples
            )
            last_states(scorer, prompt, [c.tokens for c in group])
        spent["scoring"] += middle - start
        spent["forward"] += time.process_time() - middle
        return found

    vars(term)["judge"] = judge
    found = []
    for step in range(WARM + pairs):
        spent.update(scoring=0.0, forward=0.0)
        order = (plain, judged) if step % 2 else (judged, plain)
        seconds = {id(session): timed(session, run, step) for session in order}
        longer = seconds[id(judged)] - spent["forward"] - seconds[id(plain)]
        found.append((longer if name == "step" else spent["scoring"]) / spent["forward"])
    return middle(found[WARM:])


def curriculum(name: str, pairs: int, run: runs.Run) -> tuple[float, float, float]:
    """The share of a step in `next` and `observe`."""
    session, spent, found = session_of(task=SUMS, curriculum=name), [0.0], []

    def counted(call: Any) -> Any:
        def inner(*args: Any) -> Any:
            start = time.process_time()
            made = call(*args)
            spent[0] += time.process_time() - start
            return made

        return inner

    for part in ("next", "observe"):
        setattr(session.order, part, counted(getattr(session.order, part)))
    for step in range(WARM + pairs):
        spent[0] = 0.0
        seconds = timed(session, run, step)
        found.append(spent[0] / seconds)
    return middle(found[WARM:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--only", default="", help="names that hold this text")
    parser.add_argument(
        "--model", default="tiny", help="what is measured on it stands under its name"
    )
    options = parser.parse_args()
    MODEL[0] = options.model
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    run = runs.Run(FOLDER)
    path = HERE / "steps.json"
    # What is not measured again stays.
    found: dict[str, Any] = json.loads(path.read_text()) | {"pairs": options.pairs}
    for kind, names, measure in (
        ("objectives", ["grpo", *(n for n in objectives.OBJECTIVES if n != "grpo")], objective),
        ("critics", CRITICS, critic),
        ("learned", ("scoring", "step"), learned),
        ("curricula", CURRICULA, curriculum),
    ):
        kind = kind if options.model == "tiny" else f"{kind}, {Path(options.model).name}"
        found.setdefault(kind, {})
        for name in names:
            if options.only in name:
                found[kind][name] = measure(name, options.pairs, run)
                print(kind, name, *(f"{value:.4f}" for value in found[kind][name]), flush=True)
                path.write_text(json.dumps(found, indent=1) + "\n")
    shutil.rmtree(FOLDER)


if __name__ == "__main__":
    main()
