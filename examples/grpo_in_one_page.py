"""GRPO in one page: from a problem to `optimizer.step`, with the public pieces of modicum.

    python examples/grpo_in_one_page.py

Trains the last layer of the shipped base on sums, on one core in half a minute. What
`modicum.train` adds: proofs, checkpoints, evaluation, micro-batches, schedules, records.
Shapes: P problem, G member of a group, R row (a completion), N tokens laid end to end.
"""

from __future__ import annotations

import torch

from modicum import objectives, rewards, tasks, updates
from modicum.config import Sampling
from modicum.engine import policy_of
from modicum.engine.logprobs import logprobs
from modicum.models.load import load
from modicum.tasks.prompts import encode
from modicum.types import Row

SEED, PROBLEMS, MEMBERS, LIMIT = 0, 8, 8, 40


def main(steps: int = 40) -> list[float]:
    """Train for `steps` steps; the mean reward of each."""
    task, reward = tasks.parse("arithmetic"), rewards.parse("accuracy + 0.2*format")
    objective, sampling = objectives.parse("grpo"), Sampling(max_tokens=LIMIT)
    # A model, the part of it that trains, and PyTorch's own optimizer on that part.
    loaded = load("tiny", device="cpu")
    prepared = updates.parse("last(1)").apply(loaded.model, SEED)
    policy = policy_of(loaded, prepared)
    optimizer = torch.optim.AdamW(prepared.active.values(), lr=8e-4, weight_decay=0.0)
    history: list[float] = []
    for step in range(steps):
        # Problems, and G completions of each from the current policy.
        problems = [task.problem("train", SEED, step * PROBLEMS + p) for p in range(PROBLEMS)]
        prompts = [encode(problem, policy.tokenizer, sampling) for problem in problems]
        keys = [("train", SEED, step, p) for p in range(PROBLEMS)]  # of the sampling noise
        groups = policy.sample(prompts, keys, MEMBERS, sampling, keep_trunk=True)
        # What they are worth, and how much more than the others of their group.
        scores = [
            [reward.total(scores) for scores in reward.score_group(task, problem, group, [])]
            for problem, group in zip(problems, groups, strict=True)
        ]
        rewards_PG = torch.tensor(scores)
        advantages_PG = objective.advantages(rewards_PG)
        history.append(float(rewards_PG.mean()))
        print(f"step {step + 1}: reward {history[-1]:.2f}")
        # Only what has an advantage is run; a completion brings its states of frozen layers.
        rows = [
            Row(prompts[p], done.tokens, done.logprobs, advantage, group=p, trunk=done.trunk)
            for p, group in enumerate(groups)
            for done, advantage in zip(group, advantages_PG[p].tolist(), strict=True)
            if advantage
        ]
        if not rows:
            continue
        # Log-probs with a graph, the loss, one step; then the sampler hears of it.
        policy_N, _ = logprobs(policy.scorer, rows, sampling)
        length_R = torch.tensor([len(row.tokens) for row in rows])
        counts = objectives.parts.Counts(PROBLEMS * MEMBERS, int(length_R.sum()), LIMIT)
        tokens = objectives.Tokens(
            old_N=torch.tensor([value for row in rows for value in row.logprobs]),
            advantages_N=torch.tensor([row.advantage for row in rows]).repeat_interleave(length_R),
            reference_N=None,  # no KL term
            weights_N=objective.weights(length_R, counts),
            row_N=torch.arange(len(rows)).repeat_interleave(length_R),
        )
        loss, _ = objective.loss(policy_N, tokens)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prepared.active.values(), 1.0)
        optimizer.step()
        policy.follow(prepared)
    return history


if __name__ == "__main__":
    main()
