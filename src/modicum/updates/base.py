"""What every update has in common: it is applied to a model and says what trains.

An update is a frozen dataclass with `apply(model, seed) -> Prepared`. After that exactly the
tensors in `Prepared.active` have `requires_grad`; `Prepared.trainable` holds all that may ever
train in the run."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from modicum.models.adapters import merged
from modicum.models.linear import meanwhile
from modicum.report.words import say
from modicum.types import UserError
from modicum.updates.layout import Layout, depth, layout
from modicum.updates.members import AdamWRule, Kind, Member, Pair, Rule
from modicum.updates.schedule import Named, Schedule


class Swap:
    """Old values of some tensors, to be put in their place for a while."""

    def __init__(self, tensors: Mapping[str, nn.Parameter]) -> None:
        self.tensors = tensors
        self.originals: dict[str, Tensor] = {}

    def keep(self) -> None:
        """Copy the values of these tensors, and of nothing else."""
        self.originals = {name: p.detach().clone() for name, p in self.tensors.items()}

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The copies are in the model, and the present values afterwards."""
        assert self.originals, "keep_reference was not called"
        with ExitStack() as stack:
            for name, parameter in self.tensors.items():
                stack.enter_context(meanwhile(parameter, data=self.originals[name]))
            yield


class Prepared:
    """A model with an update applied, by itself one whose own tensors train. `model` is what is
    run, `trainable` the tensors that may train by name, `frozen` all others; `schedule` says which
    train now, `rule` how the optimizer moves them. The reference is a copy of the first values of
    what may train."""

    reference_is_bare: bool = False
    """Whether the reference runs the base without what the update adds to its layers."""
    rewrites_base: bool = False  # then the first values are kept in any case: an export needs them
    adapter: Any = None  # the adapter that has wrapped layers, if the update is one

    def __init__(
        self, model: nn.Module, trainable: Named, schedule: Schedule | None = None
    ) -> None:
        if not trainable:
            raise UserError("the update leaves nothing to train")
        self.model, self.trainable, self.swap = model, trainable, Swap(trainable)
        self.schedule = schedule or Schedule()
        self.rule: Rule = AdamWRule()
        self.drawn = ""  # what the run's seed has drawn, where a selection leaves that to it
        self.told: list[str] = []  # what the method has to say, and the optimizer
        chosen = {id(p) for p in trainable.values()}
        self.frozen = {n: p for n, p in model.named_parameters() if id(p) not in chosen}
        for parameter in self.frozen.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        self.active: Named = {}
        first = self.schedule.start
        self.activate(trainable if first is None else first)

    @property
    def notes(self) -> list[str]:
        """What the user should know of this update on this model, a sentence each."""
        found = [f"the run's seed has drawn {self.drawn}"] * bool(self.drawn) + self.told
        inputs = self.model.get_input_embeddings()  # type: ignore[operator, union-attr]
        head = self.model.get_output_embeddings()  # type: ignore[operator, union-attr]
        tied = head is not None and head.weight is inputs.weight
        if tied and any(p is inputs.weight for p in self.trainable.values()):
            found.append(say("tied"))
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

    def keep_reference(self) -> None:
        """Remember what `reference` needs; call before the first change."""
        if not self.reference_known:
            self.swap.keep()

    @property
    def reference_known(self) -> bool:
        """Whether there is a `reference`: where values are needed after `keep_reference` only."""
        return self.reference_is_bare or bool(self.swap.originals)

    def reference(self) -> AbstractContextManager[None]:
        """A context in which the model is what it was when it was prepared."""
        return self.swap.swapped()

    def reference_bytes(self, kl: bool) -> int:
        """Bytes of the first values that are kept, with or without a KL term."""
        kept = self.rewrites_base or (kl and not self.reference_is_bare)
        return sum(p.numel() * p.element_size() for p in self.trainable.values() if kept)

    def merged(self) -> nn.Module:
        """The ordinary model, an adapter added to it in fp32; `model` is spent afterwards."""
        return merged(self.model)


@runtime_checkable
class Update(Protocol):
    """Something that trains a part of a model."""

    kind: Kind  # what an arm of a study that trains by it is called among many

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        """Freeze what does not train and return what does; UserError if nothing fits."""


class Selection(Member):
    """A dense update: a predicate on parameters. `a + b` is the union, `a & b` both."""

    @abstractmethod
    def names(self, layout: Layout) -> set[str]:
        """The names of the selected parameters."""

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        where = self.settled(model, seed)
        return where.noted(self, Prepared(model, where.select(model)))

    def settled(self, model: nn.Module, seed: int) -> "Selection":
        """The selection with what it leaves to the seed drawn."""
        return self

    def noted(self, asked: "Selection", prepared: Prepared) -> Prepared:
        """Say in `prepared` what was drawn where that is not just what was asked for."""
        prepared.drawn = "" if self == asked else str(self)
        return prepared

    def select(self, model: nn.Module) -> Named:
        """The selected parameters by name; UserError when there are none."""
        places = layout(model)
        chosen = self.names(places)
        if not chosen:
            parts = sorted({part for place in places.places.values() for part in place.parts})
            raise UserError.of("nothing", update=self, layout=places, parts=", ".join(parts))
        return {name: p for name, p in model.named_parameters() if name in chosen}

    def __add__(self, other: object) -> "Union":
        return Union(self, other) if isinstance(other, Selection) else NotImplemented

    def __and__(self, other: object) -> "Intersection":
        return Intersection(self, other) if isinstance(other, Selection) else NotImplemented


class Union(Pair, Selection):
    """What either of two selects."""

    sign = "+"
    joined: ClassVar[Callable[[set[str], set[str]], set[str]]] = set.union

    def settled(self, model: nn.Module, seed: int) -> "Selection":
        return type(self)(self.left.settled(model, seed), self.right.settled(model, seed))

    def names(self, layout: Layout) -> set[str]:
        return type(self).joined(self.left.names(layout), self.right.names(layout))


class Intersection(Union):
    """What both select."""

    sign = "&"
    joined = set.intersection


def selected(model: nn.Module, where: Selection | None) -> Named:
    """What `where` selects by name, everything if it is None; UserError for an adapter."""
    layout(model)
    return dict(model.named_parameters()) if where is None else where.select(model)


class Method(Member):
    """A way of training that can be told where: `lora(rank=4) @ last(2)`."""

    @abstractmethod
    def apply(self, model: nn.Module, seed: int = 0, where: Selection | None = None) -> Prepared:
        """Train what `where` selects of `model`, all of it if that is None."""

    def __matmul__(self, where: object) -> "Placed":
        return Placed(self, where) if isinstance(where, Selection) else NotImplemented


class Scheduled(Method):
    """A method that trains the model's own tensors under a schedule; members name its class."""

    kind = "schedules, masks"
    begins: ClassVar[Callable[[Any, nn.Module, Named, int], Schedule]]
    """The schedule by the method, the model, what is selected of it, and the seed."""

    def apply(self, model: nn.Module, seed: int = 0, where: Selection | None = None) -> Prepared:
        chosen = selected(model, where)
        schedule = type(self).begins(self, model, chosen, seed)
        trainable = {n: p for n, p in chosen.items() if n in (schedule.named or chosen)}
        return Prepared(model, trainable, schedule=schedule)


class Placed(Pair):
    """A method and the selection that it trains."""

    sign = "@"

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        where = self.right.settled(model, seed)
        return where.noted(self.right, self.left.apply(model, seed, where))
