"""`modicum tasks`: what tasks there are, their problems, and whether they are sound.

`modicum audit-reward` tries rewards on them, and `modicum grade` grades answers of any."""

import itertools
import json
import sys
from argparse import Namespace
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

from modicum.commands import printed
from modicum.config import Sampling, Trust
from modicum.options import config_of
from modicum.types import SPLITS, Problem, Split, UserError

CHECKED = 200  # problems of each split that are looked at
SHOWN = ("id", "question", "answer", "difficulty")


def run(found: Namespace) -> int:
    """List the tasks, or show or check problems of one."""
    sampling = config_of(Sampling, found)

    from modicum import spec, tasks
    from modicum.report.words import filled
    from modicum.tasks.examples import draw, without
    from modicum.tasks.loading import accepted
    from modicum.tasks.prompts import encode, prompt_text

    if found.expression is None:
        if found.check:
            raise UserError("--check needs a task")
        entries = [spec.describe(cls) for cls in tasks.TASKS.values()]
        lines = [f"{entry['signature']}\n    {entry['summary']}" for entry in entries]
        return printed(found.json, entries, "\n".join(lines))
    task = tasks.parse(found.expression)
    notes = [f"note: {note}" for note in tasks.notes(task)]
    if found.check:
        values = _check(task, found, sampling)
        text = "\n".join([str(task), filled("checked.txt", **values), *notes])
        wrong = values["long"], *values["wrong"].values(), *values["shared"].values()
        return printed(found.json, values, text, int(any(wrong)))
    examples = draw(task, sampling)
    task = without(task, examples)
    size = task.size(found.split)
    there = "endless" if size is None else f"{size} problems"
    lines = [f"{task}, split {found.split}: {there}", *notes]
    values, form = [], None
    if found.model:
        from modicum.models.load import read_tokenizer

        form = read_tokenizer(found.model, config_of(Trust, found)), sampling, examples
    for problem in _first(task, found.split, found.seed, found.count):
        value = {key: getattr(problem, key) for key in SHOWN}
        text, answer = problem.question, f"  answer: {' or '.join(accepted(problem))}"
        if form is not None:
            text, count = prompt_text(text, *form), len(encode(problem, *form))
            value |= {"prompt": text, "prompt_tokens": count}
            answer += f"\n  prompt: {count} tokens"
        values.append(value)
        lines.append(f"\n{text}\n{answer}")
    return printed(found.json, values, "\n".join(lines))


def _check(task: Any, asked: Namespace, sampling: Sampling) -> dict[str, Any]:
    """By split: sizes, problems looked at, their least and greatest difficulty, the ids of those
    whose gold is not right; by pair of splits: problems in both; the task's notes; and which prompts
    for the model are too long (of an endless task 200 are looked at)."""
    from modicum.tasks import notes, overlap
    from modicum.tasks.examples import Sizes, draw, whole

    found: dict[str, Any] = {key: {} for key in ("sizes", "looked_at", "difficulty", "wrong")}
    looked = {}
    for split in SPLITS:
        some = looked[split] = _first(task, split, 0, CHECKED)
        levels = [p.difficulty for p in some if p.difficulty is not None]
        right = {p.id for p in some if task.grade(p, f"<answer>{p.answer}</answer>").strict}
        found["sizes"][split] = task.size(split)
        found["looked_at"][split] = len(some)
        found["difficulty"][split] = [min(levels), max(levels)] if levels else None
        found["wrong"][split] = [p.id for p in some if p.id not in right]
    pairs = itertools.combinations(SPLITS, 2)
    shared = {f"{a} and {b}": len(overlap(looked[a], looked[b])) for a, b in pairs}
    found |= {"shared": shared, "notes": notes(task), "long": {}, "prompts": ""}
    if asked.model:
        from modicum.models.load import read_config, read_tokenizer

        config = read_config(asked.model)
        tokenizer = read_tokenizer(asked.model, config_of(Trust, asked))
        sizes = Sizes(tokenizer, sampling, draw(task, sampling), config)
        some = whole(task, *SPLITS) or _first(task, "train", 0, CHECKED)
        found["long"], found["prompts"] = sizes.look(some)
    return found


def _first(task: Any, split: Split, seed: int, count: int) -> list[Problem]:
    size = task.size(split)
    there = count if size is None else min(count, size)
    return [task.problem(split, seed, index) for index in range(there)]


def run_audit_reward(found: Namespace) -> int:
    """Print what degenerate answers earn; 1 if one is flagged and --strict is given."""
    from modicum import rewards, tasks
    from modicum.answers import STYLES
    from modicum.rewards.audit import audit, table

    task, reward = tasks.parse(found.task), rewards.parse(found.reward)
    problems = _first(task, "train", found.seed, found.problems)
    problems = problems or [task.problem("train", found.seed, 0)]  # which says why not
    findings = audit(task, reward, STYLES[found.style], problems, found.share)
    flagged = [finding for finding in findings if finding.why]
    head = {"task": str(task), "reward": str(reward), "style": found.style}
    values = {**head, "problems": len(problems), "answers": [vars(f) for f in findings]}
    said = f"{reward} on {task}, style {found.style}: means over {len(problems)} problems"
    told = f"{len(flagged)} of {len(findings) - 1} degenerate answers are flagged"
    text = "\n\n".join([said, table(findings), told])
    return printed(found.json, values, text, int(bool(flagged) and found.strict))


def run_grade(found: Namespace) -> int:
    """Grade the lines of a file or of standard input."""
    from modicum.answers import grade_lines

    try:
        lines = sys.stdin.buffer if found.file == "-" else BytesIO(Path(found.file).read_bytes())
    except OSError as error:
        raise UserError(f"modicum grade: cannot read {found.file}: {error.strerror}") from error
    counts, kinds = Counter[str](), ("strict", "lenient", "error")
    for result in grade_lines(lines, found.symbolic, found.time_limit):
        print(json.dumps(result), flush=True)
        counts.update(["lines", *(kind for kind in kinds if result.get(kind))])
    told = "{} lines: {} strict, {} lenient, {} with an error"
    print(told.format(*(counts[name] for name in ("lines", *kinds))), file=sys.stderr)
    return 0
