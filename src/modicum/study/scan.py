"""A scan: a study whose arms train one unit of a model each, ranked by what they gain.

Its statistics are `ranking`'s, since the best of many units is looked for, not a verdict."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from modicum.config import TrainConfig, read_toml, to_toml
from modicum.limits import Positive
from modicum.runs import Run, read_object
from modicum.settings import Settings
from modicum.study import analysis, cells, collect, ranking, run
from modicum.study.cell import BASE
from modicum.study.cells import Choice
from modicum.study.design import Allowance, PlannedArm, Study, Tuning
from modicum.study.launch import StudyObserver
from modicum.study.launchers import Launcher
from modicum.study.ranking import FULL, Over, Standing, Unit
from modicum.types import UserError


class Scan(Settings):
    """What to try, and how often."""

    over: Over = "layers"
    """What is trained alone: every layer, block of layers, or part (attention, mlp, ...)."""
    blocks: int = 3
    """Number of blocks of near-equal size for `--over blocks`."""
    method: str = ""
    """What trains in a unit: an adapter such as `lora(rank=4)`, a selection such as
    `parts(mlp)`; empty trains all of it."""
    seeds: Positive = 3
    """Runs of every unit, with `seed` and the seeds after it."""
    best: Positive = 2
    """Number of units in the update that is named at the end."""
    full: bool = True
    """Also train everything, for the units' share of its gain."""
    keep: bool = False
    """Keep the trained weights of every run; else only what it scored and logged."""

    def update(self, place: str) -> str:
        """The update that trains the method in a place: joined by @, or & for a selection."""
        from modicum import updates

        selects = self.method and isinstance(updates.parse(self.method), updates.Selection)
        return ranking.placed(self.method, "&" if selects else "@", place)


def run_scan(
    scan: Scan,
    config: TrainConfig,
    out: Path | str = "runs/scan",
    rates: Sequence[float] = (),
    *,
    split: Literal["tune", "test"] = "tune",
    overwrite: bool = False,
    jobs: int = 1,
    launcher: str | Launcher = "here",
    retry_failed: bool = False,
    observer: StudyObserver | None = None,
) -> dict[str, Any]:
    """Run what is missing of a scan, rank its units and draw them; what `scan.json` holds.

    Every run has the settings of `config`, but for update and seed, and is scored on `split`:
    not on the test split, since units are chosen by it. With several `rates` each unit is tried
    with all. `overwrite` replaces the scan in `out`. The rest is as in `run.run_study`."""
    config = replace(config, evaluation=replace(config.evaluation, eval_split=split))
    if not config.evaluation.eval_problems:
        raise UserError("scan ranks by held-out accuracy: eval_problems must be at least 1")
    if config.optimizer.learning_rate is not None and rates:
        raise UserError("--rates and --learning-rate exclude each other")
    chosen, notes = _fitting(scan, config)
    labels = {scan.update(unit.place): unit.label for unit in chosen}
    labels |= {FULL: FULL} if scan.full else {}
    tries = {f" at {rate:g}": {"optimizer": {"learning_rate": rate}} for rate in rates}
    ends = (tries or {"": {}}).items()
    arms = {f"{name}{end}": {"update": name, **table} for end, table in ends for name in labels}
    seeds, spent = tuple(range(config.seed, config.seed + scan.seeds)), config.budget
    limit = (spent.budget_unit, spent.budget) if spent.budget else ("steps", config.steps)
    own = tomllib.loads(to_toml(config))  # without what is None
    for name in ("seed", "out", "steps", "budget", "update"):
        del own[name]
    del own["evaluation"]["eval_split"]
    study = Study(
        f"Which of the {scan.over} gain most when they are trained alone?",
        tuple(arms),
        control=next(iter(arms)),
        seeds=seeds,
        keep=scan.keep,
        budget=Allowance(*limit, config.steps),
        tuning=Tuning((1.0,), seed=seeds[-1] + 1),
        base=own,
        extra=arms,
    )
    root, how = Path(out), (jobs, launcher, retry_failed, observer)
    with run.opened(study, root, *how, kind="scan", overwrite=overwrite) as bench:
        bench = replace(bench, split=split)
        base = cells.base_cell(bench, split)
        bench.evaluate(base)
        trials = cells.final_cells(bench, dict.fromkeys(arms, Choice()))
        bench.observer.say(f"scan: {len(trials)} runs of {config.steps} steps in {root}")
        bench.run(trials)
        start = read_object(base.folder / BASE)
        seen = collect.devices(trial.folder for trial in trials)
        notes += analysis.said("of_devices", seen)
        tried = [_standing(bench.study, arm, labels, root, start["scores"]) for arm in bench.arms]
        if len(seen) > 1:
            tried = [replace(one, seconds=None) for one in tried]
        found = {name: getattr(scan, name) for name in ("over", "method")}
        found |= {name: getattr(config, name) for name in ("model", "task", "steps")}
        found |= {"seeds": list(seeds), "rates": list(rates), "split": split}
        found["base"] = {k: start[k] for k in ("accuracy", "low", "high", "num_problems")}
        found |= _ranked(scan, chosen, tried, len(rates) or 1)
        found["notes"] = [*notes, *found["notes"]]
        with bench.writing():
            Run(root).write("scan.json", found)
            ranking.draw(found, root)
    return found


