"""`modicum study`."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modicum.config import at_least, from_mapping
from modicum.options import Parser, add_options, given
from modicum.types import UserError

if TYPE_CHECKING:
    from modicum.study.design import Study
    from modicum.study.run import Work

SUMMARY = """Compare updates (or rewards, objectives, curricula) over seeds at one budget.

  run      what it will cost; then the base, tuning, final runs, analysis and report.
           An interrupted study goes on when the same command is given again
  cost     only what it will cost, from a short probe of each arm
  status   what is done, what failed, what is left
  analyse  the analysis, the verdicts and the report once more, from the runs that are there
  same     whether two folders of a study hold the same numbers, clocks and memory aside

FILE is a study.toml (docs/study.md); for status and analyse also the study's folder."""
EXAMPLES = """
modicum study run studies/which-layers/arithmetic.toml --jobs 2
modicum study cost studies/which-layers/arithmetic.toml --jobs 2
modicum study status runs/which-layers-arithmetic
modicum study run study.toml --retry-failed
modicum study same runs/which-layers-arithmetic runs/again
"""
ACTIONS = ("run", "cost", "status", "analyse", "same")


@dataclass(frozen=True)
class Options:
    """Where and how."""

    out: str = ""
    """The study's folder; empty takes runs/ and the name of the file."""
    jobs: int = 1
    """Runs at the same time; the cores are divided among them."""
    retry_failed: bool = False
    """Run the cells that failed once more; else they stay failed and are shown."""

    def __post_init__(self) -> None:
        at_least(self, jobs=1)


def run(args: list[str]) -> int:
    """Do what the first word says with the study that the second names."""
    parser = Parser("study", SUMMARY, EXAMPLES)
    parser.add_argument("action", nargs="?", metavar="|".join(ACTIONS), help="what to do")
    parser.add_argument("file", nargs="?", metavar="FILE", help="study.toml, or the folder")
    parser.add_argument("other", nargs="?", metavar="FOLDER", help="the second folder of same")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    add_options(parser, Options, "study")
    found = parser.read(args)
    options = from_mapping(Options, given(Options, found), "options")
    if found.action not in ACTIONS:
        raise UserError(f"study takes one of {', '.join(ACTIONS)} first, not {found.action!r}")
    if not found.file:
        raise UserError(f"study {found.action} needs a study.toml")
    if found.action == "same":
        return _same(Path(found.file), found.other, found.json)
    if found.other:
        raise UserError(f"study {found.action} takes one study, not also {found.other!r}")
    if options.jobs > (os.cpu_count() or 1):
        raise UserError(f"jobs must be at most {os.cpu_count()}, the number of cores")

    path, folder = _places(Path(found.file), options.out)
    if found.action in ("status", "analyse") and not (folder / "study.toml").is_file():
        raise UserError(f"{folder} is not the folder of a study; study run begins one")
    from modicum.study import design
    from modicum.study.launch import locked
    from modicum.study.run import check_arms

    study = design.read(path)
    check_arms(study)
    # Looking at a study that is being run is no second run.
    with nullcontext() if found.action == "status" else locked(folder):
        outcome = ACTIONS_OF[found.action](_work(study, folder, options))
    if found.json:
        print(json.dumps(outcome))
    return 0


def _places(given_path: Path, out: str) -> tuple[Path, Path]:
    """The study's file and its folder."""
    if given_path.is_dir():
        return given_path / "study.toml", given_path
    name = given_path.stem if given_path.stem != "study" else given_path.resolve().parent.name
    return given_path, Path(out) if out else Path("runs") / name


def _work(study: Study, folder: Path, options: Options) -> Work:
    from modicum.display import clock, console
    from modicum.study.cell import Cell
    from modicum.study.run import Work, begin

    say = console().print

    def told(done: int, total: int, cell: Cell, seconds: float) -> None:
        left = seconds / done * (total - done)
        say(f"{done}/{total}  {clock(seconds)}, left {clock(left)}  {cell.label}: {_found(cell)}")

    study = begin(study, folder, options.jobs)
    return Work(study, folder, options.jobs, say, told, options.retry_failed)


def _found(cell: Any) -> str:
    """What came of a cell, in a few words."""
    from modicum.study.cell import read_json

    if cell.failure:
        return f"failed: {cell.failure}"
    if not cell.done:
        return "stopped"
    if not cell.base:
        return f"{read_json(cell.folder / 'evaluation.json')['accuracy']:.1%}"
    trained = read_json(cell.folder / "result.json")["trained"]
    return f"{trained['accuracy']:.1%}" if trained else "done"


def _cost(work: Work) -> dict[str, Any]:
    from modicum.study import cost

    found = cost.measure(work)
    work.say(f"cost: {found.text()}")
    return found.to_json()


def _run(work: Work) -> dict[str, Any]:
    from modicum.study import run as cells
    from modicum.study.launch import run_all

    study = work.study
    work.say(f"{study.question}\n{len(work.arms)} arms x {len(study.seeds)} seeds in {work.folder}")
    _cost(work)
    if len(study.tuning.factors) > 1:
        cells.run_bases(work, ["tune"])
    choices = cells.tune(work)
    for name, choice in choices.items():
        edge = ", at the edge of its grid" if choice.at_edge else ""
        work.say(f"rate of {name}: {choice.rate:.2g}{edge}")
    run_all(cells.final_cells(work, choices), work.jobs, work.threads, work.told, work.retry_failed)
    return _analyse(work)


def _analyse(work: Work) -> dict[str, Any]:
    from modicum.report.study import page
    from modicum.study import analysis

    found = analysis.write(work.study, work.folder)
    for arm in found["arms"]:
        work.say(arm["sentence"])
    print(found["conclusion"])
    out = page.write(work.folder, None, None)
    print(f"report: {out}")
    return found


def _status(work: Work) -> dict[str, Any]:
    from modicum.study import analysis

    found = analysis.status(work.study, work.folder)
    for name, row in found["arms"].items():
        done = f"{row['tuned']} of {row['tries']} tries, {row['done']} of {row['seeds']} seeds"
        print("  ".join([f"{name}: {done}", *(f"failed: {text}" for text in row["failed"])]))
    return found


def _same(one: Path, other: str | None, as_json: bool) -> int:
    """Compare two analyses; exit code 1 when they differ."""
    from modicum.results import Analysis
    from modicum.study import analysis
    from modicum.study.cell import read_json

    if not other:
        raise UserError("study same needs two folders")
    files = [Path(folder) / "analysis.json" for folder in (one, other)]
    read = [read_json(file) for file in files]
    for file, values in zip(files, read, strict=True):
        Analysis.from_json(values, str(file))  # what is no analysis is a UserError
    found = analysis.same(*read)
    if as_json:
        print(json.dumps({"same": not found, "differences": found}))
    elif found:
        print("\n".join([*found[:20], f"{len(found)} numbers differ"]))
    else:
        print("the same numbers")
    return 1 if found else 0


ACTIONS_OF = {"run": _run, "cost": _cost, "status": _status, "analyse": _analyse}
