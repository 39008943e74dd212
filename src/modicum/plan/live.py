"""Code run without data, and the memory that it would hold.

While a `Live` is entered, every storage on torch's meta device is recorded from when it is made to
when nothing holds it. torch's FakeTensorMode gives the same bytes, in three times the time."""

import weakref
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch._meta_registrations  # shapes of what torch's kernels make
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from modicum.models import flash
from modicum.models.linear import meanwhile
from modicum.plan.heap import Heap

META = torch.device("meta")
TORCH_ATTENTION = F.scaled_dot_product_attention
FLASH: Any = flash
OF_GPUS = flash.varlen, flash.fits
_SHAPES: dict[Any, tuple[Any, list[Any]] | None] = {}  # of what operations give


class Event(NamedTuple):
    """A storage is made (bytes above 0) or dropped (below); without a storage a phase begins."""

    storage: int | None
    size: int
    phase: str
    growing: bool = False  # whether it happens while autograd's graph grows


def _attention(q: Tensor, *rest: Any, attn_mask: Tensor | None = None, **named: Any) -> Tensor:
    """Attention by the kernel of a CPU, which makes no table of scores; meta would take another."""
    if not q.is_meta:
        return TORCH_ATTENTION(q, *rest, attn_mask=attn_mask, **named)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.empty_like(attn_mask, dtype=q.dtype, device=META)
    named = {key: named[key] for key in ("is_causal", "scale") if key in named}
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(q, *rest[:2], 0.0, attn_mask=attn_mask, **named)[0]


class _Varlen(torch.autograd.Function):
    """What a GPU's attention of sequences end to end makes and keeps for backward."""

    @staticmethod
    def forward(ctx: Any, q_NHD: Tensor, *others: Tensor) -> Tensor:
        out_NHD = torch.empty_like(q_NHD)
        scores_HN = q_NHD.new_empty(q_NHD.shape[1::-1], dtype=torch.float32)
        ctx.save_for_backward(q_NHD, *others, out_NHD, scores_HN)
        return out_NHD

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, ...]:
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))


def _varlen(q: Tensor, k: Tensor, v: Tensor, *_: Any, enable_gqa: bool, **__: Any) -> Any:
    return _Varlen.apply(q, k, v)


