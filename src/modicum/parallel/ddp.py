"""Data parallel: every process has the whole policy and trains on its share of a step's groups.

Gradients are summed once a step, after the last micro-batch (torch's DDP wraps one `forward`, which an
engine that runs layers in stretches never calls). A loss is divided by counts of all groups, so that the
sum is what one process would have. Numbers of the host go by gloo, tensors of GPUs by NCCL."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from modicum.engine.base import Asked, Groups
from modicum.models.identity import marks
from modicum.models.load import choose_device
from modicum.parallel.base import Team
from modicum.types import Completion, Origin, RunStopped, UserError

PATIENCE = timedelta(minutes=30)  # for a process that lives; one that has died is noticed at once


@contextmanager
def together() -> Iterator[None]:
    """In here all processes meet; RunStopped where another has ended or does not come."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        rank, why = os.environ.get("RANK", "?"), f"{error}".splitlines()[0][:160]
        raise RunStopped.of("another_ended", rank=rank, why=why) from None


class Ddp(Team, frozen=False):
    """The whole policy in every process, and gradients that are summed once a step."""

    several: ClassVar[bool] = True

    def join(self, device: str) -> Self:
        self.joined, kinds = not dist.is_initialized(), "gloo"  # whoever has joined parts
        if self.joined and "RANK" not in os.environ:
            raise UserError.of("several", team=self)
        place = choose_device(device)
        if place.type == "cuda":
            place = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
            kinds = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(place)
        if self.joined:
            with together():
                dist.init_process_group(kinds, timeout=PATIENCE)
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), str(place)
        return self

    def __exit__(self, *_: object) -> None:
        if self.joined:
            dist.destroy_process_group()

    def sample(self, draw: Callable[[Asked], Groups], asked: Asked) -> Groups:
        """The last of a key is the number of the group, by which a process owns it."""
        keys: Sequence[Any] = asked.keys
        mine = [n for n, key in enumerate(keys) if self.owns(key[-1])]
        some = replace(
            asked,
            prompts=[asked.prompts[n] for n in mine],
            keys=[keys[n] for n in mine],
            progress=lambda done: asked.progress(min(len(keys), done * self.size)),
        )
        drawn = dict(zip(mine, draw(some) if mine else [], strict=True))
        lines = self.lines([[n, [_line(c) for c in group]] for n, group in drawn.items()])
        found = {number: tuple(map(_read, group)) for number, group in lines} | drawn
        return [found[number] for number in range(len(keys))]

    def lines(self, rows: Sequence[Any]) -> list[Any]:
        data = torch.frombuffer(bytearray(json.dumps(list(rows)).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with together():
            dist.all_gather(sizes, torch.tensor([len(data)]))
            padded = torch.zeros(int(torch.cat(sizes).max()), dtype=torch.uint8)
            padded[: len(data)] = data
            parts = [torch.zeros_like(padded) for _ in sizes]
            dist.all_gather(parts, padded)
        pairs = zip(parts, sizes, strict=True)
        told = (part[: int(size)].numpy().tobytes() for part, size in pairs)
        return [row for text in told for row in json.loads(text)]

    @torch.no_grad()
    def reduce(self, optimizer: Optimizer) -> None:
        """In place, so that gradients are there once; where no process has one there is none."""
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        told = self.lines([[tensor.grad is not None for tensor in tensors]])
        for tensor, there in zip(tensors, zip(*told, strict=True), strict=True):
            if any(there):
                with together():
                    self.add_up(tensor)

    def add_up(self, tensor: Tensor) -> None:
        """`reduce` of one that has a gradient in some process."""
        tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        dist.all_reduce(tensor.grad)

    def prove(self, when: str, of: Callable[[], Mapping[str, Tensor]]) -> str:
        held = {name: tensor for name, tensor in of().items() if not isinstance(tensor, DTensor)}
        first, *others = self.lines([marks(held)])
        for number, found in enumerate(others, 1):
            if odd := sorted(n for n in first.keys() | found if first.get(n) != found.get(n)):
                raise RunStopped.of("replica", when=when, odd=odd, number=number, count=len(odd))
        return f"; {len(first)} tensors are the same in all {self.size} processes"


def _line(completion: Completion) -> list[Any]:
    """A completion in JSON, without what its process keeps of its way."""
    c = completion
    return [c.tokens, c.logprobs, c.text, c.finished, c.origin and astuple(c.origin)]


def _read(told: Sequence[Any]) -> Completion:
    tokens, logprobs, *rest, origin = told
    return Completion(tuple(tokens), tuple(logprobs), *rest, origin=origin and Origin(*origin))
