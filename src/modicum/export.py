"""Writing a model as an ordinary Hugging Face folder, or its adapter as a PEFT folder.

What was written is loaded again by plain `transformers` or `peft`, and its logits are compared."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from modicum import card, runs
from modicum.config import TrainConfig, Trust
from modicum.engine import Policy
from modicum.engine.probe import REFUSALS
from modicum.models.adapters import DESCRIBED, merged, quiet
from modicum.models.four_bit import packed, unpack
from modicum.models.identity import Identity
from modicum.models.load import TINY, Loaded, Source, load, locate
from modicum.parts import RunParts, past_bases, past_config
from modicum.training.checkpoint import reload
from modicum.types import RunStopped, UserError
from modicum.updates.adapter import AdapterPrepared
from modicum.updates.base import Prepared

TOLERANCE = 1e-4  # of logits, relative to their largest, in fp32
MODELS = ("config.json", "adapter_config.json", DESCRIBED)  # what a folder of a model has


def export_run(
    run: Path,
    out: Path,
    format: str,
    overwrite: bool,
    config: TrainConfig | None = None,
    parts: RunParts | None = None,
    repo: str = "",
) -> float:
    """Write the policy of a run, whole ("merged") or as its PEFT adapter ("adapter"), and its card,
    which names `repo` as where it will be. Returns the largest logit difference on reload. `config`
    and `parts` as `reload` takes them."""
    if format not in ("merged", "adapter"):
        raise UserError(f"export: format must be 'merged' or 'adapter', not {format!r}")
    now = config or past_bases(run, past_config(run))
    if format == "adapter" and now.compute.quantise:
        why = "its adapter makes another model on the whole base; --format merged writes both"
        raise UserError(f"{run} trained on a base in 4 bits: {why} as one")
    held = {**_places("the base of the run", now.model, now.base), "the run": str(run)}
    held |= {"the adapter that it began with": now.init_adapter} if now.init_adapter else {}
    with writing(out, overwrite, held) as at:
        session = reload(run, now, parts)
        policy, prepared, past = session.policy, session.prepared, session.config
        source = locate(past.model, past.trust, past.base)
        said = {"run": run.resolve().name, "update": past.update, "format": format}
        told = card.hand(run, past, policy.tokenizer) | {"repo": repo}
        told |= describe(at, out, source, session.identity, said)
        told |= {"steps": session.counters.rollouts, "trainable": session.trainable_parameters}
        told |= {"total": session.total_parameters, "hashes": session.identity.hashes}
        if format == "adapter":
            adapter = adapter_of(prepared, run, past.update)
            again = load(past.model, past.compute.device, past.compute.dtype, past.trust, past.base)
            what = f"{run} was trained on"
            again.identity.require(session.identity.bare.hashes, what, past.model)
            bare: Any = again.model
            bare = bare.unload() if hasattr(bare, "unload") else bare
            difference = export_adapter(adapter, policy, bare, at, source.known_as)
        else:
            difference = export_whole(prepared.model, policy, at)
        card.write(at, told)
        return difference


def export_base(
    name: str, out: Path, overwrite: bool, trust: Trust | None = None, base: str = ""
) -> float:
    """Write a model that no run has trained, as `export_run` writes a policy whole."""
    with writing(out, overwrite, _places("the model itself", name, base)) as at:
        loaded = load(name, trust=trust, base=base)
        loaded.tokenizer.chat_template = loaded.tokenizer.handed
        describe(at, out, locate(name, trust, base), loaded.identity, {})
        return export_whole(loaded.model, loaded, at)


def _places(what: str, name: str, base: str) -> dict[str, str]:
    source = locate(name, base=base)
    return {what: source.place} | ({"the adapter": str(source.adapter)} if source.adapter else {})


@contextmanager
def writing(out: Path, overwrite: bool, spared: Mapping[str, str]) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block has ended. Until then, and for
    good when it fails, what `out` holds is there. UserError for what must not be replaced: the
    places `spared`, files of the package, the hub's cache, a run, what is no model."""
    try:
        target = out.expanduser().resolve()
        _check_target(out, target, overwrite, spared)
        aside, old = (target.with_name(f".{target.name}.{s}-{os.getpid()}") for s in ("new", "old"))
        aside.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the folder {out} cannot be made: {reason}") from None
    try:
        yield aside
        os.umask(mask := os.umask(0))
        for file in (place for place in aside.rglob("*") if place.is_file()):
            file.chmod(0o666 & ~mask)  # safetensors writes for its owner alone
        if target.is_dir() and any(target.iterdir()):
            os.replace(target, old)
            try:
                os.replace(aside, target)
            finally:
                if not target.exists():
                    os.replace(old, target)
            shutil.rmtree(old)
        elif target.is_dir():  # perhaps a file system of its own
            for entry in aside.iterdir():
                shutil.move(entry, target)
        else:
            os.replace(aside, target)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{out} was not written, what it held is there: {reason}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_target(out: Path, target: Path, overwrite: bool, spared: Mapping[str, str]) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    never = "; an export never replaces it"
    for what, place in spared.items():
        root = Path(place)  # and where the files are that it holds or has links to
        inside = {entry.resolve().parent for entry in root.iterdir()} if root.is_dir() else set()
        if any(_holds(target, part) for part in (root, *inside)):
            raise UserError(f"{out} is {what} ({place}), or holds it{never}")
    kept = {"modicum's own files": Path(runs.__file__).parent, "the hub's cache": HF_HUB_CACHE}
    for what, place in kept.items():
        if _holds(target, Path(place)) or _holds(Path(place).resolve(), target):
            raise UserError(f"{out} is in {what} ({place}), or holds them{never}")
    if target.exists() and not target.is_dir():
        raise UserError(f"{out} is a file")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if runs.is_run(target):
        raise UserError(f"{out} is a run folder{never}")
    if not overwrite:
        raise UserError(f"{out} is not empty; --overwrite replaces it")
    if not any((target / name).exists() for name in MODELS):
        raise UserError(f"{out} holds no model; --overwrite does not touch it")
    for folder, _, files in os.walk(target):
        if runs.is_run(Path(folder)) or {"study.toml", "scan.toml"} & set(files):
            raise UserError(f"{out} holds a run or a study ({folder}){never}")


