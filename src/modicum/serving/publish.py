"""What is sent to a server after an update, so that its weights are the policy's.

Tensors go by the names of the checkpoint, a unit at a time: what a server holds as one tensor (q, k, v with
their biases; gate, up; a block that is built otherwise) it fills from all parts of it, and what is missing
there becomes garbage. An adapter that is B A alone goes as one; any other is merged, W' of one layer after the
other, in fp32 on a copy. What has the values that were sent last is not sent again."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from modicum.models.adapters import CONFIG, WEIGHTS
from modicum.models.four_bit import numbers, packed, unpack
from modicum.models.identity import marks
from modicum.models.load import inner
from modicum.models.weight_copy import TOGETHER
from modicum.serving.client import VLLM
from modicum.updates.adapter import Adapter
from modicum.updates.base import Prepared
from modicum.updates.layout import WORDS

PLAIN = (*TOGETHER[0], "o_proj", *TOGETHER[1], "down_proj")  # matrices of a block of the usual kind
ADAPTED = (*PLAIN, "qkv_proj", "gate_up_proj")  # those that a server takes a LoRA in
BASE, PEFT = "model.safetensors", "base_model.model."


def block_of(path: str) -> tuple[str, str]:
    """The block of a layer that a module of the base is in, and its name there; outside layers itself."""
    if (found := WORDS["layer"].search(path)) is None:
        return path, ""
    block, _, name = path[found.end() :].partition(".")
    return path[: found.end()] + block, name


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a module itself has of a checkpoint."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


@torch.no_grad()
def merged_layer(layer: Any) -> nn.Module:
    """The base of one of PEFT's layers with the adapter added in fp32, in its own dtype; a copy."""
    copy = deepcopy(layer)
    unpack(copy)
    dtype = next(copy.get_base_layer().parameters()).dtype
    copy.float()
    for part in [m for m in copy.modules() if hasattr(m, "base_layer")]:  # several of experts
        part.merge()  # type: ignore[operator]
    return copy.get_base_layer().to(dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Publication:
    """Tensors of the base in the format of its checkpoint, and those of a PEFT adapter on it."""

    tensors: Mapping[str, Tensor]
    adapter: Mapping[str, Tensor] = field(default_factory=dict)

    def write(self, folder: Path) -> tuple[Path | None, Path | None, int]:
        """Folders of tensors and adapter, if there are any, the adapter's as named, and their bytes."""
        targets = sorted({n.removeprefix(PEFT).rsplit(".", 2)[0] for n in self.adapter})
        rank = next((len(down) for down in self.adapter.values()), 0)
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank}
        config |= {"target_modules": targets, "bias": "none"}
        base = _written(folder.with_name(f"{folder.name}-base"), BASE, self.tensors)
        own = _written(folder, WEIGHTS, self.adapter, json.dumps(config))
        return base, own, sum(t.nbytes for t in (*self.tensors.values(), *self.adapter.values()))


def _written(
    folder: Path, name: str, tensors: Mapping[str, Tensor], config: str = ""
) -> Path | None:
    """A folder that is written aside and renamed, so that nobody reads half of it."""
    if not tensors:
        return None
    aside = folder.with_name(f".{folder.name}")
    aside.mkdir()
    save_file({n: t.detach().cpu().clone() for n, t in tensors.items()}, aside / name)
    if config:
        (aside / CONFIG).write_text(config, encoding="utf-8")
    return aside.rename(folder)


