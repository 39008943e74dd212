"""Part `syncs`: where the host waits for the GPU though nothing needs it to."""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu import ROOT, Asked, Put
from gpu_base import need_gpu

TOKENS, GROUP, PROMPTS = 16, 8, 2
OURS = str(ROOT / "src" / "modicum")
SAYS = "called a synchronizing"  # what torch warns of, and not that it cannot see all


@contextmanager
def places() -> Iterator[Counter[str]]:
    """Counts torch's warnings of waits by the innermost line of modicum that they come from."""
    found = Counter[str]()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if SAYS in str(message):
            found[innermost(traceback.extract_stack())] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield found


def innermost(stack: Any) -> str:
    """`engine/samplers.py:139` of the last line of modicum in a stack; else the line that warned."""
    ours = [at for at in stack if at.filename.startswith(OURS)]
    others = [at for at in stack[:-1] if not at.filename.endswith("warnings.py")]
    at = (ours or others)[-1]
    return f"{at.filename.removeprefix(OURS).lstrip('/')}:{at.lineno}"


@contextmanager
def listening() -> Iterator[Counter[str]]:
    """`places`, while torch warns of every wait that it knows of."""
    with places() as found:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def syncs(asked: Asked, put: Put) -> None:
    """Waits of a token, of a micro-batch and of an optimizer step; a KL term and an adapter too."""
    need_gpu(asked, "a CPU waits for nothing")
    told = []
    for update in ("last(1)", "lora(rank=2)"):
        found = measured(update, asked.device, listening)
        put(update, found)
        counts = {name: sum(of.values()) for name, of in found.items()}
        told.append(f"{update}: {counts}")
    put("tokens", TOKENS)
    put("line", f"waits in {TOKENS} tokens, a micro-batch, a step: " + "; ".join(told))


def measured(update: str, device: str, listen: Callable[[], Any]) -> dict[str, Counter[str]]:
    """The places of each stage, after one whole step that is not listened to."""
    import modicum_worker
    from gpu_updates import config_of

    from modicum import rewards
    from modicum.engine import samplers
    from modicum.engine.text import Texts
    from modicum.objectives.base import Counts
    from modicum.training import session, step

    rewards.REWARDS["checksum"] = modicum_worker.Checksum
    with tempfile.TemporaryDirectory() as out:
        config = config_of(update, device, Path(out) / "run", steps=3)
        config = replace(config, sampling=replace(config.sampling, max_tokens=TOKENS))
        made = session.prepare(config)
    policy, sampling = made.policy, config.sampling
    engine: Any = policy.scorer
    groups = step.sample_groups(made, 0)
    batch = step.make_batch(
        made.objective, groups, step.score(made.task, made.reward, groups, [])[1]
    )
    rows = batch.rows[: config.batch.micro_batch]
    counts = Counts(batch.num_rows, batch.num_tokens, TOKENS)
    sums, found = dict[str, float](), dict[str, Counter[str]]()
    prompts = [group.prompt for group in groups]
    texts = Texts(None)

    def sample() -> None:
        uniforms_RT = torch.rand(PROMPTS * GROUP, TOKENS, device=engine.device)
        with torch.inference_mode():
            samplers.draw(engine.decode(prompts, GROUP, TOKENS, True), uniforms_RT, sampling, texts)

    def train() -> None:
        step.forward_backward(
            policy, made.prepared, made.objective, rows, counts, sampling, sums, None, []
        )
        made.optimization.masters.collect()

    def update_() -> None:
        step.optimizer_step(made, 0.0, batch.has_signal)

    for name, call in (("decode", sample), ("micro-batch", train), ("optimizer", update_)):
        if name != "optimizer":  # a step takes the gradients that it steps on
            call()
        with listen() as found[name]:
            call()
    return found
