"""Which rate, and how far a first step helps, for several updates: a few rollouts, no training.

All updates are tried on the same completions of the untrained policy. Their problems are split in
two halves; first steps by the gradient of one are looked at on the completions of the other, and
the other way round (`rate.FirstSteps`). For an update that gives

    rate(K)    the rate of a step of KL K, in nats a token
    gain(K)    sum over held-out tokens of w (exp(d) - 1) A at that step: the advantage A, weighted
               as in the objective and without clipping, that the moved policy would have won

and gain(0.1) ranks layers by what training them comes to, on the tasks of docs/rates.md, which says
where it fails. Adapters of which one factor begins at 0 are underrated, and so is the whole model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modicum import plan
from modicum.config import TrainConfig
from modicum.draws import Taken
from modicum.objectives.parts import Counts
from modicum.plan.hardware import this
from modicum.plan.shapes import config_of
from modicum.report.words import aligned, filled
from modicum.training import rate as rates
from modicum.training.hearing import batch_of, corrected
from modicum.training.rollout import Rollout
from modicum.training.session import Session, prepare
from modicum.training.step import sample_groups, score, switch
from modicum.types import Batch, Frozen, Group, Row, UserError

KLS = (0.003, 0.01, 0.03, 0.1)  # nats a token
BEST = 0.1
PROBLEMS, MOST_PROBLEMS, SIGNALS = 64, 128, 40
SEED = 1_000_003  # what is added to the run's: none of its own rollouts
DRAWS = 2000


class ProbedUpdate(Frozen):
    """What first steps of an update came to."""

    update: str
    trained: float  # share of the model's numbers
    rates: dict[str, float]  # rate by KL, the mean of the halves
    spread: float  # the higher of the halves' rates over the lower
    gains: dict[str, float]  # gain by KL, for 0.03 and 0.1, the mean of the halves
    low: float  # 95 % interval of gain(0.1), over problems
    high: float
    behind: tuple[float, float] | None
    """95 % interval of how far gain(0.1) is behind that of the best, problem by problem."""
    peak_bytes: int
    step_seconds: float | None
    verdict: str  # in words, against the best of those probed


class Probe(Frozen):
    """Of several updates, the most gain first."""

    problems: int
    signals: int  # groups whose rewards differ
    tokens: int
    updates: tuple[ProbedUpdate, ...]

    def text(self) -> str:
        """A table for a reader, and what it does not say."""
        table, notes = filled("probed.txt", probe=self, few=SIGNALS).split("---\n")
        rows = [line.split(" | ") for line in table.splitlines()]
        return "\n".join([*aligned(rows, str.ljust), notes])


def probe(config: TrainConfig, updates: Sequence[str], say: Callable[[str], None]) -> Probe:
    """Try first steps of every update, write nothing; UserError when no group has a signal."""
    config = replace(config, seed=config.seed + SEED)
    session = prepare(replace(config, update=updates[0]))
    groups, rewards_PG = _rollouts(session)
    taken = Taken(cut=config.batch.cut)
    batch = batch_of(session, groups, rewards_PG, taken)
    if len({group % 2 for group in batch.signal}) < 2:
        raise UserError.of("few_signals", groups=len(groups), signals=len(batch.signal) or "none")
    say(f"{len(groups)} problems sampled, {len(batch.signal)} groups with a signal")
    found = []
    for number, update in enumerate(updates):
        if number:
            session = prepare(replace(config, update=update))
        switch(session)
        tried, gain_P = _tried(session, groups, batch)
        now, trained = session.config, session.active_parameters / session.total_parameters
        cost = plan.make(now, this(now.compute.device, now.compute.dtype), advise=False)
        found.append((update, tried, gain_P, trained, cost))
        say(f"{update}: rate {tried[0]['0.01']:.2g}")
        del session
    best = max(found, key=lambda entry: entry[2].mean())
    rng = np.random.default_rng(config.seed)
    draws = rng.integers(0, len(groups), (DRAWS, len(groups)))
    made = [_probed(entry, best, draws) for entry in found]
    made.sort(key=lambda u: -u.gains["0.1"])
    return Probe(len(groups), len(batch.signal), batch.num_tokens, tuple(made))


def _rollouts(session: Session) -> tuple[list[Group], Tensor]:
    """Groups of the untrained policy, and their rewards [P, G], until enough have a signal."""
    groups: list[Group] = []
    rewards: list[Tensor] = []
    signals = 0
    while len(groups) < PROBLEMS or (signals < SIGNALS and len(groups) < MOST_PROBLEMS):
        step = len(rewards)
        fresh = sample_groups(session, step)
        scores, found_PG = score(session.task, session.reward, fresh, [], session.config.batch.cut)
        heard, _ = corrected(session, Rollout(fresh, scores, found_PG))
        # Trunks are those of one update; others begin elsewhere.
        for group in heard.groups:
            bare = (replace(completion, trunk=None) for completion in group.completions)
            groups.append(replace(group, completions=tuple(bare)))
        rewards.append(found_PG)
        signals += int(session.objective.signal(found_PG).sum())
    return groups, torch.cat(rewards)


def _tried(session: Session, groups: Sequence[Group], batch: Batch) -> tuple[Any, np.ndarray]:
    """First steps by each half of the problems, looked at on the other half: `rates`, `spread` and
    `gains` of a `ProbedUpdate`; gain(0.1) of every problem, times their number."""
    start = rates.start_rate(session.update, session.active_parameters)
    gain_P, gains, found = np.zeros(len(groups)), [], []
    by_group: dict[int, list[Row]] = {}
    for row in batch.rows:
        by_group.setdefault(row.group, []).append(row)
    for odd in (0, 1):
        given = [row for row in batch.rows if row.group % 2 == odd]
        others = range(1 - odd, len(groups), 2)
        held = [row for n in others for row in by_group.get(n) or rates.unpaid(groups, n)]
        half, (weights_N, group_N) = (given, held), _weights(session, held, batch)
        with rates.FirstSteps(session, batch, half) as tried:
            at, _ = tried.rate(start, 0.03)
            for kl in (0.03, BEST):
                ratio_N = tried.ratios(at * math.sqrt(kl / 0.03)).expm1()
                each_N = (ratio_N * weights_N).numpy()
                gain_P += (kl == BEST) * np.bincount(group_N, each_N, len(groups)) * len(groups)
                gains.append((kl, 2 * float(each_N.sum())))
        # As a run does: the step of no turn of a schedule may go too far.
        turns = rates.turns(session)[1:]
        lower = [rates.searched(session, batch, half, t, start)[0] for t in turns]
        found.append(min([at, *(math.sqrt(0.03 / rates.TARGET) * rate for rate in lower)]))
    mean = rates.pooled(found)
    made = {f"{kl:g}": mean * math.sqrt(kl / 0.03) for kl in KLS}
    won = {f"{kl:g}": sum(g for k, g in gains if k == kl) / len(found) for kl in (0.03, BEST)}
    return (made, max(found) / min(found), won), gain_P


def _weights(session: Session, rows: Sequence[Row], batch: Batch) -> tuple[Tensor, np.ndarray]:
    """Weight times advantage [N] of the rows' tokens, and the problem of each."""
    lengths_R = torch.tensor([len(row.tokens) for row in rows])
    counts = Counts(batch.num_rows, batch.num_tokens, session.config.sampling.max_tokens)
    advantage_N = torch.tensor([value for row in rows for value in row.advantages])
    groups = np.repeat([row.group for row in rows], lengths_R.numpy())
    return (session.objective.weights(lengths_R, counts) * advantage_N).double(), groups


def _probed(entry: Any, best: Any, draws: np.ndarray) -> ProbedUpdate:
    update, tried, gain_P, trained, cost = entry
    low, high = np.quantile(gain_P[draws].mean(1), (0.025, 0.975))
    behind, verdict = None, "the most gain"
    if entry is not best:
        ends = np.quantile((best[2] - gain_P)[draws].mean(1), (0.025, 0.975))
        behind = float(ends[0]), float(ends[1])
        verdict = "below the best" if ends[0] > 0 else "level with the best"
    costs = cost.memory.peak.total, cost.times and cost.times.step
    given: Any = (trained, *tried, float(low), float(high), behind, *costs, verdict)
    return ProbedUpdate(update, *given)


def usual(config: TrainConfig) -> list[str]:
    """What is probed unless it is said: the whole model, layers (eight at most), parts, LoRA."""
    count = config_of(config.model, config.trust, config.base).get_text_config().num_hidden_layers
    at = sorted({round(i * (count - 1) / 7) for i in range(8)}) if count > 8 else range(count)
    parts = [f"parts({name})" for name in ("attention", "mlp", "norm")]
    return ["full", *(f"layers({i})" for i in at), *parts, "lora(rank=8)"]
