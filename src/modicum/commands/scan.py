"""`modicum scan`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from modicum.commands.train import add_sources, settings
from modicum.config import TrainConfig, at_least, from_mapping, read_toml, to_toml
from modicum.options import Parser, add_options, given
from modicum.runs import make_folder, read_lines, write_whole
from modicum.scan import FULL, Cell, Outcome, Standing, Unit, judge, placed, plan, together, units
from modicum.types import RunInterrupted, RunStopped, UserError

EXAMPLES = """
modicum scan --steps 30
modicum scan --over blocks --blocks 2 --seeds 5 --steps 30 --out runs/halves
modicum scan --over parts --method 'lora(rank=4)' --best 1 --out runs/where
modicum scan --rates 1e-4 2e-4 4e-4 --seeds 3 --out runs/tuned
"""
SUMMARY = """Train every layer, block or part alone for a while and rank them by what they gain.
Runs are scored on the tune split, so that the test split stays for the final comparison.
A scan that was interrupted goes on when the same command is given again. What trains comes
from --over and --method, not from --update; without --out the folder is runs/scan."""


@dataclass(frozen=True)
class Options:
    """What to try, and how often."""

    over: Literal["layers", "blocks", "parts"] = "layers"
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


def run(args: list[str]) -> int:
    """Train every unit alone, rank them and name the update that the best ones make."""
    parser = Parser("scan", SUMMARY, EXAMPLES)
    add_sources(parser)
    parser.add_argument(
        "--rates", nargs="+", metavar="X", help="learning rates that every unit is tried with"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the scan in --out")
    parser.add_argument("--json", action="store_true", help="print what scan.json holds")
    add_options(parser, Options, "scan")
    add_options(parser, TrainConfig)
    found = parser.read(args)
    options = from_mapping(Options, given(Options, found), "options")
    config, rates = _settings(found)
    root = _open(Path(getattr(found, "out", "runs/scan")), config, found.overwrite)

    from modicum.display import Display
    from modicum.report import gains

    display = Display()
    try:
        result = _scan(options, config, rates, root, display)
    finally:
        display.close()
    write_whole(root / "scan.json", json.dumps(result, indent=2) + "\n")
    gains.draw(result, root)
    if found.json:
        print(json.dumps(result))
        return 0
    gains.show(result)
    for text in result["notes"]:
        print(f"note: {text}")
    print(f"best {len(result['best_units'])}: {result['best']}")
    print(f"files: {root / 'scan.json'}, scan.png, scan.svg")
    return 0


def _settings(found: Any) -> tuple[TrainConfig, list[float | None]]:
    """The settings of all runs, and the rates to try (None: the default)."""
    said = given(TrainConfig, found)
    if "update" in said:
        raise UserError("scan says itself what trains; --method says what is put there")
    config = settings(found, {})
    # Recipes and the configs of runs say `test`, but nothing may be chosen on it.
    split = said.get("evaluation", {}).get("eval_split", "tune")
    config = replace(config, evaluation=replace(config.evaluation, eval_split=split))
    if not config.evaluation.eval_problems:
        raise UserError("scan ranks by held-out accuracy: eval_problems must be at least 1")
    if config.optimizer.learning_rate is not None and found.rates:
        raise UserError("--rates and --learning-rate exclude each other")
    rates: list[float | None] = []
    for text in found.rates or []:
        try:
            rates.append(float(text))
        except ValueError:
            raise UserError(f"--rates takes numbers such as 1e-4, not {text!r}") from None
        replace(config.optimizer, learning_rate=rates[-1])  # checks its range
    return config, rates or [None]


def _open(root: Path, config: TrainConfig, overwrite: bool) -> Path:
    """The folder of the scan, new or begun with the same settings."""
    path = root / "scan.toml"
    # Seed, update and folder are those of a run, and its name has them.
    text = to_toml(replace(config, update="", seed=0, out=""))
    if path.is_file():
        if overwrite:
            shutil.rmtree(root)
        else:
            old, new = path.read_text(encoding="utf-8").splitlines(), text.splitlines()
            changed = next((a for a, b in zip(old, new, strict=False) if a != b), "")
            if changed:
                raise UserError(
                    f"{root} holds a scan with other settings ({changed}); --overwrite starts"
                    " anew, --out takes another folder"
                )
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} is there and is no scan; --out takes another folder")
    make_folder(root)
    write_whole(path, text)
    return root


def _scan(
    options: Options, config: TrainConfig, rates: Sequence[float | None], root: Path, display: Any
) -> dict[str, Any]:
    """Do the runs that are not done yet; what `scan.json` holds."""
    note: Callable[[str], None] = display.console.print
    sign = _sign(options.method)
    chosen, notes = _fitting(options, config, sign)
    seeds = range(config.seed, config.seed + options.seeds)
    updates = {unit.label: placed(options.method, sign, unit.place) for unit in chosen}
    cells = list(plan(updates | ({FULL: FULL} if options.full else {}), seeds, rates))
    note(f"scan: {len(cells)} runs of {config.steps} steps in {root}")
    outcomes: list[Outcome] = []
    base: dict[str, Any] = {}
    for number, cell in enumerate(cells, 1):
        note(f"run {number} of {len(cells)}: {cell.update}, seed {cell.seed}")
        outcome, seen = _run(cell, config, root, display, base, options.keep)
        base = base or seen
        outcomes.append(outcome)
    ranking = judge(outcomes, base["scores"])
    full = next((s for s in ranking if s.unit == FULL), None)
    ranking = [s for s in ranking if s.unit != FULL]
    if all(standing.gain is None for standing in ranking):
        raise UserError(f"every run stopped itself; the first: {outcomes[0].failed}")
    best = [s.unit for s in ranking if s.gain is not None][: options.best]
    places = [unit.place for unit in chosen if unit.label in best]
    labels = [unit.label for unit in chosen]
    return {
        "over": options.over,
        "method": options.method,
        "model": config.model,
        "task": config.task,
        "steps": config.steps,
        "seeds": list(seeds),
        "rates": [rate for rate in rates if rate is not None],
        "split": config.evaluation.eval_split,
        "base": {key: base[key] for key in ("accuracy", "low", "high", "num_problems")},
        "units": [
            {
                "place": labels.index(s.unit),
                "chosen": s.unit in best,
                **dataclasses.asdict(s),
            }
            for s in ranking
        ],
        "full": dataclasses.asdict(full) if full else None,
        "best_units": best,
        "best": placed(options.method, sign, together(options.over, places)),
        "notes": [*notes, *_notes(ranking, full, rates)],
    }


def _sign(method: str) -> str:
    """What joins a method and a place: @, or & for a selection."""
    from modicum import updates

    return "&" if method and isinstance(updates.parse(method), updates.Selection) else "@"


def _fitting(options: Options, config: TrainConfig, sign: str) -> tuple[list[Unit], list[str]]:
    """The units of the model that the method can train, and a note on those it cannot."""
    from modicum import updates
    from modicum.updates.layout import PARTS
    from modicum.updates.preview import preview

    whole = preview(updates.parse(FULL), config.model, config.trust)
    found: dict[tuple[str, ...], Unit] = {}
    missing: list[str] = []
    for unit in units(options.over, whole.num_layers, options.blocks, PARTS):
        place = str(updates.parse(unit.place))
        update = updates.parse(placed(options.method, sign, place))
        try:
            names = tuple(preview(update, config.model, config.trust).names)
        except UserError:
            # A model may have no biases, and a norm takes no LoRA; layers are all alike.
            if options.over != "parts":
                raise
            missing.append(unit.label)
        else:
            found.setdefault(names, replace(unit, place=place))  # a tied head is the embedding
    if not found:
        raise UserError(f"{options.method} can be put into none of {', '.join(missing)}")
    left = f"nothing to train in {', '.join(missing)}, which is left out"
    return list(found.values()), [left] if missing else []


def _run(
    cell: Cell, config: TrainConfig, root: Path, display: Any, base: dict[str, Any], keep: bool
) -> tuple[Outcome, dict[str, Any]]:
    """The outcome of one run, done now or before, and its evaluation of the base."""
    from modicum.scorecard import Evaluation
    from modicum.training.loop import train

    folder = root / cell.name
    mine = replace(config, update=cell.update, seed=cell.seed, out=str(folder))
    if cell.rate is not None:
        mine = replace(mine, optimizer=replace(mine.optimizer, learning_rate=cell.rate))
    done, stopped = folder / "result.json", folder / "stopped.json"
    if not done.exists() and not stopped.exists():
        begun = (folder / "config.toml").is_file()
        known = Evaluation.from_json(base) if base else None
        try:
            train(mine, display, resume=begun, base=known)
        except RunInterrupted:
            raise RunInterrupted("interrupted; the same command goes on from there") from None
        except RunStopped as error:
            write_whole(stopped, json.dumps({"stopped": str(error)}) + "\n")
    if done.exists() and not keep:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    lines = read_lines(folder / "evaluations.jsonl")
    seen = next(line for line in lines if line["name"] == "base")
    if not done.exists():
        why = json.loads(stopped.read_text(encoding="utf-8"))["stopped"]
        return Outcome(cell, failed=why), seen
    result = json.loads(done.read_text(encoding="utf-8"))
    return Outcome(
        cell,
        tuple(result["trained"]["scores"]),
        read_toml(folder / "config.toml")["optimizer"]["learning_rate"],
        result["trainable_parameters"],
        result["seconds"],
    ), seen


def _notes(
    ranking: Sequence[Standing], full: Standing | None, rates: Sequence[float | None]
) -> list[str]:
    """What a reader of the ranking should know."""
    notes = []
    used = sorted({s.learning_rate for s in ranking if s.learning_rate is not None})
    shown = ", ".join(f"{rate:g}" for rate in used)
    if len(rates) == 1:
        notes.append(f"all units had one learning rate ({shown}); another may rank them otherwise")
    else:
        notes.append(f"each unit stands with the best of {len(rates)} learning rates ({shown})")
    level = sum(s.level_with_best for s in ranking[1:])
    if level:
        notes.append(f"{level} of the {len(ranking) - 1} others cannot be told from the best")
    if not any(s.clear for s in ranking):
        notes.append("no gain is clearly above 0: more steps, seeds or problems may rank them")
    if full is not None and full.gain is not None and not full.clear:
        notes.append("full's gain is not clearly above 0, so shares of it are not given")
    stopped = [(s.unit, text) for s in (*ranking, *([full] if full else [])) for text in s.failed]
    return notes + [f"{unit}, {text}" for unit, text in stopped]
