"""What a step logs. Every key is explained in docs/metrics.md; a test keeps that complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from modicum.objective import SAME_REWARD
from modicum.types import Group


def rollout_metrics(
    step: int, groups: Sequence[Group], scores: list[list[dict[str, float]]], totals_PG: Tensor
) -> dict[str, float]:
    """Metrics of the sampled completions; rewards [P, G], one `reward/` key a term."""
    completions = [c for group in groups for c in group.completions]
    flat = [s for row in scores for s in row]
    lengths = [len(c.tokens) for c in completions]
    spread_P = totals_PG.amax(1) - totals_PG.amin(1)
    terms = {f"reward/{name}": sum(s[name] for s in flat) / len(flat) for name in flat[0]}
    return {
        "step": step,
        "reward/mean": float(totals_PG.mean()),
        **terms,
        "completions/length_mean": sum(lengths) / len(lengths),
        "completions/length_max": max(lengths),
        "completions/truncated": sum(not c.finished for c in completions) / len(completions),
        "completions/distinct": len(
            {(g.problem.id, c.tokens) for g in groups for c in g.completions}
        )
        / len(completions),
        "groups/no_signal": float((spread_P <= SAME_REWARD).float().mean()),
    }


def training_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the last update: sums over tokens become means."""
    tokens = sums["tokens"]
    return {
        "policy/loss": sums["loss"],
        "policy/kl": sums["kl"] / tokens,
        "policy/entropy": sums["entropy"] / tokens,
        "policy/clip_fraction": sums["clipped"] / tokens,
        "policy/ratio_error": sums["ratio_error"] / tokens,
    }
