"""Grade completions: find the final answer, compare it with the gold answer (docs/grading.md); and
the styles, which say how a prompt asks for it. All marks are read whatever the style.

With `symbolic=True` algebra is compared too, in a child process (modicum.grading.equivalence): the
text of a model can make an algebra system hang or fill the memory. No text raises, whatever it is."""

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from modicum.child import Child, ChildFailed
from modicum.grading import comparison, extraction, patterns
from modicum.grading.comparison import countdown
from modicum.grading.extraction import ANSWER_IS, OPENED, after_thinking, extract, extract_lenient
from modicum.grading.quantities import number, quantity, same_quantity
from modicum.grading.spelling import TEXT, clean
from modicum.types import Grade, UserError

TIME_LIMIT = 2.0  # seconds for the algebra of one answer
MAX_ANSWERS = 5000  # of one child, before a new one takes its place
MAX_ANSWER = 1000  # characters of an answer that are compared by more than identity
CONTENT, UNFINISHED, BRACES = patterns("content unfinished braces")
BOX, HASHED, CLOSING = patterns("box hashed closing")

child = Child("-m", "modicum.grading.equivalence")


def equal(gold: str, answer: str, symbolic: bool = False, time_limit: float = TIME_LIMIT) -> bool:
    """Whether two answers say the same: by exact value, by parts, by normalised text, or with
    `symbolic` by algebra, where what takes longer than `time_limit` seconds is unequal. Not
    symmetric: only `answer` may round an endless decimal, an empty gold equals nothing, and a
    number is not answered by a calculation."""
    if max(len(gold), len(answer)) > MAX_ANSWER:
        return gold.strip() == answer.strip()
    gold, answer = clean(gold), clean(answer)
    if not (gold and answer):
        return False
    if (same := comparison.same(gold, answer)) or not symbolic:
        return same
    # No algebra makes two plain numbers equal, or a number and a word.
    if same_quantity(gold, answer) is not None or (quantity(gold) and answer.isalpha()):
        return False
    return by_algebra(gold, answer, time_limit)


@lru_cache(maxsize=4096)
def by_algebra(gold: str, answer: str, seconds: float) -> bool:
    """Whether algebra finds two equal within `seconds`; UserError if no child can be started."""
    with child.lock:
        try:
            return child.ask({"gold": gold, "answer": answer, "seconds": seconds}, seconds)["same"]
        except ChildFailed:
            return False
        finally:
            if child.num_asked >= MAX_ANSWERS:
                child.close()


def judge(
    text: str,
    verdict: Callable[[str], bool | tuple[bool, str]],
    unmarked: Callable[[str], str | None] = extract_lenient,
    wrong: str = "is wrong",
) -> Grade:
    """What `verdict` says, perhaps with a reason, of the marked answer of a completion, or of the
    lenient, `unmarked` one."""
    marked = extract(text)
    found = unmarked(text) if marked is None else marked
    if not found:
        reason = "there is no answer" if found is None else "the marked answer is empty"
        return Grade(False, False, found, reason)
    said = verdict(found)
    right, reason = said if isinstance(said, tuple) else (said, "is right" if said else wrong)
    start = "unmarked; what was read" if marked is None else "the marked answer"
    return Grade(right and marked is not None, right, found, f"{start} {reason}")


def grade(
    text: str, gold: str | Sequence[str], symbolic: bool = False, time_limit: float = TIME_LIMIT
) -> Grade:
    """The verdict on a completion whose answer should be `gold`, or any of several; see `equal`."""
    golds = [gold] if isinstance(gold, str) else gold
    return judge(text, lambda answer: any(equal(g, answer, symbolic, time_limit) for g in golds))


def grade_countdown(text: str, numbers: Sequence[int], target: int) -> Grade:
    """The verdict on a completion whose answer, marked or the last line, should be worth `target`."""
    wrong = "does not reach the target with these numbers"
    return judge(text, lambda answer: countdown(answer, numbers, target), _last_line, wrong)


def _last_line(text: str) -> str | None:
    """What the last line that is not empty states, unless a mark was cut off."""
    text = after_thinking(text)
    lines = text.strip().splitlines()
    if not lines or OPENED.search(text):
        return None
    stated = ANSWER_IS.search(lines[-1])
    return (stated[1] if stated else lines[-1]).strip().strip("*_ ")


def format_ok(text: str) -> bool:
    """Whether `text` is <think>...</think> (or other marks) <answer>...</answer>, none empty."""
    opening = next(iter(extraction.THINK.findall(text)), "")
    closing = extraction.THINKING.get(opening, "")
    tags = (opening, closing, "<answer>", "</answer>")
    if not closing or any(text.count(tag) != 1 for tag in tags):
        return False
    form = rf"\s*{re.escape(opening)}(.*){re.escape(closing)}\s*<answer>(.*)</answer>\s*"
    found = re.fullmatch(form, text, re.DOTALL)
    return found is not None and all(part.strip() for part in found.groups())


class Style(NamedTuple):
    """One way to mark an answer."""

    instruction: str  # what a prompt says to get this style
    pattern: str  # a completion in it; {thought} and {answer} are the parts
    format_ok: Callable[[str], bool]  # has a whole completion this form, nothing after the mark?

    def example(self, answer: str, thought: str = "reasoning process here") -> str:
        """A completion in this style."""
        return self.pattern.replace("{thought}", thought).replace("{answer}", answer)


