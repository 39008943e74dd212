"""The rewards that look at a completion alone, a coin for placebo arms, and the reward of a model,
which a run has in memory and hands over (`modicum.engine.reward`)."""

import hashlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from modicum.answers import STYLES
from modicum.grading import WORDS, patterns
from modicum.limits import Between, Limits
from modicum.rewards.base import Term
from modicum.rewards.source import FOLDERS
from modicum.runs import read_object
from modicum.spec import check, nearest
from modicum.tasks.base import Task
from modicum.types import Completion, Problem, UserError

_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]{{1,20}}|[^\w\s]")

LANGUAGES = {lang: s.split() for s, used in WORDS["scripts"].items() for lang in used.split()}
NO_BLANKS = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"})
IN_FORMULAS = frozenset({"LATIN", "GREEK"})

TAG, MARK, COMMAND, LETTERS, WRITTEN = patterns("tag quote command letters wording")
CLOSE = {"```": "```", "`": "`", "$$": "$$", "$": "$", r"\[": r"\]", r"\(": r"\)"}
REPORT = "reward_model.json"  # of a reward model, in its folder


class Accuracy(Term):
    """1 if the marked answer is right; `lenient` accepts an unmarked one as well.

    The rule-based reward of DeepSeek-R1-Zero (arXiv 2501.12948), section 2.2.2."""

    lenient: bool = False

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        grade = task.grade(problem, completion.text)
        return float(grade.lenient if self.lenient else grade.strict)


class Format(Term):
    """1 if the answer is marked once, in this style, and nothing follows it.

    For tags it is the format reward of DeepSeek-R1-Zero (arXiv 2501.12948), section 2.2.2."""

    style: Literal["tags", "boxed", "hashes"] = "tags"

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        return float(STYLES[self.style].format_ok(completion.text))


