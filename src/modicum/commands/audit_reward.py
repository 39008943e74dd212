"""`modicum audit-reward`."""

from dataclasses import dataclass
from typing import Literal

from modicum.limits import Natural, Positive, Share
from modicum.options import Parser, show
from modicum.settings import Settings


@dataclass(frozen=True)
class Options(Settings):
    """What to try, and when to flag."""

    task: str = "arithmetic"
    """Problems, as an expression; `modicum tasks` lists them."""
    reward: str = "accuracy"
    """Weighted sum of terms; what `modicum train --reward` takes."""
    style: Literal["tags", "boxed", "hashes"] = "tags"
    """How the answers are marked."""
    problems: Positive = 20
    """Problems of the training split; what an answer earns is the mean over them."""
    share: Share = 0.5
    """An answer that earns more than this share of what the right one earns is flagged."""
    seed: Natural = 0
    """Of the order of the problems."""


def run(args: list[str]) -> int:
    """Print what degenerate answers earn; 1 if one is flagged and --strict is given."""
    parser = Parser("audit-reward")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if one is flagged")
    found, options = parser.options(args, Options, "audit")

    from modicum import rewards, tasks
    from modicum.rewards.audit import audit, table
    from modicum.styles import STYLES

    task, reward = tasks.parse(options.task), rewards.parse(options.reward)
    size = task.size("train")
    count = options.problems if size is None else min(options.problems, size)
    problems = [task.problem("train", options.seed, i) for i in range(max(1, count))]
    findings = audit(task, reward, STYLES[options.style], problems, options.share)
    flagged = [finding for finding in findings if finding.why]
    head = {"task": str(task), "reward": str(reward), "style": options.style}
    values = {**head, "problems": len(problems), "answers": [vars(f) for f in findings]}
    text = (
        f"{reward} on {task}, style {options.style}: means over {len(problems)} problems\n\n"
        f"{table(findings)}\n\n{len(flagged)} of {len(findings) - 1} degenerate answers are flagged"
    )
    show(found.json, values, text)
    return int(bool(flagged) and found.strict)
