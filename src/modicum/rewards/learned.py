"""The reward of a model, which a run has in memory and hands over (`modicum.engine.reward`)."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from modicum.rewards.base import Term
from modicum.rewards.source import FOLDERS
from modicum.runs import read_object
from modicum.spec import check
from modicum.tasks.base import Task
from modicum.types import Completion, Problem, UserError

REPORT = "reward_model.json"


@dataclass(frozen=True)
class Learned(Term):
    """What a reward model says of the last token: sigma(score - median of held-out scores).

    `path` is a folder of `modicum reward-model`, or of a classifier with one label (transformers).
    One that its report does not put above trivial rivals is refused unless `force`. `center` takes the
    median's place. PERL (arXiv 2403.10704) has reward model and policy as LoRA, each on a base of its own;
    here they share one in memory, which the reward model reads as it was before training.
    """

    name: ClassVar[str] = "learned"
    learned: ClassVar[bool] = True
    path: str
    force: bool = False
    center: float | None = None

    file: Path = field(init=False, repr=False, compare=False)
    """Its report, in the folder, which may lead from where a past run began."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("learned: path", self.path, str)
        places = [folder / Path(self.path).expanduser() for folder in (Path(), *FOLDERS.get())]
        folder = next((place for place in places if place.is_dir()), places[0])
        object.__setattr__(self, "file", folder / REPORT)

    def report(self) -> dict[str, Any]:
        return read_object(self.file) if self.file.is_file() else {}

    def begin(self, opened: Callable[[Any], Callable[..., list[float]]]) -> Term:
        made = copy.copy(self)
        vars(made)["judge"] = opened(self)
        return made

    def require(self, problem: Problem) -> None:
        """UserError where there is no reward model, or one that is not better than its rivals."""
        folder, report = self.file.parent, self.report()
        if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
            hint = "modicum reward-model makes one"
            raise UserError(f"reward {self}: {folder} holds no reward model; {hint}")
        if report and not (self.force or report.get("beats")):
            told = {name: report.get(name) for name in ("accuracy", "low", "rivals")}
            why = f"its report does not put it above trivial rivals ({told})"
            raise UserError(f"reward {self}: {why}; force=True takes it all the same")

    def score_group(
        self, task: Task, problem: Problem, completions: Sequence[Completion], faults: list[str]
    ) -> list[float]:
        """Of all completions of a problem together; UserError where no model is in memory."""
        if "judge" not in vars(self):
            raise UserError(f"reward {self}: it scores in a run, with its model in memory")
        scores: list[float] = vars(self)["judge"](problem, completions)
        faults += [f"{self}: a score is not finite" for score in scores if score != score]
        return [0.0 if score != score else score for score in scores]
