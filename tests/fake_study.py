"""A small study folder made of numbers that are drawn, not trained: same seed, same bytes.

build(folder)                     a control, a good arm, a bad one, a placebo, a failed one
build(folder, arms=17, ...)       the whole table below, for looking at a large report
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from modicum import updates

TOTAL, BASE, MARGIN = 997_760, 0.349, 0.02
LAYERS, PROBLEMS, RATES = 6, 256, (2e-4, 4e-4, 8e-4, 1.6e-3)
LEVELS = {"2": 40, "3": 56, "4": 60, "5": 56, "6": 44}


@dataclass(frozen=True)
class Fake:
    """One arm: what it reaches, its spread over seeds, and its cost beside the control's."""

    name: str
    accuracy: float
    spread: float
    share: float
    time: float
    memory: float
    reward: str = "accuracy"
    failed: int = 0
    """How many of its last seeds failed."""
    edge: bool = False


ARMS = (
    Fake("full", 0.921, 0.012, 1.0, 1.0, 1.0),
    Fake("last(1)", 0.918, 0.008, 0.161, 0.62, 0.55),
    Fake("bitfit", 0.702, 0.03, 0.0015, 0.81, 0.62, edge=True),
    Fake("random reward", 0.352, 0.012, 1.0, 0.9, 1.0, reward="random"),
    Fake("galore(rank=4)", 0.9, 0.01, 1.0, 1.3, 0.7, failed=99),
    Fake("lora(rank=8)", 0.947, 0.009, 0.103, 1.04, 0.71, edge=True),
    Fake("lora(rank=1)", 0.906, 0.031, 0.0129, 1.0, 0.68),
    Fake("first(1)", 0.861, 0.022, 0.161, 0.98, 0.8),
    Fake("middle(1)", 0.899, 0.012, 0.161, 0.8, 0.67),
    Fake("every(2)", 0.929, 0.01, 0.482, 0.95, 0.83),
    Fake("parts(attention)", 0.917, 0.012, 0.296, 0.97, 0.76),
    Fake("parts(mlp)", 0.925, 0.009, 0.665, 0.99, 0.92),
    Fake("last(1, norm=True, head=True)", 0.938, 0.011, 0.197, 0.66, 0.58),
    Fake("lntuning", 0.871, 0.02, 0.0017, 0.84, 0.62),
    Fake("badam(every=5)", 0.742, 0.06, 0.161, 0.78, 0.6, failed=1),
    Fake("lisa(layers=1, every=5)", 0.905, 0.014, 0.33, 0.81, 0.65),
    Fake("sgd", 0.893, 0.02, 1.0, 0.97, 0.66),
)


