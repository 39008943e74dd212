"""The cells of a study: probes, the base, tuning, final runs.

cells/probe/ARM                 a few steps, for the estimate of the cost
cells/base-tune, cells/base-test   the untrained model
cells/tune/ARM/rate-...         tries of the learning rate
cells/final/ARM/seed-N          the comparison
tuning.json                     the rate of each arm and its tries
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from modicum.config import Held, TrainConfig, read_toml
from modicum.parts import require_group
from modicum.results import TuningRun
from modicum.runs import Run, read_object
from modicum.study import design, tuning
from modicum.study.cell import RESULT, Cell, failure
from modicum.study.design import PlannedArm, Study
from modicum.study.launch import Bench
from modicum.study.tuning import Choice
from modicum.types import UserError

PROBE_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class StudyBench(Bench):
    """A study, and where and how its cells are run."""

    study: Study
    split: Literal["tune", "test"] = "test"
    """Final runs are judged on it."""

    @property
    def arms(self) -> list[PlannedArm]:
        """All arms, the control first."""
        return design.arms(self.study)

    def config(
        self, arm: PlannedArm, seed: int, path: str, rate: float | None, share: float = 1.0
    ) -> TrainConfig:
        """The settings of a run of an arm in a `path` under the folder."""
        return design.config(self.study, arm, seed, self.folder / path, rate, share)

    def cell(self, label: str, config: TrainConfig, split: str, keep: bool = False) -> Cell:
        """A run judged on a split, with the base's evaluation on it."""
        base = str(self.folder / "cells" / f"base-{split}")
        return Cell(label, _held(self, config, split), base, keep)


def default_rate(bench: StudyBench, arm: PlannedArm) -> float:
    """The learning rate that the settings of an arm name, or the one that its probe has found."""
    from modicum import recipes, updates

    config = bench.config(arm, 0, "", None)
    if config.optimizer.learning_rate is not None:
        return config.optimizer.learning_rate
    probe = bench.folder / "cells" / "probe" / arm.slug
    found = read_toml(probe / "config.toml").get("optimizer", {}).get("learning_rate")
    trained = read_object(probe / RESULT)["trainable_parameters"]
    return found or recipes.start_rate(updates.parse(config.update), trained)


def base_cell(bench: StudyBench, split: str) -> Cell:
    """The evaluation of the untrained model on a split."""
    config = bench.config(bench.arms[0], 0, f"cells/base-{split}", None)
    return Cell(f"base on the {split} split", _held(bench, config, split))


def _held(bench: StudyBench, config: TrainConfig, split: str) -> TrainConfig:
    """The config with the evaluation of its split; what trains is not measured twice."""
    if split == bench.split:
        return replace(config, evaluation=replace(config.evaluation, eval_split=bench.split))
    held = Held(bench.study.tuning.problems, bench.study.tuning.samples, 0, "tune")
    return replace(
        config, evaluation=held, records=replace(config.records, anatomy=False, checkpoint_every=0)
    )


def probe_cells(bench: StudyBench) -> list[Cell]:
    """A few steps of every arm, at the rate that it names or finds."""
    found = []
    for arm in bench.arms:
        seed = bench.study.tuning.seed
        config = bench.config(arm, seed, f"cells/probe/{arm.slug}", None)
        config = replace(
            config,
            steps=min(PROBE_STEPS, config.steps),
            evaluation=Held(eval_problems=0),
            records=replace(config.records, anatomy=False),
        )
        found.append(bench.cell(f"probe {arm.name}", config, "test"))
    return found


def tune(bench: StudyBench) -> dict[str, Choice]:
    """The rate of every arm, by name; runs the tries that are missing."""
    study = bench.study
    tuned = [arm for arm in bench.arms if not arm.placebo]
    defaults = {arm.name: default_rate(bench, arm) for arm in tuned}
    rounds: dict[str, list[list[TuningRun]]] = {arm.name: [] for arm in tuned}
    for number, share in enumerate(tuning.shares(study)):
        tries = {
            arm.name: tuning.next_round(study, arm, rounds[arm.name][-1], share)
            if number
            else tuning.first_round(study, arm, defaults[arm.name])
            for arm in tuned
        }
        cells = [_tuning_cell(bench, arm, entry) for arm in tuned for entry in tries[arm.name]]
        bench.run(cells)
        for arm in tuned:
            rounds[arm.name].append([_tried(bench, entry) for entry in tries[arm.name]])
    found = {a.name: tuning.choose(study, defaults[a.name], rounds[a.name]) for a in tuned}
    control = found[study.control]
    found |= {a.name: Choice(control.learning_rate) for a in bench.arms if a.placebo}
    kept = {name: asdict(choice) for name, choice in found.items()}
    Run(bench.folder).write("tuning.json", kept)
    return found


def _tuning_cell(bench: StudyBench, arm: PlannedArm, entry: TuningRun) -> Cell:
    config = bench.config(arm, bench.study.tuning.seed, entry.folder, entry.rate, entry.share)
    return bench.cell(f"tuning {arm.name} at {entry.rate:.2g}", config, "tune")


def _tried(bench: StudyBench, entry: TuningRun) -> TuningRun:
    folder = bench.folder / entry.folder
    if not (folder / RESULT).is_file():
        return replace(entry, failed=failure(folder) or "it has not run")
    return replace(entry, accuracy=read_object(folder / RESULT)["trained"][bench.study.primary])


def final_cells(bench: StudyBench, choices: dict[str, Choice]) -> list[Cell]:
    """The runs of the comparison, seed by seed, so that what is there early has every arm."""
    found = []
    for seed in bench.study.seeds:
        for arm in bench.arms:
            path = f"cells/final/{arm.slug}/seed-{seed}"
            config = bench.config(arm, seed, path, choices[arm.name].learning_rate)
            found.append(
                bench.cell(f"{arm.name}, seed {seed}", config, bench.split, bench.study.keep)
            )
    return found


def check_arms(study: Study) -> None:
    """UserError for an arm whose expressions say nothing, or that is the same method as another."""
    from modicum import objectives

    seen: dict[object, str] = {}
    for arm in design.arms(study):
        config = design.config(study, arm, 0, Path("."), None)
        try:
            check_expressions(config)
        except UserError as error:
            raise UserError(f"arm {arm.name}: {error}") from None
        goal, updates = objectives.parse(config.objective), config.batch.updates_per_rollout
        same = objectives.method(goal, updates, any_scale=config.optimizer.max_grad_norm == 0)
        other = seen.setdefault((same, repr(replace(config, objective=""))), arm.name)
        if other != arm.name and not study.null_check:
            raise UserError(
                f"the arms {other} and {arm.name} are the same method here (docs/objectives.md):"
                " compare others, or say null_check = true if they are to measure the noise"
            )


def check_expressions(config: TrainConfig) -> None:
    """UserError for an expression that says nothing."""
    from modicum import curricula, objectives, rewards, tasks, updates

    updates.parse(config.update)
    rewards.parse(config.reward)
    require_group(objectives.parse(config.objective), config)
    curricula.parse(config.curriculum)
    tasks.parse(config.task)
