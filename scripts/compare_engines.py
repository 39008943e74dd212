"""Does the fast engine learn what the plain one learns? Demo runs with both, side by side.

    python scripts/compare_engines.py [--seeds 0 1] [--updates 'full; last(1); lora(rank=8)']

Same seed, same problems, same noise; what differs is the last bits of logits, which in time
turn one sampled token into another. Prints held-out accuracy with its interval, the largest
difference of the mean reward over the first ten steps and of its mean over the last ten,
and the seconds of both.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from modicum import runs
from modicum.config import Compute, TrainConfig
from modicum.training.loop import train


def run(update: str, seed: int, kind: Any, out: Path) -> tuple[dict[str, Any], list[float]]:
    """The result and the reward curve of a demo run with one engine."""
    config = TrainConfig(update=update, seed=seed)
    result = train(replace(config, compute=Compute(engine=kind), out=str(out)), overwrite=True)
    return result, [line["reward/mean"] for line in runs.read_lines(out / "metrics.jsonl")]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", default="full; last(1); lora(rank=8)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", default="runs/engines")
    options = parser.parse_args()
    print("| update | seed | library | split | first 10 steps | last 10 | seconds |", flush=True)
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for update in (text.strip() for text in options.updates.split(";")):
        for seed in options.seeds:
            found = [
                run(update, seed, kind, Path(options.out) / kind) for kind in ("library", "split")
            ]
            shown = [
                f"{r['trained']['accuracy']:.1%} [{r['trained']['low']:.1%},"
                f" {r['trained']['high']:.1%}]"
                for r, _ in found
            ]
            one, two = (curve for _, curve in found)
            early = max(abs(a - b) for a, b in zip(one[:10], two[:10], strict=True))
            late = abs(sum(one[-10:]) - sum(two[-10:])) / 10
            seconds = [f"{r['seconds']:.0f}" for r, _ in found]
            print(
                f"| `{update}` | {seed} | {shown[0]} | {shown[1]} | {early:.3f} | {late:.3f} |"
                f" {seconds[0]} -> {seconds[1]} |",
                flush=True,
            )
    shutil.rmtree(options.out)


if __name__ == "__main__":
    main()
