"""What all members have in common, parts, methods and optimizers: limits, a kind, and joining.

And rules: how the optimizer moves what trains, and what it keeps for that. All state is in tensors, so
that a checkpoint can hold it. How far a step goes is counted in spacings: a number of fp32 that is to
move by less than half of one stays as it is."""

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from modicum.config import Optimizer
from modicum.limits import Limits
from modicum.spec import Spec

Kind = Literal[
    "adapters", "schedules, masks", "optimizers", "layers", "parts of layers", "whole model"
]
"""What an arm of a study is called, and coloured by, among many; what says most comes first."""


# No run and no model has more, so that a number beyond it would mean never, or all.
MAX_STEPS, MAX_LAYERS, MAX_COUNT, MAX_RANK = 1_000_000, 10_000, 65_536, 1024
Steps = Annotated[int, Limits(1, MAX_STEPS)]
StepsOrNone = Annotated[int, Limits(0, MAX_STEPS)]
Layers = Annotated[int, Limits(1, MAX_LAYERS)]
LayersOrNone = Annotated[int, Limits(0, MAX_LAYERS)]
Count = Annotated[int, Limits(1, MAX_COUNT)]
Rank = Annotated[int, Limits(1, MAX_RANK)]

Groups = list[dict[str, Any]]
PIECE = 2**18  # numbers looked at at a time
EXAMPLES = tomllib.loads(Path(__file__).with_name("examples.toml").read_text(encoding="utf-8"))
FAR = 16.0  # spacings beyond which a tensor does not come back to its start by a few steps


class Member(Spec, ABC):
    """A part of the model, a method or an optimizer; arguments are checked against their types."""

    faster = 1.0  # how far above AdamW's the rates of an optimizer lie
    kind: ClassVar[Kind]
    examples: ClassVar[tuple[str, ...]]
    """Expressions for the tiny base, the usual one first; those of the package are in examples.toml."""

    def __init_subclass__(cls) -> None:
        """A member's name is that of its class in lower case, unless it says another."""
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()
        super().__init_subclass__()
        if "examples" not in vars(cls) and cls.name in EXAMPLES:
            cls.examples = tuple(EXAMPLES[cls.name])


@dataclass(frozen=True)
class Pair:
    """Two that a sign joins."""

    sign: ClassVar[str]
    left: Any
    right: Any

    @property
    def kind(self) -> Kind:
        """That of the side that says more."""
        return min(self.left.kind, self.right.kind, key=get_args(Kind).index)

    def __str__(self) -> str:
        """Both sides around the sign, in brackets where another sign, or a second @, joins them."""

        def text(side: Any) -> str:
            apart = isinstance(side, Pair) and (side.sign == "@" or side.sign != self.sign)
            return f"({side})" if apart else str(side)

        return f"{text(self.left)} {self.sign} {text(self.right)}"


class Rule(ABC):
    """How tensors are moved by their gradients."""

    by_entry = True  # whether the step of a number depends on its own gradient and state alone
    on_host: tuple[str, ...] = ()
    """What of the state is on the CPU wherever the model is, since the host counts by it."""
    step_tables = 0  # of fp32, as large as the largest tensor, that a step makes and drops
    needs_signal = False
    """Whether no step is taken where no group has a signal, as any gradient gives a whole one."""

    @abstractmethod
    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        """The optimizer; every group has `params`, `lr` and `names`."""

    @abstractmethod
    def state_bytes(self, name: str, shape: torch.Size) -> int:
        """Bytes that the optimizer keeps of one fp32 tensor, the step counter left out."""

    def spacings(
        self, name: str, tensor: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]
    ) -> float:
        """How many spacings of its fp32 numbers the coming step moves a tensor at most: it is taken
        on a copy, in pieces, of which one that goes FAR is enough."""
        gradient, best = tensor.grad, 0.0
        if gradient is None:
            return best
        size = PIECE if self.by_entry else tensor.numel()
        for start in range(0, tensor.numel(), size):

            def cut(held: Tensor, part: slice = slice(start, start + size)) -> Tensor:
                whole = not self.by_entry or held.shape != tensor.shape
                return (held if whole else held.reshape(-1)[part]).detach().clone()

            before, copy = cut(tensor), cut(tensor).requires_grad_()
            copy.grad = cut(gradient)
            alone = {"params": [copy], "names": [name]}
            optimizer = self.make([{**alone, "lr": 0.0}], Optimizer())
            optimizer.param_groups[0].update({**group, **alone})
            optimizer.state[copy].update({key: cut(value) for key, value in state.items()})
            optimizer.step()
            height = before.abs()
            spacing = torch.nextafter(height, height.new_tensor(float("inf"))) - height
            best = max(best, float(((copy.detach() - before).abs() / spacing).max()))
            if best >= FAR:
                break
        return best


class AdamWRule(Rule):
    """Adam with decoupled weight decay (arXiv 1711.05101): two moments of every number."""

    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        betas, decay = (settings.beta1, settings.beta2), settings.weight_decay
        how: Any = {"betas": betas, "eps": settings.epsilon, "weight_decay": decay}
        return torch.optim.AdamW(groups, fused=True, **how)

    def state_bytes(self, name: str, shape: torch.Size) -> int:
        return 8 * shape.numel()


def shrink(gradients: Mapping[str, Tensor], norm: float, most: float) -> None:
    """Scale gradients of such a norm down to the largest that is allowed; 0 allows all."""
    if 0 < most < norm:
        torch._foreach_mul_(list(gradients.values()), most / norm)
