"""What a run asks of the processes that it is made of; `Team` is one alone, and answers at once."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from modicum.engine.base import Asked, Groups
from modicum.models.precision import Masters
from modicum.spec import Spec
from modicum.types import Row
from modicum.updates.base import Prepared

T = TypeVar("T")


class Team(Spec, AbstractContextManager["Team"], frozen=False):
    """One process, whoever has started it. Others are number `rank` of `size` processes, which call
    the same methods in the same order; what they tell each other is JSON."""

    name = "none"
    several: ClassVar[bool] = False  # whether processes share the groups of a step
    in_pieces: ClassVar[bool] = False  # whether each of them holds a piece of every master
    rank, size = 0, 1
    device = ""  # of this process; empty: what the run asks for

    def join(self, device: str) -> Self:
        """Meet the others, for a run on such a device; a context that ends with parting from them."""
        return self

    def __exit__(self, *_: object) -> None:
        """Part from the others."""

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and speaks to the user."""
        return self.rank == 0

    def masters_fit(self, prepared: Prepared) -> None:
        """UserError where these processes cannot train what this is."""

    def masters(self, prepared: Prepared, *given: Any) -> Masters:
        """The masters of what trains; UserError where these processes cannot train it."""
        return Masters(prepared.active, prepared.schedule.entries, *given)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a checkpoint, of which processes may hold pieces, as they are written."""
        return tensors

    def sample(self, draw: Callable[[Asked], Groups], asked: Asked) -> Groups:
        """What `draw` gives for all prompts, each drawn in one process."""
        return draw(asked)

    def lines(self, rows: Sequence[Any]) -> list[Any]:
        """The rows of all processes, in the order of these."""
        return list(rows)

    def reduce(self, optimizer: Optimizer) -> None:
        """Make the gradients that an optimizer steps by sums over all processes."""

    def divided(self, prepared: Prepared, masters: Masters) -> AbstractContextManager[None]:
        """In here gradients are made and the optimizer steps, with what is `apart` in pieces."""
        return nullcontext()

    def apart(self, prepared: Prepared) -> dict[nn.Module, list[nn.Parameter]]:
        """Tensors by the layer in which processes meet, each time that it runs."""
        return {}

    def prove(self, when: str, of: Callable[[], Mapping[str, Tensor]]) -> str:
        """Say that the tensors `of` gives are alike in all processes; RunStopped with one that is not."""
        return ""

    # What is made of these ---------------------------------------------------------------

    def owns(self, group: int) -> bool:
        """Whether the group with this number in its step is drawn and trained here."""
        return group % self.size == self.rank

    def mine(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of the groups of this process."""
        return [row for row in rows if self.owns(row.group)]

    def micro_batches(self, rows: Sequence[Row], size: int) -> list[list[Row]]:
        """Those rows, `size` at a time; an empty part is one that others have and all must run."""
        mine = self.mine(rows)
        return [mine[at : at + size] for at in range(0, len(mine), size)]

    def each(self, groups: Sequence[int], work: Callable[[int], T]) -> list[T]:
        """What `work` gives for every place, called in rising order where the group there is."""
        told = self.lines([[n, work(n)] for n, group in enumerate(groups) if self.owns(group)])
        return [found for _, found in sorted(told, key=lambda pair: pair[0])]

    def told(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, where alone it is called."""
        (found,) = self.lines([make()] if self.first else [])
        return found  # type: ignore[no-any-return]

    def summed(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The sums of all processes, in which some names may be missing, added up."""
        found: dict[str, float] = {}
        for told in self.lines([dict(sums)]):
            found |= {name: found.get(name, 0.0) + value for name, value in told.items()}
        return found
