"""`modicum audit-reward`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from modicum.config import at_least, from_mapping
from modicum.options import Parser, add_options, given
from modicum.types import UserError

if TYPE_CHECKING:
    from modicum.rewards.audit import Finding

SUMMARY = """Try degenerate answers on a reward before training; needs no model.

Shows what empty, constant, copied, stuffed, endless and nearly right answers earn beside a
right one, term by term, and flags those that pay. The exit code is 0 also when something is
flagged, unless --strict is given."""
EXAMPLES = """
modicum audit-reward --reward 'accuracy + 0.2*format'
modicum audit-reward --task countdown --reward 'accuracy + 0.5*consistency' --problems 50
modicum audit-reward --reward 'accuracy + 0.5*mypackage.mymodule:function' --strict
"""


@dataclass(frozen=True)
class Options:
    """What to try, and when to flag."""

    task: str = "arithmetic"
    """Problems, as an expression; `modicum tasks` lists them."""
    reward: str = "accuracy"
    """Weighted sum of terms; what `modicum train --reward` takes."""
    style: Literal["tags", "boxed", "hashes"] = "tags"
    """How the answers are marked."""
    problems: int = 20
    """Problems of the training split; what an answer earns is the mean over them."""
    share: float = 0.5
    """An answer that earns more than this share of what the right one earns is flagged."""
    seed: int = 0
    """Of the order of the problems."""

    def __post_init__(self) -> None:
        at_least(self, problems=1, seed=0)
        if not 0 <= self.share <= 1:
            raise UserError(f"share must be between 0 and 1, not {self.share}")


def run(args: list[str]) -> int:
    """Print what degenerate answers earn; 1 if one is flagged and --strict is given."""
    parser = Parser("audit-reward", SUMMARY, EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print as JSON, with the texts")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if one is flagged")
    add_options(parser, Options, "audit")
    found = parser.read(args)
    options = from_mapping(Options, given(Options, found), "options")

    from modicum import rewards, tasks
    from modicum.rewards.audit import audit
    from modicum.styles import STYLES

    task, reward = tasks.parse(options.task), rewards.parse(options.reward)
    size = task.size("train")
    count = options.problems if size is None else min(options.problems, size)
    problems = [task.problem("train", options.seed, i) for i in range(max(1, count))]
    findings = audit(task, reward, STYLES[options.style], problems, options.share)
    flagged = [finding for finding in findings if finding.why]
    if found.json:
        entries = [_entry(finding) for finding in findings]
        head = {"task": str(task), "reward": str(reward), "style": options.style}
        print(json.dumps({**head, "problems": len(problems), "answers": entries}))
    else:
        print(f"{reward} on {task}, style {options.style}: means over {len(problems)} problems\n")
        print(table(findings))
        print(f"\n{len(flagged)} of {len(findings) - 1} degenerate answers are flagged")
    return int(bool(flagged) and found.strict)


def _entry(finding: Finding) -> dict[str, object]:
    """As JSON, which has no NaN: what has no verdict is null."""
    scores = {n: None if math.isnan(s) else s for n, s in finding.scores.items()}
    total = None if math.isnan(finding.total) else finding.total
    return {**asdict(finding), "total": total, "scores": scores}


def table(findings: list[Finding]) -> str:
    """A line an answer: its name, the total, the terms, why it is flagged."""
    names = list(findings[0].scores)
    rows = [["answer", "total", *(names if len(names) > 1 else [])]]
    for finding in findings:
        terms = [finding.scores[name] for name in names] if len(names) > 1 else []
        shown = ["-" if math.isnan(value) else f"{value:.2f}" for value in (finding.total, *terms)]
        rows.append([finding.name, *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, why in zip(rows, ["", *(finding.why for finding in findings)], strict=True):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([*cells, f"<- {why}" if why else ""]).rstrip())
    return "\n".join(lines)
