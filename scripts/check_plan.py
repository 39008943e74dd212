"""Whether the line that `modicum plan` prints fits, and doubling any of its batches does not.

    python scripts/check_plan.py              60 settings: models x updates x cards x tokens
    python scripts/check_plan.py --part 1/3   from the first on, beside two other processes
    python scripts/check_plan.py --measure    runs of tiny and SmolLM2 on this CPU, against the plan
    python scripts/check_plan.py --write      the tables of docs/plan.md, from what is there

For every setting the sizes are left to the program, and the line that it prints (the sizes, or the
advice where none fit) is read again by the parser of the command line. Checked by the planner: it
fits the share of the memory that sizes are chosen for; with twice the micro-batch, or twice the
rollout batch, it does not, unless that is the whole step or the whole evaluation already. Goes on
where benchmarks/plan_lines.json ends.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from filelock import FileLock

from modicum.config import TrainConfig, from_mapping
from modicum.options import Parser, add_options, given
from modicum.plan import hardware, overall, sizes
from modicum.plan.memory import Subject, estimate
from modicum.plan.shapes import Lengths, lengths_of, prompt_tokens

ROOT = Path(__file__).parent.parent
OUT, PAGE = ROOT / "benchmarks" / "plan_lines.json", ROOT / "docs" / "plan.md"
MARKS = ("<!-- lines: begin -->", "<!-- lines: end -->")
MODELS = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B", "HuggingFaceTB/SmolLM3-3B", "Qwen/Qwen2.5-7B")
UPDATES = ("last(5)", "lora(rank=8)", "full", "parts(norm)", "lisa(layers=2, every=20)")
CARDS = (("rtx4090", 512), ("2x48GB", 1024), ("a100-80gb", 2048))
SETTINGS = [
    (f"{model}: {update}, {card}, {tokens} tokens", model, update, card, tokens)
    for (card, tokens), update, model in itertools.product(CARDS, UPDATES, MODELS)
]
MIB, SMOL = 2**20, "models/SmolLM2-135M-Instruct"
TINY = "--prompts-per-step 16 --group-size 8 --max-tokens 48"
SMALL = "--prompts-per-step 4 --group-size 4 --max-tokens 16"
RUNS = [
    *(
        ("tiny", update, mib, TINY)
        for update in ("full", "last(1)", "last(2)")
        for mib in (150, 400)
    ),
    *(("tiny", update, 250, TINY) for update in ("lora(rank=8)", "parts(norm)")),
    (SMOL, "full", 3000, SMALL),
    (SMOL, "last(6)", 1200, SMALL),
    (SMOL, "lora(rank=8)", 1500, SMALL),
]
"""Model, update, MiB that the sizes are chosen for, and what else is given."""


made = Subject.of


@cache
def subject_of(model: str, update: str, dtype: str) -> Subject:
    """That of a run of these."""
    return made(read(f"--model {model} --update '{update}' --dtype {dtype}"))


def shared(config: TrainConfig, parts: Any = None) -> Subject:
    """A subject that stays, with what was estimated of it."""
    return subject_of(config.model, config.update, config.compute.dtype)


def read(line: str) -> TrainConfig:
    """The settings of a line of options."""
    parser = Parser("train")
    add_options(parser, TrainConfig)
    return from_mapping(TrainConfig, given(TrainConfig, parser.read(shlex.split(line))), "options")


def check(model: str, update: str, card: str, tokens: int) -> dict[str, Any]:
    """One setting: its line, whether it fits, and whether more would."""
    began, machine = time.process_time(), hardware.parse(card)
    asked = f"--model {model} --update '{update}' --max-tokens {tokens} --dtype bf16"
    with mock.patch.object(Subject, "of", shared):  # so that nothing is traced twice
        plan = overall.make(read(asked), machine)
    seconds = time.process_time() - began
    advised = re.match(r"with (.*): [0-9.]+ GiB", plan.advice)
    line = advised[1] if advised else plan.options
    found = read(f"{asked} {line}")
    found, _ = sizes.settle(found, machine=machine)  # checkpointing, where the line has none
    subject, lengths, batch = shared(found), lengths_of(found), found.batch
    step = batch.prompts_per_step * batch.group_size
    whole = {
        "micro_batch": step,
        "rollout_batch": max(step, found.evaluation.eval_problems * found.evaluation.eval_samples),
    }

    def share(**more: int) -> float:
        made = sizes.changed(found, **more)
        return estimate(made, lengths, "cuda", subject).peak.total / sizes.room_of(machine)

    doubled = {
        name: "whole"
        if vars(batch)[name] >= most
        else round(share(**{name: 2 * vars(batch)[name]}), 3)
        for name, most in whole.items()
    }
    return {
        "line": line,
        "advised": bool(advised),
        "share": round(share(), 3),
        "doubled": doubled,
        "cpu_seconds": round(seconds, 2),
    }


def measure(model: str, update: str, mib: int, rest: str) -> dict[str, Any]:
    """One run at the sizes that are chosen for so many MiB of a CPU, in a process of its own."""
    asked = f"--model {model} --update '{update}' --device cpu --eval-problems 0 {rest}"
    machine = hardware.Machine(f"{mib} MiB", "cpu", mib * MIB, None)
    plan = overall.make(read(asked), machine, advise=False)
    # All completions as long as they may be, and all of them train.
    hot = "--temperature 50 --objective 'grpo(kl=0.04)' --learning-rate 1e-5 --no-anatomy"
    line = f"{asked} {plan.options} {hot} --steps 2"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "modicum", "train", *shlex.split(line), "--json"]
        done = subprocess.run(
            [*command, "--out", f"{folder}/run"], capture_output=True, text=True, check=False
        )
        result = json.loads(Path(f"{folder}/run/result.json").read_text()) if done.stdout else {}
        if not result:
            raise SystemExit(done.stderr)
        metrics = Path(f"{folder}/run/metrics.jsonl").read_text().splitlines()
    longest = round(max(json.loads(text)["completions/length_max"] for text in metrics))
    mean = round(max(json.loads(text)["completions/length_mean"] for text in metrics))
    config = read(line)
    lengths = Lengths(*(prompt_tokens(config) or (0, 0)), mean, longest)
    planned = estimate(config, lengths, "cpu").peak.total
    measured = result["peak_memory_bytes"] - result["start_memory_bytes"]
    return {"line": plan.options, "mib": mib, "planned": planned, "measured": measured}


def table(found: dict[str, Any]) -> str:
    """Both tables, in Markdown."""
    lines = [
        "| setting | line | of the share | with twice the micro-batch | with twice the rollouts |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, of in found["lines"].items():
        twice = [v if v == "whole" else f"{v:.0%}" for v in of["doubled"].values()]
        lines.append(f"| {name} | `{of['line']}` | {of['share']:.0%} | {' | '.join(twice)} |")
    lines += ["", "| run on a CPU | for MiB | line | planned MiB | measured MiB | off by |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for name, of in found["runs"].items():
        off = f"{of['planned'] / of['measured'] - 1:+.1%}"
        sizes_ = f"`{of['line']}` | {of['planned'] / MIB:,.0f} | {of['measured'] / MIB:,.0f}"
        lines.append(f"| {name} | {of['mib']:,} | {sizes_} | {off} |")
    return "\n".join(lines)


def main() -> None:
    """Check what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--part", default="1/1", help="where it begins")
    parser.add_argument("--measure", action="store_true", help="runs instead")
    parser.add_argument("--write", action="store_true", help="the tables only")
    options = parser.parse_args()
    gc.disable()
    part, of = map(int, options.part.split("/"))
    runs = [(f"{Path(run[0]).name}: {run[1]}, {run[2]} MiB", *run) for run in RUNS]
    kind, work, act = ("runs", runs, measure) if options.measure else ("lines", SETTINGS, check)
    # Those that begin in the middle meet the others' work last.
    mine = work[len(work) * (part - 1) // of :] + work[: len(work) * (part - 1) // of]
    for name, *given_ in [] if options.write else mine:
        if name in json.loads(OUT.read_text())[kind]:
            continue
        entry = act(*given_)  # type: ignore[operator, arg-type]
        print(name, entry, flush=True)
        with FileLock(OUT.with_name(".lock")):
            kept = json.loads(OUT.read_text())
            kept[kind].setdefault(name, entry)
            order = [n for n, *_ in work]
            kept[kind] = {n: kept[kind][n] for n in order if n in kept[kind]}
            OUT.write_text(json.dumps(kept, indent=1) + "\n")
    found = json.loads(OUT.read_text())
    text = PAGE.read_text()
    if options.write:
        begin, end = (text.index(mark) for mark in MARKS)
        body = text[: begin + len(MARKS[0])] + "\n" + table(found) + "\n"
        PAGE.write_text(body + text[end:])
    fit = [e for e in found["lines"].values() if e["share"] <= 1]
    odd = [e for e in fit if any(v != "whole" and v <= 1 for v in e["doubled"].values())]
    print(f"{len(found['lines'])} settings: {len(fit)} fit, {len(odd)} could be doubled")


if __name__ == "__main__":
    main()
