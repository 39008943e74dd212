"""What every update has in common: it is applied to a model and says what trains.

An update is a frozen dataclass with `apply(model, seed) -> Prepared`. After that exactly
the tensors in `Prepared.active` have `requires_grad`, all others have it off and no
gradient. `Prepared.trainable` holds all that may ever train in the run; the schedule
(`schedule.Schedule`) says which of it trains now. `Prepared.reference()` turns the model
into what it was before training, for as long as a `with` block lasts, without a second
model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn

from modicum.spec import Spec
from modicum.types import UserError
from modicum.updates.chains import Chain, Trains
from modicum.updates.kinds import Kind, leading
from modicum.updates.layout import Layout, depth, layout
from modicum.updates.rules import AdamWRule, Rule
from modicum.updates.schedule import Schedule
from modicum.updates.swap import Swap


class Prepared(ABC):
    """A model with an update applied.

    `model` is what is run, `trainable` the tensors that may train by name, `frozen` all others.
    `schedule` says which of `trainable` train now, `rule` how the optimizer moves them.
    """

    reference_known = True
    """Whether there is a `reference`: of dense training after `keep_reference` only."""

    def __init__(
        self,
        model: nn.Module,
        trainable: dict[str, nn.Parameter],
        schedule: Schedule | None = None,
        rule: Rule | None = None,
    ) -> None:
        if not trainable:
            raise UserError("the update leaves nothing to train")
        self.model, self.trainable = model, trainable
        self.schedule = schedule or Schedule()
        self.rule: Rule = rule or AdamWRule()
        chosen = {id(p) for p in trainable.values()}
        self.frozen = {n: p for n, p in model.named_parameters() if id(p) not in chosen}
        for parameter in self.frozen.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        self.active: dict[str, nn.Parameter] = {}
        first = self.schedule.start
        self.activate(trainable if first is None else first)

    @property
    def notes(self) -> list[str]:
        """What the user should know of this update on this model, a sentence each."""
        found = []
        inputs = self.model.get_input_embeddings()  # type: ignore[operator, union-attr]
        head = self.model.get_output_embeddings()  # type: ignore[operator, union-attr]
        tied = head is not None and head.weight is inputs.weight
        if tied and any(p is inputs.weight for p in self.trainable.values()):
            found.append(
                "head and embedding are one tensor here: training one trains both, and backward"
                " runs through the whole model"
            )
        return found

    def activate(self, names: Iterable[str]) -> None:
        """From now on exactly these of `trainable` train."""
        wanted = set(names)
        odd = wanted - self.trainable.keys()
        assert not odd, f"{min(odd)} may not train"
        self.active = {n: p for n, p in self.trainable.items() if n in wanted}
        for name, parameter in self.trainable.items():
            parameter.requires_grad_(name in wanted)
            parameter.grad = None

    @property
    def lowest_layer(self) -> int:
        """The lowest layer that trains now; -1: the embedding, number of layers: only above."""
        return self._lowest(self.active)

    @property
    def lowest_ever(self) -> int:
        """The lowest layer that may train in this run: below it all is as it was."""
        return self._lowest(self.trainable)

    @property
    def trunk_is_reference(self) -> bool:
        """Whether nothing below the lowest trained layer trains in this run, then or later."""
        return self.lowest_ever == self.lowest_layer

    def _lowest(self, names: Iterable[str]) -> int:
        count = self.model.config.num_hidden_layers  # type: ignore[union-attr]
        return min(depth(name, count) for name in names)

    @abstractmethod
    def keep_reference(self) -> None:
        """Remember what `reference` needs; call before the first change."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """A context in which the model is what it was when it was prepared."""

    @property
    def reference_is_bare(self) -> bool:
        """Whether the reference runs the base without what the update adds to its layers."""
        return False

    def reference_bytes(self, kl: bool) -> int:
        """Bytes of the first values that are kept, with or without a KL term."""
        return sum(p.numel() * p.element_size() for p in self.trainable.values()) if kl else 0

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """What the update adds to a linear layer that it has wrapped."""
        raise AssertionError(f"{type(self)} wraps no layer, and {type(layer)} is wrapped")

    def without_data(self) -> None:  # noqa: B027  # most need nothing
        """Let the model run on tensors without data, for the planner; it is spent afterwards."""

    def mergeable(self) -> nn.Module:
        """The model in the precision that `merged` adds in; nothing trains on it afterwards."""
        return self.model

    @abstractmethod
    def merged(self) -> nn.Module:
        """The ordinary model with the update inside; `model` is spent afterwards."""


@runtime_checkable
class Update(Protocol):
    """Something that trains a part of a model."""

    rate_scale: float
    """The default learning rate, over that of full training."""
    kind: Kind
    """What an arm of a study that trains by it is called among many."""

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        """Freeze what does not train and return what does; UserError if nothing fits."""
        ...


class DensePrepared(Prepared):
    """Some of the model's own tensors train; the reference is a copy of their old values."""

    def __init__(self, model: nn.Module, trainable: dict[str, nn.Parameter], **rest: Any) -> None:
        super().__init__(model, trainable, **rest)
        self.swap, self.reference_known = Swap(trainable), False

    def keep_reference(self) -> None:
        """Copy the values of what may train, and of nothing else."""
        self.reference_known = True
        self.swap.keep()

    def reference(self) -> AbstractContextManager[None]:
        """Swap the copies in, and the trained tensors back afterwards."""
        return self.swap.swapped()

    def merged(self) -> nn.Module:
        return self.model


