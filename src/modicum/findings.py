"""What a rollout says of a run: is there a signal, and if not, why, and what to change.

`modicum doctor` shows all before a run; a run shows the first while nothing is trained."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from modicum import answers, tasks
from modicum.answers import STYLES
from modicum.config import TrainConfig
from modicum.report.words import say
from modicum.rewards import Reward
from modicum.spec import short
from modicum.types import Completion, Grade, Group, Problem

MARK = re.compile(r"</?\w+>|\\boxed|####")
CUT, UNMARKED, RIGHT = 0.3, 0.5, 0.95  # shares of completions from which on something is said
RARE, FEW = 0.02, 0.25  # and below which: of right completions, of groups with a signal
FEW_HELD_OUT = 50
SHOWN = 100  # characters of a completion in a sentence
STRICT, LENIENT = "accuracy", "accuracy(lenient=True)"  # what a reward may pay for


class Finding(NamedTuple):
    """What seems wrong, what shows it, and what to change."""

    what: str
    evidence: str
    change: str

    def __str__(self) -> str:
        return f"{self.what} ({self.evidence}); {self.change}"


class JudgedCompletion(NamedTuple):
    """One completion, the task's verdict, and what it earned: every term, and in all."""

    problem: Problem
    completion: Completion
    grade: Grade
    scores: Mapping[str, float]
    total: float

    def reasons(self, style: str) -> str:
        """Why the verdict is what it is, and what the form lacks."""
        read, form, text = self.grade.extracted, STYLES.get(style), self.completion.text
        found = [self.grade.reason + ("" if read is None else f": {short(read)}")]
        if not self.completion.finished:
            found.append("cut at max_tokens")
        if form is not None and not form.format_ok(text):
            lacking = " ".join(mark for mark in MARK.findall(form.pattern) if mark not in text)
            found.append(f"lacks {lacking}" if lacking else f"not in the form of {style!r}")
        return "; ".join(found)

    def __str__(self) -> str:
        text = " ".join(self.completion.text.split())
        text = text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
        asked, gold = short(self.problem.question.strip()), short(self.problem.answer)
        return f"to {asked}, gold {gold}, it wrote {text!r}"


JudgedGroups = Sequence[Sequence[JudgedCompletion]]  # of some problems, G each


def judged(
    task: tasks.Task,
    reward: Reward,
    groups: Sequence[Group],
    scores: Sequence[Sequence[Mapping[str, float]]],
) -> JudgedGroups:
    """The completions of groups that were scored already, with the task's verdicts."""
    return [
        [
            JudgedCompletion(of.problem, c, task.grade(of.problem, c.text), won, reward.total(won))
            for c, won in zip(of.completions, row, strict=True)
        ]
        for of, row in zip(groups, scores, strict=True)
    ]


def wrong(
    config: TrainConfig, groups: JudgedGroups, signals: int, template: str, room: int = sys.maxsize
) -> list[Finding]:
    """What looks wrong with a rollout, the likeliest reason for a missing signal first.
    `signals` groups have rewards that differ; the model has positions for `room` tokens."""
    trials = [trial for group in groups for trial in group]
    count = len(trials)
    cut = [trial for trial in trials if not trial.completion.finished]
    ran_on = [trial for trial in cut if answers.extract(trial.completion.text)]
    right = [trial for trial in trials if trial.grade.lenient]
    unmarked = [trial for trial in right if not trial.grade.strict]
    paid = next((term for term in (LENIENT, STRICT) if term in trials[0].scores), "")
    earned = len(right) - len(unmarked) * (paid == STRICT)
    values: dict[str, Any] = {"config": config, "template": template, "room": room, "right": right}
    found: list[Finding] = []

    def told(name: str, some: Sequence[JudgedCompletion], **more: Any) -> None:
        said = f"{len(some)} of {count} completions; {some[0]}"
        found.append(_finding(name, said, **values, **more))

    if len(cut) >= CUT * count and len(ran_on) > len(cut) / 2:
        told("ran_on", ran_on)
    elif len(cut) >= CUT * count:
        told("cut", cut)
    if paid == STRICT and len(unmarked) > UNMARKED * len(right) > UNMARKED * RARE * count:
        lenient = re.sub(r"(?<![\w/.:])accuracy(?![\w(.:])", LENIENT, config.reward)
        told("unmarked", unmarked, lenient=repr(lenient))
    if paid and earned >= RIGHT * count:
        told("all_right", right)
    elif paid and len(right) <= RARE * count and len(cut) < (1 - CUT) * count:
        told("all_wrong", trials)
    alike = [group for group in groups if len({trial.completion.tokens for trial in group}) == 1]
    if len(alike) > (1 - FEW) * len(groups):
        told("all_alike", alike[0], alike=alike, groups=groups)
    if not (signals or found):
        told("no_signal", trials, several=len({trial.total for trial in trials}) > 1)
    if 0 < signals < FEW * len(groups):
        found.append(_finding("few_signals", f"{signals} of {len(groups)}", **values))
    for name in trials[0].scores if signals else ():
        if len(scores := {trial.scores[name] for trial in trials}) == 1:
            found.append(_finding("idle_term", f"{scores.pop():g} for each", term=name))
    return found


def _finding(name: str, evidence: str, **values: Any) -> Finding:
    """A finding with the words of that section of `words.txt`: what is wrong, what to change."""
    return Finding(say(name, 0, **values), evidence, say(name, 1, **values))


def of_data(task: tasks.Task, config: TrainConfig) -> Iterator[Finding]:
    """What looks wrong with the sizes of a task's splits."""
    held, each = config.evaluation, config.batch.prompts_per_step
    size, tested = task.size("train"), task.size(held.eval_split)
    if size is not None and size < each:
        yield _finding("drawn_twice", f"{size} problems for {each} draws", size=size)
    if held.eval_problems and tested is not None and tested < FEW_HELD_OUT:
        yield _finding("few_held_out", f"{tested} in the split {held.eval_split}")
