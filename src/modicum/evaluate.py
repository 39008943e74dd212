"""Run a model on a fixed set of held-out problems, sampled and greedy, grade it, and compare two.

The set is the first n different problems of a split at seed 0, the same for every run. Every mean has
an interval over problems (`stats.interval`). Strict reads marked answers only, lenient guesses where
nothing is marked: a gain in strict alone is a gain in format (docs/evaluation.md)."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modicum import answers, stats
from modicum.answers import STYLES
from modicum.config import Sampling
from modicum.grading.quantities import clean
from modicum.results import Evaluation
from modicum.runs import read_lines, read_object
from modicum.tasks.base import Task, check_split
from modicum.tasks.examples import Examples, draw, without
from modicum.tasks.prompts import encode
from modicum.types import Completion, Frozen, Grade, Problem, Split, UserError

if TYPE_CHECKING:
    from modicum.engine import Policy

MAX_REPEATS = 500  # in a row, after which a split holds no more different problems
Graded = tuple[Completion, Grade]
Group = Sequence[Graded]
Entry = dict[str, Any]  # of a file of completions
SETTINGS = ("task", "split", "temperature", "samples_per_problem")
RIGHT = "right"


def held_out(task: Task, split: Split, count: int) -> list[Problem]:
    """The first `count` different problems (question and answer) of the split, or all it holds: one
    that comes again would count twice in a mean and narrow its interval."""
    size = task.size(split)
    found: dict[tuple[str, str], Problem] = {}
    index = last = 0
    while len(found) < count and index - last < MAX_REPEATS and (size is None or index < size):
        problem = task.problem(split, 0, index)
        index += 1
        if found.setdefault((problem.question, problem.answer), problem) is problem:
            last = index
    if not found:
        raise UserError(f"{task} has no problems in the split {split!r}")
    return list(found.values())


def evaluate(
    policy: "Policy",
    task: Task,
    sampling: Sampling,
    split: str = "test",
    num_problems: int = 256,
    samples: int = 4,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    keep: Callable[[Iterable[Entry]], None] | None = None,
    examples: Examples | None = None,
) -> Evaluation:
    """Sample `samples` completions (at temperature 0: one) and a greedy one for each problem;
    `examples` are the worked ones of a run, or drawn from the task. `progress(done, total)` counts
    problems over both passes, `keep` gets `rows`."""
    examples = draw(task, sampling) if examples is None else examples
    problems = held_out(without(task, examples), check_split(split), num_problems)
    prompts = [encode(p, policy.tokenizer, sampling, examples) for p in problems]
    keys = [("evaluate", seed, split, index) for index in range(len(problems))]

    def run(settings: Sampling, count: int, done: int) -> list[list[Graded]]:
        def told(number: int) -> None:
            if progress is not None:
                progress(done + number, 2 * len(problems))

        return grade(task, problems, policy.sample(prompts, keys, count, settings, progress=told))

    greedy = run(dataclasses.replace(sampling, temperature=0.0), 1, 0)
    drawn = run(sampling, samples, len(problems)) if sampling.temperature > 0 else greedy
    best = [group[0] for group in greedy]
    if keep is not None:
        keep(rows(problems, drawn, best))
    said = {"task": str(task), "split": split, "temperature": sampling.temperature}
    return summarise(problems, drawn, best, sampling.style, **said)


def grade(
    task: Task, problems: Sequence[Problem], groups: Sequence[Sequence[Completion]]
) -> list[list[Graded]]:
    """Every completion with its task's verdict."""
    pairs = zip(problems, groups, strict=True)
    return [[(found, task.grade(p, found.text)) for found in group] for p, group in pairs]


