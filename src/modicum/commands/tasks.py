"""`modicum tasks`: what tasks there are, their problems, and whether they are sound.

`modicum audit-reward` tries rewards on them, and `modicum grade` grades answers of any.
"""

import itertools
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from modicum.config import Sampling, Trust
from modicum.limits import Limits, Natural, Positive, Share
from modicum.options import Parser, show
from modicum.settings import Settings
from modicum.types import SPLITS, UserError

CHECKED = 200  # problems of each split that are looked at


@dataclass(frozen=True)
class Options(Settings):
    """Which problems to show."""

    split: Literal["train", "tune", "test"] = "train"
    """The split."""
    seed: Natural = 0
    """The seed of the order."""
    count: Positive = 3
    """How many."""
    model: str = ""
    """Show the prompts that this model would get; with --check, whether one is too long."""
    sampling: Sampling = field(default_factory=Sampling)
    trust: Trust = field(default_factory=Trust)


def run(args: list[str]) -> int:
    """List the tasks, or show or check problems of one."""
    parser = Parser("tasks")
    parser.add_argument("expression", nargs="?", metavar="TASK", help="a task expression")
    parser.add_argument(
        "--check",
        action="store_true",
        help="look at up to 200 problems of each split: is the gold answer graded as right,"
        " is a problem in two splits? Exit code 1 when something is wrong",
    )
    found, options = parser.options(args, Options, "problems")

    from modicum import spec, tasks
    from modicum.report.words import environment
    from modicum.tasks.examples import draw, without
    from modicum.tasks.loading import accepted
    from modicum.tasks.prompts import encode, prompt_text

    if found.expression is None:
        if found.check:
            raise UserError("--check needs a task")
        entries = [spec.describe(cls) for cls in tasks.TASKS.values()]
        lines = [f"{entry['signature']}\n    {entry['summary']}" for entry in entries]
        show(found.json, entries, "\n".join(lines))
        return 0
    task = tasks.parse(found.expression)
    notes = [f"note: {note}" for note in tasks.notes(task)]
    if found.check:
        values = _check(task) | _too_long(task, options)
        lines = environment().get_template("checked.txt").render(values).rstrip()
        show(found.json, values, "\n".join([str(task), lines, *notes]))
        return int(any((values["long"], *values["wrong"].values(), *values["shared"].values())))
    examples = draw(task, options.sampling)
    task = without(task, examples)
    size = task.size(options.split)
    count = options.count if size is None else min(options.count, size)
    problems = [task.problem(options.split, options.seed, i) for i in range(count)]
    keys = ("id", "question", "answer", "difficulty")
    lines = [
        f"{task}, split {options.split}: {'endless' if size is None else f'{size} problems'}",
        *notes,
    ]
    values, tokenizer = [], None
    if options.model:
        from modicum.models.load import read_tokenizer

        tokenizer = read_tokenizer(options.model, options.trust)
    for problem in problems:
        value = {key: getattr(problem, key) for key in keys}
        text, tokens = problem.question, []
        if tokenizer is not None:
            form = tokenizer, options.sampling, examples
            text, count = prompt_text(text, *form), len(encode(problem, *form))
            value |= {"prompt": text, "prompt_tokens": count}
            tokens = [f"  prompt: {count} tokens"]
        values.append(value)
        lines += [f"\n{text}\n  answer: {' or '.join(accepted(problem))}", *tokens]
    show(found.json, values, "\n".join(lines))
    return 0


def _check(task: Any) -> dict[str, Any]:
    """By split: sizes, problems looked at, their least and greatest difficulty, the ids of those
    whose gold is not right; by pair of splits: problems in both; and the task's notes."""
    from modicum.tasks import notes, overlap

    found: dict[str, Any] = {key: {} for key in ("sizes", "looked_at", "difficulty", "wrong")}
    looked = {}
    for split in SPLITS:
        size = found["sizes"][split] = task.size(split)
        count = CHECKED if size is None else min(CHECKED, size)
        some = looked[split] = [task.problem(split, 0, index) for index in range(count)]
        levels = [p.difficulty for p in some if p.difficulty is not None]
        found["looked_at"][split] = count
        found["difficulty"][split] = [min(levels), max(levels)] if levels else None
        found["wrong"][split] = [
            p.id for p in some if not task.grade(p, f"<answer>{p.answer}</answer>").strict
        ]
    shared = {
        f"{one} and {other}": len(overlap(looked[one], looked[other]))
        for one, other in itertools.combinations(SPLITS, 2)
    }
    return found | {"shared": shared, "notes": notes(task)}


def _too_long(task: Any, options: Options) -> dict[str, Any]:
    """Which prompts for the model are too long; of an endless task 200 are looked at."""
    from modicum.models.load import read_config, read_tokenizer
    from modicum.tasks.examples import Sizes, draw, whole

    if not options.model:
        return {"long": {}, "prompts": ""}
    config, tokenizer = read_config(options.model), read_tokenizer(options.model, options.trust)
    some = whole(task, *SPLITS) or [task.problem("train", 0, i) for i in range(CHECKED)]
    examples = draw(task, options.sampling)
    long, text = Sizes(tokenizer, options.sampling, examples, config).look(some)
    return {"long": long, "prompts": text}


@dataclass(frozen=True)
class AuditRewardOptions(Settings):
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


def run_audit_reward(args: list[str]) -> int:
    """Print what degenerate answers earn; 1 if one is flagged and --strict is given."""
    parser = Parser("audit-reward")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if one is flagged")
    found, options = parser.options(args, AuditRewardOptions, "audit")

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


@dataclass(frozen=True)
class GradeOptions(Settings):
    """How answers are compared."""

    symbolic: bool = True
    """Compare formulas by algebra as well (default: yes)."""
    time_limit: Annotated[float, Limits(0, 1e6, above=True)] = 2.0
    """Seconds for the algebra of one answer; what takes longer is wrong."""


def run_grade(args: list[str]) -> int:
    """Grade the lines of a file or of standard input."""
    parser = Parser("grade")
    parser.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="JSON lines; none or - is stdin"
    )
    found, options = parser.options(args, GradeOptions, "grading")

    from modicum.answers import grade_lines

    counts = dict.fromkeys(("lines", "strict", "lenient", "error"), 0)
    with _opened(found.file) as stream:
        for result in grade_lines(stream, options.symbolic, options.time_limit):
            print(json.dumps(result), flush=True)
            counts["lines"] += 1
            for key in ("strict", "lenient", "error"):
                counts[key] += bool(result.get(key))
    print(
        f"{counts['lines']} lines: {counts['strict']} strict, {counts['lenient']} lenient,"
        f" {counts['error']} with an error",
        file=sys.stderr,
    )
    return 0


def _opened(path: str) -> AbstractContextManager[BinaryIO]:
    try:
        return nullcontext(sys.stdin.buffer) if path == "-" else Path(path).open("rb")
    except OSError as error:
        raise UserError(f"modicum grade: cannot read {path}: {error.strerror}") from error
