r"""Which columns of a user's rows hold the question and the answer, and in which form.

Read are the rows that other trainers take (docs/tasks.md): of a whole solution the marked answer
counts (\boxed{}, <answer>, ####)."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from modicum import answers
from modicum.grading.extraction import ANSWER_IS, PROSE
from modicum.tasks import rows
from modicum.tasks.loading import ACCEPTED
from modicum.tasks.readers import Record, short
from modicum.types import Problem, UserError

Several = Literal["any", "all"]
Turns = Sequence[Mapping[str, Any]]
CHATS = ("messages", "conversations", "conversation")
QUESTIONS = ("question", "problem", "prompt", *CHATS, "instruction")
SOLUTIONS = ("solution", "completion", "response", "output")
TRUTHS = ("reward_model.ground_truth", "ground_truth", "final_answer", "expected_answer")
ANSWERS = ("answer", *TRUTHS, *SOLUTIONS)
"""Columns in the order in which they are looked for; those of SOLUTIONS hold whole texts."""
PLAIN = ("question", "problem", "prompt", "answer")
INSTRUCTION, INPUT = "instruction", "input"  # of Alpaca: the second goes on with the first
ROLES = {"human": "user", "developer": "system"}
ROLES |= dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant")
COMMA = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|(,)")
MAX_BARE = 60  # characters of an answer that is all of a text where solutions are expected
MAX_MARK = 10  # characters of a mark around an answer that is no solution


class Form(NamedTuple):
    """Where the rows of a file have question and answer, and perhaps a worked `solution`. A row's
    question is in the first of `questions` that it has. Where `answer` is the same column it is
    what the assistant says there. Of `several` answers any is right, or all are asked for."""

    questions: tuple[str, ...]
    answer: str
    solution: str | None = None
    difficulty: str | None = None
    several: Several = "any"
    falls_from: float | None = None
    """What difficulties are taken from, where larger ones are easier."""
    note: str = ""  # what is read as what, where that is not plain

    def item(self, record: Record) -> Problem:
        """The row as a problem, with its other columns as data."""
        column = next((n for n in self.questions if rows.filled([record], n)), self.questions[0])
        question, reply = _asked(record, column)
        golds, whole = self._golds(record, column, reply)
        level = rows.level(record, self.difficulty) if self.difficulty else None
        if level is not None and self.falls_from is not None:
            level = self.falls_from - level
        used = {column, self.answer, self.difficulty, ACCEPTED, INPUT * (column == INSTRUCTION)}
        data = {name: value for name, value in record.values.items() if name not in used}
        if self.solution and rows.filled([record], self.solution):
            data["solution"] = rows.text(record, self.solution)
        elif whole or reply:
            data.setdefault("solution", whole or reply)
        if len(golds) > 1 and self.several == "any":
            data[ACCEPTED] = golds
        gold = golds[0] if len(golds) == 1 or self.several == "any" else _set(record, golds)
        return Problem("", question, gold, level, data)

    def _golds(self, record: Record, asked: str, reply: str | None) -> tuple[list[str], str]:
        """The answers, and the whole solution if one was marked in it."""
        column = self.answer
        value = reply if column == asked else rows.value(record, column)
        if value is None:
            raise UserError(f"{record.where}: {column!r} has no answer of an assistant")
        if (turns := _turns(value)) is not None:
            value = _said(record, column, turns[-1])[1]
        text = rows.as_text(record, column, value) if isinstance(value, str) else ""
        if (marked := _marked(text)) is not None:
            return [marked], text if len(text) - len(marked) > MAX_MARK else ""
        if not text or (turns is None and column != asked and column not in SOLUTIONS):
            listed = ((gold, _marked(gold)) for gold in rows.answers(record, column))
            golds = (gold if marked is None else marked for gold, marked in listed)
            return list(dict.fromkeys(golds)), ""
        if not _bare(text):
            raise UserError.of("no_mark", where=record.where, column=column)
        return [text], ""


def recognise(
    origin: str,
    records: Sequence[Record],
    question: str = QUESTIONS[0],
    answer: str = ANSWERS[0],
    solution: str | None = None,
    difficulty: str | None = None,
    several: Several = "any",
    hint: str = "",
) -> Form:
    """The form of these rows; UserError when a column that is needed is not there. The first of
    QUESTIONS and of ANSWERS is looked for with all that follow it."""
    known = QUESTIONS if question == QUESTIONS[0] else (question,)
    found = tuple(name for name in known if rows.filled(records, name))
    found = found or (rows.require_column(origin, records, *known[:3], hint=hint),)
    told = ANSWERS if answer == ANSWERS[0] else (answer,)
    gold = next((name for name in told if rows.filled(records, name)), None)
    chats = (_turns(rows.value_at(record.values, found[0])) for record in records)
    if gold is None and len(told) > 1 and any(c and _role(c[-1]) == "assistant" for c in chats):
        gold = found[0]
    gold = gold or rows.require_column(origin, records, answer, hint=hint)
    named, _, way = (difficulty or "").rpartition(":")
    difficulty = named if way in ("asc", "desc") else difficulty
    for column in filter(None, (solution, difficulty)):
        rows.require_column(origin, records, column, hint=hint)
    asked = " or ".join(map(repr, found))
    plain = {*found, gold} <= {*PLAIN, question, answer}
    note = "" if plain else f"the question is read from {asked}, the answer from {gold!r}"
    falls_from = _top(records, difficulty) if difficulty and way == "desc" else None
    return Form(found, gold, solution, difficulty, several, falls_from, note)


def _top(records: Sequence[Record], column: str) -> float:
    """1 where all numbers of a column are shares, 0 else."""
    found = []
    for record in records:
        with contextlib.suppress(UserError):
            found.append(rows.level(record, column))
    return float(all(0 <= number <= 1 for number in found if number is not None))


def _asked(record: Record, column: str) -> tuple[str, str | None]:
    """The question, and what an assistant answers to it in the same column."""
    value = rows.value(record, column)
    if (turns := _turns(value)) is not None:
        return _chat(record, column, turns)
    if isinstance(value, str) and value.startswith("[{'"):
        raise UserError(f"{record.where}: {column!r} is a list as Python shows it; write JSON")
    more = rows.value_at(record.values, INPUT) if column == INSTRUCTION else None
    more = f"\n\n{more}" if isinstance(more, str) else ""
    return (rows.as_text(record, column, value) + more).strip(), None


def _turns(value: Any) -> Turns | None:
    """The turns of a chat, None for what is none; JSON of one is one."""
    value = rows.opened(value)
    if not isinstance(value, list | tuple) or not value:
        return None
    return value if all(isinstance(turn, Mapping) and _role(turn) for turn in value) else None


def _role(turn: Mapping[str, Any]) -> str:
    role = str(turn.get("role") or turn.get("from") or "").lower()
    return ROLES.get(role, role)


def _chat(record: Record, column: str, turns: Turns) -> tuple[str, str | None]:
    """The question of a chat of one turn, below what is said to the system, and the answer."""
    some = (t for t in turns if _role(t) != "system" or t.get("content", t.get("value")))
    said = [_said(record, column, turn) for turn in some]
    spoken = [role for role, _ in said if role != "system"]
    if spoken not in (["user"], ["user", "assistant"]):
        found = ", ".join(spoken) or "of nobody"
        raise UserError.of("not_one_question", where=record.where, column=column, turns=found)
    if column == "prompt" and spoken[1:]:
        raise UserError(f"{record.where}: {column!r} ends in words of the assistant")
    question = "\n\n".join(text for role, text in said if role != "assistant")
    return question, said[-1][1] if spoken[1:] else None


def _said(record: Record, column: str, turn: Mapping[str, Any]) -> tuple[str, str]:
    """Who speaks in a turn, and the text, which may be in parts."""
    if isinstance(content := turn.get("content", turn.get("value")), list | tuple):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else content
    return _role(turn), rows.as_text(record, column, content)


def _marked(text: str) -> str | None:
    """The answer that is marked in a text; after #### on the last line it need be no number."""
    found = answers.gold_from_box(text) or answers.extract(text)
    last = text.rstrip().rpartition("\n")[2]
    return last[4:].strip() if found is None and last.startswith("####") else found


def _bare(text: str) -> bool:
    """Whether a text without a mark is an answer and no solution."""
    sentence = text.endswith(".") and " " in text
    short = len(text) <= MAX_BARE and "\n" not in text and len(PROSE.findall(text)) <= 2
    return short and not sentence and ANSWER_IS.search(text) is None


def _set(record: Record, golds: Sequence[str]) -> str:
    if any(m[1] for gold in golds for m in COMMA.finditer(gold)):
        raise UserError(f"{record.where}: an answer of several holds a comma: {short(list(golds))}")
    return r"\{" + ", ".join(golds) + r"\}"
