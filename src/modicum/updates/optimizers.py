"""Optimizers as updates: `sgd`, `sgd @ last(2)`, `galore(rank=4) @ (lora(rank=8) @ last(1))`.

What trains, when, and from which start stays the update's; only the rule that turns gradients
into steps is another. As `@` binds from the left, `(sgd @ lora) @ last(2)` is read as
`sgd @ (lora @ last(2))`. GaLore, APOLLO (`projected`) and Muon (`muon`) treat the matrices of
the layers with more than `rank` rows and columns; all else gets plain AdamW, equal to torch's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from modicum.config import Optimizer
from modicum.limits import Limits, ShareBelowOne
from modicum.types import UserError
from modicum.updates.base import Method, Placed, Prepared, Selection
from modicum.updates.dense import Full
from modicum.updates.layout import layer_of
from modicum.updates.members import Member, Pair
from modicum.updates.rules import AdamWRule, Groups, Rule, SgdRule

Trains = Selection | Method | Placed
State = dict[str, Tensor]
Rank = Annotated[int, Limits(1, 4096)]
Scale = Annotated[float, Limits(0, 1e6, above=True)]
STEP_TABLES = 4  # as large as a matrix, which a step makes


class OptimizerMember(Member):
    """An optimizer that can be told for what: `sgd @ lora(rank=4)`."""

    kind = "optimizers"

    @abstractmethod
    def rule(self, seed: int) -> Rule:
        """The rule; what is random in it is drawn from `seed`."""

    def check(self, prepared: Prepared) -> None:
        """UserError when it has nothing to do for what trains; `told` gets what the user should know."""

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        return Optimized(self, Full()).apply(model, seed)

    def __matmul__(self, update: object) -> Optimized:
        _no_second(self, update)
        return Optimized(self, update) if isinstance(update, Trains) else NotImplemented


class Optimized(Pair):
    """An optimizer and the update whose tensors it moves."""

    sign = "@"

    @property
    def faster(self) -> float:
        return float(self.left.faster)

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        prepared = self.right.apply(model, seed)
        if type(prepared.rule) is not AdamWRule:
            raise UserError(f"{self}: {self.right} has an optimizer of its own; leave one out")
        prepared.rule = self.left.rule(seed)
        self.left.check(prepared)
        return prepared

    def __matmul__(self, where: object) -> Optimized:
        _no_second(self, where)
        if isinstance(self.right, Method) and isinstance(where, Selection):
            return Optimized(self.left, self.right @ where)
        return NotImplemented


def _no_second(left: object, right: object) -> None:
    if isinstance(right, OptimizerMember | Optimized):
        raise UserError(f"{left} @ {right}: two optimizers cannot move one model; leave one out")


@dataclass(frozen=True)
class Sgd(OptimizerMember):
    """Plain gradient descent: no optimizer state without momentum, and far larger rates."""

    examples = ("sgd", "sgd(momentum=0.9) @ last(1)", "sgd @ (lora(rank=2) @ last(1))")
    momentum: ShareBelowOne = 0.0

    @property
    def faster(self) -> float:  # type: ignore[override]
        """Under momentum steps add up to 1/(1 - momentum) times as much."""
        return 200.0 * (1 - self.momentum)

    def rule(self, seed: int) -> Rule:
        return SgdRule(self.momentum)


@dataclass(frozen=True)
class Moment:
    """One step of one tensor: what a treatment needs to know."""

    name: str
    gradient: Tensor
    state: State
    count: int  # steps of this tensor, this one included
    betas: tuple[float, float]
    epsilon: float
    seed: int  # of the run


@torch.no_grad()
def adam(moment: Moment, gradient: Tensor) -> Tensor:
    """Adam's m / (sqrt(v) + eps), both with bias correction, after taking `gradient` in."""
    beta1, beta2 = moment.betas
    first, second = moment.state["exp_avg"], moment.state["exp_avg_sq"]
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (second / (1 - beta2**moment.count)).sqrt_().add_(moment.epsilon)
    return (first / (1 - beta1**moment.count)).div_(root)


