"""What a run ends with: `result.json`."""

from __future__ import annotations

from typing import Any

from modicum import machine, runs
from modicum.session import Session


def write(session: Session, run: runs.Run, evaluated: dict[str, Any], proof: str) -> dict[str, Any]:
    """Write `result.json` and return what it holds."""
    config = session.config
    found = {
        "update": str(config.update),
        "model": config.model,
        "task": config.task,
        "reward": config.reward,
        "objective": config.objective,
        "seed": config.seed,
        "steps": config.steps,
        "base": evaluated["base"] or None,
        "trained": evaluated["trained"] or None,
        "trainable_parameters": session.trainable_parameters,
        "total_parameters": session.total_parameters,
        "trainable_tensors": len(session.prepared.trainable),
        "active_parameters_mean": session.active_sum
        / max(1, session.optimizer_steps - session.skipped),
        "optimizer_bytes": session.optimization.peak_bytes,
        "decisions": session.decisions,
        "seconds": session.trained_seconds,
        "peak_memory_bytes": machine.peak_bytes(),
        "generated_tokens": session.generated_tokens,
        "skipped_steps": session.skipped,
        "change_proof": proof,
        "agreement_max": session.agreement_max,
        "base_hash": session.base,
    }
    run.write("result.json", found)
    return found
