"""Writing a model as an ordinary Hugging Face folder, or its adapter as a PEFT folder.

What was written is loaded again by plain `transformers` or `peft`, and its logits are
compared with the policy's, so that an export of the wrong weights cannot pass.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modicum.engine import Policy
from modicum.models.load import Loaded, load
from modicum.parts import RunParts
from modicum.runs import make_folder
from modicum.training.checkpoint import reload
from modicum.types import RunStopped, UserError
from modicum.updates.adapter import AdapterPrepared, quiet
from modicum.updates.base import Prepared

TOLERANCE = 1e-4  # of logits, relative to their largest, in fp32


def export_run(
    run: Path, out: Path, format: str, overwrite: bool, parts: RunParts | None = None
) -> float:
    """Write the policy of a run, whole ("merged") or as its PEFT adapter ("adapter").

    Returns the largest logit difference on reload. `parts` has an update that no expression
    names. Raises UserError for a run without an adapter, or `out` that is not empty.
    """
    if format not in ("merged", "adapter"):
        raise UserError(f"export: format must be 'merged' or 'adapter', not {format!r}")
    session = reload(run, parts=parts)
    policy, prepared, past = session.policy, session.prepared, session.config
    if format != "adapter":
        new_folder(out, overwrite)
        return export_merged(prepared, policy, out)
    adapter = adapter_of(prepared, run, past.update)
    base = load(past.model, past.compute.device, past.compute.dtype, past.trust).model
    new_folder(out, overwrite)
    return export_adapter(adapter, policy, base, out)


def new_folder(out: Path, overwrite: bool) -> None:
    """Make `out` empty; a folder that holds files is a UserError unless `overwrite`."""
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise UserError(f"{out} is not empty; --overwrite replaces it")
        if not any((out / name).exists() for name in ("config.json", "adapter_config.json")):
            raise UserError(f"{out} holds no model; --overwrite does not touch it")
        shutil.rmtree(out)
    elif out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file")
    make_folder(out)


@torch.inference_mode()
def probe(model: Any, loaded: Loaded | Policy) -> Tensor:
    """The logits of a short fixed text, in fp32 on the CPU."""
    text = "What is 1+2?\n<think>1+2=3</think><answer>3</answer>"
    ids = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return model(input_ids=ids.to(loaded.device)).logits.float().cpu()


def export_model(model: Any, loaded: Loaded | Policy, out: Path) -> float:
    """Write an ordinary model to `out`; returns the largest logit difference on reload."""
    from transformers import AutoModelForCausalLM

    expected, dtype = probe(model, loaded), next(model.parameters()).dtype
    model.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    again = AutoModelForCausalLM.from_pretrained(out, dtype=dtype, local_files_only=True)
    return _compare(expected, probe(again.to(loaded.device).eval(), loaded), out)


def export_merged(prepared: Prepared, loaded: Loaded | Policy, out: Path) -> float:
    """Write the model with its update inside; `prepared` is spent afterwards.

    An adapter is added in fp32, and its logits are compared with the unmerged policy's.
    """
    policy = probe(prepared.mergeable(), loaded)
    merged = prepared.merged()
    _compare(policy, probe(merged, loaded), out)
    return export_model(merged, loaded, out)


def adapter_of(prepared: Prepared, run: Path, update: str) -> AdapterPrepared:
    """The adapter of a run; UserError when it has none, or none that can be written alone."""
    if not isinstance(prepared, AdapterPrepared):
        raise UserError(f"{run} trained {update!r}, which is no adapter")
    if prepared.rewrites_base and any(p.dtype != torch.float32 for p in prepared.frozen.values()):
        raise UserError(
            f"{run} trained {update!r} in bf16: the rewritten base was rounded, and no adapter on"
            " the base as it is gives that; --format merged does"
        )
    return prepared


def export_adapter(
    prepared: AdapterPrepared, loaded: Loaded | Policy, base: Any, out: Path
) -> float:
    """Write the adapter to `out`; `prepared` is spent afterwards.

    `base` is a fresh copy of its base, in the dtype of the run. Both compute in fp32, so
    that the logits can be compared closely.
    """
    from peft import PeftModel

    expected = probe(prepared.model.float(), loaded)
    model: Any = prepared.exportable()
    # Without this PEFT asks the hub for the base's vocabulary size.
    model.save_pretrained(out, save_embedding_layers=False)
    loaded.tokenizer.save_pretrained(out)
    with quiet():
        again = PeftModel.from_pretrained(base.float(), str(out)).eval()
    return _compare(expected, probe(again, loaded), out)


def _compare(expected: Tensor, found: Tensor, out: Path) -> float:
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()):
        raise RunStopped(
            f"the export in {out} gives other logits (by {difference:.3g}); do not use it"
        )
    return difference
