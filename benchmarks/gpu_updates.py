"""Part `updates`: two steps of every update on the tiny base, again, and cut and resumed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from gpu import Asked, Put
from gpu_base import FAULTS, device_of

STEPS = 2
STRICT = ("full", "last(1)", "lora(rank=2)", "sparse(keep=0.1)")
"""Those that the deterministic mode is tried on."""
FEW = ("last(1)",)
"""Of a test of this program."""
UNMEANT = ("time/", "memory/")


def config_of(update: str, device: str, out: Path, steps: int = STEPS) -> Any:
    """A run of two steps with a checkpoint after each and no evaluation."""
    from modicum.config import Compute, Held, Optimizer, Records, Sampling, Steps, TrainConfig

    return TrainConfig(
        update=update,
        reward="checksum",
        objective="grpo(kl=0.01)",
        steps=steps,
        out=str(out),
        sampling=Sampling(max_tokens=16),
        batch=Steps(prompts_per_step=2, group_size=4, micro_batch=4, rollout_batch=8),
        optimizer=Optimizer(learning_rate=1e-3),
        compute=Compute(device=device, checkpointing=False),
        evaluation=Held(eval_problems=0, probe_every=0),
        records=Records(checkpoint_every=1, anatomy=False),
    )


def marks(folder: Path) -> dict[str, str]:
    """Hashes of the metrics, but for times and memory, and of all tensors of the last checkpoint."""
    import hashlib
    import json

    from safetensors.torch import load_file

    from modicum import runs
    from modicum.models.identity import combined, fingerprints

    lines = runs.read_lines(folder / "metrics.jsonl")
    kept = [{k: v for k, v in sorted(x.items()) if not k.startswith(UNMEANT)} for x in lines]
    tensors = load_file(runs.checkpoints(folder)[-1] / "tensors.safetensors")
    metrics = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    return {"metrics": metrics, "tensors": combined(fingerprints(tensors))}


def trained(config: Any, cut: bool = False) -> dict[str, str]:
    """The marks of a run that is whole; with `cut`, of one that ends in step 2 and goes on."""
    from modicum.training.loop import Observer, train

    class Cut(RuntimeError):
        pass

    class Cutter(Observer):
        def step(self, metrics: dict[str, float]) -> None:
            if metrics["step"] == STEPS - 1:
                raise Cut

    if cut:
        try:
            train(config, Cutter())
        except Cut:
            train(config, resume=True)
    else:
        train(config)
    return marks(Path(config.out))


def one(update: str, device: str, place: str, strict: bool) -> tuple[str, dict[str, Any]]:
    """What became of an update: an error, or whether two runs and a resumed one are the same."""
    import modicum_worker
    import torch

    from modicum import rewards
    from modicum.types import RunStopped, UserError

    rewards.REWARDS["checksum"] = modicum_worker.Checksum
    torch.set_num_threads(1)
    folder = Path(place) / str(abs(hash((update, strict))))
    began = time.perf_counter()
    torch.use_deterministic_algorithms(strict)
    found: dict[str, Any] = {}
    try:
        whole = trained(config_of(update, device, folder / "whole"))
        for name, cut in (("again", False), ("resumed", True)):
            other = trained(config_of(update, device, folder / name), cut)
            found[name] = {key: other[key] == whole[key] for key in whole}
    except (*FAULTS, UserError, RunStopped) as error:
        found["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:300]
    finally:
        torch.use_deterministic_algorithms(False)
        shutil.rmtree(folder, ignore_errors=True)
    return update, found | {"seconds": round(time.perf_counter() - began, 2)}


def updates(asked: Asked, put: Put) -> None:
    """Every update by its first example, several processes at a time on one GPU."""
    from modicum.updates import UPDATES

    device_of(asked)
    texts = FEW if asked.small else tuple(kind.examples[0] for kind in UPDATES.values())
    hard = () if asked.small else STRICT
    jobs = [(text, False) for text in texts] + [(text, True) for text in hard]
    plain, strict = dict[str, Any](), dict[str, Any]()
    with tempfile.TemporaryDirectory() as place:
        given = [(text, asked.device, place, strictly) for text, strictly in jobs]
        if asked.small:
            for job in given:
                _enter(put, plain, strict, job[3], *one(*job))
        else:
            workers = max(1, min(6, (os.cpu_count() or 1) // 2))
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                waiting = {pool.submit(one, *job): job for job in given}
                for done in as_completed(waiting):
                    _enter(put, plain, strict, waiting[done][3], *done.result())
    put("line", told(plain, strict))


def _enter(
    put: Put, plain: dict[str, Any], strict: dict[str, Any], hard: bool, update: str, found: Any
) -> None:
    (strict if hard else plain)[update] = found
    put("deterministic" if hard else "updates", strict if hard else plain)


def told(plain: dict[str, Any], strict: dict[str, Any]) -> str:
    """How many were well."""

    def count(of: dict[str, Any], name: str) -> int:
        return sum(all(found.get(name, {"": False}).values()) for found in of.values())

    bad = [name for name, found in plain.items() if "error" in found]
    return (
        f"{len(plain) - len(bad)} of {len(plain)} train; the same again: {count(plain, 'again')}, in"
        f" deterministic mode {count(strict, 'again')} of {len(strict)}; resumed as uncut:"
        f" {count(plain, 'resumed')}" + (f"; stopped: {', '.join(bad)}" if bad else "")
    )
