"""What the sampler's own copy of the weights is worth: decoding with it and without, beside the machine's rate.

    python benchmarks/decode.py [--model FOLDER] [--rows 8,32,128] [--tokens 16] [--repeat 5]

Prompts of 80 tokens in groups of 8 are decoded token by token, in turn without the copy and with it. Seconds are of
the process's CPU time, all threads, medians over the repeats; `share` is FLOPs of the matrix products over what
a large square product of the same dtype does in that time. `laid` is the time that a first copy takes, `again` that
after a step of the update. Writes benchmarks/decode.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from modicum import machine, updates
from modicum.engine.split import SplitEngine
from modicum.models.decoder import Decoder
from modicum.models.load import load
from modicum.models.weight_copy import WeightCopy

HERE, GROUP = Path(__file__).parent, 8
UPDATES = ("full", "last(6)", "lora(rank=8)")


def spent(call: Any) -> tuple[float, Any]:
    """CPU seconds of a call, and what it gave."""
    began = time.process_time()
    found = call()
    return time.process_time() - began, found


def matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """FLOPs of a large square product in a CPU second, the best of seven."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / min(spent(lambda: a @ b)[0] for _ in range(7))


def decoded(engine: SplitEngine, rows: int, tokens: int) -> tuple[float, torch.Tensor]:
    """CPU seconds of so many tokens of every row, and the last logits."""
    prompts = [tuple(range(100 + n, 180 + n)) for n in range(rows // GROUP)]
    with torch.inference_mode():
        decoding = engine.decode(prompts, GROUP, tokens + 1, keep=False)

        def steps() -> torch.Tensor:
            for n in range(tokens):
                decoding.advance(torch.arange(rows) + 1000 + n)
            return decoding.logits_BV

        return spent(steps)


def measure(model: str, update: str, dtype: str, options: Any) -> list[dict[str, Any]]:
    """A line for every number of rows."""
    loaded = load(model, "cpu", dtype)
    prepared = updates.parse(update).apply(loaded.model)
    for name, tensor in prepared.trainable.items():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor.data, std=0.02)
    engine = SplitEngine(Decoder(prepared.model), prepared.lowest_layer)
    copy = WeightCopy(engine.decoder)
    laid, _ = spent(copy.refresh)
    copy.moved(prepared.active.values())
    again, _ = spent(copy.refresh)
    numbers = sum(base.weight.numel() for p in copy.products.values() for base in p.bases)
    rate = matrix_rate(next(prepared.model.parameters()).dtype)
    found = []
    for rows in map(int, options.rows.split(",")):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        apart = 0.0
        for repeat in range(options.repeat + 1):
            logits = {}
            for with_copy in (False, True) if repeat % 2 else (True, False):
                engine.weight_copy = copy if with_copy else None
                taken, logits[with_copy] = decoded(engine, rows, options.tokens)
                if repeat:
                    seconds[with_copy].append(taken)
            apart = max(apart, float((logits[True] - logits[False]).abs().max()))
        before, after = (statistics.median(seconds[which]) for which in (False, True))
        flops = 2.0 * numbers * rows * options.tokens
        found.append(
            {
                **{"update": update, "dtype": dtype, "rows": rows, "tokens": options.tokens},
                **{"before": before, "after": after, "ratio": after / before, "apart": apart},
                **{"share_before": flops / before / rate, "share_after": flops / after / rate},
                **{"laid": laid, "again": again, "bytes": copy.num_bytes},
            }
        )
        print(
            json.dumps(
                {k: round(v, 4) if isinstance(v, float) else v for k, v in found[-1].items()}
            ),
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", default="8,32,128")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--updates", nargs="*", default=UPDATES)
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine.environment(), "rows": []}
    for dtype in options.dtypes.split(","):
        for update in options.updates:
            found["rows"] += measure(options.model, update, dtype, options)
            (HERE / "decode.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
