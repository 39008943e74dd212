"""Code run without data, and the memory that it would hold.

`without_data` gives a model's tensors shapes and dtypes on a device, and no memory (torch's
FakeTensorMode). What computes with them gives such tensors again, so that the engine's own
code says what it allocates. `Live` records that: every storage from when an operation makes
it to when nothing holds it any more, by phase and category. `peaks` and `tops` read the
record. Index tensors and masks are real and counted too.

What it cannot see: buffers inside a kernel, and what an allocator keeps between tensors.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from modicum.plan.heap import Heap


@dataclass(frozen=True)
class Event:
    """A storage is made (bytes above 0) or dropped (below), in a phase.

    Without a storage: a phase begins.
    """

    storage: int | None
    size: int
    phase: str
    growing: bool = False
    """Whether it happens while autograd's graph grows."""


class Live(TorchDispatchMode):
    """A context that records when storages are made and dropped, in which phase, as what.

    What existed before is not recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.categories: list[str] = []
        """Of every storage, by its number."""
        self._living: dict[int, tuple[int, int, weakref.ref[Any]]] = {}
        """By storage: its number and size, and what tells when it is dropped."""
        self._category, self._phase, self._growing = "other", "", False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = None
        for made in tree_iter(found):
            if not isinstance(made, Tensor):
                continue
            if given is None:
                given = {_key(t) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
            # Else it is a view, or the result of work in place.
            if _key(made) not in given and _key(made) not in self._living:
                self._add(made)
        return found

    @contextmanager
    def _while(self, **values: Any) -> Iterator[None]:
        before = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(before)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A stretch, from now on, whose fullest moment is asked for."""
        self.events.append(Event(None, 0, name))
        return self._while(_phase=name)

    def category(self, name: str) -> AbstractContextManager[None]:
        """What is made meanwhile is counted as `name`."""
        return self._while(_category=name)

    def switch(self, category: str) -> None:
        """From now on, within the present `category`, count as another one."""
        self._category = category

    def growing(self) -> AbstractContextManager[None]:
        """A stretch in which autograd's graph grows."""
        return self._while(_growing=True)

    def recount(self, tensor: Tensor, category: str) -> None:
        """Count a living tensor as `category`, from when it was made."""
        if (known := self._living.get(_key(tensor))) is not None:
            self.categories[known[0]] = category

    def again(self, start: int, stop: int, passing: str = "") -> None:
        """Let what happened from event `start` to `stop` happen once more.

        What is still there at the end is dropped. Of the category `passing`, what is made is
        dropped at once: it was added to what is there already.
        """
        numbers: dict[int, int] = {}
        left: dict[int, int] = {}
        for event in self.events[start:stop]:
            old, size = event.storage, event.size
            if old is None:
                self.events.append(event)
            elif size > 0:
                numbers[old] = number = len(self.categories)
                self.categories.append(self.categories[old])
                self.events.append(replace(event, storage=number))
                left[number] = size
                if self.categories[old] == passing:
                    self.events.append(replace(event, storage=number, size=-left.pop(number)))
            elif (number := numbers.get(old, -1)) in left:
                self.events.append(replace(event, storage=number, size=-left.pop(number)))
        self.events += [Event(number, -size, self._phase) for number, size in left.items()]

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size, number = storage._cdata, storage.nbytes(), len(self.categories)
        self._living[key] = (number, size, weakref.ref(storage, lambda _: self._drop(key)))
        self.categories.append(self._category)
        self.events.append(Event(number, size, self._phase, self._growing))

    def _drop(self, key: int) -> None:
        number, size, _ = self._living.pop(key)
        self.events.append(Event(number, -size, self._phase, self._growing))


def peaks(live: Live) -> dict[str, dict[str, int]]:
    """Bytes by category at the fullest moment of each phase, phases in order."""
    most: dict[str, int] = {}
    when: dict[str, int] = {}
    total = 0
    for index, event in enumerate(live.events):
        total += event.size
        if event.phase and total >= most.get(event.phase, 0):
            most[event.phase], when[event.phase] = total, index
    found: dict[str, dict[str, int]] = {phase: {} for phase in when}
    held: Counter[str] = Counter()
    at = {index: phase for phase, index in when.items()}
    for index, event in enumerate(live.events):
        if event.storage is not None:
            held[live.categories[event.storage]] += event.size
        if index in at:
            found[at[index]] = {name: size for name, size in held.items() if size}
    return found


def tops(live: Live) -> dict[str, int]:
    """What a heap that never shrinks grew to in each phase in which it grew, in bytes."""
    heap, chunks = Heap(), dict[int, tuple[int, int]]()
    found: dict[str, int] = {}
    for event in live.events:
        heap.growing, before = event.growing, heap.top
        if event.storage is not None and event.size > 0:
            chunks[event.storage] = heap.take(event.size)
        elif event.storage is not None and event.size < 0:
            heap.give(*chunks.pop(event.storage))
        if heap.top > before:
            found[event.phase] = heap.top
    return found


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Fake(FakeTensorMode):
    """torch's, in which products of groups of rows (experts) are of any dtype, as on data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
            left, right = args[:2]
            shape = (left.shape[-2], right.shape[-1])
            if left.ndim == right.ndim:  # a product for every group
                ends = args[2] if len(args) > 2 else kwargs["offs"]
                shape = (len(ends if left.ndim == 2 else left), *shape)
            return left.new_empty(shape)
        return super().__torch_dispatch__(func, types, args, kwargs)


def without_data(model: nn.Module) -> tuple[dict[int, Tensor], FakeTensorMode]:
    """Put tensors without data in the place of all parameters and buffers of `model`.

    Returns the new ones by the `id` of the old, and the mode that they belong to.
    """
    mode = Fake(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}

    def fake(old: Tensor) -> Tensor:
        if id(old) not in made:
            with mode:
                new = torch.empty(old.shape, dtype=old.dtype)
            trains = old.requires_grad
            made[id(old)] = nn.Parameter(new, trains) if isinstance(old, nn.Parameter) else new
        return made[id(old)]

    for module in model.modules():
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in held:
            tensors |= {name: fake(old) for name, old in tensors.items() if old is not None}
    return made, mode


def renewed(tensors: Mapping[str, Tensor], made: Mapping[int, Tensor]) -> dict[str, Any]:
    """The tensors that `without_data` put in the place of these."""
    return {name: made[id(old)] for name, old in tensors.items()}
