"""modicum, one step at a time, for the comparison in run.py.

The same protocol as trl_worker.py: the job on standard input, then a line for every step;
a line of times for every step on standard output. The first line out holds the prompts,
as texts, of all steps, so that TRL gets the same ones.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from modicum import curricula, machine, rewards, runs
from modicum.config import Compute, Held, Records, Sampling, Steps, TrainConfig
from modicum.tasks.prompts import encode
from modicum.training import loop, session


@dataclass(frozen=True)
class Checksum(rewards.Term):
    """A number in [0, 1) made from the text: every group has a signal."""

    name: ClassVar[str] = "checksum"

    def score(self, task: Any, problem: Any, completion: Any) -> float:
        return zlib.crc32(completion.text.encode()) % 1000 / 1000


def config_of(job: dict[str, Any]) -> TrainConfig:
    """The training run that the job describes."""
    objective = f"grpo(kl={job['kl']})" if job["kl"] else "grpo"
    return TrainConfig(
        model=job["model"],
        task=job["task"],
        reward="checksum",
        update=job["update"],
        objective=objective,
        steps=job["steps"],
        out=job["out"],
        sampling=Sampling(max_tokens=job["max_tokens"]),
        batch=Steps(
            prompts_per_step=job["prompts_per_step"],
            group_size=job["group_size"],
            micro_batch=job["micro_batch"],
            rollout_batch=job.get("rollout_batch", 0),
        ),
        compute=Compute(dtype=job["dtype"], **job.get("compute", {})),
        evaluation=Held(eval_problems=0),
        records=Records(checkpoint_every=0),
        optimizer=replace(TrainConfig().optimizer, learning_rate=1e-6),
    )


def prompts_of(made: session.Session) -> list[list[str]]:
    """The prompts of every step as texts that encode to themselves."""
    config, tokenizer = made.config, made.policy.tokenizer
    every = []
    order = curricula.parse(config.curriculum).begin(made.task, config.seed)
    for _ in range(config.steps):
        problems = order.next(config.batch.prompts_per_step, 0.0)
        ids = [encode(p, tokenizer, config.sampling) for p in problems]
        texts = [tokenizer.decode(found) for found in ids]
        assert [tuple(tokenizer(text)["input_ids"]) for text in texts] == ids
        every.append(texts)
    return every


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed below goes to standard error
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    machine.reuse_memory()
    rewards.REWARDS["checksum"] = Checksum
    made = session.prepare(config_of(job))
    # Never ends early: every completion has the full length.
    made.policy.sampler.end_tokens = ()  # type: ignore[attr-defined]
    run = runs.Run.create(Path(job["out"]), "", overwrite=True)
    packages = ("torch", "transformers", "peft")
    prompts = prompts_of(made)
    ids = [made.policy.tokenizer(text)["input_ids"] for step in prompts for text in step]
    ready = {
        "prompts": prompts,
        "prompt_tokens": round(sum(map(len, ids)) / len(ids)),
        "versions": {name: metadata.version(name) for name in packages},
        "machine": machine.environment(),
    }
    print(json.dumps(ready), file=out, flush=True)
    for step in range(job["steps"]):
        if not sys.stdin.readline():
            return
        began = time.perf_counter()
        metrics = loop.run_step(made, run, step)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        line = {
            "seconds": time.perf_counter() - began,
            "sampling": metrics["time/sampling_seconds"],
            "agreement": metrics["time/agreement_seconds"],
            "length": metrics["completions/length_mean"],
            "signal": 1 - metrics["groups/no_signal"],
            "peak_bytes": machine.peak_bytes(),
        }
        print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main()
