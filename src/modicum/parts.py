"""The parts of a run that can be Python objects: task, update, reward, objective, curriculum.

An object that no expression gives again stands in the config as `given('...')`, which `spec.build`
refuses: such a run goes on from Python only. What it was is kept in the run folder (KEPT)."""

import inspect
import json
import re
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from modicum import rewards, runs, tasks
from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.rewards import Reward
from modicum.spec import GIVEN
from modicum.tasks.dataset import DataTask
from modicum.tasks.file import GivenTask
from modicum.types import Frozen, UserError

if TYPE_CHECKING:
    from modicum.curricula import Curriculum
    from modicum.objectives import Objective
    from modicum.objectives.corrections import Correction
    from modicum.updates import Update

KEPT = "given.json"
ENVIRONMENT = "environment.json"


class RunParts(Frozen):
    """Objects in the place of a config's expressions; None: the expression says it."""

    task: tasks.Task | None = None
    update: "Update | None" = None
    reward: Reward | None = None
    objective: "Objective | None" = None
    curriculum: "Curriculum | None" = None

    def named(self, config: TrainConfig) -> TrainConfig:
        """The config with an expression for every object here."""
        held = ((kind, part) for kind, part in vars(self).items() if part is not None)
        texts: dict[str, Any] = {kind: expression(kind, part) for kind, part in held}
        return replace(config, **texts)

    def resolve(
        self, config: TrainConfig
    ) -> tuple[tasks.Task, "Update", Reward, "Objective", "Curriculum"]:
        """All five, read from the config where there is no object; UserError for `given`."""
        held = ((kind, parse, getattr(self, kind)) for kind, parse in parsers().items())
        task, update, reward, objective, curriculum = (
            parse(getattr(config, kind)) if part is None else part for kind, parse, part in held
        )
        require_group(objective, config)
        correction_of(config)
        return task, update, reward, objective, curriculum

    def resumed(self, config: TrainConfig, folder: Path) -> tuple[TrainConfig, Self]:
        """Config and parts of a run that goes on: where its base and its problems are now."""
        if not (folder / "config.toml").is_file():
            return config, self
        readers: dict[str, Callable[[str], Any]] = {
            "task": partial(past_task, folder),
            "update": partial(past_update, folder),
            "reward": lambda text: rewards.parse(text, places(folder)),
        }
        texts = {kind: getattr(config, kind) for kind in readers if getattr(self, kind) is None}
        found = {k: readers[k](text) for k, text in texts.items() if not is_given(text)}
        return past_bases(folder, config), replace(self, **found)

    def keep(self, run: runs.Run, config: TrainConfig) -> list[str]:
        """Write what the config alone cannot repeat; returns what the user should know of it."""
        kinds = [kind for kind in parsers() if is_given(getattr(config, kind))]
        found = {kind: _described(getattr(self, kind), getattr(config, kind)) for kind in kinds}
        if (path := run.folder / KEPT).exists():
            changed = json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(found))
            return [f"the source differs from what the run began with ({path})"] * changed
        if isinstance(self.task, GivenTask):
            self.task.write(run)
        if found:
            run.write(KEPT, found)
        return []


def require_group(objective: "Objective", config: TrainConfig) -> None:
    """UserError for groups of one where the objective compares completions of a problem."""
    if config.batch.group_size < 2 and getattr(objective, "compares", True):
        hint = "of the objectives reinforce_pp and ppo take 1"
        raise UserError(f"group_size must be at least 2 ({hint})")


def correction_of(config: TrainConfig) -> "Correction":
    """What corrects the sampler of a run; UserError for one that needs none."""
    from modicum.objectives import corrections
    from modicum.serving import members  # torch

    in_process = members.parse(config.compute.sampler).in_process
    return corrections.parse(config.batch.correction, in_process)


def first_updates(config: TrainConfig) -> int:
    """The updates of a rollout; 2 or more also where a first one has ratios that are not 1, since
    nothing corrects what another sampler says."""
    from modicum.serving import members  # torch

    here = members.parse(config.compute.sampler).in_process
    apart = not here and correction_of(config).form == "bypass"
    return max(config.batch.updates_per_rollout, 1 + apart)


def parsers() -> dict[str, Callable[[str], Any]]:
    """What reads the expressions of each kind."""
    from modicum import curricula, objectives, updates  # torch

    modules: tuple[Any, ...] = (tasks, updates, rewards, objectives, curricula)
    return {name: of.parse for name, of in zip(RunParts.__annotations__, modules, strict=True)}


