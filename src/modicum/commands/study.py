"""`modicum study`, `scan`, a study of units, and `report`."""

from pathlib import Path
from typing import Any

from modicum.commands import parser, printed
from modicum.commands.train import settings
from modicum.config import TrainConfig, from_mapping
from modicum.face.training import report
from modicum.options import add_options, given
from modicum.report import page, read, tables
from modicum.report.words import filled
from modicum.runs import read_object
from modicum.status import STUDY, Status
from modicum.study import ranking
from modicum.study.analysis import differences
from modicum.study.launch import StudyObserver
from modicum.study.run import analyse_study, run_study, study_cost, study_status
from modicum.study.scan import Scan, run_scan
from modicum.types import Frozen, UserError

ACTIONS = ("run", "cost", "status", "analyse", "same")


class Options(Frozen):
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
    found, options = parser("study").options(args, Options, "study")
    if found.action not in ACTIONS:
        raise UserError(f"study takes one of {', '.join(ACTIONS)} first, not {found.action!r}")
    if not found.file:
        raise UserError(f"study {found.action} needs a study.toml")
    if found.action == "same":
        if not found.other:
            raise UserError("study same needs two folders")
        lines = differences(Path(found.file), Path(found.other))
        told = f"{len(lines)} numbers differ" if lines else "the same numbers"
        values = {"same": not lines, "differences": lines}
        return printed(found.json, values, "\n".join([*lines[:20], told]), int(bool(lines)))
    if found.other:
        raise UserError(f"study {found.action} takes one study, not also {found.other!r}")

    how: dict[str, Any] = {**vars(options), "observer": Printed()}
    if found.action == "status":
        values = study_status(found.file, options.out)
        text = filled("status.txt", **values)
    elif found.action == "cost":
        cost = study_cost(found.file, **how)
        values, text = vars(cost), f"cost: {cost.text()}"
    else:
        outcome = (run_study if found.action == "run" else analyse_study)(found.file, **how)
        values = read_object(outcome.folder / "analysis.json")
        text = f"{outcome.analysis.conclusion}\nreport: {outcome.report}"
    return printed(found.json, values, text)


class ScanOptions(Frozen):
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
    made = parser("scan")
    for cls, title in ((Scan, "scan"), (ScanOptions, "runs"), (TrainConfig, "run")):
        add_options(made, cls, title)
    found = made.read(args)
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
        ranking.show(result)
    lines = [f"note: {text}" for text in result["notes"]]
    lines.append(f"best {len(result['best_units'])}: {result['best']}")
    lines.append(f"files: {out}/scan.json, scan.png, scan.svg")
    return printed(found.json, result, "\n".join(lines))


class ReportOptions(Frozen):
    """What to write."""

    out: str = ""
    """The HTML file; Markdown and a folder of figures are written beside it (default: report.html in the folder, or here for several)."""
    title: str = ""
    """Its title."""


def run_report(args: list[str]) -> int:
    """Write the report of runs or of a study: HTML, Markdown, figures; print the runs' table."""
    found, options = parser("report").options(args, ReportOptions, "report")
    folders = [Path(name) for name in found.runs]

    report(*folders, out=options.out, title=options.title)
    study = (folders[0] / STUDY).is_file()
    paths = page.places(folders, options.out)._asdict()
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
    lines = (f"{name + ':':<10}{path}" for name, path in paths.items())
    return printed(found.json, values, "\n".join(lines))
