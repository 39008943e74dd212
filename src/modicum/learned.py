"""Reward models: pairs of a right and a wrong answer to one problem, a fit, what it is worth.

    pairwise    -log sigma(r_c - r_r) + 0.01 (r_c + r_r)^2     Bradley-Terry, scores around zero
    pointwise   (log(1 + exp(-r_c)) + log(1 + exp(r_r))) / 2   right or wrong alone (arXiv 2110.14168)

Problems weigh alike, parts of the split have none in common, and intervals are over them. B pair."""

import hashlib
import itertools
import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from modicum import stats
from modicum.engine.reward import scores
from modicum.evaluate import Graded
from modicum.grading.extraction import extract, extract_lenient
from modicum.models.adapters import quiet
from modicum.runs import read_object
from modicum.tasks import readers
from modicum.tasks.rows import as_text, require_column, value
from modicum.types import RunStopped, UserError

MATCHED, MOST = 0.25, 4  # of abs(log(length / length)); pairs of a problem
COLUMNS = ("prompt", "chosen", "rejected")
Tokens = Sequence[int]
Loss = Callable[..., Tensor]


class Preference(NamedTuple):
    """Two answers to a problem, tokens and text, the better one first; 1 over the problem's pairs."""

    question: str
    prompt: Tokens
    chosen: tuple[Tokens, str]
    rejected: tuple[Tokens, str]
    weight: float = 1.0

    @property
    def matched(self) -> bool:
        """Whether their lengths are about equal."""
        return abs(math.log(len(self.chosen[0]) / len(self.rejected[0]))) <= MATCHED


Pairs = Sequence[Preference]


def paired(question: str, prompt: Tokens, group: Iterable[Graded], seed: int) -> list[Preference]:
    """At most `MOST` pairs of different texts, those of matched lengths first, drawn by `seed`. Of
    what has ended, has an answer that can be read, and the same verdict strictly and leniently."""
    sides: tuple[dict[str, Tokens], ...] = {}, {}
    for completion, grade in group:
        if completion.finished and grade.extracted is not None and grade.strict == grade.lenient:
            sides[grade.strict].setdefault(completion.text, completion.tokens)
    wrong, right = ([(tokens, text) for text, tokens in side.items()] for side in sides)
    found = [Preference(question, prompt, one, two) for one, two in itertools.product(right, wrong)]
    random.Random(f"{seed}/{question}").shuffle(found)
    found = sorted(found, key=lambda pair: not pair.matched)[:MOST]
    return [pair._replace(weight=1 / len(found)) for pair in found]


def split(pairs: Pairs, seed: int) -> dict[str, list[Preference]]:
    """The pairs of 80 % of problems to train on, of 10 % each to tune and to test."""
    found: dict[str, list[Preference]] = {"train": [], "tune": [], "test": []}
    for pair in pairs:
        text = f"{seed}/{pair.question}".encode("utf-8", "surrogatepass")
        place = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % 10
        found[{8: "tune", 9: "test"}.get(place, "train")].append(pair)
    return found


def read(path: str, encoded: Callable[..., Sequence[Tokens]]) -> tuple[Pairs, dict[str, Any]]:
    """The pairs of `modicum pairs`, with what its file says; or a file or folder of preferences.
    `encoded` makes tokens of a prompt and of answers that have ended, and is told where they
    stand."""
    place, groups = Path(path).expanduser(), defaultdict[str, list[Preference]](list)
    if place.suffix == ".json" and place.is_file() and place.read_bytes()[:1] == b"{":
        made = read_object(place)
        try:
            return [Preference(*row) for row in made["pairs"]], made
        except (LookupError, TypeError) as error:
            raise UserError(f"{path} is no file of modicum pairs ({error!r})") from None
    parts = readers.from_hub("reward-model", str(place), None, None) if place.is_dir() else {}
    records = [*itertools.chain(*parts.values())] if parts else readers.read(str(place))
    for column in COLUMNS:
        require_column(path, records, column)
    for record in records:
        question, *texts = (_said(record, column) for column in COLUMNS)
        if texts[0] != texts[1]:
            prompt, one, two = encoded(record.where, question, *texts)
            groups[question].append(Preference(question, prompt, (one, texts[0]), (two, texts[1])))
    return [p._replace(weight=1 / len(of)) for of in groups.values() for p in of], {}


