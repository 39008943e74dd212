"""A study from its design to its verdict: the order of the work, and its folder.

Only what is missing is run, so an interrupted study goes on where it was."""

import itertools
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from modicum.results import Analysis
from modicum.runs import Run, clear_folder
from modicum.study import cells, design, launch, launchers
from modicum.study.cell import RESULT, failure
from modicum.study.cells import CostEstimate
from modicum.study.design import Kind, Study
from modicum.study.launch import Bench, StudyObserver
from modicum.study.launchers import Launcher
from modicum.types import Frozen, UserError

Source = Study | Path | str  # a design, the file of one, or its folder


class StudyOutcome(Frozen):
    """What a study came to."""

    folder: Path  # its runs, `analysis.json` and `curves.json`
    analysis: Analysis  # estimates, tests, verdicts, in numbers and words
    report: Path  # the page
    missing: tuple[str, ...]  # final runs that are in no number, and why


def run_study(
    study: Source,
    out: Path | str = "",
    *,
    jobs: int = 1,
    launcher: str | Launcher = "local",
    retry_failed: bool = False,
    observer: StudyObserver | None = None,
) -> StudyOutcome:
    """Run what is missing of a study, analyse it and write its report.

    `study` is a design, the file of one, or the folder of one that has begun; `out` is its
    folder, by default the folder given, or runs/ and the name of the file. `launcher` says where
    runs are made ("local", "here", "slurm(partition='gpu')"), and `jobs` is that of local, how
    many at a time. Cells that failed stay failed unless `retry_failed`. `observer` is told how
    it goes. Raises UserError for what cannot be done and RunInterrupted after Ctrl-C; the same
    call goes on from there. Several processes may run one study, on machines that share its folder."""
    with opened(study, out, jobs, launcher, retry_failed, observer) as bench:
        made, say = bench.study, bench.observer.say
        say(f"{made.question}\n{len(bench.arms)} arms x {len(made.seeds)} seeds in {bench.folder}")
        say(f"cost: {cells.cost(bench).text()}")
        if len(made.tuning.factors) > 1:
            bench.evaluate(cells.base_cell(bench, "tune"))
        choices = cells.tune(bench)
        for name, choice in choices.items():
            edge = ", at the edge of its grid" if choice.rate_at_edge else ""
            say(f"rate of {name}: {choice.learning_rate:.2g}{edge}")
        bench.run(cells.final_cells(bench, choices))
        return _analyse(bench)


def study_cost(study: Source, out: Path | str = "", **how: Any) -> CostEstimate:
    """What a study will take, from a short probe of each arm; arguments as of `run_study`."""
    with opened(study, out, **how) as bench:
        return cells.cost(bench)


def analyse_study(study: Source, out: Path | str = "", **how: Any) -> StudyOutcome:
    """The analysis and the report of the runs that are there; arguments as of `run_study`."""
    _placed(study, out, begun=True)
    with opened(study, out, **how) as bench:
        return _analyse(bench)


def study_status(study: Source, out: Path | str = "") -> dict[str, Any]:
    """How many tries and seeds of each arm are done, and what failed; takes no lock."""
    from modicum.study import collect

    made, folder = _placed(study, out, begun=True)
    tries, rows = len(cells.tries_of(made)), {}
    for arm in design.arms(made):
        seeds = {f"seed {seed}": path for seed, path in collect.final(made, folder, arm).items()}
        tuned = {path.name: path for path in sorted((folder / "cells/tune" / arm.slug).glob("*"))}
        rows[arm.name] = {
            "tuned": sum((path / RESULT).is_file() for path in tuned.values()),
            "tries": 0 if arm.placebo else tries,
            "done": sum((path / RESULT).is_file() for path in seeds.values()),
            "seeds": len(seeds),
            "failed": [f"{n}: {failure(p)}" for n, p in (seeds | tuned).items() if failure(p)],
        }
    return {"arms": rows, "folder": str(folder)}