def expression(kind: str, part: Any) -> str:
    """The expression that gives an equal object, or `given('...')` where there is none."""
    text = _label(part)
    try:
        known = parsers()[kind](text) == part
    except UserError:
        known = False
    return text if known else f"{GIVEN}({text!r})"


def is_given(text: str) -> bool:
    """Whether an expression stands for an object that it does not give again."""
    return text.startswith(f"{GIVEN}(")


def past_config(folder: Path) -> TrainConfig:
    """The resolved config of a run folder; UserError when it is none."""
    path = runs.open_run(folder).folder / "config.toml"
    return from_mapping(TrainConfig, read_toml(path), str(path))


def past_task(folder: Path, text: str) -> tasks.Task:
    """The task of a past run; problems that were handed over are read from its folder. The relative
    path of a file leads from here, or else from where the run was begun."""
    task = GivenTask.read(folder) if is_given(text) else None
    if task is None:
        made = tasks.parse(text)
        return made.found_in(places(folder)) if isinstance(made, DataTask) else made
    if expression("task", task) != text:
        raise UserError(f"the problems in {folder} are not those of its run, {text}")
    return task


def past_update(folder: Path, text: str) -> "Update | None":
    """The update of a past run, if it reads a run whose relative path leads from elsewhere."""
    made = parsers()["update"](text)
    method = getattr(made, "left", made)  # or it is placed
    run = getattr(method, "run", "")
    if not run or not isinstance(run, str) or Path(run).expanduser().is_dir():
        return None
    if not (there := [place / run for place in places(folder) if (place / run).is_dir()]):
        return None
    found = replace(method, run=str(there[0].resolve()))
    return found if method is made else replace(made, left=found)


def past_base(folder: Path, name: str) -> str:
    """Where the base of a past run is: at `name` from here, or else from where it was begun;
    UserError for a folder or file that is in neither place."""
    if name == "tiny" or (path := Path(name).expanduser()).exists():
        return name
    for place in places(folder):
        if (place / path).exists():
            return str((place / path).resolve())
    known = base_of(folder)
    if path.is_absolute() or (known.get("local") and known.get("model") == name):
        kind = "GGUF file" if path.suffix.lower() == ".gguf" else "model folder"
        raise UserError.of("base_gone", kind=kind, name=name, folder=folder)
    return name


def past_bases(folder: Path, config: TrainConfig, model: str = "", base: str = "") -> TrainConfig:
    """The config of a past run with its base, and the adapters of it, where they are now."""
    below, above = base or config.base, past_base(folder, model or config.model)
    there = [str(at) for place in places(folder) if (at := place / config.init_adapter).exists()]
    init = there[0] if config.init_adapter and there else config.init_adapter
    return replace(config, model=above, base=below and past_base(folder, below), init_adapter=init)


def began(folder: Path) -> dict[str, Any]:
    """What a run has written of its beginning; nothing where there is no such file."""
    return runs.read_object(folder / ENVIRONMENT, optional=True)


def base_of(folder: Path) -> dict[str, Any]:
    """Which base a run began with; nothing where it did not write it."""
    found = began(folder).get("base")
    return found if isinstance(found, dict) else {}


def places(folder: Path) -> list[Path]:
    """The folders from which relative paths of a past run may lead, the working one first."""
    found = began(folder).get("began_in")
    there = found if isinstance(found, list) else []
    return [Path(), *(folder / place for place in there if isinstance(place, str))]


def problems_changed(folder: Path, task: tasks.Task) -> str:
    """A sentence if the task reads other problems now than when the run began."""
    same = began(folder).get("problems") in (None, tasks.fingerprint(task))
    return "" if same else f"the problems of {task} have changed since the run began"


def _label(part: Any) -> str:
    """The name of an object, without its place in memory."""
    plain = type(part).__repr__ is object.__repr__ and type(part).__str__ is object.__str__
    return type(part).__name__ if plain else str(part)


def _described(part: Any, text: str) -> dict[str, Any]:
    """What an object is, as far as it can be written down: its problems or its source."""
    if isinstance(part, GivenTask):
        return {"expression": text, **part.summary}
    pieces = [term for _, term in part.terms] if isinstance(part, Reward) else [part]
    codes = {_label(piece): getattr(piece, "function", type(piece)) for piece in pieces}
    shipped = re.compile(r"modicum(\.|$)")
    own = {n: c for n, c in codes.items() if not shipped.match(str(getattr(c, "__module__", "")))}
    found = dict[str, str | None].fromkeys(own)
    for name, code in own.items():
        with suppress(OSError, TypeError):
            found[name] = textwrap.dedent(inspect.getsource(code))
    return {"expression": text, "source": found}
