"""Data parallel with masters in pieces: each process holds and moves its rows of every master.

Gradients are whole until the step's end, and then a sum of which every process gets its rows; weights are
published from all pieces. So a GPU has 1/N of the masters and of the optimizer's state (ZeRO, arXiv
1910.02054, stage 1), as DTensors `Shard(0)`, which the optimizer takes for ordinary ones."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from modicum.models.precision import LossScale, Master, Masters
from modicum.models.rounding import Key, rounded
from modicum.parallel.ddp import Ddp, together
from modicum.types import UserError
from modicum.updates.base import Prepared

ROWS = [Shard(0)]


def here(tensor: Any) -> Any:
    """The piece of this process, of what lies in pieces."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class ShardedMaster(Master):
    """Rows of an fp32 copy. Its gradient is a whole one, of which the others have a part each."""

    def __init__(self, parameter: nn.Parameter, team: "Zero", scale: LossScale) -> None:
        self.team = team
        super().__init__(parameter, self.cut(parameter.detach().float()).requires_grad_(), scale)

    def cut(self, tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, self.team.mesh, ROWS, src_data_rank=None)

    def collect(self) -> None:
        if self.parameter.grad is None:
            return
        gradient = self.taken(self.parameter.grad)
        if self.tensor.grad is None:
            self.tensor.grad = self.team.part(gradient.float())
        else:
            here(self.tensor.grad).add_(gradient)

    def published(self, key: Key | None) -> Tensor:
        if self.place is self.parameter:
            return super().published(key)
        mine, index = here(self.tensor.detach()), None  # what is written has rows too
        if key is not None:  # whose noise is that of a place in the whole
            rows, width = len(self.parameter), self.parameter.numel() // len(self.parameter)
            first = self.team.rank * -(-rows // self.team.size) * width
            index = torch.arange(first, first + mine.numel(), device=mine.device)
        return rounded(mine, self.parameter.dtype, key, index)

    @property
    def values(self) -> Tensor:
        return self.team.joint(self.tensor.detach())

    def furthest(self, go: Callable[..., float], state: Mapping[str, Tensor]) -> float:
        mine = here(self.tensor.detach())
        mine.grad = here(self.tensor.grad)
        found = go(mine, {key: here(value) for key, value in state.items()})
        return float(max(self.team.lines([found])))


class ShardedMasters(Masters):
    """Masters that lie in pieces."""

    in_pieces = True

    def __init__(self, team: "Zero", *given: Any) -> None:
        self.team = team
        super().__init__(*given)

    def add(self, name: str, parameter: nn.Parameter, entries: Tensor | None = None) -> None:
        self.held[name] = ShardedMaster(parameter, self.team, self.scale)

    def norms(self, gradients: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        squares = torch.stack(torch._foreach_norm([here(g) for g in gradients.values()])).square()
        with together():
            dist.all_reduce(squares)
        return squares.sqrt(), float(squares.sum().sqrt())


class Zero(Ddp, frozen=False):
    """`ddp` with masters and the optimizer's state in pieces, one a process."""

    in_pieces: ClassVar[bool] = True

    def join(self, device: str) -> Self:
        super().join(device)
        self.mesh: DeviceMesh = init_device_mesh(torch.device(self.device).type, (self.size,))
        return self

    def masters_fit(self, prepared: Prepared) -> None:
        schedule, trainable = prepared.schedule, prepared.trainable
        whole = all(schedule.size(name, p) == p.numel() for name, p in trainable.items())
        if not (whole and prepared.rule.by_entry and schedule.piecewise):
            raise UserError.of("pieces", team=self)

    def masters(self, prepared: Prepared, *given: Any) -> Masters:
        self.masters_fit(prepared)
        return ShardedMasters(self, prepared.active, None, *given)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = ((name, self.joint(tensor)) for name, tensor in tensors.items())
        return {name: tensor.cpu() for name, tensor in found if self.first}

    def joint(self, tensor: Tensor) -> Tensor:
        """All pieces of what lies in pieces."""
        with together():
            return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def part(self, tensor: Tensor) -> DTensor:
        """What is summed with those of the others to make a whole one."""
        return DTensor.from_local(tensor, self.mesh, [Partial()], run_check=False)

    def add_up(self, tensor: Tensor) -> None:
        """A sum of which each process gets its rows; a critic's masters are whole."""
        if not isinstance(tensor, DTensor):
            super().add_up(tensor)
            return
        found: Any = tensor.grad
        if found is None:
            found = self.part(torch.zeros(tensor.shape, device=self.device))
        tensor.grad = found.redistribute(placements=ROWS)
