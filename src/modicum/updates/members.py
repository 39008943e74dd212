"""What all members have in common, parts, methods and optimizers: limits, a kind, and joining."""

from abc import ABC
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_type_hints

from modicum.spec import Spec, within

Kind = Literal[
    "adapters", "schedules, masks", "optimizers", "layers", "parts of layers", "whole model"
]
"""What an arm of a study is called, and coloured by, among many; what says most comes first."""


class Limits(NamedTuple):
    """What the values of an argument are within (`spec.within`); its type is annotated with it."""

    low: float
    high: float
    above: bool = False
    below: bool = False


# No run and no model has more, so that a number beyond it would mean never, or all.
MAX_STEPS, MAX_LAYERS, MAX_COUNT, MAX_RANK = 1_000_000, 10_000, 65_536, 1024
Steps = Annotated[int, Limits(1, MAX_STEPS)]
StepsOrNone = Annotated[int, Limits(0, MAX_STEPS)]
Layers = Annotated[int, Limits(1, MAX_LAYERS)]
LayersOrNone = Annotated[int, Limits(0, MAX_LAYERS)]
Count = Annotated[int, Limits(1, MAX_COUNT)]
Rank = Annotated[int, Limits(1, MAX_RANK)]
Share = Annotated[float, Limits(0, 1)]
ShareBelowOne = Annotated[float, Limits(0, 1, below=True)]
Between = Annotated[float, Limits(0, 1, above=True, below=True)]


class Member(Spec, ABC):
    """A part of the model, a method or an optimizer; arguments are checked against their types."""

    faster = 1.0
    """How far above AdamW's the rates of an optimizer lie."""
    kind: ClassVar[Kind]
    examples: ClassVar[tuple[str, ...]]
    """Expressions that run on the tiny base, the usual one first."""

    def __init_subclass__(cls) -> None:
        """A member's name is that of its class in lower case, unless it says another."""
        cls.name = vars(cls).get("name", cls.__name__.lower())

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            for limits in getattr(hint, "__metadata__", ()):
                within(f"{self.name}: {name}", getattr(self, name), *limits)


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
        left = f"({self.left})" if self._apart(self.left) else str(self.left)
        right = f"({self.right})" if self._apart(self.right) else str(self.right)
        return f"{left} {self.sign} {right}"

    def _apart(self, side: Any) -> bool:
        return isinstance(side, Pair) and (side.sign == "@" or side.sign != self.sign)
