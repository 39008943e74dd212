"""Synthetic run folders for the tests of reports."""

from __future__ import annotations

import json
from pathlib import Path

HOSTILE = '<script>alert("x")</script><img src=https://evil.example/a.png onerror=alert(1)>'


def evaluation(accuracy: float, **other: object) -> dict[str, object]:
    return {
        "accuracy": accuracy,
        "low": accuracy - 0.03,
        "high": accuracy + 0.03,
        "greedy": accuracy + 0.01,
        "lenient": accuracy + 0.02,
        "format": 0.9,
        "truncated": 0.05,
        "length": 40.0 + 100 * accuracy,
        "num_problems": 300,
        "samples_per_problem": 4,
    } | other


def make(root: Path, update: str, trained: float = 0.3456, seed: int = 0, steps: int = 30) -> Path:
    folder = root / f"{update}-{seed}"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        f'update = "{update}"\ntask = "arithmetic"\nseed = {seed}\n[sampling]\ngroup = 8\n'
    )
    rows = [
        {
            "step": step,
            "reward/accuracy": 0.1 + step / 200,
            "completions/length_mean": 40 + step,
            "policy/entropy": 1.0 - step / 60,
            "time/step_seconds": 2.5,
            "time/sampling_seconds": 1.5,
        }
        for step in range(steps)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [
        {"step": step, "question": "1 + 1?", "gold": "2", "completion": text, "reward": 0.5}
        for step, text in ((0, "early words"), (15, "middle words"), (29, HOSTILE))
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    result = {
        "update": update,
        "model": "tiny",
        "task": "arithmetic",
        "reward": "accuracy",
        "objective": "grpo",
        "seed": seed,
        "steps": steps,
        "base": evaluation(0.1234),
        "trained": evaluation(trained),
        "trainable_parameters": 123_456,
        "total_parameters": 1_234_560,
        "seconds": 654.3,
        "peak_memory_bytes": 3 * 2**29,
        "generated_tokens": 987_654,
        "change_proof": "3 tensors changed, 9 are bit-identical",
        "agreement_max": 2e-6,
    }
    (folder / "result.json").write_text(json.dumps(result))
    known = {"packages": {"numpy": "2.0"}, "began_in": ["somebody/work", "../.."]}
    (folder / "environment.json").write_text(json.dumps(known))
    return folder


def make_whole(
    root: Path, update: str, gain: int = 0, seed: int = 0, base: bool = True, few: bool = False
) -> Path:
    """A run folder with all that a report reads, another reward term and held-out completions.

    Of 12 problems of the difficulties 1 to 3, the base solves those of difficulty 1 and the
    trained model `gain` more of the others, the easier ones first. With `few` metrics no others
    than those of `make`.
    """
    folder = make(root, update, seed=seed)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["tokens/generated"] = 1280 * (1 + row["step"])
    for row in () if few else rows:
        step = row["step"]
        row |= {"reward/mean": 0.2 + step / 150, "reward/format": 0.5, "policy/kl": 0.001 * step}
        row |= {"policy/clip_fraction": 0.0, "completions/truncated": 0.3 - step / 100}
        row |= {"groups/no_signal": 0.25, "policy/learning_rate": 1e-4 * (1 + step)}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    solved = {"base": 4, "trained": 4 + gain}
    for name in ("base", "trained") if base else ("trained",):
        lines = [
            {
                "id": f"p{n}",
                "sample": sample,
                "question": f"What is {n} + {n}?",
                "gold": str(2 * n),
                "completion": f"{name} of {update} says {n}",
                "num_tokens": 5,
                "finished": True,
                "difficulty": float(1 + n // 4),
                "strict": n < solved[name],
                "lenient": True,
                "extracted": None,
                "reason": "",
            }
            for n in range(12)
            for sample in ("greedy", 0, 1)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"completions-{name}.jsonl").write_text(text)
    return folder
