"""What the model wrote in training, with prompts and rewards: `samples.jsonl`."""

import math

from modicum import runs
from modicum.rewards import StepExtras
from modicum.training.rollout import Rollout
from modicum.training.session import Session

FILE = "samples.jsonl"
THIN = 10  # once the file is large, of so many steps that are due one is written


def write(session: Session, run: runs.Run, step: int, rollout: Rollout, extras: StepExtras) -> None:
    """Every completion of a step that is due, fewer once the file is large; and of the last step."""
    records, path = session.config.records, run.folder / FILE
    # By the file alone, which a resumed run has cut: it goes on as the uncut one does.
    full = path.exists() and path.stat().st_size >= records.samples_mib * 2**20
    due = step % (records.samples_every * (THIN if full else 1)) == 0
    if not due and not session.ended(step + 1):
        return
    groups, scores, rewards_PG = rollout[:3]
    lines, shown, totals_PG = [], groups[: 1 if full else None], rewards_PG.tolist()
    for number, (group, row, totals) in enumerate(zip(shown, scores, totals_PG, strict=False)):
        kept = {"kept": number in rollout.kept} if session.choice.selects else {}
        problem, prompt = group.problem, session.policy.tokenizer.decode(list(group.prompt))
        for member, completion in enumerate(group.completions):
            line = {
                **{"step": step, "id": problem.id, "question": problem.question, "prompt": prompt},
                **{"gold": problem.answer, "member": member, "completion": completion.text},
                **{"tokens": len(completion.tokens), "finished": completion.finished},
                "reward": _known(totals[member]),
                "scores": {name: _known(value) for name, value in row[member].items()},
                **kept,
            }
            lines.append(line | extras.logged(completion) | ({} if due else {"end": True}))
    run.extend(FILE, lines)


def _known(value: float) -> float | None:
    """No verdict is null, JSON has no NaN."""
    return None if math.isnan(value) else value
