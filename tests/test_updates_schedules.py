"""Schedules: what is refused, the reference under them, cut runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import random_model
from helpers import engine_of, metrics_of, tensors_of
from modicum import runs, updates
from modicum.config import TrainConfig
from modicum.engine.logprobs import logprobs
from modicum.training import step
from modicum.training.loop import train
from modicum.types import UserError
from schedules import BATCH, ROWS, layer_of, session_of, walk

# Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("badam(every=0)", "every must be at least 1"),
        ("badam(order='up')", "order is 'up'; .*ascending, descending, random"),
        ("badam(blocks=4)", "only 3 layers to make blocks of"),
        ("badam @ parts(head)", "no layer is selected; ends=True"),
        ("badam(state='drop')", "state is 'drop'"),
        ("badam_ratio(ratio=1)", "above 0 and below 1"),
        ("rgn(every=4)", "window .* must be at least 1 and at most 4"),
        ("snr(threshold=2)", "threshold must be at least 0 and at most 1"),
        ("autofreeze(intervals=0)", "intervals must be at least 1"),
        ("autofreeze(ema=1)", "ema must be at least 0 and below 1"),
        ("autofreeze @ parts(head)", "no decoder layer is selected"),
        ("slimfit(rate=1)", "at least 0 and below 1"),
        ("lisa(layers=4)", "only 3 layers to draw from"),
    ],
)
def test_what_cannot_be_is_a_user_error(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        updates.parse(text).apply(random_model("llama"))


def test_slimfit_needs_units() -> None:
    with pytest.raises(UserError, match="no matrix or norm is selected"):
        updates.parse("slimfit @ parts(bias)").apply(random_model("qwen2"))


# The reference, and cut runs -------------------------------------------------------------


def test_the_reference_is_the_base_whatever_has_trained_below(folders: dict[str, Path]) -> None:
    """Layer 0 has trained and rests: the frozen part is no longer that of the base."""
    made = session_of(folders["llama"], "lisa(layers=1, every=1, ends=False)", rate=1e-2, kl=0.05)
    visited: set[int] = set()
    while not (0 in visited and made.prepared.lowest_layer > 0):
        visited |= set(layer_of(walk(made, 1)[0]))
    references: step.References = {}
    step.backward(made, BATCH, references)
    (found,) = references.values()
    settings = made.config.sampling
    with torch.no_grad():
        base = logprobs(engine_of(random_model("llama")), ROWS, settings)[0]
        policy = logprobs(engine_of(made.prepared.model), ROWS, settings)[0]
    torch.testing.assert_close(found, base, atol=1e-5, rtol=0)
    assert (policy - base).abs().max() > 0.01


@pytest.mark.parametrize(
    "update",
    [
        "lisa(layers=1, every=5, state='cpu')",
        "badam(every=5, warmup=3)",
        "badam_ratio(ratio=0.25, every=5)",
        "autofreeze(intervals=4)",
        "slimfit",
        "rgn(every=3, window=2)",
        "adalora(rank=1, init_rank=3, warmup=1, tail=2)",
    ],
)
def test_a_cut_run_goes_on_as_if_it_were_whole(
    quick: TrainConfig, tmp_path: Path, update: str
) -> None:
    """Its checkpoint, after 4 steps, falls into a turn, an interval or a window."""
    made = replace(
        quick,
        update=update,
        steps=4,
        objective="grpo(kl=0.01)",
        batch=replace(quick.batch, updates_per_rollout=2),
        sampling=replace(quick.sampling, max_tokens=8),
        evaluation=replace(quick.evaluation, eval_problems=0),
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    wanted = train(replace(made, out=str(whole)))
    # As a kill in the fourth step leaves it, with lines in the logs that no checkpoint has.
    shutil.copytree(whole, cut)
    (cut / "result.json").unlink()
    first, *later = runs.checkpoints(cut)
    for folder in later:
        shutil.rmtree(folder)
    assert runs.read_checkpoint(first)[1]["signal_steps"] == 4
    found = train(replace(made, out=str(cut)), resume=True)
    assert metrics_of(whole) == metrics_of(cut)
    assert tensors_of(whole) == tensors_of(cut)
    for key in ("change_proof", "optimizer_bytes", "active_parameters_mean", "decisions"):
        assert found[key] == wanted[key], key
    lines = [(folder / "decisions.jsonl").read_text() for folder in (whole, cut)]
    assert lines[0] == lines[1] and lines[0].count("\n") >= 1