def _fitting(scan: Scan, config: TrainConfig) -> tuple[list[Unit], list[str]]:
    from modicum import updates
    from modicum.updates.layout import PARTS
    from modicum.updates.preview import preview

    whole = preview(updates.parse(FULL), config.model, config.trust)
    found: dict[tuple[str, ...], Unit] = {}
    missing: list[str] = []
    for unit in ranking.units(scan.over, whole.num_layers, scan.blocks, PARTS):
        place = str(updates.parse(unit.place))
        update = updates.parse(scan.update(place))
        try:
            names = tuple(preview(update, config.model, config.trust).names)
        except UserError:
            # A model may have no biases, and a norm takes no LoRA; layers are all alike.
            if scan.over != "parts":
                raise
            missing.append(unit.label)
        else:
            found.setdefault(names, replace(unit, place=place))  # a tied head is the embedding
    if not found:
        raise UserError(f"{scan.method} can be put into none of {', '.join(missing)}")
    left = f"nothing to train in {', '.join(missing)}, which is left out"
    return list(found.values()), [left] if missing else []


def _standing(
    study: Study, arm: PlannedArm, labels: Mapping[str, str], root: Path, base: Sequence[float]
) -> Standing:
    found, update = collect.outcome(study, arm, root, {}), arm.settings["update"]
    scores = {seed: of.tolist() for seed, of in found.scores.items()}
    config, more = arm.settings, dict[str, Any]()
    if found.results:
        first, *_ = found.results
        config = read_toml(found.folders[first] / "config.toml")
        more["parameters"] = found.results[first]["trainable_parameters"]
        more["seconds"] = fmean(result["seconds"] for result in found.results.values())
    rate = config.get("optimizer", {}).get("learning_rate")
    return Standing(labels[update], update, base, scores, rate, failed=found.failed, **more)


def _ranked(
    scan: Scan, chosen: Sequence[Unit], tried: Sequence[Standing], num_rates: int
) -> dict[str, Any]:
    standings = ranking.judge(tried)
    full = next((s for s in standings if s.unit == FULL), None)
    units = [s for s in standings if s.unit != FULL]
    if all(standing.gain is None for standing in units):
        raise UserError(f"every run stopped itself; the first: {tried[0].failed[0]}")
    best = [s.unit for s in units if s.gain is not None][: scan.best]
    labels = [unit.label for unit in chosen]
    places = [unit.place for unit in chosen if unit.label in best]
    stopped = [f"{standing.unit}, {text}" for standing in standings for text in standing.failed]
    shown = [{"place": labels.index(s.unit), "chosen": s.unit in best} | s.shown for s in units]
    return {
        "units": shown,
        "full": full and full.shown,
        "best_units": best,
        "best": scan.update(ranking.together(scan.over, places)),
        "notes": [*analysis.said("of_scan", units, full, num_rates), *stopped],
    }
