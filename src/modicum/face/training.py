"""`modicum.train`: objects and flat settings to a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from modicum import rewards, tasks
from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.face.result import TrainResult, in_python
from modicum.naming import run_folder
from modicum.options import merge
from modicum.parts import RunParts, expression, is_given, parsers
from modicum.rewards import Reward, Term
from modicum.settings import tables
from modicum.types import UserError

if TYPE_CHECKING:
    from modicum.training.loop import Observer
else:
    Observer = Any  # what `typing.get_type_hints` finds, without torch

NEEDED = {"update": "apply", "objective": "token_loss", "curriculum": "begin"}
"""What an object of a kind must have."""


@in_python()
def train(
    config: TrainConfig | None = None,
    *,
    task: str | tasks.Task | Iterable[Any] | None = None,
    reward: str | Callable[..., Any] | Term | Reward | list[Any] | None = None,
    update: Any = None,
    objective: Any = None,
    curriculum: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    observer: Observer | None = None,
    **settings: Any,
) -> TrainResult:
    """Train a model with GRPO, updating the part that `update` names.

    `task` is an expression, a list of dicts or problems, or a `Task`; `reward` an expression,
    a function in TRL's form, a `Term`, or a list of those, which is summed. `update`,
    `objective` and `curriculum` are expressions or objects. `settings` are all others of
    `TrainConfig` by their flat names (`model`, `steps`, `seed`, `out`, `learning_rate`,
    `temperature`, `group_size`, ...), over those of `config`.

    `resume` goes on with the run in `out`, `overwrite` replaces it. Progress goes to standard
    error, or to an `observer`. Raises UserError, one line, for what cannot be done.
    """
    if resume and overwrite:
        raise UserError("train: resume and overwrite exclude each other")
    if not isinstance(config, TrainConfig | None):
        raise UserError(
            f"train: config must be a TrainConfig, not {config!r:.60}; give settings by name,"
            " such as model='tiny'"
        )
    given = {"update": update, "objective": objective, "curriculum": curriculum}
    made = {kind: _part(kind, value) for kind, value in given.items() if value is not None}
    if task is not None:
        made["task"] = tasks.of(task)
    if reward is not None:
        made["reward"] = rewards.of(reward)
    texts = {kind: expression(kind, part) for kind, part in made.items()}
    parts = RunParts(**{kind: part for kind, part in made.items() if is_given(texts[kind])})
    whole = _config(config, {**settings, **texts}, resume)
    folder = run_folder(whole)

    from modicum.display import Display
    from modicum.training.loop import train as run

    watch = folder if whole.records.watch else None
    with Display(watch) if progress and observer is None else nullcontext(observer) as shown:
        values = run(whole, shown, overwrite, resume, parts=parts)
        if shown and values["nothing_trained"]:
            shown.note(f"nothing was trained: {values['nothing_trained']}")
    return TrainResult(folder, values, parts)


def _part(kind: str, value: Any) -> Any:
    """The object that an expression names, or the object itself."""
    if isinstance(value, str):
        return parsers()[kind](value)
    if isinstance(value, type) or not hasattr(value, NEEDED[kind]):
        raise UserError(
            f"{kind}: must be an expression or an object of this kind, not {value!r:.60}"
        )
    return value


def _config(base: TrainConfig | None, values: dict[str, Any], resume: bool) -> TrainConfig:
    """The settings over those of `base`, or of the run that is gone on with."""
    given = tables(TrainConfig, values, "train")
    below = {} if base is None else dataclasses.asdict(base)
    asked = from_mapping(TrainConfig, merge(below, given), "train")
    folder = run_folder(asked)
    if not (resume and base is None and (folder / "config.toml").is_file()):
        return asked
    past = {**read_toml(folder / "config.toml"), "out": str(folder)}
    return from_mapping(TrainConfig, merge(past, given), "train")
