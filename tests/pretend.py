"""A pretend accelerator on a torch without one: its tensors hold their data in tensors of the CPU.

    with pretend() as record:
        train(replace(config, compute=Compute(device="pretend")))
    record.count                     kernels that a GPU would have been given
    record.syncs                     where the host waited for the device, each time
    record.within("forward_backward")    those while a function of that name ran

An operation that mixes devices as CUDA would not have it is a RuntimeError with file and line. What
a GPU rounds otherwise, and what it does out of order, cannot be seen here.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretend"


class _Module(_DummyBackendModule):
    """What `torch.pretend` is."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, _Module())
DEVICE, CPU = torch.device(NAME, 0), torch.device("cpu")
aten = torch.ops.aten

# What CUDA answers only when all that was asked before is done.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2"}
WAITS |= {"unique_dim", "unique_consecutive", "repeat_interleave", "_linalg_svd", "linalg_eig"}
# What takes tensors of two devices; indices of the CPU are copied up first.
MOVES = {"_to_copy", "copy_", "_copy_from", "_copy_from_and_resize"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
# What gives a kernel nothing to do.
VIEWS = {
    *("view", "_unsafe_view", "expand", "transpose", "t", "permute", "select", "slice", "detach"),
    *("unsqueeze", "squeeze", "alias", "split", "split_with_sizes", "unbind", "as_strided"),
    *("_reshape_alias", "lift_fresh", "diagonal", "unfold"),
}


class Sync(NamedTuple):
    """The host waited: for what, where (`file:line`), while which functions ran."""

    what: str
    where: str
    during: frozenset[str]


class Record:
    """What a pretend device was asked for."""

    def __init__(self) -> None:
        self.count = 0
        self.syncs: list[Sync] = []
        self.copies_up: list[Sync] = []

    def within(self, name: str) -> Counter[str]:
        """How often the host waited while a function called `name` ran, by what and where."""
        return Counter(f"{s.what} at {s.where}" for s in self.syncs if name in s.during)

    def up_within(self, name: str) -> Counter[str]:
        """How often numbers of the host were copied up meanwhile."""
        return Counter(s.where for s in self.copies_up if name in s.during)


RECORD = Record()


class Held(Tensor):
    """A tensor of the pretend device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Held:
        made: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @property
    def data(self) -> Held:  # type: ignore[override]
        return Held(self.inner)

    @data.setter
    def data(self, value: Held) -> None:
        self.inner = value.inner

    def __repr__(self, **_: Any) -> str:
        return f"Held({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            _wait("tolist")
            return args[0].inner.tolist()
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"can't convert {NAME} device type tensor to numpy; use Tensor.cpu()")
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """For what is made on the device of nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ours = any(isinstance(x, Held) for x in tree_leaves((args, kwargs)))
        return (_run if ours or _target(args, kwargs) == NAME else _plain)(func, args, kwargs)


def _plain(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _target(args: Any, kwargs: Any) -> str:
    """The type of the device that an operation names, if it does."""
    named = kwargs.get("device")
    found = named if named is not None else next((a for a in args if _is_device(a)), None)
    return "" if found is None else torch.device(found).type


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name, target = func._schema.name.split("::")[-1], _target(args, kwargs)
    if name == "_fused_sdp_choice":
        return 0
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    ours = [x for x in tensors if isinstance(x, Held)]
    theirs = [x for x in tensors if not isinstance(x, Held)]
    if ours and theirs and name not in MOVES:
        _check(func, name, args, theirs)
    _note(func, name, args, kwargs, ours, theirs, target)

    def inner(value: Any) -> Any:
        if isinstance(value, Held):
            return value.inner
        return CPU if _is_device(value) and value.type == NAME else value

    given, named = tree_map(inner, (args, kwargs))
    named = {key: value for key, value in named.items() if key not in ("pin_memory",)}
    with _disable_current_modes():
        found = func(*given, **named)
    written = [
        x for a, x in _arguments(func, args, kwargs) if a.alias_info and a.alias_info.is_write
    ]
    if written and _in_place(func):
        return written[0] if len(written) == 1 else tuple(written)
    if name == "_local_scalar_dense" or not (target == NAME or (ours and target != "cpu")):
        return found
    return tree_map(lambda x: Held(x) if type(x) is Tensor else x, found)


def _arguments(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    for number, argument in enumerate(func._schema.arguments):
        yield argument, args[number] if number < len(args) else kwargs.get(argument.name)


def _in_place(func: Any) -> bool:
    """Whether it returns what it has written to."""
    told = [x.alias_info for x in func._schema.returns]
    return bool(told) and all(info is not None and info.is_write for info in told)


def _check(func: Any, name: str, args: Any, theirs: list[Tensor]) -> None:
    """RuntimeError for tensors of the CPU where CUDA takes none."""
    if name in INDEXED:
        if not isinstance(args[0], Held):
            raise RuntimeError(f"a CPU tensor is indexed by one of {NAME}, at {_where()}")
        theirs = [x for x in theirs if x.dtype not in (torch.long, torch.bool)]
        _wait(f"{name} by indices of the CPU")
    # A number may be anywhere in an operation by entries, and nowhere else.
    alone = torch.Tag.pointwise in func.tags or name in {"fill_", "masked_fill", "masked_fill_"}
    bad = [x for x in theirs if x.dim() or not (alone or name in INDEXED)]
    if bad:
        shapes = [(*x.shape, x.dtype) for x in bad]
        raise RuntimeError(f"{func}: {shapes} on the CPU among tensors of {NAME}, at {_where()}")


def _note(
    func: Any, name: str, args: Any, kwargs: Any, ours: Any, theirs: Any, target: str
) -> None:
    """Count the kernel, and that the host waits for it."""
    down = target == "cpu" if name != "copy_" else not isinstance(args[0], Held)
    if ours and name not in VIEWS:
        RECORD.count += 1
    if not ours or (name == "copy_" and not isinstance(args[1], Held)):
        if theirs:
            RECORD.copies_up.append(Sync(name, _where(), _during()))
            if not (kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))):
                _wait("copy up")
    elif name in WAITS and not (name == "repeat_interleave" and "output_size" in kwargs):
        _wait(name)
    elif name in INDEXED and any(x is not None and x.dtype == torch.bool for x in args[1]):
        _wait(f"{name} by a mask")
    elif down and not kwargs.get("non_blocking"):
        _wait("copy to the CPU")


def _frames() -> Iterator[Any]:
    """The calls that are open, innermost first; backward has a thread of its own."""
    threads: list[Any] = [sys._getframe(1)]
    main = threading.main_thread().ident
    if threading.get_ident() != main:
        threads.append(sys._current_frames().get(main))
    for frame in threads:
        while frame is not None:
            yield frame
            frame = frame.f_back


def _where() -> str:
    at = [(f.f_code.co_filename, f.f_lineno) for f in _frames()]
    own = [(name.split("/src/modicum/")[-1], n) for name, n in at if "/src/modicum/" in name]
    rest = [(n.rsplit("/", 1)[-1], k) for n, k in at if "/torch/" not in n and n != __file__]
    return "{}:{}".format(*(own or rest or [("?", 0)])[0])


def _during() -> frozenset[str]:
    return frozenset(frame.f_code.co_name for frame in _frames())


def _wait(what: str) -> None:
    RECORD.syncs.append(Sync(what, _where(), _during()))


def _moved(old_to: Callable[..., Any]) -> Callable[..., Any]:
    """`nn.Module.to` with what is tied still tied, which torch unties for a device of this kind."""

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        named = [a for a in args if isinstance(a, str | torch.device)]
        device = kwargs.get("device", named[0] if named else None)
        places = [held for m in self.modules() for held in (m._parameters, m._buffers)]
        there = {type(old) for held in places for old in held.values()}
        if device is None or (torch.device(device).type != NAME and Held not in there):
            return old_to(self, *args, **kwargs)
        dtypes = [a for a in (*args, kwargs.get("dtype")) if isinstance(a, torch.dtype)]
        made: dict[int, Any] = {}
        for held in places:
            for name, old in held.items():
                if old is not None and id(old) not in made:
                    new = old.detach().to(device, *(dtypes if old.is_floating_point() else ()))
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, old.requires_grad)
                    made[id(old)] = new
                held[name] = None if old is None else made[id(old)]
        return self

    return to


