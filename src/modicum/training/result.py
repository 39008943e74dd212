"""What a run ends with: `result.json`, and `anatomy.json` with what changed in every tensor.

`result.json` says that the run is finished, so it comes last and once: a run that is killed
before has only its end to do again.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from modicum import anatomy, machine, runs
from modicum.models.adapters import merged
from modicum.models.load import load
from modicum.plan.shapes import rested
from modicum.training.rollout import untrained
from modicum.training.session import Session
from modicum.types import FolderError, UserError

SETTINGS = ("update", "model", "task", "reward", "objective", "seed")
COUNTED = ("optimizer_bytes", "decisions", "generated_tokens", "ledger", "empty_steps", "flops")


def make(
    session: Session,
    run: runs.Run,
    evaluated: dict[str, Any],
    proof: str,
    steps: int,
    start_memory: int,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """What `result.json` will hold; writes `anatomy.json`. The session is spent afterwards."""
    config, counters = session.config, session.counters
    found = {
        **{name: getattr(config, name) for name in SETTINGS},
        "steps": steps,
        "stopped": session.stop.reason,
        "base": evaluated["base"] or None,
        "trained": evaluated["trained"] or None,
        "trainable_parameters": session.trainable_parameters,
        "total_parameters": session.total_parameters,
        "trainable_tensors": len(session.prepared.trainable),
        "active_parameters_mean": counters.active_sum
        / max(1, counters.optimizer_steps - counters.skipped),
        **{name: getattr(counters, name) for name in (*COUNTED, "agreement_max")},
        "seconds": counters.trained_seconds,
        "peak_memory_bytes": machine.peak_bytes(),
        "start_memory_bytes": start_memory,
        "skipped_steps": counters.skipped,
        "change_proof": proof,
        "agreement_proof": session.agreement.report(),
        "base_hash": session.identity.hashes["base_hash"],
        "nothing_trained": untrained(session, steps),
    }
    if config.records.anatomy:
        try:
            found["anatomy"] = _anatomy(session, run, note)
        except (MemoryError, RuntimeError, UserError) as error:
            if isinstance(error, FolderError):
                raise
            why = (str(error) or type(error).__name__).splitlines()[0][:200]
            note(f"the run has no anatomy: {why}")
    return found


def _anatomy(session: Session, run: runs.Run, note: Callable[[str], None]) -> dict[str, Any]:
    """Compare the policy with the base, loaded again; the parts to `anatomy.json`."""
    config, rank = session.config, getattr(session.prepared.adapter, "rank", None)
    # On the CPU, since merging makes the model fp32 and the base comes on top.
    session.policy.model.to("cpu")
    policy = session.prepared.merged()
    given = config.model, "cpu", config.compute.dtype, config.trust, config.base
    base = load(*given, rested(config, session.update))
    base.identity.require(session.identity.hashes, f"{run.folder} was trained on", config.model)
    changes = anatomy.measure(policy, merged(base.model), session.policy.device)
    run.write(
        "anatomy.json",
        {
            "dtype": config.compute.dtype,
            "tensors": [{**asdict(change), "full_rank": change.full_rank} for change in changes],
        },
    )
    logged = run.folder / "metrics.jsonl"
    rewards = [line["reward/mean"] for line in (runs.read_lines(logged) if logged.exists() else ())]
    if told := anatomy.alarm(changes, rank, rewards):
        note(told)
    return {**anatomy.summary(changes, config.compute.dtype), "alarm": told}
