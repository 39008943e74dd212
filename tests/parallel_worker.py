"""One of several processes that meet once and then train what a test asks for, a JSON line each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from modicum.config import TrainConfig, from_mapping
from modicum.engine import agreement
from modicum.engine.samplers import SAMPLERS
from modicum.engine.split import SplitEngine
from modicum.models.precision import UNSCALED
from modicum.parallel import Team, parse
from modicum.parallel.zero import ShardedMaster
from modicum.training import loop
from modicum.types import UserError
from off_sampler import Off

Job = Callable[..., Any]


def train(config: dict[str, Any], resume: bool = False) -> Any:
    """A whole run."""
    return loop.train(from_mapping(TrainConfig, config, "job"), resume=resume)


def planted(config: dict[str, Any], at: int, what: str) -> Any:
    """A run in which process `at` is not as the others from its first step on."""
    agree = loop.agree_trained  # which comes after a step

    def wrong(session: Any, *given: Any) -> None:
        agree(session, *given)
        if session.parallel.rank == at and what == "moments":
            state = next(iter(session.optimization.optimizer.state.values()))
            state["exp_avg"].add_(1e-3)
        if what == "weights":
            session.optimization.proof.check = lambda when, resting=True: "fine"
            with torch.no_grad():
                next(iter(session.prepared.active.values())).add_(
                    1e-3 * (session.parallel.rank == at)
                )

    loop.agree_trained = wrong
    try:
        return train(config)
    finally:
        loop.agree_trained = agree


def off(config: dict[str, Any]) -> Any:
    """A run by a sampler whose log-probs are off, and with a proof that lets it."""
    exact, SAMPLERS["off"], agreement.EXACT = agreement.EXACT, Off, 10.0
    try:
        return train(config)
    finally:
        agreement.EXACT = exact
        del SAMPLERS["off"]


def short(config: dict[str, Any]) -> Any:
    """A run in whose second micro-batch memory runs out in the last process."""
    hidden, calls = SplitEngine.hidden, [0]

    def limited(engine: Any, *given: Any) -> Any:
        calls[0] += torch.is_grad_enabled()
        if (
            calls[0] == 2
            and torch.is_grad_enabled()
            and dist.get_rank() == dist.get_world_size() - 1
        ):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return hidden(engine, *given)

    SplitEngine.hidden = limited  # type: ignore[method-assign]
    try:
        return train(config)
    finally:
        SplitEngine.hidden = hidden  # type: ignore[method-assign]


def weighed(config: dict[str, Any]) -> Any:
    """Bytes of all parameters before a run's first step is taken, in it, and after the run."""
    step, found, begun = loop.optimizer_step, list[int](), list[Any]()

    def size() -> int:
        return sum(p.untyped_storage().nbytes() for p in begun[0].policy.model.parameters())

    def looked_at(session: Any, *given: Any) -> float:
        begun.append(session)
        found.extend([sum(p.nbytes for p in session.policy.model.parameters()), size()])
        return step(session, *given)

    loop.optimizer_step = looked_at
    try:
        train(config)
    finally:
        loop.optimizer_step = step
    return [*found, size()]


def written(values: list[list[float]]) -> Any:
    """The rows in bf16 of this process, of a master with such values that is written in pieces."""
    team: Any = parse("fsdp").join("cpu")
    weight = torch.nn.Parameter(torch.tensor(values, dtype=torch.bfloat16))
    master = ShardedMaster(weight, team, UNSCALED)
    master.tensor = master.cut(torch.tensor(values))
    master.place = torch.empty(0)
    weight.data.untyped_storage().resize_(0)
    return master.published((3, 7)).float().tolist()


def asked(name: str) -> Any:
    """What a team of all processes answers."""
    team: Team = parse(name).join("cpu")
    rank = team.rank
    tensors = [torch.zeros(2, 3, requires_grad=True) for _ in range(4)]
    if rank == 0:
        tensors[0].grad = torch.full((2, 3), 1.5)
    tensors[1].grad = torch.full((2, 3), rank + 1.0)
    tensors[3].grad = torch.full((2, 3), 10.0**rank)
    team.reduce(torch.optim.SGD(tensors))
    return {
        "team": [str(team), team.rank, team.size, team.first, team.device],
        "lines": team.lines([{"rank": rank, "nan": float("nan"), "text": "ä\ud800"}] * rank),
        "each": team.each([0, 1, 2, 2, 3], lambda place: [place, rank]),
        "told": team.told(lambda: {"rank": rank}),
        "summed": team.summed({"a": 0.5, "b": 2.0} if rank else {"a": 0.25}),
        "grads": [None if t.grad is None else t.grad.flatten().tolist() for t in tensors],
    }


JOBS: dict[str, Job] = {
    job.__name__: job for job in (train, planted, off, short, weighed, written, asked)
}


def main() -> None:
    """Answer jobs until standard input closes."""
    torch.set_num_threads(1)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    dist.init_process_group("gloo")
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        name, given = json.loads(line)
        try:
            found = {"found": JOBS[name](**given)}
        except UserError as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=replies, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