class _File:
    """safetensors' `safe_open`, which knows no such device."""

    def __init__(self, opened: Any, path: Any, *, device: Any = "cpu", **rest: Any) -> None:
        ours = torch.device(device).type == NAME
        self.device = device
        self.file = opened(path, device="cpu" if ours else device, **rest)

    def __enter__(self) -> Any:
        self.file.__enter__()
        return self

    def __exit__(self, *given: Any) -> Any:
        return self.file.__exit__(*given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def get_tensor(self, name: str) -> Tensor:
        return self.file.get_tensor(name).to(self.device)

    def get_tensors(self) -> dict[str, Tensor]:
        return {name: held.to(self.device) for name, held in self.file.get_tensors().items()}


@contextmanager
def pretend() -> Iterator[Record]:
    """The device `pretend` can be used meanwhile; what it was asked for is recorded."""
    global RECORD
    from modicum.updates import sparse

    RECORD = Record()
    opened, pointer = safetensors.torch.safe_open, safetensors.torch.storage_ptr
    patches: list[tuple[Any, str, Any]] = [
        (nn.Module, "to", _moved(nn.Module.to)),
        (torch, "inference_mode", torch.no_grad),  # its tensors would have no dispatch
        (safetensors.torch, "storage_ptr", lambda x: 0 if isinstance(x, Held) else pointer(x)),
        # CPU memory cannot be pinned without a device that torch knows.
        (Tensor, "pin_memory", lambda tensor: tensor),
        *(
            (
                of,
                "safe_open",
                lambda path, kind="pt", **k: _File(
                    opened, path, framework=k.pop("framework", kind), **k
                ),
            )
            for of in (safetensors.torch, sparse)
        ),
    ]
    before = [(of, name, getattr(of, name)) for of, name, _ in patches]
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        for patch in patches:
            setattr(*patch)
        with _Mode():
            yield RECORD
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        for patch in before:
            setattr(*patch)
