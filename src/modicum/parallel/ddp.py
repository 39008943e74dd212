"""Data parallel: every process has the whole policy and trains on its share of a step's groups.

Gradients are summed once a step, after the last micro-batch (torch's DDP wraps one `forward`, which an
engine that runs layers in stretches never calls). Counts that a loss is divided by are those of all
groups, so that the sum is what one process would have. The host's numbers go by gloo, tensors by NCCL
where they are on GPUs.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from modicum.config import Tracking, TrainConfig, from_mapping
from modicum.engine.base import Changed, Prompt, Sampler
from modicum.models.load import choose_device
from modicum.models.marks import marks
from modicum.parallel.base import Parallel, Team
from modicum.types import Completion, Origin, RunStopped, UserError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(minutes=30)  # for a process that lives; one that has died is noticed at once
FLAT = 2**26  # numbers of gradients that are summed at a time


class Ranks(Team):
    """The processes of `torch.distributed`, with the whole policy in each."""

    def __init__(self, device: str) -> None:
        """Join the others on the device of this process."""
        self.place, self.joined = self._placed(device), not dist.is_initialized()
        if self.joined:
            if missing := [name for name in NEEDED if name not in os.environ]:
                raise UserError(
                    f"parallel: {missing[0]} is not set: several processes are started by"
                    " torchrun --nproc-per-node 2 -m modicum train ..."
                )
            kinds = "cpu:gloo,cuda:nccl" if self.place.type == "cuda" else "gloo"
            with self._together():
                dist.init_process_group(kinds, timeout=PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @staticmethod
    def _placed(device: str) -> torch.device:
        """The device, where GPUs are many that of this process's number on its machine."""
        found = choose_device(device)
        if found.type != "cuda":
            return found
        number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= count or found.index is not None:
            why = (
                f"device {device!r} and {count} GPUs"
                if found.index is not None
                else f"{count} GPUs"
            )
            raise UserError(
                f"parallel: process {number} of this machine has no GPU of its own ({why})"
            )
        torch.cuda.set_device(number)
        return torch.device("cuda", number)

    def __exit__(self, *_: object) -> None:
        if self.joined:
            dist.destroy_process_group()

    def device(self, asked: str) -> str:
        return str(self.place)

    def sampler(self, own: Sampler) -> Sampler:
        return Shared(own, self)

    def settings(self, make: Callable[[], TrainConfig]) -> TrainConfig:
        """The same in all processes, but that only the first has trackers and a page."""
        found = from_mapping(TrainConfig, self.told(lambda: asdict(make())), "settings")
        if self.first:
            return found
        return replace(found, tracking=Tracking(), records=replace(found.records, watch=False))

    def lines(self, rows: Sequence[Any]) -> list[Any]:
        data = torch.frombuffer(bytearray(json.dumps(list(rows)).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self._together():
            dist.all_gather(sizes, torch.tensor([len(data)]))
            longest = max(map(int, sizes))
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(data)] = data
            dist.all_gather(parts, padded)
        texts = [
            part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)
        ]
        return [row for text in texts for row in json.loads(text)]

    @torch.no_grad()
    def reduce(self, tensors: Sequence[Tensor]) -> None:
        """One sum of all gradients laid end to end, FLAT numbers at a time."""
        told = self.lines([[tensor.grad is not None for tensor in tensors]])
        some = [t for t, here in zip(tensors, zip(*told, strict=True), strict=True) if any(here)]
        for tensor in some:
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for part in in_parts(some):
            grads = [tensor.grad for tensor in part if tensor.grad is not None]
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            with self._together():
                dist.all_reduce(flat)
            for grad, summed in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(summed.view_as(grad))

    def prove(self, when: str, of: Callable[[], Mapping[str, Tensor]]) -> str:
        first, *others = self.lines([marks(of())])
        for number, found in enumerate(others, 1):
            if odd := sorted(n for n in first.keys() | found if first.get(n) != found.get(n)):
                raise RunStopped(
                    f"replica proof ({when}): {odd[0]} of process {number} is not that of process 0"
                    f" ({len(odd)} such tensors)"
                )
        return f"; all {self.size} processes have the same {len(first)} tensors"

    @contextmanager
    def _together(self) -> Iterator[None]:
        """In here all processes meet; RunStopped where another has ended or does not come."""
        try:
            yield
        except RuntimeError as error:
            why = str(error).splitlines()[0][:160]
            raise RunStopped(
                f"process {os.environ.get('RANK', '?')} waits for the others of its run, of which one"
                f" has ended or hangs ({why}); --resume goes on from the last checkpoint"
            ) from None


def in_parts(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, as many at a time as have FLAT numbers, but at least one."""
    part: list[Tensor] = []
    for tensor in tensors:
        if part and sum(t.numel() for t in part) + tensor.numel() > FLAT:
            yield part
            part = []
        part.append(tensor)
    if part:
        yield part


class Shared(Sampler):
    """Draws the groups that a process owns by its own sampler, and hears of the others'."""

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
        sampling: Any,
        keep_trunk: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """Every prompt is drawn by the process that owns the last number of its key, the group's."""
        numbers = [number for number, key in enumerate(keys) if self.team.owns(int(key[-1]))]

        def told(done: int) -> None:  # by one process of all
            if progress is not None:
                progress(min(len(prompts), done * self.team.size))

        some = [prompts[n] for n in numbers], [keys[n] for n in numbers]
        drawn = self.own.sample(*some, group_size, sampling, keep_trunk, told) if numbers else []
        mine = dict(zip(numbers, drawn, strict=True))
        every = dict(self.team.lines([[n, [written(c) for c in mine[n]]] for n in numbers]))
        return [mine[n] if n in mine else tuple(map(read, every[n])) for n in range(len(prompts))]


def written(completion: Completion) -> list[Any]:
    """A completion as JSON has it, without what its process keeps of its way."""
    origin = None if completion.origin is None else astuple(completion.origin)
    tokens, logprobs = completion.tokens, completion.logprobs
    return [tokens, logprobs, completion.text, completion.finished, origin]


def read(line: Sequence[Any]) -> Completion:
    """The completion that `written` wrote."""
    tokens, logprobs, text, finished, origin = line
    made = None if origin is None else Origin(*origin)
    return Completion(tuple(tokens), tuple(logprobs), text, finished, origin=made)


@dataclass(frozen=True)
class Ddp(Parallel):
    """The whole policy in every process, and gradients that are summed once a step."""

    def begin(self, device: str) -> Team:
        return Ranks(device)
