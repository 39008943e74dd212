"""Reward models: pairs of a right and a wrong answer to one problem, a fit, what it is worth.

    pairwise    -log sigma(r_c - r_r) + 0.01 (r_c + r_r)^2     Bradley-Terry, scores around zero
    pointwise   (log(1 + exp(-r_c)) + log(1 + exp(r_r))) / 2   right or wrong alone (arXiv 2110.14168)

Problems weigh alike, parts of the split have none in common, and intervals are over them. B pair.
"""

import hashlib
import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from modicum import stats
from modicum.engine.reward import scores
from modicum.models.adapters import quiet
from modicum.runs import read_object
from modicum.tasks import readers
from modicum.tasks.rows import as_text, require_column, value
from modicum.types import Completion, Grade, UserError

MATCHED, MOST = 0.25, 4  # of abs(log(length / length)); pairs of a problem
COLUMNS = ("prompt", "chosen", "rejected")
Tokens = tuple[int, ...]
Both = Sequence[tuple[float, float]]
"""Of pairs what the better and the worse answer score."""


class Answer(NamedTuple):
    """What was answered."""

    tokens: Tokens
    text: str


class Pair(NamedTuple):
    """Two answers to a problem, the better one first; the weight is 1 over the problem's pairs."""

    question: str
    prompt: Tokens
    chosen: Answer
    rejected: Answer
    weight: float

    @classmethod
    def of(cls, question: str, prompt: Any, chosen: Any, rejected: Any, weight: float) -> Self:
        """From what a file has."""
        both = (Answer(tuple(tokens), text) for tokens, text in (chosen, rejected))
        return cls(question, tuple(prompt), *both, weight)  # type: ignore[call-arg]

    @property
    def matched(self) -> bool:
        """Whether their lengths are about equal."""
        return abs(math.log(len(self.chosen.tokens) / len(self.rejected.tokens))) <= MATCHED


def paired(
    question: str, prompt: Tokens, group: Iterable[tuple[Completion, Grade]], seed: int
) -> list[Pair]:
    """At most `MOST` pairs of different texts, those of matched lengths first, drawn by `seed`.

    Of what has ended, has an answer that can be read, and the same verdict strictly and leniently.
    """
    sides: tuple[dict[str, Answer], ...] = {}, {}
    for completion, grade in group:
        if completion.finished and grade.extracted is not None and grade.strict == grade.lenient:
            answer = Answer(completion.tokens, completion.text)
            sides[grade.strict].setdefault(answer.text, answer)
    both = itertools.product(*(side.values() for side in reversed(sides)))
    found = [Pair(question, prompt, one, two, 1.0) for one, two in both]
    random.Random(f"{seed}/{question}").shuffle(found)
    found = sorted(found, key=lambda pair: not pair.matched)[:MOST]
    return [pair._replace(weight=1 / len(found)) for pair in found]


def split(pairs: Sequence[Pair], seed: int) -> dict[str, list[Pair]]:
    """The pairs of 80 % of problems to train on, of 10 % each to tune and to test."""
    found: dict[str, list[Pair]] = {"train": [], "tune": [], "test": []}
    for pair in pairs:
        text = f"{seed}/{pair.question}".encode("utf-8", "surrogatepass")
        place = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % 10
        found[{8: "tune", 9: "test"}.get(place, "train")].append(pair)
    return found


