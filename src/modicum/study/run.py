"""A study from its file to its cells: probe, base, tuning, final runs.

    cells/probe/ARM                 a few steps, for the estimate of the cost
    cells/base-tune, cells/base-test   the untrained model
    cells/tune/ARM/rate-...         tries of the learning rate
    cells/final/ARM/seed-N          the comparison
    tuning.json                     the rate of each arm and its tries

Only what is missing is run, so an interrupted study goes on where it was.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modicum.config import Held, TrainConfig
from modicum.runs import write_whole
from modicum.study import design, tuning
from modicum.study.cell import BASE, RESULT, Cell, failure, read_json
from modicum.study.design import Arm, Study
from modicum.study.launch import Told, run_all
from modicum.study.tuning import Choice, Try
from modicum.types import UserError

PROBE_STEPS = 4


@dataclass(frozen=True)
class Work:
    """A study and where and how it is run."""

    study: Study
    folder: Path
    jobs: int
    say: Callable[[str], None]
    told: Told
    retry_failed: bool = False

    @property
    def threads(self) -> int:
        """Of each run; the study keeps it, since last bits depend on it."""
        return self.study.threads

    @property
    def arms(self) -> list[Arm]:
        """All arms, the control first."""
        return design.arms(self.study)


def begin(study: Study, folder: Path, jobs: int) -> Study:
    """The study as its folder holds it, begun now or before.

    Once an arm has been judged, by a try or a final run, what was fixed before cannot change;
    arms and seeds can still be added. Until then (after `cost`) another text starts anew.
    """
    path = folder / "study.toml"
    threads = study.threads or max(1, (os.cpu_count() or 1) // jobs)
    if path.is_file():
        old = design.read(path)
        study = replace(study, threads=study.threads or old.threads)
        if any((folder / "cells" / kind).exists() for kind in ("tune", "final")):
            _continues(old, study, folder)
        elif study != old:
            shutil.rmtree(folder / "cells", ignore_errors=True)
    elif folder.exists() and any(entry.name != ".lock" for entry in folder.iterdir()):
        raise UserError(f"{folder} is there and is no study; --out takes another folder")
    study = replace(study, threads=study.threads or threads)
    write_whole(path, design.text(study))
    return study


def _continues(old: Study, study: Study, folder: Path) -> None:
    """UserError where a study takes back or changes what the one in its folder had fixed."""
    for name in design.FREE:
        lost = [str(entry) for entry in getattr(old, name) if entry not in getattr(study, name)]
        if lost:
            raise UserError(f"{folder} has {name} that the file has not: {', '.join(lost)}")
    pair = itertools.zip_longest(*(design.fixed(one, old.arms) for one in (old, study)))
    changed = next(((line or new) for line, new in pair if line != new), None)
    if changed is not None:
        raise UserError(
            f"{folder} was begun with other settings ({changed}); they are fixed before running."
            " --out takes another folder"
        )


def default_rate(study: Study, arm: Arm, folder: Path) -> float:
    """The default learning rate of an arm's update, or the one its settings name."""
    from modicum import recipes, updates

    config = design.config(study, arm, 0, folder, None)
    return config.optimizer.learning_rate or recipes.default_learning_rate(
        config.model, updates.parse(config.update)
    )


def base_cell(work: Work, split: str) -> Cell:
    """The evaluation of the untrained model on a split."""
    config = design.config(work.study, work.arms[0], 0, work.folder / f"cells/base-{split}", None)
    return Cell(f"base on the {split} split", _held(work.study, config, split))


def _held(study: Study, config: TrainConfig, split: str) -> TrainConfig:
    """The config with the evaluation of its split; what trains is not measured twice."""
    if split == "test":
        return replace(config, evaluation=replace(config.evaluation, eval_split="test"))
    held = Held(study.tuning.problems, study.tuning.samples, 0, "tune")
    return replace(
        config, evaluation=held, records=replace(config.records, anatomy=False, checkpoint_every=0)
    )


