"""A scan: a study whose arms train one unit of a model each, ranked by what they gain.

    scan.toml          the settings of all runs
    base-SPLIT         the untrained model
    UPDATE-seedN       a run of a unit, a cell like any other
    scan.json          what came of it; scan.svg, scan.png

Its cells are run as a study's are (`launch`); its statistics are `ranking`'s, since the best of
many units is looked for, not a verdict against a control.
"""

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from modicum.config import TrainConfig, from_mapping, read_toml, to_toml
from modicum.resuming import settings
from modicum.runs import Run, clear_folder, read_object
from modicum.spec import at_least
from modicum.study import launch, ranking
from modicum.study.cell import BASE, RESULT, Cell
from modicum.study.cells import check_expressions
from modicum.study.launch import Bench, StudyObserver
from modicum.study.ranking import FULL, Over, Standing, Trial, TrialOutcome, Unit
from modicum.types import UserError


@dataclass(frozen=True)
class Scan:
    """What to try, and how often."""

    over: Over = "layers"
    """What is trained alone: every layer, block of layers, or part (attention, mlp, ...)."""
    blocks: int = 3
    """Number of blocks of near-equal size for `--over blocks`."""
    method: str = ""
    """What trains in a unit: an adapter such as `lora(rank=4)`, a selection such as
    `parts(mlp)`; empty trains all of it."""
    seeds: int = 3
    """Runs of every unit, with `seed` and the seeds after it."""
    best: int = 2
    """Number of units in the update that is named at the end."""
    full: bool = True
    """Also train everything, for the units' share of its gain."""
    keep: bool = False
    """Keep the trained weights of every run; else only what it scored and logged."""

    def __post_init__(self) -> None:
        at_least(self, seeds=1, best=1)

    @property
    def sign(self) -> str:
        """What joins the method and a place: @, or & for a selection."""
        from modicum import updates

        selects = self.method and isinstance(updates.parse(self.method), updates.Selection)
        return "&" if selects else "@"

    def update(self, place: str) -> str:
        """The update that trains the method in a place."""
        return ranking.placed(self.method, self.sign, place)


def run_scan(
    scan: Scan,
    config: TrainConfig,
    out: Path | str = "runs/scan",
    rates: Sequence[float] = (),
    *,
    split: Literal["tune", "test"] = "tune",
    overwrite: bool = False,
    jobs: int = 1,
    launcher: str = "here",
    retry_failed: bool = False,
    observer: StudyObserver | None = None,
) -> dict[str, Any]:
    """Run what is missing of a scan, rank its units and draw them; what `scan.json` holds.

    Every run has the settings of `config`, but for update and seed, and is scored on `split`:
    not on the test split, since units are chosen by it. With several `rates` each unit is tried
    with all. `overwrite` replaces the scan in `out`. The rest is as in `run.run_study`.
    """
    from modicum.report import gains

    config = replace(config, evaluation=replace(config.evaluation, eval_split=split))
    if not config.evaluation.eval_problems:
        raise UserError("scan ranks by held-out accuracy: eval_problems must be at least 1")
    if config.optimizer.learning_rate is not None and rates:
        raise UserError("--rates and --learning-rate exclude each other")
    chosen, notes = _fitting(scan, config)
    seeds = range(config.seed, config.seed + scan.seeds)
    expressions = {unit.label: scan.update(unit.place) for unit in chosen}
    expressions |= {FULL: FULL} if scan.full else {}
    trials = list(ranking.plan(expressions, seeds, list(rates) or [None]))
    root, how = Path(out), launch.named(launcher, jobs)
    base = Cell(f"base on the {split} split", _config(trials[0], config, root / f"base-{split}"))
    check_expressions(base.config)
    cells = {
        trial: Cell(
            f"{trial.update}, seed {trial.seed}",
            _config(trial, config, root / trial.name),
            str(base.folder),
            scan.keep,
        )
        for trial in trials
    }
    with launch.locked(root, "scan"):
        _begin(root, config, overwrite)
        told = observer or StudyObserver()
        bench = Bench(folder=root, launcher=how, observer=told, retry_failed=retry_failed)
        bench.evaluate(base)
        told.say(f"scan: {len(cells)} runs of {config.steps} steps in {root}")
        bench.run(list(cells.values()))
        outcomes = [_outcome(trial, cell) for trial, cell in cells.items()]
        found = _result(scan, config, chosen, outcomes, read_object(base.folder / BASE))
        found["notes"] = [*notes, *found["notes"]]
        Run(root).write("scan.json", found)
        gains.draw(found, root)
    return found


