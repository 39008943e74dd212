"""Whether the line that `modicum plan` prints fits, and doubling any of its batches does not.

    python scripts/check_plan.py            60 settings: models x updates x cards x tokens
    python scripts/check_plan.py --first 6  fewer

For every setting the sizes are left to the program. Checked by the planner: the line fits the share
of the memory that sizes are chosen for; with twice the micro-batch, or twice the rollout batch, it
does not, unless that is the whole step or the whole evaluation already. Writes benchmarks/plan_lines.json, with CPU seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

from modicum.config import Compute, Sampling, TrainConfig
from modicum.plan import hardware, sizes
from modicum.plan.memory import Subject, estimate
from modicum.plan.shapes import lengths_of

OUT = Path(__file__).parent.parent / "benchmarks" / "plan_lines.json"
MODELS = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B", "HuggingFaceTB/SmolLM3-3B", "Qwen/Qwen2.5-7B")
UPDATES = ("last(5)", "lora(rank=8)", "full", "parts(norm)", "lisa(layers=2, every=20)")
CARDS = (("rtx4090", 512), ("2x48GB", 1024), ("a100-80gb", 2048))


def check(model: str, update: str, card: str, tokens: int) -> dict[str, Any]:
    """One setting: its line, whether it fits, and whether more would."""
    began, machine = time.process_time(), hardware.parse(card)
    config = TrainConfig(
        model=model,
        update=update,
        sampling=Sampling(max_tokens=tokens),
        compute=Compute(dtype="bf16"),
    )
    found, _ = sizes.settle(config, machine=machine)
    seconds = time.process_time() - began
    subject, lengths, batch = Subject.of(found), lengths_of(found), found.batch
    step = batch.prompts_per_step * batch.group_size
    whole = {
        "micro_batch": step,
        "rollout_batch": max(step, found.evaluation.eval_problems * found.evaluation.eval_samples),
    }

    def fits(**more: int) -> bool:
        made = sizes.changed(found, **more)
        return estimate(made, lengths, "cuda", subject).peak.total <= sizes.room_of(machine)

    doubled = {
        name: "whole" if vars(batch)[name] >= most else fits(**{name: 2 * vars(batch)[name]})
        for name, most in whole.items()
    }
    line = sizes.line(found, ("micro_batch", "rollout_batch", "checkpointing"))
    entry = {"model": model, "update": update, "card": card, "max_tokens": tokens, "line": line}
    return {**entry, "fits": fits(), "doubled_fits": doubled, "cpu_seconds": round(seconds, 2)}


def main() -> None:
    """Check them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--first", type=int, default=60, help="so many settings")
    count = parser.parse_args().first
    settings = itertools.product(CARDS, UPDATES, MODELS)
    found = []
    for (card, tokens), update, model in itertools.islice(settings, count):
        found.append(check(model, update, card, tokens))
        print(found[-1], flush=True)
        OUT.write_text(json.dumps(found, indent=1) + "\n")
    odd = [e for e in found if e["fits"] and True in e["doubled_fits"].values()]
    print(
        f"{len(found)} settings: {sum(e['fits'] for e in found)} fit, {len(odd)} could be doubled"
    )


if __name__ == "__main__":
    main()