class Selection(Spec, ABC):
    """A dense update: a predicate on parameters. `a + b` is the union, `a & b` both."""

    rate_scale: ClassVar[float] = 1.0
    kind: ClassVar[Kind]
    examples: ClassVar[tuple[str, ...]]
    """Expressions that run on the tiny base, the usual one first."""

    @abstractmethod
    def names(self, layout: Layout) -> set[str]:
        """The names of the selected parameters."""

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        return DensePrepared(model, self.select(model))

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The selected parameters by name; UserError when there are none."""
        places = layout(model)
        chosen = self.names(places)
        if not chosen:
            parts = sorted({part for place in places.places.values() for part in place.parts})
            raise UserError(
                f"{self} selects nothing in this model ({places.num_layers} layers;"
                f" parts: {', '.join(parts)})"
            )
        return {name: p for name, p in model.named_parameters() if name in chosen}

    def __add__(self, other: object) -> Union:
        return Union(self, other) if isinstance(other, Selection) else NotImplemented

    def __and__(self, other: object) -> Intersection:
        return Intersection(self, other) if isinstance(other, Selection) else NotImplemented


@dataclass(frozen=True)
class Joined(Selection):
    """Two selections."""

    sign: ClassVar[str]
    left: Selection
    right: Selection

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """That of the side that says more."""
        return leading(self.left.kind, self.right.kind)

    def __str__(self) -> str:
        """Both sides around the sign, in brackets if they are joined by the other one."""
        other = Intersection if isinstance(self, Union) else Union
        left = f"({self.left})" if isinstance(self.left, other) else str(self.left)
        right = f"({self.right})" if isinstance(self.right, other) else str(self.right)
        return f"{left} {self.sign} {right}"


class Union(Joined):
    """What either selects."""

    sign: ClassVar[str] = "+"

    def names(self, layout: Layout) -> set[str]:
        return self.left.names(layout) | self.right.names(layout)


class Intersection(Joined):
    """What both select."""

    sign: ClassVar[str] = "&"

    def names(self, layout: Layout) -> set[str]:
        return self.left.names(layout) & self.right.names(layout)


class Method(Spec, ABC):
    """A way of training that can be told where: `lora(rank=4) @ last(2)`."""

    rate_scale: ClassVar[float] = 1.0
    kind: ClassVar[Kind] = "schedules, masks"
    examples: ClassVar[tuple[str, ...]]
    """Expressions that run on the tiny base, the usual one first."""

    @abstractmethod
    def apply(self, model: nn.Module, seed: int = 0, where: Selection | None = None) -> Prepared:
        """Train what `where` selects of `model`, all of it if that is None."""

    def __matmul__(self, where: object) -> Placed:
        return Placed(self, where) if isinstance(where, Selection) else NotImplemented


def placed(left: object, right: object) -> str:
    """The text of `left @ right`."""
    return f"{left} @ {right}" if _single(str(right)) else f"{left} @ ({right})"


def _single(text: str) -> bool:
    """Whether no operator stands outside of brackets."""
    level = 0
    for character in text:
        level += {"(": 1, ")": -1}.get(character, 0)
        if level == 0 and character in "+&@":
            return False
    return True


@dataclass(frozen=True)
class Placed:
    """A method and the selection that it trains."""

    method: Method
    where: Selection

    @property
    def rate_scale(self) -> float:
        """That of the method."""
        return self.method.rate_scale

    @property
    def kind(self) -> Kind:
        """That of the method, as a selection says less."""
        return self.method.kind

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        return self.method.apply(model, seed, self.where)

    def __str__(self) -> str:
        return placed(self.method, self.where)
