"""Part `plan`: what `modicum plan` foretells beside what was measured, and the numbers it assumes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu import Asked, Put
from gpu_base import attempt, device_of, model_folder, wait

NAME = "Qwen/Qwen2.5-0.5B"
ROWS: tuple[dict[str, Any], ...] = (
    {"update": "full"},
    {"update": "last(5)", "kl": 0.04},
    {"update": "lora(rank=8)", "micro_batch": 16},
)
"""Other runs than those of `steps`, whose peaks are beside their plans too."""
ASSUMED = ("SHARE", "BANDWIDTH_SHARE", "LAYER_SECONDS")


def plan(asked: Asked, put: Put) -> None:
    """Three runs of 0.5B shapes: memory and seconds, planned and measured."""
    import modicum_worker

    from modicum import rewards
    from modicum.plan import hardware, memory, overall

    device = device_of(asked)
    rewards.REWARDS["checksum"] = modicum_worker.Checksum
    known = hardware.this(asked.device, "bf16" if asked.device == "cuda" else "fp32")
    rates = known.rates
    put("machine", {"name": known.name, "memory": known.memory, "rates": rates and vars(rates)})
    assumed = {name: getattr(overall, name)[asked.device] for name in ASSUMED}
    put("assumed", assumed | {"CUDA_SLACK": memory.CUDA_SLACK})
    told = []
    with model_folder(asked, device, NAME) as folder:
        for row in ROWS[1:2] if asked.small else ROWS:
            config = config_of(row, asked, folder)
            found = attempt(beside, config, known, device)
            put(row["update"], found)
            if "error" not in found:
                off = found["planned"]["bytes"] / found["measured"]["bytes"] - 1
                told.append(f"{row['update']} {off:+.0%}")
    put("line", "memory, planned against measured: " + ", ".join(told))


def config_of(row: dict[str, Any], asked: Asked, folder: Path) -> Any:
    """The run of a row; its sizes are given, so that nothing is left to the planner."""
    import modicum_worker

    job = {
        "model": str(folder / "model"),
        "task": f"file({str(folder / 'problems.jsonl')!r})",
        "dtype": "fp32" if asked.device == "cpu" else "bf16",
        "kl": 0.0,
        "steps": 2,
        "prompts_per_step": 2 if asked.small else 8,
        "group_size": 2 if asked.small else 8,
        "max_tokens": 4 if asked.small else 96,
        "micro_batch": 2 if asked.small else 64,
        "compute": {"device": asked.device, "agreement_every": 0, "checkpointing": False},
        "out": str(folder / "run"),
    }
    config = modicum_worker.config_of(job | row)
    return replace(config, batch=replace(config.batch, rollout_batch=64))


def beside(config: Any, known: Any, device: torch.device) -> dict[str, Any]:
    """A plan, what two steps took, and what the planner's constants would have been."""
    from modicum.plan.overall import make

    made = make(config, known, advise=False)
    peak = made.memory.peak
    parts = {name: size for name, size in peak.parts.items() if name != "libraries"}
    planned = {"bytes": sum(parts.values()), "phase": peak.name, "parts": parts}
    planned["seconds"] = made.times and vars(made.times)
    measured = two_steps(config, device)
    found: dict[str, Any] = {"planned": planned, "measured": measured}
    if known.rates:
        rate = made.flops.training / max(measured["training_seconds"], 1e-9)
        found["share"] = rate / known.rates.flops(config.compute.dtype)
        one = measured["token_seconds"]
        found["bandwidth_share"] = measured["weight_bytes"] / one / known.rates.bandwidth
        found["layer_seconds"] = one / measured["layers"]
    if measured.get("reserved_bytes"):
        found["slack"] = measured["reserved_bytes"] / measured["bytes"] - 1
    return found


def two_steps(config: Any, device: torch.device) -> dict[str, Any]:
    """Seconds of the second of two steps, peaks of both, and seconds of a token of one row."""
    from gpu_decode import measured as rate
    from gpu_decode import today

    from modicum import machine, runs
    from modicum.training import loop, session

    machine.drop_caches()
    machine.reset_peak()
    before = machine.resident_bytes() if device.type == "cpu" else 0
    made = session.prepare(config)
    sampler: Any = made.policy.sampler
    sampler.end_tokens = ()
    run = runs.Run.create(Path(config.out), "", overwrite=True)
    metrics: dict[str, float] = {}
    for step in range(2):
        metrics = loop.run_step(made, run, step)
        wait(device)
    found: dict[str, Any] = {
        "bytes": machine.peak_bytes() - before,
        "training_seconds": metrics["time/training_seconds"],
        "sampling_seconds": metrics["time/sampling_seconds"],
    }
    if device.type == "cuda":
        found["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    began = time.perf_counter()
    one = rate(made.policy.scorer, today, 1, 1, min(32, config.sampling.max_tokens))
    weights = {id(p): p.nbytes for p in made.policy.model.parameters()}
    layers = made.policy.scorer.decoder.num_layers  # type: ignore[attr-defined]
    found |= {"token_seconds": one["seconds_per_token"], "weight_bytes": sum(weights.values())}
    return found | {"layers": layers, "decode_seconds": time.perf_counter() - began}