class Length(Term):
    """1 up to `max_tokens` - `buffer` tokens, then falling to 0 at `max_tokens`.

    DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), from [-1, 0] to [0, 1].
    `buffer` is a fifth of `max_tokens` unless it is given, as there (4,096 of 20,480). Departure:
    a completion that the sampling limit cut gets 0, and so does an empty one."""

    max_tokens: Annotated[int, Limits(1, 10**9)]
    buffer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer is not None:
            Limits(1, self.max_tokens).check("length: buffer", self.buffer)

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """In [0, 1]; the end token counts as one."""
        if not completion.finished or not completion.text.strip():
            return 0.0
        buffer = max(1, self.max_tokens // 5) if self.buffer is None else self.buffer
        return min(1.0, max(0.0, (self.max_tokens - len(completion.tokens)) / buffer))


class Repetition(Term):
    """1 if no `n` words in a row come twice, less for every time that some do.

    The share of different n-grams: the repetition penalty of Demystifying Long CoT (arXiv
    2502.03373) as open-r1 has it, from [-1, 0] to [0, 1]. Departure: each sign and each Chinese
    or Japanese character is a word, and a word ends after 20 characters."""

    n: Annotated[int, Limits(1, 100)] = 3

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """In [0, 1]: 1 for a text of fewer than `n` words, 0 for one without any."""
        if len(words := WORD.findall(completion.text.lower())) < self.n:
            return float(bool(words))
        grams = list(zip(*(words[start:] for start in range(self.n)), strict=False))
        return len(set(grams)) / len(grams)


class Random(Term):
    """1 with probability `p`, whatever was written.

    For placebo arms (Spurious Rewards, arXiv 2506.10947). The coin is a hash of (seed, problem,
    member of the group, text): a repeated run gives the same scores."""

    placebo: ClassVar[bool] = True
    p: Between = 0.5
    seed: int = 0

    def score_group(
        self, task: Task, problem: Problem, completions: Sequence[Completion], faults: list[str]
    ) -> list[float]:
        """0 or 1 for each; equal completions have coins of their own."""
        keys = (f"{self.seed}/{problem.id}/{at}/{c.text}" for at, c in enumerate(completions))
        digests = (hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in keys)
        return [float(int.from_bytes(digest[:8], "big") < self.p * 2**64) for digest in digests]


class Language(Term):
    """The share of words in the script of `lang` ("en", "zh", ...); 1 for formulas only.

    The language consistency reward of DeepSeek-R1 (arXiv 2501.12948), section 2.3.2, on what is
    thought, or the whole text. Departure: only scripts are told apart, by the Unicode names of
    letters, so that French earns full marks for `en`. docs/rewards.md says what a word is."""

    lang: str = "en"

    def __post_init__(self) -> None:
        if self.lang not in LANGUAGES:
            near = nearest(self.lang, LANGUAGES)
            raise UserError(f"language: unknown lang {self.lang!r}; {near}")

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """In [0, 1]; a text without a letter, a digit or a formula gets 0."""
        text, counts = thinking(completion.text), Counter[str]()
        for script, count in words(text):
            counts[script] += count
        if not (every := counts.total()):
            return float(WRITTEN.search(text) is not None)
        return sum(counts[script] for script in LANGUAGES[self.lang]) / every


def thinking(text: str) -> str:
    """What stands in <think>, closed or not, or the whole text if that is empty."""
    before, closed, _ = text.partition("</think>")
    _, opened, inside = before.partition("<think>")
    inside = TAG.sub(" ", inside if opened else before if closed else "")
    return inside if inside.strip() else TAG.sub(" ", text)


def words(text: str) -> Iterator[tuple[str, int]]:
    """(script, number of words) of every run of letters of one script that counts."""
    for part, formula in _parts(COMMAND.sub(" ", text)):
        runs = (itertools.groupby(run, _script) for run in LETTERS.findall(part))
        for script, letters in itertools.chain.from_iterable(runs):
            length = sum(1 for _ in letters)
            if script in NO_BLANKS:
                yield script, (length + 1) // 2
            elif script not in IN_FORMULAS or (length > 1 and not formula):
                yield script, 1


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces, and whether each is a formula or code; what stays open is prose."""
    place, start, closing = 0, 0, ""
    for match in MARK.finditer(text):
        if not closing:
            closing, start = CLOSE.get(match[0], ""), match.end()
        elif match[0] == closing:
            yield text[place:start], False
            yield text[start : match.start()], True
            place, closing = match.end(), ""
    yield text[place:], False


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """LATIN, CJK, HIRAGANA, ...: what the letter's Unicode name begins with."""
    return unicodedata.name(letter, "UNKNOWN").removeprefix("FULLWIDTH ").split()[0]


class Learned(Term):
    """What a reward model says of the last token: sigma(score - median of held-out scores).

    `path` is a folder of `modicum reward-model`, or of a classifier with one label (transformers).
    One that its report does not put above trivial rivals is refused unless `force`. `center` takes the
    median's place. PERL (arXiv 2403.10704) has reward model and policy as LoRA, each on a base of its own;
    here they share one in memory, which the reward model reads as it was before training."""

    learned: ClassVar[bool] = True
    path: str
    force: bool = False
    center: float | None = None

    file: Path = field(init=False, repr=False, compare=False)
    """Its report, in the folder, which may lead from where a past run began."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("learned: path", self.path, str)
        places = [folder / Path(self.path).expanduser() for folder in (Path(), *FOLDERS.get())]
        folder = next((place for place in places if place.is_dir()), places[0])
        object.__setattr__(self, "file", folder / REPORT)

    def report(self) -> dict[str, Any]:
        return read_object(self.file) if self.file.is_file() else {}

    def begin(self, opened: Callable[[Any], Callable[..., list[float]]]) -> Term:
        return self.having(judge=opened(self))

    def require(self, problem: Problem) -> None:
        """UserError where there is no reward model, or one that is not better than its rivals."""
        folder, report = self.file.parent, self.report()
        if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
            hint = "modicum reward-model makes one"
            raise UserError(f"reward {self}: {folder} holds no reward model; {hint}")
        if report and not (self.force or report.get("beats")):
            told = {name: report.get(name) for name in ("accuracy", "low", "rivals")}
            why = f"its report does not put it above trivial rivals ({told})"
            raise UserError(f"reward {self}: {why}; force=True takes it all the same")

    def score_group(
        self, task: Task, problem: Problem, completions: Sequence[Completion], faults: list[str]
    ) -> list[float]:
        """Of all completions of a problem together; UserError where no model is in memory."""
        if "judge" not in vars(self):
            raise UserError(f"reward {self}: it scores in a run, with its model in memory")
        scores: list[float] = vars(self)["judge"](problem, completions)
        faults += [f"{self}: a score is not finite" for score in scores if score != score]
        return [0.0 if score != score else score for score in scores]
