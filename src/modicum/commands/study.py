"""`modicum study`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum.options import Parser, show
from modicum.runs import read_object
from modicum.study.launch import StudyObserver
from modicum.types import UserError

SUMMARY = """Compare updates (or rewards, objectives, curricula) over seeds at one budget.

  run      what it will cost; then the base, tuning, final runs, analysis and report.
           An interrupted study goes on when the same command is given again
  cost     only what it will cost, from a short probe of each arm
  status   what is done, what failed, what is left
  analyse  the analysis, the verdicts and the report once more, from the runs that are there
  same     whether two folders of a study hold the same numbers, clocks and memory aside

FILE is a study.toml (docs/study.md); for status and analyse also the study's folder.
`[tuning] probe = true` in it: two tries of the rate of each arm in place of a grid of five, where
a first step moves the policy by a KL of 0.01 and 0.03 nats a token, judged on the tune split."""
EXAMPLES = """
modicum study run studies/which-layers/arithmetic.toml --jobs 2
modicum study cost studies/which-layers/arithmetic.toml --jobs 2
modicum study status runs/arithmetic    # needs: the first line
modicum study same runs/arithmetic studies/which-layers/arithmetic    # needs: the first line
modicum study run study.toml --retry-failed    # needs: your file
"""
ACTIONS = ("run", "cost", "status", "analyse", "same")


@dataclass(frozen=True)
class Options:
    """Where and how."""

    out: str = ""
    """The study's folder; empty takes runs/ and the name of the file."""
    jobs: int = 1
    """Runs at the same time; the cores are divided among them."""
    launcher: str = "processes"
    """What runs them: `processes`, each in one of its own, or `here`, one after the other."""
    retry_failed: bool = False
    """Run the cells that failed once more; else they stay failed and are shown."""


class Printed(StudyObserver):
    """Prints what it is told, to standard error."""

    def __init__(self) -> None:
        from modicum.display import console

        self.console = console()

    def say(self, text: str) -> None:
        """Print a text."""
        self.console.print(text)


def run(args: list[str]) -> int:
    """Do what the first word says with the study that the second names."""
    parser = Parser("study", SUMMARY, EXAMPLES)
    parser.add_argument("action", nargs="?", metavar="|".join(ACTIONS), help="what to do")
    parser.add_argument("file", nargs="?", metavar="FILE", help="study.toml, or the folder")
    parser.add_argument("other", nargs="?", metavar="FOLDER", help="the second folder of same")
    found, options = parser.options(args, Options, "study")
    if found.action not in ACTIONS:
        raise UserError(f"study takes one of {', '.join(ACTIONS)} first, not {found.action!r}")
    if not found.file:
        raise UserError(f"study {found.action} needs a study.toml")
    if found.action == "same":
        return _same(found.file, found.other, found.json)
    if found.other:
        raise UserError(f"study {found.action} takes one study, not also {found.other!r}")

    from modicum.study.run import analyse_study, run_study, study_cost, study_status

    how: dict[str, Any] = {**vars(options), "observer": Printed()}
    if found.action == "status":
        values = study_status(found.file, options.out)
        text = "\n".join(_line(name, row) for name, row in values["arms"].items())
    elif found.action == "cost":
        cost = study_cost(found.file, **how)
        values, text = vars(cost), f"cost: {cost.text()}"
    else:
        outcome = (run_study if found.action == "run" else analyse_study)(found.file, **how)
        values = read_object(outcome.folder / "analysis.json")
        text = f"{outcome.analysis.conclusion}\nreport: {outcome.report}"
    show(found.json, values, text)
    return 0


def _line(name: str, row: dict[str, Any]) -> str:
    """How far an arm is."""
    done = f"{row['tuned']} of {row['tries']} tries, {row['done']} of {row['seeds']} seeds"
    return "  ".join([f"{name}: {done}", *(f"failed: {why}" for why in row["failed"])])


def _same(one: str, other: str | None, as_json: bool) -> int:
    """Compare two analyses; exit code 1 when they differ."""
    from modicum.study.analysis import differences

    if not other:
        raise UserError("study same needs two folders")
    found = differences(Path(one), Path(other))
    text = "\n".join([*found[:20], f"{len(found)} numbers differ"]) if found else "the same numbers"
    show(as_json, {"same": not found, "differences": found}, text)
    return 1 if found else 0