def probe_cells(work: Work) -> list[Cell]:
    """A few steps of every arm at its default rate."""
    found = []
    for arm in work.arms:
        folder = work.folder / "cells" / "probe" / arm.slug
        rate = default_rate(work.study, arm, folder)
        config = design.config(work.study, arm, work.study.tuning.seed, folder, rate)
        config = replace(
            config,
            steps=min(PROBE_STEPS, config.steps),
            evaluation=Held(eval_problems=0),
            records=replace(config.records, anatomy=False),
        )
        found.append(Cell(f"probe {arm.name}", config, base=str(_base(work, "test"))))
    return found


def tune(work: Work) -> dict[str, Choice]:
    """The rate of every arm, by name; runs the tries that are missing."""
    study = work.study
    tuned = [arm for arm in work.arms if not arm.placebo]
    defaults = {arm.name: default_rate(study, arm, work.folder) for arm in tuned}
    rounds: dict[str, list[list[Try]]] = {arm.name: [] for arm in tuned}
    for number, share in enumerate(tuning.shares(study)):
        tries = {
            arm.name: tuning.next_round(study, arm, rounds[arm.name][-1], share)
            if number
            else tuning.first_round(study, arm, defaults[arm.name])
            for arm in tuned
        }
        cells = [_tuning_cell(work, arm, entry) for arm in tuned for entry in tries[arm.name]]
        run_all(cells, work.jobs, work.threads, work.told, work.retry_failed)
        for arm in tuned:
            rounds[arm.name].append([_outcome(work, entry) for entry in tries[arm.name]])
    found = {a.name: tuning.choose(study, defaults[a.name], rounds[a.name]) for a in tuned}
    control = found[study.control]
    found |= {a.name: Choice(control.rate, False) for a in work.arms if a.placebo}
    kept = {name: tuning.to_json(choice) for name, choice in found.items()}
    write_whole(work.folder / "tuning.json", json.dumps(kept, indent=2) + "\n")
    return found


def _tuning_cell(work: Work, arm: Arm, entry: Try) -> Cell:
    study = work.study
    folder = work.folder / entry.folder
    config = design.config(study, arm, study.tuning.seed, folder, entry.rate, entry.share)
    return Cell(
        f"tuning {arm.name} at {entry.rate:.2g}",
        _held(study, config, "tune"),
        base=str(_base(work, "tune")),
    )


def _base(work: Work, split: str) -> Path:
    return work.folder / "cells" / f"base-{split}"


def _outcome(work: Work, entry: Try) -> Try:
    folder = work.folder / entry.folder
    if not (folder / RESULT).is_file():
        return replace(entry, failed=failure(folder) or "it has not run")
    return replace(entry, accuracy=read_json(folder / RESULT)["trained"][work.study.primary])


def final_cells(work: Work, choices: dict[str, Choice]) -> list[Cell]:
    """The runs of the comparison, seed by seed, so that what is there early has every arm."""
    found = []
    for seed in work.study.seeds:
        for arm in work.arms:
            folder = work.folder / "cells" / "final" / arm.slug / f"seed-{seed}"
            config = design.config(work.study, arm, seed, folder, choices[arm.name].rate)
            label = f"{arm.name}, seed {seed}"
            base = str(_base(work, "test"))
            found.append(Cell(label, _held(work.study, config, "test"), base, work.study.keep))
    return found


def run_bases(work: Work, splits: Sequence[str]) -> None:
    """Evaluate the untrained model; without that nothing can go on."""
    cells = [base_cell(work, split) for split in splits]
    run_all(cells, work.jobs, work.threads, work.told, retry_failed=True)
    for cell in cells:
        if cell.failure:
            raise UserError(f"the base cannot be evaluated: {cell.failure}")
        assert (cell.folder / BASE).is_file()


def check_arms(study: Study) -> None:
    """UserError for an arm whose expressions say nothing, before anything is run."""
    from modicum import curricula, objectives, rewards, tasks, updates

    for arm in design.arms(study):
        config = design.config(study, arm, 0, Path("."), None)
        try:
            updates.parse(config.update)
            rewards.parse(config.reward)
            objectives.parse(config.objective)
            curricula.parse(config.curriculum)
            tasks.parse(config.task)
        except UserError as error:
            raise UserError(f"arm {arm.name}: {error}") from None
