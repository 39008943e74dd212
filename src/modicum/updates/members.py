"""What all members have in common, parts, methods and optimizers: limits, a kind, and joining."""

from abc import ABC
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

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


class Member(Spec, ABC):
    """A part of the model, a method or an optimizer; arguments are checked against their types."""

    faster = 1.0  # how far above AdamW's the rates of an optimizer lie
    kind: ClassVar[Kind]
    examples: ClassVar[tuple[str, ...]]  # expressions for the tiny base, the usual one first

    def __init_subclass__(cls) -> None:
        """A member's name is that of its class in lower case, unless it says another."""
        cls.name = vars(cls).get("name", cls.__name__.lower())


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
