"""Plant faults between sampler and trainer, and count the steps until the proof finds them.

    python scripts/faults.py --models tiny models/SmolLM2-135M-Instruct --out faults.json
    python scripts/faults.py --honest 40 --steps 13 --out honest.json
    python scripts/faults.py --table faults.json honest.json

Every fault is one of the sampler's, which says all the same that it drew from the policy of
now at the settings of the run: a version that tells the truth would be found in the step
itself. `engine` is the exception: an adapter that sampler and trainer both apply twice.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from modicum import recipes, runs
from modicum.config import Compute, Optimizer, Steps, TrainConfig
from modicum.engine import Asked, Changed, Groups, Sampler
from modicum.models import decoder
from modicum.training.loop import run_step
from modicum.training.session import Session, prepare
from modicum.types import RunStopped
from modicum.updates.base import Swap

RATES = {"full": 1e-6, "lora(rank=8)": 1e-5}


class Faulty(Sampler):
    """The policy's own sampler, in circumstances of `around`, which then lies about them."""

    in_process: ClassVar[bool] = True

    def __init__(self, session: Session) -> None:
        self.session, self.inner = session, session.policy.sampler
        self.past = Swap(session.prepared.active)
        self.past.keep()

    def sample(self, asked: Asked) -> Groups:
        sampling = asked.sampling
        with self.around() as changes:
            used = replace(sampling, **changes)
            found = self.inner.sample(replace(asked, sampling=used))
        version = self.session.policy.changed.version
        origin = replace(
            found[0][0].origin,  # type: ignore[type-var]
            weights=version,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        return [tuple(replace(c, origin=origin) for c in group) for group in found]

    def follow(self, changed: Changed) -> None:
        self.inner.follow(changed)

    @contextmanager
    def around(self) -> Iterator[dict[str, Any]]:
        """What is wrong while it samples."""
        yield {}


class Stale(Faulty):
    """Samples from the weights of one step earlier."""

    @contextmanager
    def around(self) -> Iterator[dict[str, Any]]:
        with self.past.swapped():
            yield {}


class Off(Faulty):
    """Samples without the adapter."""

    @contextmanager
    def around(self) -> Iterator[dict[str, Any]]:
        with self.session.prepared.reference():
            yield {}


class Twice(Faulty):
    """Samples with the adapter counted twice."""

    @contextmanager
    def around(self) -> Iterator[dict[str, Any]]:
        layers = [m for m in self.session.policy.adapters if hasattr(m, "scaling")]
        for layer in layers:
            layer.scaling = {name: 2 * value for name, value in layer.scaling.items()}
        try:
            yield {}
        finally:
            for layer in layers:
                layer.scaling = {name: value / 2 for name, value in layer.scaling.items()}


class Colder(Faulty):
    """Samples at 0.97 of the temperature."""

    @contextmanager
    def around(self) -> Iterator[dict[str, Any]]:
        yield {"temperature": 0.97 * self.session.config.sampling.temperature}


class Uncut(Faulty):
    """Samples without top-p, which is 0.95."""

    @contextmanager
    def around(self) -> Iterator[dict[str, Any]]:
        yield {"top_p": 1.0}


@contextmanager
def doubled() -> Iterator[None]:
    """The split engine applies a LoRA twice, in sampling and in training."""
    real: Callable[..., Tensor] = decoder.adapted

    def twice(layer: Any, x: Tensor) -> Tensor:
        return 2 * real(layer, x) - layer.base_layer(x)

    decoder.adapted = twice
    try:
        yield
    finally:
        decoder.adapted = real


FAULTS: dict[str, type[Faulty] | None] = {
    "stale": Stale,
    "off": Off,
    "twice": Twice,
    "engine": None,
    "temperature": Colder,
    "top_p": Uncut,
}


def config_of(model: str, update: str, dtype: str, seed: int, cut: bool) -> TrainConfig:
    """A small run: 4 prompts x 6 completions a step."""
    config = (
        recipes.named("addition") if model != "tiny" else TrainConfig(task="arithmetic(terms=3)")
    )
    sampling = replace(config.sampling, max_tokens=24, top_p=0.95 if cut else 1.0)
    return replace(
        config,
        model=model,
        update=update,
        seed=seed,
        reward="accuracy(lenient=True) + 0.1*random",  # a signal in every step
        sampling=sampling,
        batch=Steps(prompts_per_step=4, group_size=6),
        optimizer=Optimizer(learning_rate=RATES[update]),
        compute=Compute(device="cpu", dtype=dtype),  # type: ignore[arg-type]
    )


def run(config: TrainConfig, fault: str, steps: int) -> dict[str, Any]:
    """Steps until the run stopped (None: it did not), what it said, and what the proof held."""
    began = time.perf_counter()
    session = prepare(replace(config, steps=steps))
    kind = FAULTS.get(fault)
    found: int | None = None
    said, seconds = "", 0.0
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        if fault == "engine":
            stack.enter_context(doubled())
        if kind is not None:
            session.policy.sampler = kind(session)
        for step in range(steps):
            before = {n: p.detach().clone() for n, p in session.prepared.active.items()}
            try:
                seconds += run_step(session, runs.Run(Path(folder)), step)["time/agreement_seconds"]
            except RunStopped as error:
                found, said = step + 1, str(error)
                break
            if kind is not None:
                session.policy.sampler.past.originals = before  # type: ignore[attr-defined]
    slopes = {name: slope.estimate()[:2] for name, slope in session.agreement.slopes.items()}
    return {
        "found": found,
        "said": said,
        "steps": found or steps,
        "own": session.agreement.own,
        "exact": session.agreement.exact_max,
        "agreement_max": session.counters.agreement_max,
        "slopes": slopes,
        "agreement_seconds": seconds,
        "seconds": time.perf_counter() - began,
    }


def cases(options: argparse.Namespace) -> Iterator[tuple[str, str, str, str, int]]:
    """Model, update, dtype, fault ("" none), seed."""
    if options.honest:
        pairs = [(u, d) for u in RATES for d in ("bf16", "bf16", "bf16", "fp32")]
        for seed in range(options.honest):
            model = options.models[seed % len(options.models)]
            update, dtype = pairs[(seed // len(options.models)) % len(pairs)]
            yield model, update, dtype, "top_p=0.95" if seed % 5 == 4 else "", seed
        return
    for model in options.models:
        for dtype in ("fp32", "bf16"):
            for update in RATES:
                for fault in FAULTS:
                    if fault not in ("off", "twice", "engine") or "lora" in update:
                        yield model, update, dtype, fault, 0


def table(files: list[Path]) -> str:
    """What was found, as Markdown."""
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    planted = [row for row in rows if row["fault"] in FAULTS]
    honest = [row for row in rows if row["fault"] not in FAULTS]
    columns = list(dict.fromkeys((r["model"], r["update"], r["dtype"]) for r in planted))
    names = [f"{Path(m).name}, {u}, {d}" for m, u, d in columns]
    lines = ["| fault | " + " | ".join(names) + " |", "| --- " * (len(columns) + 1) + "|"]
    for fault in FAULTS:
        cells = []
        for column in columns:
            at = [r for r in planted if (r["model"], r["update"], r["dtype"]) == column]
            value = [r for r in at if r["fault"] == fault]
            cells.append(str(value[0]["found"] or "not found") if value else "")
        lines.append(f"| {fault} | " + " | ".join(cells) + " |")
    steps, alarms = sum(r["steps"] for r in honest), sum(bool(r["found"]) for r in honest)
    lines.append(f"\n{len(honest)} honest runs, {steps} steps: {alarms} stopped")
    return "\n".join(lines)


def main() -> None:
    """Run what is not in the file yet, a line each; or print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny"])
    parser.add_argument("--honest", type=int, default=0, help="so many runs without a fault")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("faults.json"))
    parser.add_argument("--table", type=Path, nargs="+")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {
        (r["model"], r["update"], r["dtype"], r["fault"], r["seed"]) for r in map(json.loads, lines)
    }
    for case in cases(options):
        if case in done:
            continue
        model, update, dtype, fault, seed = case
        config = config_of(model, update, dtype, seed, fault.startswith("top_p"))
        names = ("model", "update", "dtype", "fault", "seed")
        row = dict(zip(names, case, strict=True)) | run(config, fault, options.steps)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(*case, row["found"], f"{row['seconds']:.0f} s", row["said"][:160], flush=True)


if __name__ == "__main__":
    main()
