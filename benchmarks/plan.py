"""How far the memory that `modicum plan` foretells is from what runs take.

    python benchmarks/plan.py               run what is missing, then compare (about 40 minutes)
    python benchmarks/plan.py --quick       five rows
    python benchmarks/plan.py --write       compare only, from the runs that are there

Every row is a short training in a process of its own on the CPU, at temperature 50, so
that completions are long, with rewards by chance, so that there is something to train. Measured is
the peak of resident memory less what the process held before the model was loaded
(`peak_memory_bytes` and `start_memory_bytes` of result.json). The plan is made from the same
config, with the lengths that came out. What is fitted in
`modicum.plan.memory` was found on the rows of FOUND_ON and is judged on the others. Writes benchmarks/plan.json and the table between the marks
in docs/plan.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "plan.md"
STORE = HERE / "plan.json"
MARKS = ("<!-- table: begin -->", "<!-- table: end -->")
SMOL = "models/SmolLM2-135M-Instruct"
AIM = 0.15
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One short run."""

    model: str
    update: str
    objective: str = "grpo"
    dtype: str = "fp32"
    checkpointing: bool = False
    prompts: int = 8
    group: int = 8
    tokens: int = 48
    micro_batch: int = 64
    steps: int = 3

    def name(self) -> str:
        """What tells it from the other rows."""
        given = [self.update, f"{self.prompts} x {self.group} x {self.tokens}"]
        given += [self.objective] if self.objective != "grpo" else []
        given += [self.dtype] if self.dtype != "fp32" else []
        given += ["checkpointing"] if self.checkpointing else []
        given += [f"micro-batch {self.micro_batch}"] if self.micro_batch < 64 else []
        return f"{'tiny' if self.model == 'tiny' else 'SmolLM2'}: " + ", ".join(given)


def smol(update: str, **rest: Any) -> Row:
    """A row of SmolLM2."""
    return Row(SMOL, update, **{"prompts": 2, "group": 4, "tokens": 16, "steps": 2, **rest})


FOUND_ON = [
    Row("tiny", "full"),
    Row("tiny", "last(1)"),
    Row("tiny", "lora(rank=8)", prompts=16),
    Row("tiny", "full", dtype="bf16"),
    smol("full"),
    smol("last(6)"),
    smol("lora(rank=8)"),
]
OTHERS = [
    *(Row("tiny", update) for update in ("first(1)", "last(2)", "middle(2)", "parts(norm)")),
    *(Row("tiny", update) for update in ("parts(mlp)", "bitfit", "every(2)")),
    *(Row("tiny", update) for update in ("lora(rank=1)", "dora", "pissa", "adalora")),
    *(Row("tiny", update) for update in ("vera", "ia3", "oft", "miss", "loraxs", "shira")),
    *(Row("tiny", update) for update in ("tinylora", "lntuning", "lisa(layers=1, every=1)")),
    *(Row("tiny", update) for update in ("badam(every=1, order='ascending')", "autofreeze")),
    *(Row("tiny", update) for update in ("slimfit", "rgn(every=2, window=1)")),
    *(Row("tiny", update) for update in ("snr(every=3, window=1)", "badam_ratio(every=1)")),
    *(Row("tiny", update) for update in ("sparse(keep=0.05)", "sparse(by='fisher', warmup=1)")),
    *(Row("tiny", update) for update in ("galore(rank=4)", "apollo", "sgd", "sgd @ lora")),
    Row("tiny", "full", objective="grpo(kl=0.04)"),
    Row("tiny", "lora(rank=8)", objective="grpo(kl=0.04)"),
    Row("tiny", "full", checkpointing=True, prompts=32, micro_batch=256),
    Row("tiny", "full", prompts=32, micro_batch=256),
    Row("tiny", "full", prompts=16, micro_batch=32),
    Row("tiny", "last(1)", prompts=32, micro_batch=256),
    smol("first(1)"),
    smol("last(1)"),
    smol("last(1)", objective="grpo(kl=0.04)"),
    smol("parts(norm)"),
    smol("dora"),
    smol("vera"),
    smol("badam(every=1, order='ascending')"),
    smol("sparse(keep=0.05)"),
    smol("galore(rank=4) @ last(6)"),
    smol("sgd"),
    smol("sgd @ lora"),
    smol("full", objective="grpo(kl=0.04)"),
    smol("full", checkpointing=True, prompts=4),
    smol("full", micro_batch=4),
    smol("lora(rank=8)", objective="grpo(kl=0.04)", prompts=4),
    smol("last(6)", prompts=4, tokens=32),
    smol("last(6)", dtype="bf16"),
]
QUICK = [Row("tiny", u) for u in ("full", "last(1)", "lora(rank=1)", "sgd", "badam(every=1)")]


def by_text(completions: list[str], **_: Any) -> list[float]:
    """A reward by chance: the last bit of a text's hash."""
    return [float(hashlib.sha256(text.encode()).digest()[0] % 2) for text in completions]


