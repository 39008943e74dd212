"""The rate that a run finds beside the one that five tries found, for every update.

    python scripts/found_rates.py [--seeds 0 1]

The tries are those of benchmarks/updates.py (docs/updates.md): a grid with a factor of three. Prints
a Markdown table: the tuned rate, the mean of the rates found (by runs of 8 problems x 8 on the tiny
base that end with the step that finds it), what is between them, and the rate of the table.
"""

from __future__ import annotations

import argparse
import math
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from modicum.config import Held, Records, Steps, TrainConfig
from modicum.recipes import start_rate
from modicum.training.loop import Observer, train
from modicum.training.session import Session

PAGE = Path(__file__).parent.parent / "docs" / "updates.md"
ROW = re.compile(
    r"^\| `(?P<update>[^`]+)` \| (?P<rate>\d\.\de-\d\d)(?P<edge> \*|\*)? \|", re.MULTILINE
)


def main() -> None:
    """Print a row for every update of the table in docs/updates.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", default="runs/found-rates")
    options = parser.parse_args()
    print("| update | tuned | found | found / tuned | table / found |", flush=True)
    print("| --- | --- | --- | --- | --- |", flush=True)
    for row in ROW.finditer(PAGE.read_text(encoding="utf-8")):
        update, tuned = row["update"], float(row["rate"])
        if "by='run'" in update:
            continue
        found, start = [], 0.0
        for seed in options.seeds:
            watch = Watch()
            batch = Steps(prompts_per_step=8, group_size=8)
            config = replace(
                TrainConfig(), update=update, seed=seed, batch=batch, steps=30, out=options.out,
                evaluation=Held(eval_problems=0), records=Records(anatomy=False, checkpoint_every=0),
            )  # fmt: skip
            with suppress(Found):
                train(config, watch, overwrite=True)
            start = start_rate(watch.session.update, watch.session.active_parameters)
            found.append(watch.session.learning_rate)
        mean = math.exp(sum(map(math.log, found)) / len(found))
        edge = " *" if row["edge"] else ""
        cells = f"{tuned:.1e}{edge} | {mean:.1e} | {mean / tuned:.2f} | {start / mean:.2f}"
        print(f"| `{update}` | {cells} |", flush=True)


class Found(Exception):
    """The rate is known; the run need not go on."""


class Watch(Observer):
    """Ends a run when it has its rate."""

    def begin(self, session: Session, first_step: int) -> None:
        """Keep the session."""
        self.session = session

    def step(self, metrics: dict[str, float]) -> None:
        """End as soon as the rate is known."""
        if self.session.learning_rate:
            raise Found


if __name__ == "__main__":
    main()