class Publisher:
    """A policy as a server is to have it; it remembers what was sent."""

    def __init__(self, model: nn.Module, prepared: Prepared | None = None) -> None:
        self.base, self.trainable = inner(model), dict(prepared.trainable if prepared else {})
        self.update: Adapter | None = prepared.adapter if prepared else None
        self.modules, self.layers = dict[str, nn.Module](), dict[str, Any]()
        """The base's modules that have tensors by their names there; PEFT's layers among them."""
        inside: tuple[str, ...] = ()
        for path, module in self.base.named_modules():
            if path.startswith(inside):
                continue
            if hasattr(module, "base_layer"):
                inside, self.layers[path] = (*inside, f"{path}."), module
            if path in self.layers or any(True for _ in own_tensors(module)):
                self.modules[path] = module
        blocks = {path: block_of(path) for path in self.modules}
        odd = {
            block
            for path, (block, name) in blocks.items()
            if name and name not in PLAIN and any(p.dim() > 1 for p in self._held(path))
        }
        self.units: dict[str, str] = {}  # what a server may fill as one tensor, by module
        for path, (block, name) in blocks.items():
            kind = next((of[0] for of in TOGETHER if name in of), name)
            self.units[path] = block if block in odd else f"{block}.{kind}"
        pairs = [self._factors(path) for path in self.layers if path.endswith(ADAPTED)]
        ranks = [len(pair[0]) for pair in pairs if pair is not None]
        fits = len(ranks) == len(self.layers) and max(ranks, default=0) <= VLLM["ranks"][-1]
        self.rank = max(ranks, default=0) if fits else 0
        """Of the adapter that a server is sent; 0: it has none, and gets what is merged."""
        self.sent: dict[str, str] = {}
        """Marks of what trained, as it was last sent; empty: nothing, so that all has to be."""

    def _held(self, path: str) -> Iterator[Tensor]:
        return self.modules[path].parameters(recurse=path in self.layers)

    def _factors(self, path: str) -> tuple[Tensor, Tensor] | None:
        return self.update.factors(self.layers[path]) if self.update else None

    def changes(self, names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
        """Of these what is not as it was last sent, of all if nothing was, and marks of it."""
        looked = self.trainable if not self.sent else {n: self.trainable[n] for n in names}
        found = marks({name: p.detach() for name, p in looked.items()})
        return [n for n in found if self.sent.get(n) != found[n]], found

    @torch.no_grad()
    def publication(self, names: Collection[str]) -> Publication:
        """What makes a server that has all but these names' values the policy; of one that has nothing
        but the checkpoint, as `sent` is empty, all that may be otherwise. It is never nothing."""
        changed = {id(self.trainable[name]) for name in names}
        paths = {p for p in self.modules if any(id(held) in changed for held in self._held(p))}
        of_adapter = bool(paths & self.layers.keys()) or not self.sent
        if self.rank:
            paths -= self.layers.keys()
        if not self.sent:
            resting = {name.removesuffix(".base_layer") for name in packed(self.base)}
            rewritten = not self.rank or getattr(self.update, "rewrites_base", False)
            paths |= resting | (self.layers.keys() if rewritten else set())
        adapter = dict[str, Tensor]()
        if self.rank and of_adapter:
            for path in self.layers:
                for name, factor in zip("AB", self._factors(path) or (), strict=True):
                    adapter[f"{PEFT}{path}.lora_{name}.weight"] = factor
        if not paths and not adapter:  # a version alone: it comes with the smallest module
            sizes = {p: sum(held.numel() for held in self._held(p)) for p in self.modules}
            paths = {min(sizes, key=sizes.__getitem__)}
        units = {self.units[path] for path in paths}
        whole = {path for path, unit in self.units.items() if unit in units}
        return Publication(self.tensors(whole), adapter)

    def tensors(self, paths: Collection[str]) -> dict[str, Tensor]:
        """The tensors of some modules on the CPU as a checkpoint of the policy has them, tied ones once."""
        found, known = dict[str, Tensor](), set[int]()
        for path, module in self.modules.items():
            layer = self.layers.get(path)
            if layer is not None:
                merges = path in paths and not self.rank
                module = merged_layer(layer) if merges else layer.get_base_layer()
            for name, tensor in own_tensors(module):
                if path in paths and id(tensor) not in known:
                    found[f"{path}.{name}"] = numbers(tensor).detach().cpu()
                if layer is None:  # what is merged is gone, and its number another's
                    known.add(id(tensor))
        if getattr(self.base, "_weight_conversions", None):
            found = revert_weight_conversion(self.base, found)
        return found
