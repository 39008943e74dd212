"""The learning rate of each update on the tiny base, by accuracy on the tune split.

    python scripts/tune_rates.py --updates 'full; last(1); lora(rank=8)' --rates 1e-4 2e-4 4e-4

Every update gets the same number of tries, steps and seeds. Prints a Markdown table:
sampled accuracy on 256 problems of the tune split, with its interval over problems.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from modicum.config import Held, TrainConfig
from modicum.evaluate import Evaluation
from modicum.training.loop import train
from modicum.types import RunStopped


def main() -> None:
    """Train, evaluate on the tune split, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", default="full; last(1); lora(rank=8)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4, 4e-4])
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--out", default="runs/tune")
    options = parser.parse_args()
    print("| update | learning rate | sampled | greedy | length | seconds |", flush=True)
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    base: Evaluation | None = None
    for update in (text.strip() for text in options.updates.split(";")):
        for rate in options.rates:
            config = TrainConfig(update=update, seed=options.seed)
            config = replace(
                config,
                steps=options.steps or config.steps,
                out=str(Path(options.out) / "run"),
                optimizer=replace(config.optimizer, learning_rate=rate),
                evaluation=Held(eval_split="tune"),
            )
            try:
                result = train(config, overwrite=True, base=base)
            except RunStopped as error:
                print(f"| `{update}` | {rate:g} | stopped: {error} | | | |", flush=True)
                continue
            base, found = (Evaluation.from_json(result[key]) for key in ("base", "trained"))
            print(
                f"| `{update}` | {rate:g} | {found.accuracy:.1%} [{found.low:.1%}, {found.high:.1%}]"
                f" | {found.greedy:.1%} | {found.length:.0f} | {result['seconds']:.0f} |",
                flush=True,
            )
    shutil.rmtree(options.out)


if __name__ == "__main__":
    main()