def build(
    folder: Path, arms: int = 5, seeds: int = 3, steps: int = 12, runs: bool = True
) -> dict[str, Any]:
    """Write the study and return its analysis; without `runs` only two files are written."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    chosen = ARMS[:arms]
    scores = {
        fake.name: rng.normal(fake.accuracy, fake.spread, seeds).clip(0, 1) for fake in chosen
    }
    control = scores["full"]
    analysis = {
        "question": "Which part of a small model is enough for RL on chains of sums?",
        "model": "tiny",
        "task": "arithmetic(terms=6)",
        "control": "full",
        "primary": "accuracy",
        "margin": MARGIN,
        "seeds": list(range(seeds)),
        "budget": {"unit": "tokens", "amount": 120_000},
        "num_problems": PROBLEMS,
        "samples_per_problem": 4,
        "split": "test",
        "base": {"mean": BASE, "low": 0.319, "high": 0.379},
        "control_gain": band(control - BASE),
        "variance": {"seed": 1.4e-4, "problem": 0.02, "residual": 0.04},
        "arms": [describe(fake, scores[fake.name], control, seeds) for fake in chosen],
        "conclusion": "Two arms are not worse than `full` by more than 2 points; the smallest of"
        " them, `last(1)`, trains 16.1 % of the parameters.",
        "notes": ["The numbers of this study are drawn, not measured."],
        "repeat": ["modicum study run studies/fake.toml --out runs/fake"],
    }
    (folder / "analysis.json").write_text(json.dumps(analysis))
    (folder / "study.toml").write_text(
        'question = "Which part is enough?"\ncontrol = "full"\nseeds = [0, 1, 2]\n'
        'primary = "accuracy"\nmargin = 0.02\n[config]\nmodel = "tiny"\n'
        '[config.batch]\ngroup_size = 8\n[budget]\nunit = "tokens"\namount = 120000\n'
    )
    if runs:
        for fake, arm in zip(chosen, analysis["arms"], strict=True):
            for seed, place in arm["folders"].items():
                reached = dataclasses.replace(fake, accuracy=float(arm["by_seed"][seed]))
                run(folder / place, reached, int(seed), steps, rng)
        write_completions(folder / "cells" / "base-test" / "completions.jsonl", 0.0)
    return analysis


def band(values: np.ndarray) -> dict[str, float]:
    """Mean and 95 % t-interval."""
    half = 0.05 if len(values) < 2 else stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    mean = float(values.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def slug(name: str) -> str:
    letters = "".join(c if c.isalnum() or c == "." else " " for c in name.lower())
    return "-".join(letters.split())


def describe(fake: Fake, scores: np.ndarray, control: np.ndarray, seeds: int) -> dict[str, Any]:
    done = max(0, seeds - fake.failed)
    scores, paired = scores[:done], control[:done]
    arm: dict[str, Any] = {
        "name": fake.name,
        "slug": slug(fake.name),
        "placebo": fake.reward == "random",
        "settings": {"update": "full", "reward": "random"}
        if fake.reward == "random"
        else {"update": fake.name},
        "kind": updates.parse("full" if fake.reward == "random" else fake.name).kind,
        "learning_rate": RATES[-1] if fake.edge else RATES[1],
        "rate_at_edge": fake.edge,
        "tries": [tried(fake, number, rate) for number, rate in enumerate(RATES)],
        "by_seed": {str(seed): float(score) for seed, score in enumerate(scores)},
        "accuracy": band(scores) if done else None,
        "gain": band(scores - BASE) if done else None,
        "difference": None,
        "tests": None,
        "retention": None,
        "retention_note": "" if done else "no seed finished",
        "seeds_needed": None,
        "verdict": "control" if fake.name == "full" else "failed",
        "sentence": f"`{fake.name}` trains {100 * fake.share:.3g} % of the parameters.",
        "difficulty": [level(fake, number) for number in range(len(LEVELS))] if done else [],
        "cost": cost(fake),
        "folders": {
            str(seed): f"cells/final/{slug(fake.name)}/seed-{seed}" for seed in range(done)
        },
        "failed": [
            f"seed {seed}: the loss was not finite at step 31" for seed in range(done, seeds)
        ],
    }
    if done and fake.name != "full":
        arm |= compare(scores - paired, fake)
    return arm


def compare(gaps: np.ndarray, fake: Fake) -> dict[str, Any]:
    mean, error = float(gaps.mean()), float(stats.sem(gaps)) or 0.004
    t90, t95 = (stats.t.ppf(level, len(gaps) - 1) for level in (0.95, 0.975))
    low90, high90 = mean - t90 * error, mean + t90 * error
    low95, high95 = mean - t95 * error, mean + t95 * error
    words = {
        "better": low95 > 0,
        "equivalent": low90 > -MARGIN and high90 < MARGIN,
        "not worse": low90 > -MARGIN,
        "worse": high95 < 0,
    }
    verdict = next((word for word, holds in words.items() if holds), "undecided")
    if fake.reward == "random":
        verdict = "placebo: no gain"
    names = ("noninferior", "superior", "equivalent", "inferior")
    return {
        "difference": {
            **{"mean": mean, "low90": low90, "high90": high90, "low95": low95, "high95": high95},
            "method": "t-interval over seeds and problems",
        },
        "tests": {name: {"p": 0.01, "holm": 0.03, "holds": verdict == name} for name in names},
        "retention": band((gaps + 0.92 - BASE) / (0.92 - BASE)),
        "seeds_needed": 9 if verdict == "undecided" else None,
        "verdict": verdict,
    }


def tried(fake: Fake, number: int, rate: float) -> dict[str, Any]:
    best = 3 if fake.edge else 1
    failed = "the loss was not finite" if fake.failed and number == 3 else ""
    accuracy = None if failed else fake.accuracy - 0.04 * abs(number - best) ** 1.5
    folder = f"cells/tune/{slug(fake.name)}/rate-{rate:.1e}"
    return {"rate": rate, "accuracy": accuracy, "failed": failed, "share": 1.0, "folder": folder}


def level(fake: Fake, number: int) -> dict[str, Any]:
    name = list(LEVELS)[number]
    return {
        "level": name,
        "problems": LEVELS[name],
        "accuracy": min(1.0, fake.accuracy + 0.06 - 0.035 * number),
        "base": BASE + 0.2 - 0.1 * number,
    }


def cost(fake: Fake) -> dict[str, Any]:
    parameters = round(fake.share * TOTAL)
    return {
        "parameters": parameters,
        "active_parameters_mean": float(parameters),
        "total_parameters": TOTAL,
        "share": fake.share,
        "seconds": 70 * fake.time,
        "time_ratio": fake.time,
        "step_seconds": 0.7 * fake.time,
        "memory_bytes": round(180e6 * fake.memory),
        "memory_ratio": fake.memory,
        "peak_memory_bytes": round(430e6 + 180e6 * fake.memory),
        "optimizer_bytes": 0 if fake.name == "sgd" else 8 * parameters,
        "generated_tokens": 120_400.0,
        "steps": 100.0,
        "flops": 1e12 * fake.time,
        "flops_ratio": fake.time,
        "tuning_runs": len(RATES),
    }


def run(folder: Path, fake: Fake, seed: int, steps: int, rng: np.random.Generator) -> None:
    """One run folder, as a training run leaves it."""
    folder.mkdir(parents=True)
    update = "full" if fake.reward == "random" else fake.name
    (folder / "config.toml").write_text(
        f'model = "tiny"\ntask = "arithmetic(terms=6)"\nreward = "{fake.reward} + 0.2*format"\n'
        f'update = "{update}"\nsteps = {steps}\nseed = {seed}\nout = "{folder.name}"\n'
        "[batch]\nprompts_per_step = 8\ngroup_size = 8\n"
        f"[optimizer]\nlearning_rate = {RATES[1]}\n"
    )
    environment = {"python": "3.11.7", "versions": {"torch": "2.13.0"}, "cores": 2, "gpu": None}
    environment["began_in"] = ["/data/studies", ".."]
    (folder / "environment.json").write_text(json.dumps(environment))
    risen = 1 - np.exp(-4 * np.arange(steps) / steps)
    accuracy = BASE + (fake.accuracy - BASE) * risen + rng.normal(0, 0.04, steps)
    length = 10 + 11 * risen * (fake.accuracy - BASE) / 0.57 + rng.normal(0, 0.4, steps)
    tokens = np.cumsum(64 * np.round(length, 3))
    rows = [
        {
            "step": step,
            "tokens/generated": round(float(tokens[step]), 3),
            "reward/mean": round(accuracy[step].clip(0, 1) + 0.15, 4),
            f"reward/{fake.reward}": round(float(accuracy[step].clip(0, 1)), 4),
            "reward/format": round(0.3 + 0.6 * float(risen[step]), 4),
            "completions/length_mean": round(float(length[step]), 3),
            "completions/truncated": round(0.02 * float(risen[step]), 4),
            "groups/no_signal": round(0.1 + 0.5 * float(risen[step]), 3),
            "policy/entropy": round(0.28 * math.exp(-2 * step / steps), 4),
            "policy/kl": round(0.002 * step / steps, 6),
            "policy/clip_fraction": 0.0,
            "time/step_seconds": round(0.7 * fake.time * float(rng.uniform(0.9, 1.1)), 4),
        }
        for step in range(steps)
    ]
    write_lines(folder / "metrics.jsonl", rows)
    last = [{"step": -1, "accuracy": BASE}, {"step": steps - 1, "accuracy": fake.accuracy}]
    write_lines(folder / "evaluations.jsonl", last)
    write_completions(folder / "completions-trained.jsonl", fake.accuracy)
    result = {"update": update, "seed": seed, "steps": steps, "anatomy": anatomy(fake, rng)}
    proof = {"change_proof": "12 of 12 trainable tensors changed, 62 frozen ones are bit-identical"}
    (folder / "result.json").write_text(json.dumps(result | proof))


def anatomy(fake: Fake, rng: np.random.Generator) -> dict[str, Any]:
    only_last = fake.name.startswith("last")
    sizes = {
        part: [
            None
            if only_last and layer < LAYERS - 1
            else round(float(rng.uniform(0.4, 1) * size), 5)
            for layer in range(LAYERS)
        ]
        for part, size in (("attention", 0.02), ("mlp", 0.03), ("norm", 0.004), ("bias", 0.01))
    }
    found = {"relative_norm": 0.02, "effective_rank": 31.2, "rank_share": 0.35}
    return {
        **{"dtype": "fp32", "tensors": 74, "tensors_changed": 12 if only_last else 74},
        **{"entries": TOTAL, "entries_in_changed": round(fake.share * TOTAL)},
        "changed": {"0": fake.share, "1e-8": fake.share, "1e-5": 0.9 * fake.share, "bf16": 0.002},
        "relative_norm": 0.0213,
        "parts": {"attention": found, "mlp": found, "embedding": found | {"relative_norm": 0.003}},
        "map": sizes,
    }


def write_completions(file: Path, accuracy: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    right = accuracy > 0.5
    rows = [
        {
            "id": f"arithmetic/test/0/{problem}",
            "sample": sample,
            "question": f"What is {problem}-8-3-6?",
            "gold": str(problem - 17),
            "completion": f"<think>{problem - 8}-3-6=</think><answer>{problem - 17}</answer>"
            if right
            else f"<answer>{problem}</answer>",
            "num_tokens": 20,
            "finished": True,
            "strict": right,
        }
        for problem in range(5)
        for sample in ("greedy", 0, 1)
    ]
    write_lines(file, rows)


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
