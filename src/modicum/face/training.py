"""`modicum.train`, objects and flat settings to a run, and what came of it: result, report."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modicum import rewards, runs, tasks
from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.naming import run_folder
from modicum.options import merge
from modicum.parts import RunParts, expression, is_given, parsers, past_bases, past_config
from modicum.results import Evaluation, RunResult, fill
from modicum.rewards import Reward, Term
from modicum.settings import tables
from modicum.types import UserError

if TYPE_CHECKING:
    from modicum.training.loop import Observer
else:
    Observer = Any  # what `typing.get_type_hints` finds, without torch

# What an object of a kind must have.
NEEDED = {"update": "apply", "objective": "token_loss", "curriculum": "begin"}
NAMES = ("update", "model", "task", "reward")
OPTION = re.compile(r"(?<![\w-])--([a-z-]+)")
SWITCH = re.compile(r"(?<![\w-])--(overwrite|resume)(?![a-z-])")
COUNTS = ("trainable_parameters", "total_parameters", "steps", "seconds", "change_proof")


@contextmanager
def in_python() -> Iterator[None]:
    """In here errors name arguments and not the command line's options; also a decorator."""
    try:
        yield
    except UserError as error:
        text = SWITCH.sub(r"\1=True", str(error))
        error.args = (OPTION.sub(lambda option: option[1].replace("-", "_"), text),)
        raise


@dataclass(frozen=True, repr=False)
class TrainResult:
    """A run. `values` is what its `result.json` holds; empty while it has not ended."""

    folder: Path
    values: dict[str, Any] = field(hash=False)
    parts: RunParts | None = field(default=None, compare=False)  # objects that it was begun with
    base: str = field(default="", compare=False)  # where its base is now; empty: as the run says

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.folder.absolute())

    @property
    def accuracy(self) -> float | None:
        """Share of sampled answers that are right after training, on held-out problems."""
        return (self.values.get("trained") or {}).get("accuracy")

    @property
    def baseline(self) -> float | None:
        """The same of the model before training."""
        return (self.values.get("base") or {}).get("accuracy")

    @property
    def config(self) -> TrainConfig:
        """All settings of the run."""
        return past_config(self.folder)

    @property
    def metrics(self) -> list[dict[str, float]]:
        """A dict for every step (docs/metrics.md); `pandas.DataFrame(result.metrics)`."""
        return runs.read_lines(runs.open_run(self.folder).folder / "metrics.jsonl", optional=True)

    def report(self, out: str | Path = "", title: str = "") -> Path:
        """Write the run's page, with Markdown and figures beside it; returns the page."""
        return report(self, out=out, title=title)

    @in_python()
    def export(
        self,
        out: str | Path,
        format: Literal["merged", "adapter"] = "merged",
        overwrite: bool = False,
        base: str | Path = "",
    ) -> Path:
        """Write the trained model as an ordinary Hugging Face folder, or only its adapter.

        `base` says where the base of the run is now, if it has moved."""
        from modicum.export import export_run

        place = Path(out).expanduser()
        config = past_bases(self.folder, self.config, str(base) or self.base)
        export_run(self.folder, place, format, overwrite, config, self.parts)
        return place

    def evaluate(self, **settings: Any) -> Evaluation:
        """`modicum.evaluate` of this run, by default on its own task."""
        from modicum.face.evaluation import evaluate

        return evaluate(self, **settings)

    def _rows(self) -> list[list[str]]:
        from modicum.report.words import filled

        return [line.split(" | ", 1) for line in filled("result.txt", run=self).splitlines()]

    def __repr__(self) -> str:
        return "\n".join(f"{name:<12}  {text}" for name, text in self._rows())

    def _repr_html_(self) -> str:
        from modicum.report.words import filled

        return filled("result.html", rows=self._rows())


def load(folder: str | Path, base: str | Path = "") -> TrainResult:
    """The result of a run that is there: finished, or on its way (then accuracy is None).

    `base` says where its base is now, if it has moved; `evaluate` and `export` look there."""
    place = folder_of(folder)
    past_config(place)  # UserError when it is no run folder
    path = place / "result.json"
    values = runs.read_object(path) if path.exists() else {}
    if path.exists():
        fill(RunResult, values, str(path))
        if missing := [name for name in NAMES + COUNTS if values.get(name) is None]:
            raise UserError(f"{path}: {missing[0]!r} is missing")
    return TrainResult(place, values, base=str(base))


def report(*runs: str | Path | TrainResult, out: str | Path = "", title: str = "") -> Path:
    """Write the report of some runs, or of one study, and return the path of its page.

    Markdown and figures are written beside it. `out` is the page; by default report.html in
    the folder of a single run or study, and here for several runs."""
    from modicum.report import page

    return page.write([folder_of(run) for run in runs], out and Path(out).expanduser(), title)


def folder_of(run: str | Path | TrainResult) -> Path:
    """The folder of a run that is named by itself or by its folder."""
    if isinstance(run, TrainResult):
        return run.folder
    try:
        return Path(run).expanduser()
    except TypeError:
        raise UserError(f"a folder or the result of a run is needed, not {run!r:.60}") from None


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

    `task` is an expression, a list of dicts or problems, or a `Task`; `reward` an expression, a
    function in TRL's form, a `Term`, or a list of those, which is summed; `update`, `objective` and
    `curriculum` are expressions or objects. `settings` are all others of `TrainConfig` by their flat
    names (`model`, `steps`, `learning_rate`, ...), over those of `config`. `resume` goes on with the
    run in `out`, `overwrite` replaces it. Progress goes to standard error, or to an `observer`."""
    if resume and overwrite:
        raise UserError("train: resume and overwrite exclude each other")
    if not isinstance(config, TrainConfig | None):
        hint = "give settings by name, such as model='tiny'"
        raise UserError(f"train: config must be a TrainConfig, not {config!r:.60}; {hint}")
    given = {"update": update, "objective": objective, "curriculum": curriculum}
    given |= {"task": task, "reward": reward}
    made = {kind: _part(kind, value) for kind, value in given.items() if value is not None}
    texts = {kind: expression(kind, part) for kind, part in made.items()}
    parts = RunParts(**{kind: part for kind, part in made.items() if is_given(texts[kind])})
    said = tables(TrainConfig, {**settings, **texts}, "train")
    below = {} if config is None else dataclasses.asdict(config)
    whole = from_mapping(TrainConfig, merge(below, said), "train")
    folder = run_folder(whole)
    if resume and config is None and (folder / "config.toml").is_file():
        past = {**read_toml(folder / "config.toml"), "out": str(folder)}
        whole = from_mapping(TrainConfig, merge(past, said), "train")

    from modicum.display import Display
    from modicum.training.loop import train as run

    watch = folder if whole.records.watch else None
    with Display(watch) if progress and observer is None else nullcontext(observer) as shown:
        values = run(whole, shown, overwrite, resume, parts=parts)
        if shown and values["nothing_trained"]:
            shown.note(f"nothing was trained: {values['nothing_trained']}")
    return TrainResult(folder, values, parts)


def _part(kind: str, value: Any) -> Any:
    if kind in ("task", "reward"):
        return tasks.of(value) if kind == "task" else rewards.of(value)
    if isinstance(value, str):
        return parsers()[kind](value)
    if isinstance(value, type) or not hasattr(value, NEEDED[kind]):
        what = "an expression or an object of this kind"
        raise UserError(f"{kind}: must be {what}, not {value!r:.60}")
    return value
