"""Parts `steps` and `trl`: seconds and memory of a step at 1.5B shapes, of modicum and of TRL.

The workers, the prompts and the settings are those of run.py, with which a comparison on a CPU is
made: same model folder, same prompts, completions of one length, same part trained, same dtype.
One process at a time, as a GPU has no slow spells that both should meet, and memory for one.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gpu import Asked, Cannot, Put
from gpu_base import device_of, model_folder
from run import Worker, median

UPDATES: dict[str, dict[str, int]] = {
    "full": {},
    "last(5)": {"train_layers": 5},
    "lora(rank=8)": {"lora_rank": 8},
}
"""What trains, and how trl_worker.py is told so."""
STEPS = 2  # after one to warm up


@contextmanager
def jobs(asked: Asked) -> Iterator[dict[str, dict[str, Any]]]:
    """A job for every update, as run.py gives them to its workers."""
    with model_folder(asked, device_of(asked)) as folder:
        common = {
            "model": str(folder / "model"),
            "task": f"file({str(folder / 'problems.jsonl')!r})",
            "dtype": "fp32" if asked.device == "cpu" else "bf16",
            "threads": 1 if asked.small else 8,
            "kl": 0.0,
            "steps": 1 + STEPS,
            "prompts_per_step": 2 if asked.small else 8,
            "group_size": 2 if asked.small else 8,
            "max_tokens": 4 if asked.small else 128,
            "micro_batch": 2 if asked.small else 32,
            "rollout_batch": 4 if asked.small else 64,
            "train_layers": 0,
            "lora_rank": 0,
            "compute": {"device": asked.device, "agreement_every": 0, "checkpointing": False},
            "out": str(folder / "run"),
        }
        yield {name: common | {"update": name} | more for name, more in chosen(asked).items()}


def chosen(asked: Asked) -> dict[str, dict[str, int]]:
    """The updates that are asked for."""
    return dict(list(UPDATES.items())[-1:]) if asked.small else UPDATES


def measured(worker: Worker, job: dict[str, Any]) -> dict[str, Any]:
    """A worker's steps: the median of seconds after the first, and the peak of all."""
    worker.begin(job)
    steps = [worker.ask({"go": True}) for _ in range(job["steps"])]
    worker.close()
    taken, sampling = median(steps, "seconds"), median(steps, "sampling")
    return {
        "seconds": taken,
        "sampling_seconds": sampling,
        "training_seconds": taken - sampling,
        "steps": [step["seconds"] for step in steps],
        "peak_bytes": int(max(step["peak_bytes"] for step in steps)),
        "versions": worker.ready["versions"],
    }


def every(asked: Asked, put: Put, kind: str) -> None:
    """All updates by one worker; one that ends does not end the others."""
    told, job = [], dict[str, Any]()
    device_of(asked)
    with ExitStack() as stack:
        logs = stack.enter_context(tempfile.TemporaryDirectory())
        # All import at the same time what they need; then one after the other has the card.
        waiting = [Worker(kind, sys.executable, Path(logs) / name) for name in chosen(asked)]
        made = stack.enter_context(jobs(asked))
        for worker, (name, job) in zip(waiting, made.items(), strict=True):
            if kind == "trl":
                job["prompts"] = texts(job)
            try:
                found = measured(worker, job)
            except SystemExit as error:  # with the worker's last words
                found = {"error": str(error)[-1000:]}
            if kind == "modicum" and "error" not in found:
                found["planned"] = planned(job, asked)
            put(name, found)
            if "error" in found:
                told.append(f"{name} stopped")
            else:
                told.append(f"{name} {found['seconds']:.2f} s {found['peak_bytes'] / 1e9:.1f} GB")
        put("job", {k: v for k, v in job.items() if k not in ("prompts", "model", "task", "out")})
    put("line", "; ".join(told))


def ours(asked: Asked, put: Put) -> None:
    """modicum's steps, and beside its peaks what `modicum plan` foretells."""
    every(asked, put, "modicum")


def trl(asked: Asked, put: Put) -> None:
    """The same by TRL's GRPOTrainer."""
    from importlib import metadata

    try:
        metadata.version("trl")
    except metadata.PackageNotFoundError:
        raise Cannot("trl is not installed") from None
    every(asked, put, "trl")


def texts(job: dict[str, Any]) -> list[list[str]]:
    """The prompts of every step that modicum's worker has for this job."""
    from modicum_worker import config_of, prompts_of

    from modicum import tasks
    from modicum.models.load import read_tokenizer

    tokenizer = read_tokenizer(job["model"])
    made: Any = SimpleNamespace(
        config=config_of(job),
        task=tasks.parse(job["task"]),
        policy=SimpleNamespace(tokenizer=tokenizer),
    )
    return prompts_of(made)


def planned(job: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """What the planner foretells of such a run: bytes by part at its peak, but for libraries.

    Those are the context of the GPU, which torch's own count of memory leaves out.
    """
    from modicum_worker import config_of

    from modicum.plan.memory import estimate
    from modicum.plan.shapes import lengths_of
    from modicum.plan.sizes import settle

    config, _ = settle(config_of(job))
    peak = estimate(config, lengths_of(config), asked.device, exact=False).peak
    parts = {name: size for name, size in peak.parts.items() if name != "libraries"}
    return {"bytes": sum(parts.values()), "phase": peak.name, "parts": parts}