def config_of(row: Row) -> Any:
    """The run of a row."""
    from modicum.config import Compute, Held, Optimizer, Records, Sampling, Steps, TrainConfig

    return TrainConfig(
        model=row.model,
        update=row.update,
        objective=row.objective,
        reward="function('plan:by_text')",
        steps=row.steps,
        out=f"runs/plan/{hashlib.sha256(repr(row).encode()).hexdigest()[:12]}",
        sampling=Sampling(temperature=50.0, max_tokens=row.tokens),
        batch=Steps(row.prompts, row.group, micro_batch=row.micro_batch),
        optimizer=Optimizer(learning_rate=1e-5 if row.dtype == "fp32" else 1e-3),
        compute=Compute(device="cpu", dtype=row.dtype, checkpointing=row.checkpointing),  # type: ignore[arg-type]
        evaluation=Held(eval_problems=0),
        records=Records(anatomy=False),
    )


def measure(row: Row) -> tuple[Row, dict[str, Any]]:
    """Run a row; bytes above the start, and the lengths of completions."""
    from modicum import runs
    from modicum.training.loop import train
    from modicum.types import UserError

    config = config_of(row)
    try:
        result = train(config, overwrite=True)
    except UserError as error:
        return row, {"error": str(error)}
    lines = runs.read_lines(Path(config.out) / "metrics.jsonl")
    shutil.rmtree(config.out)
    return row, {
        "measured": result["peak_memory_bytes"] - result["start_memory_bytes"],
        "mean_length": max(line["completions/length_mean"] for line in lines),
        "longest": max(line["completions/length_max"] for line in lines),
    }


def foretell(row: Row, found: dict[str, Any]) -> dict[str, Any]:
    """The plan of a row that was run, in bytes by part at its peak."""
    from modicum.plan.memory import estimate
    from modicum.plan.shapes import Lengths, prompt_tokens

    config = config_of(row)
    prompts = prompt_tokens(config)
    assert prompts is not None
    lengths = Lengths(*prompts, round(found["mean_length"]), int(found["longest"]))
    peak = estimate(config, lengths).peak
    return {
        "planned": peak.total,
        "phase": peak.name,
        "parts": dict(peak.parts),
        "error": peak.total / found["measured"] - 1,
    }


def table(entries: list[dict[str, Any]]) -> str:
    """The rows as Markdown, and what they come to."""
    lines = [
        "| run | measured MiB | planned MiB | off by | phase of the peak |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry in entries:
        if "measured" not in entry:
            lines.append(f"| {entry['name']} | stopped: {entry['error']} | | | |")
            continue
        mark = " *" if entry["found_on"] else ""
        miss = " (miss)" if abs(entry["error"]) > AIM else ""
        lines.append(
            f"| {entry['name']}{mark} | {entry['measured'] / MIB:,.0f} |"
            f" {entry['planned'] / MIB:,.0f} | {entry['error']:+.1%}{miss} | {entry['phase']} |"
        )
    for what, chosen in (
        ("rows that the overhead was found on (*)", [e for e in entries if e["found_on"]]),
        ("all others", [e for e in entries if not e["found_on"]]),
    ):
        errors = [e["error"] for e in chosen if "measured" in e]
        if errors:
            good = sum(abs(error) <= AIM for error in errors)
            worst = max(errors, key=abs)
            lines += ["", f"{what}: {good} of {len(errors)} within 15 %, worst {worst:+.1%}."]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, compare, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five rows, nothing is written")
    parser.add_argument("--write", action="store_true", help="compare without running")
    parser.add_argument("--again", action="store_true", help="run rows that are there too")
    options = parser.parse_args()
    rows = QUICK if options.quick else [*FOUND_ON, *OTHERS]
    kept: dict[str, dict[str, Any]] = {}
    if STORE.exists() and not options.quick:
        kept = {entry["name"]: entry for entry in json.loads(STORE.read_text())}
    if not options.write:
        # A process that begins with fork would share memory with the one it comes from.
        context = multiprocessing.get_context("spawn")
        missing = [row for row in rows if options.again or row.name() not in kept]
        with context.Pool(1, maxtasksperchild=1) as pool:
            for row, found in pool.imap(measure, missing, chunksize=1):
                kept[row.name()] = {**dataclasses.asdict(row), "name": row.name(), **found}
                print(row.name(), found, flush=True)
                if not options.quick:
                    STORE.write_text(json.dumps(list(kept.values()), indent=1) + "\n")
    entries = []
    for row in rows:
        entry = kept.get(row.name())
        if entry is None:
            continue
        entry["found_on"] = row in FOUND_ON
        if "measured" in entry:
            entry |= foretell(row, entry)
            print(f"{entry['name']}: {entry['error']:+.1%}", flush=True)
        entries.append(entry)
    if options.quick:
        print(table(entries))
        return
    STORE.write_text(json.dumps(entries, indent=1) + "\n")
    text = PAGE.read_text()
    begin, end = (text.index(mark) for mark in MARKS)
    PAGE.write_text(
        text[: begin + len(MARKS[0])] + "\n" + table(entries) + "\n" + text[end:],
    )


if __name__ == "__main__":
    os.chdir(HERE.parent)
    sys.exit(main())
