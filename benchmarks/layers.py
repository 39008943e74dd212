"""What a partial update costs: time of the training phase against the number of trained layers.

    python benchmarks/layers.py [--model FOLDER] [--counts 1,2,4,6,0] [--repeat 3]

One rollout of the benchmark's settings (see run.py), then training on it for last(1),
last(2), ... and full (0). For every update: seconds of reference, forward with backward
and optimizer; matrix operations of each phase and the share of the machine's own rate of
matrix products that it reaches; FLOPs of backward against the model in docs/updates.md
(F.2). Prints tables and writes benchmarks/layers.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import modicum_worker
import torch
from inputs import write_problems, write_small_model
from torch.utils.flop_counter import FlopCounterMode

from modicum import machine, rewards
from modicum.engine import logprobs
from modicum.engine.base import tokens_of
from modicum.training import session, step
from modicum.types import Batch
from modicum.updates.products import backward_products

HERE = Path(__file__).parent


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """FLOPs a second of a large square matrix product, the best of seven."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(7):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


class Phase:
    """Times a block and counts the FLOPs of its matrix products."""

    def __init__(self, count: bool) -> None:
        self.counter = FlopCounterMode(display=False) if count else None
        self.seconds, self.flops, self.linear = 0.0, 0, 0

    def __enter__(self) -> Phase:
        if self.counter is not None:
            self.counter.__enter__()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *error: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.began
        if self.counter is not None:
            self.counter.__exit__(*error)
            counts = self.counter.get_flop_counts().get("Global", {})
            self.flops = sum(counts.values())
            self.linear = sum(
                n for op, n in counts.items() if "mm" in str(op) and "bmm" not in str(op)
            )


def train_once(made: session.Session, batch: Batch, count: bool) -> dict[str, Phase]:
    """The phases of training on a batch: reference, forward, backward; in micro-batches of all."""
    names = ("reference", "forward", "backward", "optimizer")
    totals = {name: Phase(False) for name in names}
    engine, sampling = made.policy.scorer, made.config.sampling
    size = made.config.batch.micro_batch

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        with Phase(count) as found:
            yield
        totals[name].seconds += found.seconds
        totals[name].flops += found.flops
        totals[name].linear += found.linear

    for start in range(0, len(batch.rows), size):
        part = batch.rows[start : start + size]
        tokens_N, pack = tokens_of(part, engine.device), engine.pack(part)
        trunk = engine.trunk(pack)
        with phase("reference"), torch.no_grad(), made.prepared.reference():
            logprobs.head_logprobs(engine, engine.hidden(pack, trunk), tokens_N, sampling)
        with phase("forward"):
            hidden_NH = engine.hidden(pack, trunk)
        with phase("backward"):  # of the head's chunks their forward too
            logprobs.backward(engine, hidden_NH, tokens_N, sampling, lambda p, _: p.mean())
        made.optimization.masters.collect()
    with phase("optimizer"):
        step.optimizer_step(made, 0.0)
    return totals


def modelled(made: session.Session, batch: Batch, num_tokens: int) -> float:
    """FLOPs of backward by F.2: two for each of a weight's products with each token.

    The head meets the completion tokens alone; its forward is run inside the same phase.
    """
    prepared, decoder = made.prepared, made.policy.scorer.decoder  # type: ignore[attr-defined]
    predicted = sum(len(row.tokens) for row in batch.rows)
    total = 2.0 * decoder.head.weight.numel() * predicted
    for product in backward_products(prepared, prepared.trainable, decoder.num_layers):
        tokens = predicted if product.module is decoder.head else num_tokens
        total += 2.0 * product.passes * product.numbers * tokens
    return total


