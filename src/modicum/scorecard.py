"""What an evaluation found, from graded completions; and the comparison of two (docs/evaluation.md).

Every mean has an interval over problems (`stats.interval`). Strict reads marked answers only, lenient
guesses where nothing is marked: a gain in strict alone is a gain in format.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum import answers, stats
from modicum.answers import STYLES
from modicum.config import Sampling
from modicum.grading.quantities import clean
from modicum.results import Evaluation
from modicum.runs import read_lines, read_object
from modicum.types import Completion, Grade, Problem, UserError

Graded = tuple[Completion, Grade]
SETTINGS = ("task", "split", "temperature", "samples_per_problem")


def summarise(
    task: str,
    problems: Sequence[Problem],
    drawn: Sequence[Sequence[Graded]],
    greedy: Sequence[Graded],
    sampling: Sampling,
    split: str,
) -> Evaluation:
    """The evaluation of n graded samples and one greedy completion of each problem."""
    count = len(drawn[0])
    every = [graded for group in drawn for graded in group]
    strict = [sum(grade.strict for _, grade in group) for group in drawn]
    scores = [right / count for right in strict]
    lenient = [sum(grade.lenient for _, grade in group) / count for group in drawn]
    best = [float(grade.strict) for _, grade in greedy]
    majority = stats.majority_at_k
    powers = [2**power for power in range(count.bit_length()) if 2**power <= count]
    cast = [(p.id, [vote(*g) for g in group]) for p, group in zip(problems, drawn, strict=True)]
    format_ok = STYLES[sampling.style if sampling.style in STYLES else "tags"].format_ok
    return Evaluation(
        task=task,
        split=split,
        num_problems=len(problems),
        samples_per_problem=count,
        temperature=sampling.temperature,
        **dict(zip(("accuracy", "low", "high"), _band(scores), strict=True)),
        standard_error=stats.standard_error(scores) if len(scores) > 1 else None,
        **dict(zip(("lenient", "lenient_low", "lenient_high"), _band(lenient), strict=True)),
        **dict(zip(("greedy", "greedy_low", "greedy_high"), _band(best), strict=True)),
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


RIGHT = "right"


def vote(completion: Completion, grade: Grade) -> str | None:
    """What a completion votes for in maj@k: RIGHT, its marked answer in one spelling, or nothing."""
    if grade.strict:
        return RIGHT
    marked = answers.extract(completion.text)
    if not marked:
        return None
    value = answers.number(marked)
    return f"= {clean(marked) if value is None else value}"


def _band(scores: list[float]) -> list[float]:
    return list(vars(stats.interval(scores)).values())


def rows(
    problems: Sequence[Problem], drawn: Sequence[Sequence[Graded]], greedy: Sequence[Graded]
) -> Iterator[dict[str, Any]]:
    """Every completion with its verdicts, as JSON objects; sample "greedy" or 0, 1, ..."""
    for problem, group, best in zip(problems, drawn, greedy, strict=True):
        for name, (completion, grade) in [("greedy", best), *enumerate(group)]:
            yield {
                "id": problem.id,
                "sample": name,
                "question": problem.question,
                "gold": problem.answer,
                "difficulty": problem.difficulty,
                "completion": completion.text,
                "num_tokens": len(completion.tokens),
                "finished": completion.finished,
                **dataclasses.asdict(grade),
            }


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


@dataclass(frozen=True)
class Comparison:
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