def _analyse(bench: Bench) -> StudyOutcome:
    from modicum.report import page
    from modicum.study import analysis, collect

    study, folder = bench.study, bench.folder
    with bench.writing():
        found = analysis.write(study, folder)
        report = page.write([folder])
    for arm in found.arms:
        bench.observer.say(arm.sentence)
    missing = [
        f"{arm.name}, seed {seed}: {failure(path) or 'it has not run'}"
        for arm in bench.arms
        for seed, path in collect.final(study, folder, arm).items()
        if not (path / RESULT).is_file()
    ]
    return StudyOutcome(folder, found, report, tuple(missing))


@contextmanager
def opened(
    study: Source,
    out: Path | str,
    jobs: int = 1,
    launcher: str | Launcher = "local",
    retry_failed: bool = False,
    observer: StudyObserver | None = None,
    *,
    kind: Kind = "study",
    overwrite: bool = False,
) -> Iterator[Bench]:
    """The study with its arms checked, its folder begun; `overwrite` clears it before."""
    made, folder = _placed(study, out)
    cells.check_arms(made)
    how = launchers.parse(launcher, jobs)
    with launch.locked(folder, kind):
        if overwrite:
            launch.require_idle(folder)
            clear_folder(folder)
        made = begin(made, folder, how.threads, kind)
    # A scan leaves the threads of this process as they are.
    threads = 0 if kind == "scan" else made.threads
    yield Bench(made, folder, how, observer or StudyObserver(), retry_failed, threads=threads)


def _placed(study: Source, out: Path | str, begun: bool = False) -> tuple[Study, Path]:
    """The design and the folder of a study; where it must have `begun`, UserError if not."""
    folder = Path(out).expanduser()
    if not isinstance(study, Study | Path | str):
        raise UserError(f"study: must be a design, its file or its folder, not {study!r:.60}")
    if isinstance(study, Study):
        if not out:
            raise UserError("a study that is no file needs out, its folder")
        try:
            tables = tomllib.loads(design.text(study))
        except (TypeError, ValueError) as error:
            raise UserError(f"study: a setting is nothing that a file can hold: {error}") from None
        # A file has 1.0 where Python may have said 1, and its settings are checked.
        made = design.parse(tables, "study")
    else:
        if (path := Path(study).expanduser()).is_dir():
            path, folder = path / "study.toml", path
        elif not out:
            name = path.stem if path.stem != "study" else path.resolve().parent.name
            folder = Path("runs") / name
        made = path
    if begun and not (folder / "study.toml").is_file():
        raise UserError(f"{folder} is not the folder of a study; study run begins one")
    return made if isinstance(made, Study) else design.read(made), folder


def begin(study: Study, folder: Path, threads: int, kind: Kind = "study") -> Study:
    """The study as its folder holds it, begun now or before.

    After a try or a final run only arms and seeds may be added; until then another text starts
    anew. `threads` of a run are the launcher's, unless the study says how many."""
    if (path := folder / f"{kind}.toml").is_file():
        old = design.read(path)
        study = replace(study, threads=study.threads or old.threads)
        if any((folder / "cells" / stage).exists() for stage in ("tune", "final")):
            for name in design.FREE:
                if lost := [str(e) for e in getattr(old, name) if e not in getattr(study, name)]:
                    raise UserError(f"{folder} has {name} that the file has not: {', '.join(lost)}")
            fixed = (design.fixed(one, old.arms, kind) for one in (old, study))
            for line, new in itertools.zip_longest(*fixed):
                if line != new:
                    why = f"was begun with other settings ({line or new}); they are fixed before"
                    raise UserError(f"{folder} {why} running. --out takes another folder")
        elif study != old:
            launch.require_idle(folder)
            shutil.rmtree(folder / "cells", ignore_errors=True)
    study = replace(study, threads=study.threads or threads)
    Run(folder).write_text(path.name, design.text(study))
    return study