def _holds(folder: Path, place: Path) -> bool:
    """Whether `folder` is `place` or one above it, by whatever name."""
    whole = place.expanduser().resolve()
    above, there = (whole, *whole.parents), folder.exists()
    return any(folder == p or (there and p.exists() and folder.samefile(p)) for p in above)


def describe(
    at: Path, out: Path, source: Source, identity: Identity, said: Mapping[str, str]
) -> dict[str, str]:
    """Write beside the weights where they come from, and the way from `out` to a base in a folder;
    other programs do not read it."""
    told = {"written_by": f"modicum {metadata.version('modicum')}", "base": source.known_as}
    if source.local and source.place != str(TINY):
        place = Path(source.gguf or source.place).resolve()
        told["base_folder"] = os.path.relpath(place, out.expanduser().resolve())
    told |= {"adapter": source.adapter.resolve().name} if source.adapter else {}
    runs.Run(at).write(DESCRIBED, {**told, **identity.hashes, **said})
    return told


@torch.inference_mode()
def probe(model: Any, loaded: Loaded | Policy) -> Tensor:
    """The logits of a short fixed text, in fp32 on the CPU."""
    text = "What is 1+2?\n<think>1+2=3</think><answer>3</answer>"
    ids = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    try:
        return model(input_ids=ids.to(loaded.device), use_cache=False).logits.float().cpu()
    except REFUSALS as error:
        raise UserError(f"the model cannot be run: {str(error).strip().splitlines()[0]}") from None


def export_whole(model: Any, loaded: Loaded | Policy, out: Path) -> float:
    """Write a model (spent then), its adapter added in fp32; the largest logit gap on reload."""
    if packed(model):
        expected = probe(model, loaded)
        unpack(model)
        _compare(expected, probe(model, loaded))
    if hasattr(model, "merge_and_unload"):
        expected, model = probe(model.float(), loaded), merged(model)
        _compare(expected, probe(model, loaded))
    dtype, saved = next(model.parameters()).dtype, model.state_dict()
    model.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    again: Any = type(model).from_pretrained(out, dtype=dtype, local_files_only=True)
    again = again.to(loaded.device).eval()
    for name, made in again.named_buffers():  # of no file: in bf16 they were rounded (Gemma 4)
        if name not in saved:
            model.get_buffer(name).data = made.to(loaded.device)
    return _compare(probe(model, loaded), probe(again, loaded))


def adapter_of(prepared: Prepared, run: Path, update: str) -> AdapterPrepared:
    """The adapter of a run; UserError when it has none, or none that can be written alone."""
    if not isinstance(prepared, AdapterPrepared):
        raise UserError(f"{run} trained {update!r}, which is no adapter")
    if prepared.rewrites_base and any(p.dtype != torch.float32 for p in prepared.frozen.values()):
        why = "the rewritten base was rounded, and no adapter on the base as it is gives that"
        raise UserError(f"{run} trained {update!r} in bf16: {why}; --format merged does")
    return prepared


def export_adapter(
    prepared: AdapterPrepared, loaded: Loaded | Policy, base: Any, out: Path, name: str = ""
) -> float:
    """Write the adapter to `out`, and `name` as that of its base; `prepared` is spent afterwards.
    `base` is a fresh copy of its base, in the dtype of the run. Both compute in fp32."""
    from peft import PeftModel

    expected = probe(prepared.model.float(), loaded)
    model: Any = prepared.exportable()
    for config in model.peft_config.values() if name else ():
        config.base_model_name_or_path = name
    # Without this PEFT asks the hub for the base's vocabulary size.
    model.save_pretrained(out, save_embedding_layers=False)
    loaded.tokenizer.save_pretrained(out)
    with quiet():
        again = PeftModel.from_pretrained(base.float(), str(out)).eval()
    return _compare(expected, probe(again, loaded))


def _compare(expected: Tensor, found: Tensor) -> float:
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()):
        why = f"gives other logits (by {difference:.3g})"
        raise RunStopped(f"what was exported {why}; do not use it")
    return difference
