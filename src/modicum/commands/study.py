"""`modicum study`, `scan`, a study of units, and `report`."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from modicum.commands import printed
from modicum.commands.train import settings
from modicum.config import TrainConfig
from modicum.face.training import report
from modicum.options import config_of, given
from modicum.report import page, paper, read, tables
from modicum.report.words import filled
from modicum.runs import read_object
from modicum.status import STUDY, Status
from modicum.study import ranking
from modicum.study.analysis import differences
from modicum.study.launch import StudyObserver
from modicum.study.run import analyse_study, run_study, study_cost, study_status
from modicum.study.scan import Scan, run_scan
from modicum.types import UserError

HOW = ("jobs", "launcher", "retry_failed")  # runs are made


class Printed(StudyObserver):
    """Prints what it is told, to standard error."""

    def say(self, text: str) -> None:
        from modicum.display import console

        console().print(text)


def run(found: Namespace) -> int:
    """Do what the first word says with the study that the second names."""
    if found.action == "same":
        if not found.other:
            raise UserError("study same needs two folders")
        lines = differences(Path(found.file), Path(found.other))
        told = f"{len(lines)} numbers differ" if lines else "the same numbers"
        values = {"same": not lines, "differences": lines}
        return printed(found.json, values, "\n".join([*lines[:20], told]), int(bool(lines)))
    if found.other:
        raise UserError(f"study {found.action} takes one study, not also {found.other!r}")

    how = {name: getattr(found, name) for name in ("out", *HOW)} | {"observer": Printed()}
    if found.action == "status":
        values = study_status(found.file, found.out)
        text = filled("status.txt", **values)
    elif found.action == "cost":
        cost = study_cost(found.file, **how)
        values, text = vars(cost), f"cost: {cost.text()}"
    else:
        outcome = (run_study if found.action == "run" else analyse_study)(found.file, **how)
        values = read_object(outcome.folder / "analysis.json")
        text = f"{outcome.analysis.conclusion}\nreport: {outcome.report}"
    return printed(found.json, values, text)


def run_units(found: Namespace) -> int:
    """Train every unit alone, rank them and name the update that the best ones make."""
    scan, said = config_of(Scan, found), given(TrainConfig, found)
    if "update" in said:
        raise UserError("scan says itself what trains; --method says what is put there")
    config = settings(found)
    out = said.get("out", "runs/scan")
    # Recipes and the configs of runs say `test`, but nothing may be chosen on it.
    split = said.get("evaluation", {}).get("eval_split", "tune")
    how = {name: getattr(found, name) for name in (*HOW, "overwrite")} | {"observer": Printed()}
    result = run_scan(scan, config, out, found.rates, split=split, **how)
    if not found.json:
        ranking.show(result)
    lines = [f"note: {text}" for text in result["notes"]]
    lines.append(f"best {len(result['best_units'])}: {result['best']}")
    lines.append(f"files: {out}/scan.json, scan.png, scan.svg")
    return printed(found.json, result, "\n".join(lines))


def run_report(found: Namespace) -> int:
    """Write the report of runs or of a study: HTML, Markdown, figures; print the runs' table."""
    folders = [Path(name) for name in found.runs]
    if found.paper:
        place = str(paper.write(folders, found.out, found.title))
        return printed(found.json, {"paper": place}, f"paper: {place}")
    report(*folders, out=found.out, title=found.title)
    study = (folders[0] / STUDY).is_file()
    paths = page.places(folders, found.out)._asdict()
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
