"""What GaLore and APOLLO have in common: Adam that keeps little of the matrices of the layers.

A matrix of a decoder layer with more than `rank` rows and columns gets the method's own
treatment. All else (norms, biases, embedding, head, smaller matrices, some entries of a
tensor) gets plain AdamW, equal to torch's. All state is in tensors, so that a checkpoint
can hold it. Only what the optimizer keeps is small: the gradient is whole, and backward
costs what it does for AdamW.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from modicum.config import Optimizer
from modicum.types import UserError
from modicum.updates.base import Prepared
from modicum.updates.layout import layer_of
from modicum.updates.members import Limits
from modicum.updates.optimizers import OptimizerMember
from modicum.updates.rules import AdamWRule, Groups, Rule, pieces

State = dict[str, Tensor]
Rank = Annotated[int, Limits(1, 4096)]
Scale = Annotated[float, Limits(0, 1e6, above=True)]
STEP_TABLES = 4  # as large as a matrix, which a step makes


@dataclass(frozen=True)
class Moment:
    """One step of one tensor: what a treatment needs to know."""

    name: str
    gradient: Tensor
    state: State
    count: int
    """Steps of this tensor, this one included."""
    betas: tuple[float, float]
    epsilon: float


@torch.no_grad()
def normalised(moment: Moment, gradient: Tensor) -> Tensor:
    """Adam's m / (sqrt(v) + eps), both with bias correction, after taking `gradient` in."""
    beta1, beta2 = moment.betas
    moment.state["exp_avg"].lerp_(gradient, 1 - beta1)
    moment.state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    return adam(moment)


def adam(moment: Moment) -> Tensor:
    """Adam's m / (sqrt(v) + eps) of the state as it is."""
    beta1, beta2 = moment.betas
    first, second = moment.state["exp_avg"], moment.state["exp_avg_sq"]
    root = (second / (1 - beta2**moment.count)).sqrt_().add_(moment.epsilon)
    return (first / (1 - beta1**moment.count)).div_(root)


@dataclass(frozen=True)
class LowRankRule(Rule, ABC):
    """How matrices are treated; members say what is kept and which way it leads."""

    rank: int
    every: int
    scale: float

    def projects(self, name: str, shape: torch.Size) -> bool:
        """Whether a tensor is a matrix of a layer, and large enough."""
        return len(shape) == 2 and min(shape) > self.rank and layer_of(name) is not None

    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        """AdamW with this treatment of matrices."""
        return LowRankAdamW(groups, settings, self)

    def state_bytes(self, name: str, shape: torch.Size) -> int:
        """Two moments of every number, or what the treatment keeps."""
        numbers = self.kept(*shape) if self.projects(name, shape) else 2 * shape.numel()
        return 4 * numbers

    def step_numbers(self, largest: int) -> int:
        """Tables of the size of the largest matrix: its gradient's projection and way back."""
        return STEP_TABLES * largest

    def sizes(
        self, name: str, gradient: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]
    ) -> Iterator[Tensor]:
        """AdamW's, or those of the treatment."""
        if self.projects(name, gradient.shape):
            given = (int(state["step"]), group["betas"], group["eps"])
            yield from pieces(self.taken(Moment(name, gradient, dict(state), *given)).abs())
        else:
            yield from AdamWRule().sizes(name, gradient, state, group)

    @abstractmethod
    def kept(self, rows: int, columns: int) -> int:
        """How many numbers are kept of a matrix."""

    @abstractmethod
    def start(self, matrix: Tensor) -> State:
        """The state of a matrix before its first step."""

    @abstractmethod
    def direction(self, moment: Moment) -> Tensor:
        """What is taken off the matrix, over the learning rate; updates the state."""

    @abstractmethod
    def taken(self, moment: Moment) -> Tensor:
        """What `direction` was, from the state that it left."""


class LowRankAdamW(torch.optim.Optimizer):
    """AdamW (decoupled weight decay) in which a rule treats the matrices of the layers."""

    def __init__(self, groups: Groups, settings: Optimizer, rule: LowRankRule) -> None:
        super().__init__(
            groups,
            {
                "lr": 0.0,
                "betas": (settings.beta1, settings.beta2),
                "eps": settings.epsilon,
                "weight_decay": settings.weight_decay,
            },
        )
        self.rule = rule

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every tensor that has a gradient; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            for name, tensor in zip(group["names"], group["params"], strict=True):
                if tensor.grad is not None:
                    self._move(name, tensor, tensor.grad, group)

    def _move(self, name: str, tensor: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, special = self.state[tensor], self.rule.projects(name, tensor.shape)
        if not state:
            state["step"] = torch.zeros(())
            state |= self.rule.start(tensor) if special else moments(tensor.shape, tensor.device)
        count = int(state["step"]) + 1
        state["step"] = torch.tensor(float(count))
        moment = Moment(name, gradient, state, count, group["betas"], group["eps"])
        toward = self.rule.direction(moment) if special else normalised(moment, gradient)
        tensor.mul_(1 - group["lr"] * group["weight_decay"])
        tensor.add_(toward, alpha=-group["lr"])


def moments(shape: torch.Size | tuple[int, int], device: torch.device) -> State:
    """Two moments, zero."""
    return {key: torch.zeros(shape, device=device) for key in ("exp_avg", "exp_avg_sq")}


class LowRankMember(OptimizerMember):
    """What the members have in common: there must be a matrix to treat."""

    def check(self, prepared: Prepared) -> None:
        """UserError when no matrix that trains is large enough."""
        rule, size = prepared.rule, prepared.schedule.size
        assert isinstance(rule, LowRankRule)
        if not any(
            rule.projects(name, p.shape) and size(name, p) == p.numel()
            for name, p in prepared.trainable.items()
        ):
            raise UserError(
                f"{self}: of what trains here no matrix of a layer has more than {rule.rank} rows"
                " and columns, so it would be plain AdamW; take a smaller rank or leave it out"
            )
