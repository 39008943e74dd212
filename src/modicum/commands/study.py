"""`modicum study`, `scan`, a study of units, and `report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum.commands.train import add_sources, settings
from modicum.config import TrainConfig, from_mapping
from modicum.options import Parser, add_options, given, show
from modicum.runs import read_object
from modicum.study.launch import StudyObserver
from modicum.study.scan import Scan, run_scan
from modicum.types import UserError

ACTIONS = ("run", "cost", "status", "analyse", "same")


@dataclass(frozen=True)
class Options:
    """Where and how."""

    out: str = ""
    """The study's folder; empty takes runs/ and the name of the file."""
    jobs: int = 1
    """Runs at the same time; the cores are divided among them. The short word for `local(jobs=N)`."""
    launcher: str = "local"
    """What runs them: `local`, each in a process of its own, `here`, in this one, `slurm(...)`
    or `ray(...)`."""
    retry_failed: bool = False
    """Run the cells that failed once more; else they stay failed and are shown."""


class Printed(StudyObserver):
    """Prints what it is told, to standard error."""

    def say(self, text: str) -> None:
        from modicum.display import console

        console().print(text)


def run(args: list[str]) -> int:
    """Do what the first word says with the study that the second names."""
    parser = Parser("study")
    parser.add_argument("action", nargs="?", metavar="|".join(ACTIONS), help="what to do")
    parser.add_argument("file", nargs="?", metavar="FILE", help="study.toml, or the folder")
    parser.add_argument("other", nargs="?", metavar="FOLDER", help="the second folder of same")
    found, options = parser.options(args, Options, "study")
    if found.action not in ACTIONS:
        raise UserError(f"study takes one of {', '.join(ACTIONS)} first, not {found.action!r}")
    if not found.file:
        raise UserError(f"study {found.action} needs a study.toml")
    if found.action == "same":
        from modicum.study.analysis import differences

        if not found.other:
            raise UserError("study same needs two folders")
        lines = differences(Path(found.file), Path(found.other))
        text = "\n".join(
            [*lines[:20], f"{len(lines)} numbers differ" if lines else "the same numbers"]
        )
        show(found.json, {"same": not lines, "differences": lines}, text)
        return 1 if lines else 0
    if found.other:
        raise UserError(f"study {found.action} takes one study, not also {found.other!r}")

    from modicum.study.run import analyse_study, run_study, study_cost, study_status

    how: dict[str, Any] = {**vars(options), "observer": Printed()}
    if found.action == "status":
        values = study_status(found.file, options.out)
        text = "\n".join(
            f"{name}: {row['tuned']} of {row['tries']} tries, {row['done']} of {row['seeds']} seeds"
            + "".join(f"  failed: {why}" for why in row["failed"])
            for name, row in values["arms"].items()
        )
    elif found.action == "cost":
        cost = study_cost(found.file, **how)
        values, text = vars(cost), f"cost: {cost.text()}"
    else:
        outcome = (run_study if found.action == "run" else analyse_study)(found.file, **how)
        values = read_object(outcome.folder / "analysis.json")
        text = f"{outcome.analysis.conclusion}\nreport: {outcome.report}"
    show(found.json, values, text)
    return 0


@dataclass(frozen=True)
class ScanOptions:
    """How the runs are made."""

    jobs: int = 1
    """Runs at the same time; several need `--launcher local`, which shares out the cores."""
    launcher: str = "here"
    """What runs them: `here`, in this process, `local`, each in one of its own, `slurm(...)` or
    `ray(...)`."""
    retry_failed: bool = False
    """Run those that stopped once more; else they stay stopped and are shown."""


def run_units(args: list[str]) -> int:
    """Train every unit alone, rank them and name the update that the best ones make."""
    parser = Parser("scan")
    add_sources(parser)
    told = "learning rates that every unit is tried with"
    parser.add_argument("--rates", nargs="+", metavar="X", type=float, default=[], help=told)
    parser.add_argument("--overwrite", action="store_true", help="replace the scan in --out")
    for cls, title in ((Scan, "scan"), (ScanOptions, "runs"), (TrainConfig, "run")):
        add_options(parser, cls, title)
    found = parser.read(args)
    scan = from_mapping(Scan, given(Scan, found), "options")
    options = from_mapping(ScanOptions, given(ScanOptions, found), "options")
    said = given(TrainConfig, found)
    if "update" in said:
        raise UserError("scan says itself what trains; --method says what is put there")
    config = settings(found, {})
    out = said.get("out", "runs/scan")
    # Recipes and the configs of runs say `test`, but nothing may be chosen on it.
    split = said.get("evaluation", {}).get("eval_split", "tune")
    how: dict[str, Any] = {**vars(options), "split": split, "overwrite": found.overwrite}
    result = run_scan(scan, config, out, found.rates, **how, observer=Printed())
    if not found.json:
        from modicum.study import ranking

        ranking.show(result)
    lines = [f"note: {text}" for text in result["notes"]]
    lines.append(f"best {len(result['best_units'])}: {result['best']}")
    lines.append(f"files: {out}/scan.json, scan.png, scan.svg")
    show(found.json, result, "\n".join(lines))
    return 0


@dataclass(frozen=True)
class ReportOptions:
    """What to write."""

    out: str = ""
    """The HTML file; Markdown and a folder of figures are written beside it (default: report.html in the folder, or here for several)."""
    title: str = ""
    """Its title."""


def run_report(args: list[str]) -> int:
    """Write the report of runs or of a study: HTML, Markdown, figures; print the runs' table."""
    parser = Parser("report")
    parser.folder("runs", "run folders, or one of a study", nargs="*", metavar="RUN")
    found, options = parser.options(args, ReportOptions, "report")
    folders = [Path(name) for name in found.runs]

    from modicum.face.training import report
    from modicum.report import page, read, tables
    from modicum.status import STUDY, Status

    report(*folders, out=options.out, title=options.title)
    study = (folders[0] / STUDY).is_file()
    paths = dict(
        zip(("report", "markdown", "figures"), page.places(folders, options.out), strict=True)
    )
    values: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    if not study and not found.json:
        records = [read.load(folder) for folder in folders]
        if rows := tables.results(records):
            tables.show(rows)
        for record in records:
            if record.result is None:
                print(f"{record.folder}: no result yet; {Status(record.folder).so_far}")
    elif not study:
        done = (read_object(folder / "result.json", optional=True) for folder in folders)
        values["results"] = list(filter(None, done))
    show(found.json, values, "\n".join(f"{name + ':':<10}{path}" for name, path in paths.items()))
    return 0