def measure(job: dict[str, Any], counts: list[int], repeat: int, rate: float) -> list[dict]:
    """One row for each number of trained layers (0: full)."""
    rows = []
    for count in counts:
        update = f"last({count})" if count else "full"
        made = session.prepare(modicum_worker.config_of(job | {"update": update}))
        made.policy.sampler.end_tokens = ()  # type: ignore[attr-defined]
        with FlopCounterMode(display=False) as counter:
            groups = step.sample_groups(made, 0)
        began = time.perf_counter()
        groups = step.sample_groups(made, 0)
        sampling = time.perf_counter() - began
        _, rewards_PG = step.score(made.task, made.reward, groups, [])
        batch = step.make_batch(made.objective, groups, rewards_PG)
        counted = train_once(made, batch, count=True)
        timed = [train_once(made, batch, count=False) for _ in range(repeat)]
        num_tokens = sum(len(g.prompt) for g in groups)
        num_tokens += sum(len(row.tokens) - 1 for row in batch.rows)
        phases = {"sampling": (sampling, counter.get_total_flops())}
        for name, phase in counted.items():
            phases[name] = (statistics.median(t[name].seconds for t in timed), phase.flops)
        training = statistics.median(
            sum(p.seconds for n, p in t.items() if n != "reference") for t in timed
        )
        linear = modelled(made, batch, num_tokens)
        rows.append(
            {
                "model": Path(job["model"]).name,
                "update": update,
                "layers": count or made.policy.scorer.decoder.num_layers,  # type: ignore[attr-defined]
                "num_layers": made.policy.scorer.decoder.num_layers,  # type: ignore[attr-defined]
                "training_seconds": training,
                "phases": {n: {"seconds": s, "flops": f} for n, (s, f) in phases.items()},
                "matrix_share": {n: f / s / rate for n, (s, f) in phases.items() if f},
                "backward_flops": counted["backward"].linear,
                "modelled_linear_flops": linear,
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    full = next((row for row in rows if row["update"] == "full"), None)
    for row in rows:
        row["of_full"] = row["training_seconds"] / full["training_seconds"] if full else None
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a reader."""
    lines = [
        "| model | update | training s | of full | aim | backward GF | F.2 GF | sampling |"
        " reference | forward | backward |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        aim = row["layers"] / row["num_layers"] + 0.15
        shares = [
            f"{row['matrix_share'].get(name, 0):.0%}"
            for name in ("sampling", "reference", "forward", "backward")
        ]
        lines.append(
            f"| {row['model']} | `{row['update']}` | {row['training_seconds']:.2f} |"
            f" {row['of_full'] or 0:.2f} | {min(1, aim):.2f} | {row['backward_flops'] / 1e9:.1f} |"
            f" {row['modelled_linear_flops'] / 1e9:.1f} | {' | '.join(shares)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure both models, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/bench/SmolLM2-135M", help="the real model")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", default=str(HERE / "layers.json"))
    options = parser.parse_args()
    machine.reuse_memory()
    rewards.REWARDS["checksum"] = modicum_worker.Checksum
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate, rows = matrix_rate(device, dtype), []
    with tempfile.TemporaryDirectory() as made:
        out = Path(made)
        write_problems(out / "problems.jsonl")
        write_small_model(out / "small")
        task = f"file({str(out / 'problems.jsonl')!r})"
        common = {"task": task, "kl": 0.04, "dtype": options.dtype, "steps": 1, "group_size": 8}
        small = {"model": str(out / "small"), "prompts_per_step": 16, "max_tokens": 48}
        real = {"model": options.model, "prompts_per_step": 4, "max_tokens": 32}
        for job, micro, counts in ((small, 64, [1, 2, 3, 4, 5, 0]), (real, 16, [1, 6, 15, 0])):
            job |= common | {"micro_batch": micro, "out": str(out / "run")}
            rows += measure(job, counts, options.repeat, rate)
    found = {"matrix_flops_per_second": rate, "machine": machine.environment(), "rows": rows}
    Path(options.out).write_text(json.dumps(found, indent=1) + "\n")
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s; shares are of that")
    print(table(rows))


if __name__ == "__main__":
    main()
