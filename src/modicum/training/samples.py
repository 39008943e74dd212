"""What the model wrote in training, with prompts and rewards: `samples.jsonl`."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from modicum import runs
from modicum.rewards import StepExtras
from modicum.training.session import Session
from modicum.training.step import Scores
from modicum.types import Completion, Group

FILE = "samples.jsonl"
THIN = 10  # once the file is large, of so many steps that are due one is written


def write(
    session: Session,
    run: runs.Run,
    step: int,
    groups: Sequence[Group],
    scores: Scores,
    rewards_PG: Tensor,
    extras: StepExtras,
) -> None:
    """Every completion of a step that is due, fewer once the file is large; and of the last step."""
    records, path = session.config.records, run.folder / FILE
    # By the file alone, which a resumed run has cut: it goes on as the uncut one does.
    full = path.exists() and path.stat().st_size >= records.samples_mib * 2**20
    due = step % (records.samples_every * (THIN if full else 1)) == 0
    if due or session.ended(step + 1):
        shown = groups[: 1 if full else None]
        prompts = session.policy.tokenizer.batch_decode([list(group.prompt) for group in shown])
        end = {} if due else {"end": True}
        found = _lines(step, shown, prompts, scores, rewards_PG)
        run.extend(FILE, (line | extras.logged(of) | end for of, line in found))


def _lines(
    step: int, groups: Sequence[Group], prompts: Sequence[str], scores: Scores, totals_PG: Tensor
) -> Iterator[tuple[Completion, dict[str, Any]]]:
    """Every completion and its line for `samples.jsonl`, with the prompt as the model got it.

    No verdict is null, JSON has no NaN.
    """
    every = zip(groups, prompts, scores, totals_PG.tolist(), strict=False)
    for group, prompt, row, totals in every:
        for member, completion in enumerate(group.completions):
            yield (
                completion,
                {
                    "step": step,
                    "id": group.problem.id,
                    "question": group.problem.question,
                    "prompt": prompt,
                    "gold": group.problem.answer,
                    "member": member,
                    "completion": completion.text,
                    "tokens": len(completion.tokens),
                    "finished": completion.finished,
                    "reward": _known(totals[member]),
                    "scores": {name: _known(value) for name, value in row[member].items()},
                },
            )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
