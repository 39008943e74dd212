"""modicum: how little of a language model must reinforcement learning update?

    import modicum
    result = modicum.train(model="tiny", task=problems, reward=function, update="last(1)")

docs/python.md has the names below. They are imported when they are asked for, so that
`import modicum` takes no time and needs no torch."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modicum import curricula, objectives, rewards, tasks, updates
    from modicum.config import TrainConfig
    from modicum.face import compare, evaluate, load, report, study, train
    from modicum.types import UserError

__all__ = [
    "TrainConfig", "UserError", "compare", "curricula", "evaluate", "load", "objectives", "report",
    "rewards", "study", "tasks", "train", "updates",
]  # fmt: skip

CALLS = ("train", "evaluate", "compare", "study", "report", "load")
PLACES = dict.fromkeys(("train", "compare", "load"), "modicum.face")
PLACES |= {"TrainConfig": "modicum.config", "UserError": "modicum.types"}
"""Where a name that is no module of its own is found."""


class CalledModule(ModuleType):
    """A module with the name of a call: `modicum.report(run)` beside `modicum.report.load`."""

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(self._call)

    @property
    def _call(self) -> Any:
        return getattr(import_module("modicum.face"), self.__name__.rpartition(".")[2])

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._call.__doc__

    def __reduce__(self) -> Any:
        return import_module, (self.__name__,)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the function of this name in `modicum.face` does."""
        return self._call(*arguments, **named)


class FaceModule(ModuleType):
    """This module: one that is imported below it under the name of a call can be called.
    The import system sets every submodule on its parent; without this the module would
    hide the call, or the call the module, depending on which came first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in CALLS and isinstance(value, ModuleType):
            value.__class__ = CalledModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = FaceModule


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in PLACES:
        return getattr(import_module(PLACES[name]), name)
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