def boxed_ok(text: str) -> bool:
    r"""Whether `text` has, beside its thoughts, one \boxed{...}, not empty, and only CLOSING after it."""
    text = extraction.spoken(text)
    found = list(extraction.boxes(text))
    if len(found) != 1 or text.count(r"\boxed") != 1 or "<answer>" in text:
        return False
    ((start, end),) = found
    content = text[start:end].strip() and text[:start].endswith(r"\boxed{")
    return bool(content) and CLOSING.fullmatch(text[end + 1 :]) is not None


def hashes_ok(text: str) -> bool:
    """Whether the last line, and no other that is not thought, is `#### x`."""
    text = extraction.spoken(text)
    lines = text.strip().split("\n")
    found = [line for line in lines if HASHED.match(line)]
    return len(found) == 1 and found[0] == lines[-1] and extract(text) is not None


_TEXTS = tomllib.loads(Path(__file__).with_name("styles.toml").read_text("utf-8"))
R1_ZERO = _TEXTS["r1_zero"]["conversation"]
_FORMS = {"tags": format_ok, "boxed": boxed_ok, "hashes": hashes_ok}
STYLES = {name: Style(format_ok=ok, **_TEXTS[name]) for name, ok in _FORMS.items()}


def check_gold(text: str) -> str:
    """`text` itself if it can be the gold answer of a problem, such as (C) or 1/2, else a UserError."""
    shown = repr(text[:60])
    steps = ((match[0] == "{") - (match[0] == "}") for match in BRACES.finditer(text))
    depths = [0, *accumulate(steps)]
    if depths[-1] or min(depths) < 0:
        raise UserError(f"the braces of the gold answer {shown} do not match")
    if len(text) > MAX_ANSWER:
        raise UserError(f"the gold answer {shown} is longer than {MAX_ANSWER} characters")
    if not CONTENT.search(inner := TEXT.sub(r"\1", clean(text))):
        raise UserError(f"the gold answer {shown} has no content")
    if UNFINISHED.search(inner):
        raise UserError(f"the gold answer {shown} ends in a command without its argument")
    return text


def gold_from_box(solution: str) -> str | None:
    r"""The last \boxed{...} or \fbox{...}, None if none is closed; UserError when it is empty."""
    first = BOX.search(solution)
    # From the first box on: a tag or #### before it is no answer of these solutions.
    found = extract(solution[first.start() :]) if first else None
    if found == "":
        raise UserError("the last box of the solution is empty")
    return found


def gold_from_gsm8k(solution: str) -> str:
    """The number after the last ####, without separators; UserError when there is none."""
    _, mark, tail = solution.rpartition("####")
    gold = tail.strip().partition("\n")[0].strip().replace(",", "").removeprefix("$")
    if not mark or number(gold) is None:
        raise UserError(f"no number follows #### in the solution that ends {solution[-60:]!r}")
    return gold


READ = ("gold", "answer", "completion", "numbers", "target")  # keys of a line


def grade_lines(
    lines: Iterable[bytes], symbolic: bool = True, time_limit: float = TIME_LIMIT
) -> Iterator[dict[str, Any]]:
    """One result for each line, in order; a line that cannot be graded has an `error`."""
    for place, line in enumerate(lines, 1):
        record: dict[str, Any] = {}
        try:
            record = _record(line)
            verdict = vars(_grade_record(record, symbolic, time_limit))
        except UserError as error:
            failed = Grade(False, False, None, "not graded")
            verdict = vars(failed) | {"error": f"line {place}: {error}"}
        yield {key: value for key, value in record.items() if key not in READ} | verdict


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"), parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise UserError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"not JSON ({error})" if line.strip() else "empty") from error
    if not isinstance(record, dict):
        raise UserError("not an object; write {...}")
    return record


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no JSON, or too large")
    return value


def _grade_record(record: dict[str, Any], symbolic: bool, time_limit: float) -> Grade:
    whole = "completion" in record
    if whole == ("answer" in record):
        raise UserError("needs either `answer` or `completion`" + (", not both" if whole else ""))
    text = _text(record, "completion" if whole else "answer")
    if "numbers" in record or "target" in record:
        numbers, target = record.get("numbers"), record.get("target")
        if not isinstance(numbers, list) or {int} != {*map(type, numbers)}:
            raise UserError("`numbers` must be a list of whole numbers, such as [3, 8]")
        if type(target) is not int:
            raise UserError("`target` must be a whole number")
        if whole:
            return grade_countdown(text, numbers, target)
        right = countdown(text, numbers, target)
    else:
        given = record.get("gold")
        several = [{"gold": g} for g in given] if isinstance(given, list) and given else [record]
        golds = [check_gold(_text(one, "gold")) for one in several]
        if whole:
            return grade(text, golds, symbolic, time_limit)
        right = any(equal(gold, text, symbolic, time_limit) for gold in golds)
    return Grade(right, right, text, "the answer is " + ("right" if right else "wrong"))


def _text(record: dict[str, Any], key: str) -> str:
    if key not in record:
        raise UserError(f"`{key}` is missing")
    if type(value := record[key]) not in (str, int, float):
        raise UserError(f"`{key}` must be a text, not {json.dumps(value)[:40]}")
    return str(value)