class Live(TorchDispatchMode):
    """A context that records when storages are made and dropped, in which phase, as what.

    With `varlen` attention in training is that of a GPU from compute capability 8.0, where it is for
    such heads (`models.device`)."""

    def __init__(self, varlen: bool = False) -> None:
        super().__init__()
        self.varlen = varlen
        self.events: list[Event] = []
        self.categories: list[str] = []  # of every storage, by its number
        # By storage: its number and size, and what tells when it is dropped.
        self._living: dict[int, tuple[int, int, weakref.ref[Any]]] = {}
        # As what is counted what is made now; whether autograd's graph grows.
        self.counted, self.growing, self._phase = "other", False, ""

    def __enter__(self) -> Any:
        F.scaled_dot_product_attention = _attention
        if self.varlen:
            FLASH.varlen, FLASH.fits = (lambda: _varlen), (lambda _, *heads: flash.suits(*heads))
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        F.scaled_dot_product_attention = TORCH_ATTENTION
        FLASH.varlen, FLASH.fits = OF_GPUS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = _leaves((*args, *kwargs.values()))
        given = [x for x in leaves if isinstance(x, Tensor)]
        if not any(x.is_meta for x in given):
            found = func(*args, **kwargs)
        else:
            if not all(x.is_meta for x in given):
                args, kwargs = tree_map_only(Tensor, _without_data, (args, kwargs))
            if kwargs.get("device") is not None:
                kwargs = {**kwargs, "device": META}
            found = _run(func, args, kwargs, leaves)
        keys = {_key(x) for x in given}
        for made in _leaves((found,)):
            # Else it is a view, or the result of work in place.
            if isinstance(made, Tensor):
                key = _key(made)
                if key not in keys and key not in self._living:
                    self._add(made, key)
        return found

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A stretch, from now on, whose fullest moment is asked for."""
        self.events.append(Event(None, 0, name))
        return meanwhile(self, _phase=name)

    def category(self, name: str) -> AbstractContextManager[None]:
        """What is made meanwhile is counted as `name`."""
        return meanwhile(self, counted=name)

    def recount(self, tensor: Tensor, category: str) -> None:
        """Count a living tensor as `category`, from when it was made."""
        if (known := self._living.get(_key(tensor))) is not None:
            self.categories[known[0]] = category

    def again(self, start: int, stop: int, passing: str = "") -> None:
        """Let what happened from event `start` to `stop` happen once more. What is still there at the
        end is dropped. Of the category `passing`, what is made is dropped at once: it was added to
        what is there already."""
        numbers: dict[int, int] = {}
        left: dict[int, int] = {}
        for event in self.events[start:stop]:
            if event.storage is None:
                self.events.append(event)
            elif event.size > 0:
                numbers[event.storage] = number = len(self.categories)
                self.categories.append(self.categories[event.storage])
                self.events.append(event._replace(storage=number))
                left[number] = event.size
                if self.categories[number] == passing:
                    self.events.append(event._replace(storage=number, size=-left.pop(number)))
            elif (number := numbers.get(event.storage, -1)) in left:
                self.events.append(event._replace(storage=number, size=-left.pop(number)))
        self.events += [Event(number, -size, self._phase) for number, size in left.items()]

    def _add(self, tensor: Tensor, key: int) -> None:
        storage, number = tensor.untyped_storage(), len(self.categories)
        size = storage.nbytes()
        self._living[key] = (number, size, weakref.ref(storage, lambda _: self._drop(key)))
        self.categories.append(self.counted)
        self.events.append(Event(number, size, self._phase, self.growing))

    def _drop(self, key: int) -> None:
        number, size, _ = self._living.pop(key)
        self.events.append(Event(number, -size, self._phase, self.growing))


def peaks(live: Live) -> dict[str, dict[str, int]]:
    """Bytes by category at the fullest moment of each phase, phases in order."""
    most: dict[str, tuple[int, int]] = {}  # bytes, and when that was
    total = 0
    for index, event in enumerate(live.events):
        total += event.size
        if event.phase and total >= most.get(event.phase, (0, 0))[0]:
            most[event.phase] = total, index
    found: dict[str, dict[str, int]] = {phase: {} for phase in most}
    held: Counter[str] = Counter()
    moments = {index: phase for phase, (_, index) in most.items()}
    for index, event in enumerate(live.events):
        if event.storage is not None:
            held[live.categories[event.storage]] += event.size
        if index in moments:
            found[moments[index]] = {name: size for name, size in held.items() if size}
    return found


def tops(live: Live) -> dict[str, int]:
    """What a heap that never shrinks grew to in each phase in which it grew, in bytes."""
    heap, chunks = Heap(), dict[int, tuple[int, int]]()
    found: dict[str, int] = {}
    for event in live.events:
        heap.grow(event.growing)
        before = heap.top
        if event.storage is not None and event.size > 0:
            chunks[event.storage] = heap.take(event.size)
        elif event.storage is not None and event.size < 0:
            heap.give(*chunks.pop(event.storage))
        if heap.top > before:
            found[event.phase] = heap.top
    return found


def _leaves(values: Any) -> list[Any]:
    """What an operation is given or gives; in lists and tuples at most, and quicker than pytree."""
    found: list[Any] = []
    for value in values:
        found += _leaves(value) if isinstance(value, (list, tuple)) else (value,)
    return found


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any]) -> Any:
    """What an operation gives; one that was seen before is not asked again for shapes."""
    if func._schema.name.endswith("_"):  # work in place
        return args[0]
    key = (func, *(_sort(x) if isinstance(x, Tensor) else x for x in leaves))
    if key not in _SHAPES:
        found = _shaped(func, args, kwargs)
        held = {_key(x) for x in leaves if isinstance(x, Tensor)}
        made = [x for x in _leaves((found,)) if isinstance(x, Tensor)]
        # Views are made each time; they cost little.
        fresh = all(_key(x) not in held and x.is_meta for x in made) and made
        _SHAPES[key] = (type(found), list(map(_sort, made))) if fresh else None
        return found
    if (known := _SHAPES[key]) is None:
        return func(*args, **kwargs)
    kind, sorts = known
    made = [torch.empty_strided(of[0], of[1], dtype=of[2], device=META) for of in sorts]
    return made[0] if kind is Tensor else kind(made)


def _sort(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype


def _shaped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation gives; products of groups of rows (experts) in any dtype, as on data."""
    if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
        left, right = args[:2]
        shape = (left.shape[-2], right.shape[-1])
        if left.ndim == right.ndim:  # a product for every group
            ends = args[2] if len(args) > 2 else kwargs["offs"]
            shape = (len(ends if left.ndim == 2 else left), *shape)
        return left.new_empty(shape)
    return func(*args, **kwargs)


def _without_data(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


def without_data(model: nn.Module) -> None:
    """Put tensors without data in the place of all parameters and buffers of `model`."""
    for module in model.modules():
        module._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(META), recurse=False)