def _said(record: readers.Record, column: str) -> str:
    """A text, or the texts of messages one after the other."""
    found = value(record, column)
    if isinstance(found, list) and all(isinstance(m, dict) and "content" in m for m in found):
        found = "\n\n".join(str(message["content"]) for message in found)
    return as_text(record, column, found) and str(found)


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
    where = targets if targets == "all-linear" else targets.replace(",", " ").split()
    how: Any = {"task_type": "SEQ_CLS", "r": rank, "lora_alpha": 2 * rank, "target_modules": where}
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, peft.LoraConfig(**how)) if rank else model
        except ValueError as error:
            raise UserError(f"targets: {' '.join(str(error).split()):.200}") from None


def scored(model: Any, pairs: Pairs, size: int) -> Iterator[Tensor]:
    """The scores [B, 2] of pairs, so many at a time."""
    for part in (pairs[at : at + size] for at in range(0, len(pairs), size)):
        rows = [(*pair.prompt, *tokens) for pair in part for tokens, _ in pair[2:4]]
        yield scores(model, rows).unflatten(0, (-1, 2))


def fit(model: Any, pairs: Pairs, loss: Loss, rate: float, sizes: tuple[int, int]) -> None:
    """Train on the pairs in this order; `sizes`: pairs of a step, and of a forward."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.0)
    for at in range(0, len(pairs), sizes[0]):
        batch = pairs[at : at + sizes[0]]
        weight_B = torch.tensor([pair.weight for pair in batch], device=trained[0].device)
        parts = (weight_B / weight_B.sum()).split(sizes[1])
        for both, part_B in zip(scored(model, batch, sizes[1]), parts, strict=True):
            (loss(*both.unbind(1)) @ part_B).backward()
        if not torch.nn.utils.clip_grad_norm_(trained, 1.0) < math.inf:
            raise RunStopped("the gradient is not finite; a smaller --learning-rate may help")
        optimizer.step()
        optimizer.zero_grad()


def by_problem(pairs: Pairs, both: Any) -> list[float]:
    """The share of pairs that a score puts right, ties half, of every problem."""
    found = defaultdict[str, list[float]](list)
    for pair, (one, two) in zip(pairs, both, strict=True):
        found[pair.question].append((one > two) + (one == two) / 2)
    return [statistics.fmean(shares) for shares in found.values()]


def answer(text: str) -> str:
    """The final answer that a text states, marked or not; else the text."""
    return extract(text) or extract_lenient(text) or text


def judge(tests: Pairs, both: Any, form: Callable[[str], Any], train: Pairs = ()) -> dict[str, Any]:
    """The report of scores of held-out pairs, beside rivals that know nothing of the problem.
    `form` says whether a text has the form that the prompt asks for. The rival `answer` is
    log((right + 1) / (wrong + 1)), how often a final answer was right and wrong in `train`."""
    right = Counter(answer(pair.chosen[1]) for pair in train)
    wrong = Counter(answer(pair.rejected[1]) for pair in train)
    rivals: dict[str, Callable[[Tokens, str], float]] = {
        "longer": lambda tokens, text: len(tokens),
        "shorter": lambda tokens, text: -len(tokens),
        "format": lambda tokens, text: form(text),
        "answer": lambda _, text: (right[a := answer(text)] + 1) / (wrong[a] + 1),
    }
    said = {n: [(rival(*p[2]), rival(*p[3])) for p in tests] for n, rival in rivals.items()}
    others = {name: statistics.fmean(by_problem(tests, of)) for name, of in said.items()}
    odd = [n for n, pair in enumerate(tests) if not pair.matched]
    unequal = by_problem([tests[n] for n in odd], [both[n] for n in odd])
    groups = defaultdict[str, dict[tuple[str, bool], float]](dict)
    for pair, (one, two) in zip(tests, both, strict=True):
        groups[pair.question] |= {(pair.chosen[1], True): one, (pair.rejected[1], False): two}
    areas = [stats.auc([*of.values()], [right for _, right in of]) for of in groups.values()]
    found = stats.interval(by_problem(tests, both))
    return {
        **{"accuracy": found.mean, "low": found.low, "high": found.high, "pairs": len(tests)},
        **{"rivals": others, "beats": found.low > max(others.values())},
        "mismatched_pairs": len(odd),
        "auc": statistics.fmean(area or 0.0 for area in areas),
        "mismatched": statistics.fmean(unequal) if unequal else None,
        "median": statistics.median(score for of in groups.values() for score in of.values()),
    }