def summarise(
    problems: Sequence[Problem], drawn: Sequence[Group], greedy: Group, style: str, **said: Any
) -> Evaluation:
    """The evaluation of n graded samples and one greedy completion of each problem, in a style;
    `said` is what it tells of how they were made."""
    count = len(drawn[0])
    every = [graded for group in drawn for graded in group]
    strict = [sum(grade.strict for _, grade in group) for group in drawn]
    scores = [right / count for right in strict]
    lenient = [sum(grade.lenient for _, grade in group) / count for group in drawn]
    best = [float(grade.strict) for _, grade in greedy]
    majority = stats.majority_at_k
    powers = [2**power for power in range(count.bit_length()) if 2**power <= count]
    cast = [(p.id, [vote(*g) for g in group]) for p, group in zip(problems, drawn, strict=True)]
    format_ok = STYLES.get(style, STYLES["tags"]).format_ok
    said |= zip(("accuracy", "low", "high"), _band(scores), strict=True)
    said |= zip(("lenient", "lenient_low", "lenient_high"), _band(lenient), strict=True)
    said |= zip(("greedy", "greedy_low", "greedy_high"), _band(best), strict=True)
    return Evaluation(
        **said,
        num_problems=len(problems),
        samples_per_problem=count,
        standard_error=stats.standard_error(scores) if len(scores) > 1 else None,
        greedy_lenient=sum(grade.lenient for _, grade in greedy) / len(greedy),
        format=sum(format_ok(c.text) for c, _ in every) / len(every),
        truncated=sum(not c.finished for c, _ in every) / len(every),
        length=sum(len(c.tokens) for c, _ in every) / len(every),
        pass_at={str(k): _band([stats.pass_at_k(count, r, k) for r in strict]) for k in powers},
        maj_at={str(k): _band([majority(vs, RIGHT, k, key) for key, vs in cast]) for k in powers},
        ids=[problem.id for problem in problems],
        scores=scores,
        lenient_scores=lenient,
        greedy_scores=best,
    )


def vote(completion: Completion, grade: Grade) -> str | None:
    """What a completion votes for in maj@k: RIGHT, its marked answer in one spelling, or nothing."""
    if grade.strict:
        return RIGHT
    if not (marked := answers.extract(completion.text)):
        return None
    value = answers.number(marked)
    return f"= {clean(marked) if value is None else value}"


def _band(scores: list[float]) -> list[float]:
    return list(vars(stats.interval(scores)).values())


def rows(problems: Sequence[Problem], drawn: Sequence[Group], greedy: Group) -> Iterator[Entry]:
    """Every completion with its verdicts, as JSON objects; sample "greedy" or 0, 1, ..."""
    for p, group, best in zip(problems, drawn, greedy, strict=True):
        asked = {"question": p.question, "gold": p.answer, "difficulty": p.difficulty}
        for name, (c, grade) in [("greedy", best), *enumerate(group)]:
            wrote = {"completion": c.text, "num_tokens": len(c.tokens), "finished": c.finished}
            yield {"id": p.id, "sample": name, **asked, **wrote, **dataclasses.asdict(grade)}


def read(folder: Path, name: str = "trained") -> Evaluation:
    """The evaluation in a folder of `evaluate --out`, or that of the `name`d model of a run."""
    path, lines = folder / "evaluation.json", folder / "evaluations.jsonl"
    if path.is_file():
        return Evaluation.from_json(read_object(path), f"{path}: this")
    if not lines.is_file():
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; `modicum runs` lists runs")
        raise UserError(f"{folder} holds no evaluation; `modicum evaluate --out` makes one")
    for entry in read_lines(lines):
        if entry.get("name") == name:
            return Evaluation.from_json(entry)
    raise UserError(f"{lines} holds no evaluation of the {name} model")


class Comparison(Frozen):
    """after - before on the same problems, with 95 % intervals of the paired difference."""

    num_problems: int
    accuracy: stats.Interval
    lenient: stats.Interval
    greedy: stats.Interval
    better: int  # problems whose sampled strict score rose
    worse: int  # those whose it fell


def compare(after: Evaluation, before: Evaluation) -> Comparison:
    """The paired comparison; UserError when the two did not answer the same problems alike."""
    for name in SETTINGS:
        one, two = getattr(after, name), getattr(before, name)
        if one != two:
            raise UserError(f"the two evaluations differ in {name}: {one!r} and {two!r}")
    if after.ids != before.ids:
        raise UserError("the two evaluations are of different problems")
    gains = [a - b for a, b in zip(after.scores, before.scores, strict=True)]
    kinds = ("scores", "lenient_scores", "greedy_scores")
    pairs = ((getattr(after, kind), getattr(before, kind)) for kind in kinds)
    accuracy, lenient, greedy = (stats.paired_interval(*pair) for pair in pairs)
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return Comparison(len(gains), accuracy, lenient, greedy, better, worse)
