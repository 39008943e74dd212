"""What degenerate answers earn against a right one: is a reward easy to cheat?

They are scored together as a group is in training. Those that do not know the answer must earn
little; those that know it but leave out something may earn as much as a right one, not more."""

import math
from collections.abc import Sequence

from modicum.answers import Style, number
from modicum.report.words import aligned
from modicum.rewards.base import Reward
from modicum.tasks.base import Task
from modicum.types import Completion, Frozen, Problem, UserError

RIGHT = "right answer"
FOREIGN = "我们先看题目，然后一步一步地计算，最后写出答案。"
FILLER = "Let me think about this again. "
MANY, LONG = 50, 200


class AuditedAnswer(Frozen):
    """What an answer earned, as means over the problems, None for no verdict; `why` it is flagged."""

    name: str
    total: float | None
    scores: dict[str, float | None]
    example: str
    why: str = ""


def answers_to(problem: Problem, style: Style) -> dict[str, str]:
    """The right answer first, then the degenerate ones, by name: what knows the answer is named so
    ("right ..."), and what has no end ("... never closed")."""
    gold, near = problem.answer, near_miss(problem.answer)
    opened = style.pattern.partition("{answer}")[0].replace("{thought}", "I am sure.")
    three = [near, gold, near_miss(near)]
    return {
        RIGHT: style.example(gold, reasoning(problem, gold)),
        "empty": "",
        "constant": style.example("42"),
        "copy of the question": problem.question,
        "copy of the prompt": f"{problem.question}\n\n{style.instruction}",
        "question as answer": style.example(problem.question),
        "marks without content": style.example("", ""),
        "marks around words": style.example("answer here"),
        "marks stuffed": style.example("", "") * MANY,
        "near miss": style.example(near),
        "near miss, worked out": style.example(near, reasoning(problem, near)),
        "near miss, very long": style.example(near, FILLER * LONG),
        "near miss, trivial steps": style.example(near, "1 + 1 = 2. " * MANY),
        "near miss, other language": style.example(near, FOREIGN),
        "several answers in one mark": style.example(", ".join(three)),
        "several marked answers": "\n".join(map(style.example, three)),
        "mark never closed": opened,
        "thinking never closed": f"<think> {FILLER * MANY}",
        "right, without a mark": gold,
        "right, without reasoning": style.example(gold, "-"),
        "right, very long": style.example(gold, FILLER * LONG),
        "right, other language": style.example(gold, FOREIGN),
    }


def near_miss(answer: str) -> str:
    """A wrong answer that looks like the right one."""
    if (value := number(answer)) is None:
        return f"{answer} + 1"
    return str(value + 1) if value.denominator == 1 else f"{answer}1"


def reasoning(problem: Problem, answer: str) -> str:
    """English sentences, with a step that ends in `answer` if that is a number."""
    value = number(answer)
    step = f"{answer} = {problem.data['target']}" if "target" in problem.data else answer
    if value is not None and value.denominator == 1:
        step = f"{value - 1} + 1 = {value}"
    return f"First I read the question. Then I work it out: {step}. This is what was asked."


def audit(
    task: Task, reward: Reward, style: Style, problems: Sequence[Problem], share: float
) -> list[AuditedAnswer]:
    """What each kind of answer earns, the right one first; UserError when the user's function
    fails. Flagged is one that earns at least as much as the right answer or more than `share` of
    it; one that holds the right answer, only if it earns more."""
    groups = [answers_to(problem, style) for problem in problems]
    rows: list[list[dict[str, float]]] = []
    for problem, group in zip(problems, groups, strict=True):
        faults: list[str] = []
        said = []
        for name, text in group.items():
            size = len(text) // 4 + 1  # about one token for four characters, and the end
            cut = name.endswith("never closed")
            said.append(Completion((0,) * size, (0.0,) * size, text, not cut))
        rows.append(reward.score_group(task, problem, said, faults))
        if faults:
            raise UserError(f"reward: {faults[0]}")
    findings: list[AuditedAnswer] = []
    for (name, text), *found in zip(groups[0].items(), *rows, strict=True):
        scores = {name: _mean([scores[name] for scores in found]) for name in found[0]}
        total = _mean([reward.total(scores) for scores in found])
        # No verdict earns nothing.
        why = _why(name, total or 0.0, findings[0].total or 0.0, share) if findings else ""
        findings.append(AuditedAnswer(name, total, scores, text, why))
    return findings


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else None


def _why(name: str, total: float, right: float, share: float) -> str:
    if name.startswith("right"):
        return "earns more than the right answer" if total > right + 1e-9 else ""
    if total >= right - 1e-9:
        return "earns as much as the right answer" if right else "the right answer earns nothing"
    return f"earns more than {share:.0%} of it" if total > share * right else ""


def table(findings: list[AuditedAnswer]) -> str:
    """A line an answer: its name, the total, the terms, why it is flagged."""
    names = list(findings[0].scores) if len(findings[0].scores) > 1 else []
    rows = [["answer", "total", *names]]
    for finding in findings:
        values = [finding.total, *(finding.scores[name] for name in names)]
        shown = ["-" if value is None else f"{value:.2f}" for value in values]
        rows.append([finding.name, *shown])
    reasons = ["", *(f"  <- {finding.why}" if finding.why else "" for finding in findings)]
    return "\n".join(map(str.__add__, aligned(rows), reasons))