def _config(trial: Trial, config: TrainConfig, out: Path) -> TrainConfig:
    rate = config.optimizer.learning_rate if trial.rate is None else trial.rate
    optimizer = replace(config.optimizer, learning_rate=rate)
    return replace(config, update=trial.update, seed=trial.seed, out=str(out), optimizer=optimizer)


def _begin(root: Path, config: TrainConfig, overwrite: bool) -> None:
    """The folder's settings, written now or, where they change a result, the same as before."""
    path = root / "scan.toml"
    # Seed, update and folder are those of a run, and its name has them.
    text = to_toml(replace(config, update="", seed=0, out=""))
    if path.is_file() and not overwrite:
        past, now = (
            settings(from_mapping(TrainConfig, tables, str(path)))
            for tables in (read_toml(path), tomllib.loads(text))
        )
        for (name, kind, old), (_, _, new) in zip(past, now, strict=True):
            if old != new and kind in ("fixed", "length"):
                raise UserError(
                    f"{root} holds a scan with other settings ({name} = {old!r}), not {new!r};"
                    " --overwrite starts anew, --out takes another folder"
                )
    elif path.is_file():
        clear_folder(root)
    Run(root).write_text(path.name, text)


def _fitting(scan: Scan, config: TrainConfig) -> tuple[list[Unit], list[str]]:
    """The units of the model that the method can train, and a note on those it cannot."""
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


def _outcome(trial: Trial, cell: Cell) -> TrialOutcome:
    if not cell.done:
        return TrialOutcome(trial, failed=cell.failure)
    result = read_object(cell.folder / RESULT)
    return TrialOutcome(
        trial,
        tuple(result["trained"]["scores"]),
        read_toml(cell.folder / "config.toml")["optimizer"].get("learning_rate"),
        result["trainable_parameters"],
        result["seconds"],
    )


def _result(
    scan: Scan,
    config: TrainConfig,
    chosen: Sequence[Unit],
    outcomes: Sequence[TrialOutcome],
    base: dict[str, Any],
) -> dict[str, Any]:
    """What `scan.json` holds."""
    standings = ranking.judge(outcomes, base["scores"])
    full = next((s for s in standings if s.unit == FULL), None)
    units = [s for s in standings if s.unit != FULL]
    if all(standing.gain is None for standing in units):
        raise UserError(f"every run stopped itself; the first: {outcomes[0].failed}")
    best = [s.unit for s in units if s.gain is not None][: scan.best]
    labels = [unit.label for unit in chosen]
    places = [unit.place for unit in chosen if unit.label in best]
    rates = dict.fromkeys(outcome.trial.rate for outcome in outcomes)
    return {
        "over": scan.over,
        "method": scan.method,
        "model": config.model,
        "task": config.task,
        "steps": config.steps,
        "seeds": sorted({outcome.trial.seed for outcome in outcomes}),
        "rates": [rate for rate in rates if rate is not None],
        "split": config.evaluation.eval_split,
        "base": {key: base[key] for key in ("accuracy", "low", "high", "num_problems")},
        "units": [
            {"place": labels.index(s.unit), "chosen": s.unit in best, **dataclasses.asdict(s)}
            for s in units
        ],
        "full": dataclasses.asdict(full) if full else None,
        "best_units": best,
        "best": scan.update(ranking.together(scan.over, places)),
        "notes": _notes(units, full, len(rates)),
    }


def _notes(units: Sequence[Standing], full: Standing | None, num_rates: int) -> list[str]:
    """What a reader of the ranking should know."""
    notes = []
    used = sorted({s.learning_rate for s in units if s.learning_rate is not None})
    shown = ", ".join(f"{rate:g}" for rate in used)
    if num_rates == 1:
        notes.append(f"all units had one learning rate ({shown}); another may rank them otherwise")
    else:
        notes.append(f"each unit stands with the best of {num_rates} learning rates ({shown})")
    level = sum(s.level_with_best for s in units[1:])
    if level:
        notes.append(f"{level} of the {len(units) - 1} others cannot be told from the best")
    if not any(s.clear for s in units):
        notes.append("no gain is clearly above 0: more steps, seeds or problems may rank them")
    if full is not None and full.gain is not None and not full.clear:
        notes.append("full's gain is not clearly above 0, so shares of it are not given")
    stopped = [(s.unit, text) for s in (*units, *([full] if full else [])) for text in s.failed]
    return notes + [f"{unit}, {text}" for unit, text in stopped]
