"""What a rollout says of a run: is there a signal, and if not, why, and what to change.

`modicum doctor` shows all before a run; a run shows the first while nothing is trained."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from modicum import answers, tasks
from modicum.answers import STYLES
from modicum.config import TrainConfig
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

    def one(problem: Problem, found: Completion, earned: Mapping[str, float]) -> JudgedCompletion:
        verdict = task.grade(problem, found.text)
        return JudgedCompletion(problem, found, verdict, earned, reward.total(earned))

    return [
        [one(group.problem, *pair) for pair in zip(group.completions, row, strict=True)]
        for group, row in zip(groups, scores, strict=True)
    ]


def wrong(
    config: TrainConfig, groups: JudgedGroups, signals: int, template: str, room: int = sys.maxsize
) -> list[Finding]:
    """What looks wrong with a rollout, the likeliest reason for a missing signal first.
    `signals` groups have rewards that differ; the model has positions for `room` tokens."""
    sampling, larger = config.sampling, f"--group-size {2 * config.batch.group_size}"
    trials = [trial for group in groups for trial in group]
    count = len(trials)
    cut = [trial for trial in trials if not trial.completion.finished]
    ran_on = [trial for trial in cut if answers.extract(trial.completion.text)]
    right = [trial for trial in trials if trial.grade.lenient]
    unmarked = [trial for trial in right if not trial.grade.strict]
    paid = next((term for term in (LENIENT, STRICT) if term in trials[0].scores), "")
    earned = len(right) - len(unmarked) * (paid == STRICT)
    shown = "" if sampling.examples else "--examples 2 shows how, or "

    found: list[Finding] = []

    def told(what: str, some: Sequence[JudgedCompletion], change: str) -> None:
        found.append(Finding(what, f"{len(some)} of {count} completions; {some[0]}", change))

    if len(cut) >= CUT * count and len(ran_on) > len(cut) / 2:
        stop = "'</answer>'" if sampling.style == "tags" else "$'\\n\\n'"
        told("completions go on after their answer", ran_on, f"--stop {stop} ends them")
    elif len(cut) >= CUT * count:
        more = min(4 * sampling.max_tokens, room)
        none = "the model has positions for no more: shorter prompts, or an easier task"
        change = f"--max-tokens {more}" if more > sampling.max_tokens else none
        told(f"completions are cut at max_tokens = {sampling.max_tokens}", cut, change)
    if paid == STRICT and len(unmarked) > UNMARKED * len(right) > UNMARKED * RARE * count:
        lenient = re.sub(r"(?<![\w/.:])accuracy(?![\w(.:])", LENIENT, config.reward)
        asks = {"plain": "--template r1_zero asks for a mark, or "}.get(template, shown)
        asks = "--style tags asks for a mark, or " if sampling.style == "none" else asks
        change = f"{asks}--reward {lenient!r} pays for them"
        told("right answers are not marked, so they earn nothing", unmarked, change)
    if paid and earned >= RIGHT * count:
        told("nearly all is right already", right, "a harder task (more terms, a higher level)")
    elif paid and len(right) <= RARE * count and len(cut) < (1 - CUT) * count:
        base = ": the tokenizer has no chat template, so the prompt is r1_zero, for a base"
        base *= sampling.template == "auto" and template == "r1_zero"
        what = f"{'hardly any' if right else 'no'} answer is right{base}"
        told(what, trials, f"{shown}an easier task, a stronger model, {larger}")
    alike = [group for group in groups if len({trial.completion.tokens for trial in group}) == 1]
    if len(alike) > (1 - FEW) * len(groups):
        what = f"all completions are the same in {len(alike)} of {len(groups)} groups"
        hotter = f"--temperature {max(1.0, 2 * sampling.temperature):g}"
        narrow = sampling.top_k or sampling.top_p < 1
        told(what, alike[0], "--top-k 0 --top-p 1" if narrow else hotter)
    if not (signals or found):
        change = "a reward that does (modicum audit-reward tries one)"
        change += f", or {larger}" * (len({trial.total for trial in trials}) > 1)
        told("the reward tells no two completions of a group apart", trials, change)
    if 0 < signals < FEW * len(groups):
        change = f"{larger}, --groups refill, or problems of another difficulty"
        found.append(Finding("few groups have a signal", f"{signals} of {len(groups)}", change))
    return [*found, *(_idle_terms(trials) if signals else ())]


def _idle_terms(trials: Sequence[JudgedCompletion]) -> Iterator[Finding]:
    for name in trials[0].scores:
        values = {trial.scores[name] for trial in trials}
        if len(values) == 1:
            what = f"the term {name} is the same for all completions and teaches nothing"
            change = "leave it out, or ask for what it pays for (--style, --system, --examples)"
            yield Finding(what, f"{values.pop():g} for each", change)


def of_data(task: tasks.Task, config: TrainConfig) -> Iterator[Finding]:
    """What looks wrong with the sizes of a task's splits."""
    held, each = config.evaluation, config.batch.prompts_per_step
    size, tested = task.size("train"), task.size(held.eval_split)
    if size is not None and size < each:
        change = f"--prompts-per-step {size}, or more rows"
        yield Finding("a step draws problems twice", f"{size} problems for {each} draws", change)
    if held.eval_problems and tested is not None and tested < FEW_HELD_OUT:
        what = "few held-out problems, so intervals will be wide"
        change = "more rows, or a file of its own with test="
        yield Finding(what, f"{tested} in the split {held.eval_split}", change)
