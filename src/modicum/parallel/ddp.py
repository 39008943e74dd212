"""Data parallel: every process has the whole policy and trains on its share of a step's groups.

Gradients are summed once a step, after the last micro-batch (torch's DDP wraps one `forward`, which an
engine that runs layers in stretches never calls). A loss is divided by counts of all groups, so that the
sum is what one process would have. Numbers of the host go by gloo, tensors of GPUs by NCCL.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field, replace
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from modicum.config import Sampling, Tracking, TrainConfig, from_mapping
from modicum.engine.base import Changed, Prompt, Sampler
from modicum.models.load import choose_device
from modicum.models.marks import marks
from modicum.parallel.base import Team
from modicum.types import Completion, Origin, RunStopped, UserError

PATIENCE = timedelta(minutes=30)  # for a process that lives; one that has died is noticed at once
FLAT = 2**26  # numbers of gradients that are summed at a time


@contextmanager
def together() -> Iterator[None]:
    """In here all processes meet; RunStopped where another has ended or does not come."""
    try:
        yield
    except RuntimeError as error:
        rank, why = os.environ.get("RANK", "?"), f"{error}".splitlines()[0][:160]
        raise RunStopped(
            f"process {rank} waits for the others of its run, of which one has ended or hangs;"
            f" --resume goes on from the last checkpoint ({why})"
        ) from None


@dataclass(eq=False)
class Ddp(Team):
    """The whole policy in every process, and gradients that are summed once a step."""

    place: torch.device = field(default=torch.device("cpu"), init=False)
    joined: bool = field(default=False, init=False)  # by us, who part then

    def join(self, device: str) -> Self:
        self.place, self.joined = choose_device(device), not dist.is_initialized()
        if self.place.type == "cuda":
            local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if local >= count or self.place.index is not None:
                why = (
                    f"of {count} here"
                    if self.place.index is None
                    else f"where {device} is asked for"
                )
                raise UserError(
                    f"parallel: process {local} of this machine has no GPU of its own {why}"
                )
            self.place = torch.device("cuda", local)
            torch.cuda.set_device(self.place)
        if self.joined:
            if "RANK" not in os.environ:
                how = "torchrun --nproc-per-node 2 -m modicum train ..."
                raise UserError(
                    f"parallel: {self} is for several processes, which torchrun starts: {how}"
                )
            with together():
                kinds = "cpu:gloo,cuda:nccl" if self.place.type == "cuda" else "gloo"
                dist.init_process_group(kinds, timeout=PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        return self

    def __exit__(self, *_: object) -> None:
        if self.joined:
            dist.destroy_process_group()

    def device(self, asked: str) -> str:
        return str(self.place)

    def settings(self, make: Callable[[], TrainConfig]) -> TrainConfig:
        """The same in all processes, but that only the first has trackers and a page."""
        found = from_mapping(TrainConfig, self.told(lambda: asdict(make())), "settings")
        quiet = replace(found, tracking=Tracking(), records=replace(found.records, watch=False))
        return found if self.first else quiet

    def sampler(self, own: Sampler) -> Sampler:
        return Shared(own, self)

    def lines(self, rows: Sequence[Any]) -> list[Any]:
        data = torch.frombuffer(bytearray(json.dumps(list(rows)).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with together():
            dist.all_gather(sizes, torch.tensor([len(data)]))
            padded = torch.zeros(int(torch.cat(sizes).max()), dtype=torch.uint8)
            padded[: len(data)] = data
            parts = [torch.zeros_like(padded) for _ in sizes]
            dist.all_gather(parts, padded)
        told = (
            part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)
        )
        return [row for text in told for row in json.loads(text)]

    @torch.no_grad()
    def reduce(self, tensors: Sequence[Tensor]) -> None:
        """By sums of gradients laid end to end, about FLAT numbers at a time."""
        told = self.lines([[tensor.grad is not None for tensor in tensors]])
        pairs = zip(tensors, zip(*told, strict=True), strict=True)
        self.add_up([tensor for tensor, there in pairs if any(there)])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """`reduce` of those that have a gradient in some process."""
        part: list[Tensor] = []
        for tensor in tensors:
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            part.append(tensor.grad)
            if sum(grad.numel() for grad in part) >= FLAT:
                sum_of(part)
                part = []
        if part:
            sum_of(part)

    def prove(self, when: str, of: Callable[[], Mapping[str, Tensor]]) -> str:
        first, *others = self.lines([marks(of())])
        for number, found in enumerate(others, 1):
            if odd := sorted(n for n in first.keys() | found if first.get(n) != found.get(n)):
                raise RunStopped(
                    f"replica proof ({when}): {odd[0]} of process {number} is not that of process 0"
                    f" ({len(odd)} such tensors)"
                )
        return f"; {len(first)} tensors are the same in all {self.size} processes"


def sum_of(tensors: Sequence[Tensor]) -> None:
    """Make tensors their sums over all processes."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with together():
        dist.all_reduce(flat)
    for tensor, whole in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(whole.view_as(tensor))


class Shared(Sampler):
    """Draws the groups of its process by a sampler of its own, and hears of the others'."""

    def __init__(self, own: Sampler, team: Team) -> None:
        self.own, self.team = own, team
        self.in_process = own.in_process  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["own"], name)

    def follow(self, changed: Changed) -> None:
        self.own.follow(changed)

    def prove(self) -> None:
        self.own.prove()

    def sample(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[tuple[Any, ...]],
        group_size: int,
        sampling: Sampling,
        keep_trunk: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """The last of a key is the number of the group, by which a process owns it."""
        mine = [number for number, key in enumerate(keys) if self.team.owns(int(key[-1]))]
        some, told = ([prompts[n] for n in mine], [keys[n] for n in mine]), len(prompts)

        def tell(done: int) -> None:
            if progress is not None:
                progress(min(told, done * self.team.size))

        drawn = self.own.sample(*some, group_size, sampling, keep_trunk, tell) if mine else []
        lines = self.team.lines(
            [[n, list(map(line, group))] for n, group in zip(mine, drawn, strict=True)]
        )
        found = {number: tuple(map(read, group)) for number, group in lines}
        found |= dict(zip(mine, drawn, strict=True))
        return [found[number] for number in range(len(prompts))]


def line(completion: Completion) -> list[Any]:
    """A completion in JSON, without what its process keeps of its way."""
    c, origin = completion, completion.origin and astuple(completion.origin)
    return [c.tokens, c.logprobs, c.text, c.finished, origin]


def read(told: Sequence[Any]) -> Completion:
    """The completion that is in a line."""
    tokens, logprobs, text, finished, origin = told
    made = origin and Origin(*origin)
    return Completion(tuple(tokens), tuple(logprobs), text, finished, origin=made)