def read(
    path: str, encode: Callable[[str, str], Tokens], written: Callable[[str], Tokens]
) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs of `modicum pairs`, with what its file says; or a file or folder of preferences.

    `encode` makes tokens of where a prompt stands and its text, `written` of an answer that has ended.
    """
    place, pairs = Path(path).expanduser(), dict[str, list[tuple[Tokens, Answer, Answer]]]()
    if place.suffix == ".json" and place.is_file() and place.read_bytes()[:1] == b"{":
        made = read_object(place)
        try:
            return [Pair.of(*row) for row in made["pairs"]], made
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no file of modicum pairs ({error!r})") from None
    parts = readers.from_hub("reward-model", str(place), None, None) if place.is_dir() else {}
    records = [*itertools.chain(*parts.values())] if parts else readers.read(str(place))
    for column in COLUMNS:
        require_column(path, records, column)
    for record in records:
        question, *texts = (_said(record, column) for column in COLUMNS)
        if texts[0] != texts[1]:
            one, two = (Answer(written(text), text) for text in texts)
            pairs.setdefault(question, []).append((encode(record.where, question), one, two))
    return [Pair(q, *pair, 1 / len(of)) for q, of in pairs.items() for pair in of], {}


def _said(record: readers.Record, column: str) -> str:
    """A text, or the texts of messages one after the other."""
    found = value(record, column)
    if isinstance(found, list) and all(isinstance(m, dict) and "content" in m for m in found):
        found = "\n\n".join(str(message["content"]) for message in found)
    as_text(record, column, found)
    return str(found)


def pairwise(chosen_B: Tensor, rejected_B: Tensor, center: float = 0.01) -> Tensor:
    """The loss of each pair of scores, by which is the better one."""
    return softplus(rejected_B - chosen_B) + center * (chosen_B + rejected_B) ** 2


def pointwise(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """The loss of each pair of scores, as two answers that are right and wrong."""
    return (softplus(-chosen_B) + softplus(rejected_B)) / 2


def adapted(model: Any, rank: int, targets: str, seed: int) -> Any:
    """A classifier with its head at zero and a LoRA on the rest, which is frozen; rank 0: all trains."""
    import peft

    torch.nn.init.zeros_(model.score.weight)
    if not rank:
        return model
    where = targets if targets == "all-linear" else targets.replace(",", " ").split()
    how: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": where}
    config = peft.LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **how)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config)


def scored(model: Any, pairs: Sequence[Pair]) -> Tensor:
    """The scores [B, 2] of pairs."""
    return scores(model, [p.prompt + a.tokens for p in pairs for a in p[2:4]]).unflatten(0, (-1, 2))


def fit(model: Any, pairs: Sequence[Pair], loss: str, rate: float, sizes: tuple[int, int]) -> None:
    """Train on the pairs in this order; `sizes`: pairs of a step, and of a forward."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.0)
    for at in range(0, len(pairs), sizes[0]):
        batch = pairs[at : at + sizes[0]]
        whole = sum(pair.weight for pair in batch)
        for part in (batch[n : n + sizes[1]] for n in range(0, len(batch), sizes[1])):
            chosen_B, rejected_B = scored(model, part).unbind(1)
            found = {"pairwise": pairwise, "pointwise": pointwise}[loss](chosen_B, rejected_B)
            (found @ found.new_tensor([pair.weight / whole for pair in part])).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()


def by_problem(pairs: Sequence[Pair], both: Both) -> list[float]:
    """The share of pairs that a score puts right, ties half, of every problem."""
    found: dict[str, list[float]] = {}
    for pair, (one, two) in zip(pairs, both, strict=True):
        found.setdefault(pair.question, []).append((one > two) + (one == two) / 2)
    return [statistics.fmean(shares) for shares in found.values()]


def judge(
    tests: Sequence[Pair], both: Both, seen: float, formed: Callable[[str], bool]
) -> dict[str, Any]:
    """The report of scores of held-out pairs, beside rivals that know nothing of what is right.

    `seen` is the accuracy on problems that were trained on, `formed` whether a text has the asked form.
    """
    lengths = [(float(len(p.chosen.tokens)), float(len(p.rejected.tokens))) for p in tests]
    rivals = {"longer": lengths, "shorter": [(-one, -two) for one, two in lengths]}
    rivals["format"] = [
        (float(formed(p.chosen.text)), float(formed(p.rejected.text))) for p in tests
    ]
    others = {name: statistics.fmean(by_problem(tests, of)) for name, of in rivals.items()}
    found = stats.interval(by_problem(tests, both))
    odd = [(pair, of) for pair, of in zip(tests, both, strict=True) if not pair.matched]
    groups: dict[str, dict[tuple[str, bool], float]] = {}
    for pair, of in zip(tests, both, strict=True):
        told = groups.setdefault(pair.question, {})
        told |= {(pair.chosen.text, True): of[0], (pair.rejected.text, False): of[1]}
    areas = [stats.auc([*of.values()], [right for _, right in of]) for of in groups.values()]
    return {
        **{"accuracy": found.mean, "low": found.low, "high": found.high, "pairs": len(tests)},
        "auc": statistics.fmean(area or 0.0 for area in areas),
        "mismatched": statistics.fmean(by_problem(*zip(*odd, strict=True))) if odd else None,
        **{"seen": seen, "rivals": others, "beats": found.low > max(others.values())},
        "median": statistics.median(score for of in groups.values() for score in of.values()),
    }