def moments(shape: torch.Size | tuple[int, int], device: torch.device) -> State:
    """Two moments, zero."""
    return {key: torch.zeros(shape, device=device) for key in ("exp_avg", "exp_avg_sq")}


@dataclass(frozen=True)
class MatrixMember(OptimizerMember):
    """How matrices are treated; members say what is kept and which way it leads."""

    rank: int  # a matrix with no more rows or columns gets AdamW
    others = 1.0  # the rate of what gets AdamW, over that of the matrices
    needs_signal = False

    @abstractmethod
    def kept(self, rows: int, columns: int) -> int:
        """How many numbers are kept of a matrix."""

    @abstractmethod
    def start(self, matrix: Tensor) -> State:
        """The state of a matrix before its first step."""

    @abstractmethod
    def direction(self, moment: Moment) -> Tensor:
        """What is taken off the matrix, over the learning rate; updates the state."""

    def treats(self, name: str, shape: torch.Size) -> bool:
        """Whether a tensor is a matrix of a layer, and large enough."""
        return len(shape) == 2 and min(shape) > self.rank and layer_of(name) is not None

    def rule(self, seed: int) -> Rule:
        return MatrixRule(self, seed)

    def check(self, prepared: Prepared) -> None:
        size = prepared.schedule.size
        smaller = "take a smaller rank or " * (self.rank > 1)
        if not any(
            self.treats(name, p.shape) and size(name, p) == p.numel()
            for name, p in prepared.trainable.items()
        ):
            raise UserError(
                f"{self}: of what trains here no matrix of a layer has more than {self.rank} rows"
                f" and columns, so it would be plain AdamW; {smaller}leave it out"
            )


@dataclass(frozen=True)
class MatrixRule(Rule):
    """AdamW in which a member treats the matrices of the layers."""

    member: MatrixMember
    seed: int
    by_entry = False

    @property
    def needs_signal(self) -> bool:  # type: ignore[override]
        return self.member.needs_signal

    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        return MatrixAdamW(groups, settings, self)

    def state_bytes(self, name: str, shape: torch.Size) -> int:
        treated = self.member.treats(name, shape)
        return 4 * (self.member.kept(*shape) if treated else 2 * shape.numel())

    def step_numbers(self, largest: int) -> int:
        """Tables of the size of the largest matrix: its gradient's projection and way back."""
        return STEP_TABLES * largest


class MatrixAdamW(torch.optim.Optimizer):
    """AdamW (decoupled weight decay) in which a member treats the matrices of the layers."""

    def __init__(self, groups: Groups, settings: Optimizer, rule: MatrixRule) -> None:
        betas, decay = (settings.beta1, settings.beta2), settings.weight_decay
        given = {"lr": 0.0, "betas": betas, "eps": settings.epsilon, "weight_decay": decay}
        super().__init__(groups, given)
        self.member, self.seed = rule.member, rule.seed

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every tensor that has a gradient; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            for name, tensor in zip(group["names"], group["params"], strict=True):
                if tensor.grad is not None:
                    self._move(name, tensor, tensor.grad, group)

    def _move(self, name: str, tensor: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, treated = self.state[tensor], self.member.treats(name, tensor.shape)
        if not state:
            first = self.member.start(tensor) if treated else moments(tensor.shape, tensor.device)
            state |= {"step": torch.zeros(()), **first}
        count = int(state["step"]) + 1
        state["step"] = torch.tensor(float(count))
        moment = Moment(name, gradient, state, count, group["betas"], group["eps"], self.seed)
        toward = self.member.direction(moment) if treated else adam(moment, gradient)
        rate = group["lr"] * (1.0 if treated else self.member.others)
        tensor.mul_(1 - rate * group["weight_decay"])
        tensor.add_(toward, alpha=-rate)
