"""Which weights completions were drawn from, and at which settings.

The version is a hash of the numbers that train, taken where they are used: by the sampler of
the weights that it samples from, by the trainer of its own."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modicum.config import Sampling
from modicum.engine.text import Texts
from modicum.types import Group, RunStopped


@torch.no_grad()
def version_of(tensors: Mapping[str, Tensor], adapters: Sequence[Any] = ()) -> str:
    """A short hash of all numbers of some tensors, the same on every device.

    Of each tensor the bits are summed and xor-ed, which is one pass over it. Layers of an
    adapter count where they are not as in training: off, or merged into the base."""
    told = ((n, layer.disable_adapters, layer.merged) for n, layer in enumerate(adapters))
    odd = [f"{n} {disabled} {merged}" for n, disabled, merged in told if disabled or merged]
    digest = hashlib.sha256("\n".join(odd).encode())
    marks = []
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        bits = tensor.view(-1).view(torch.int32 if tensor.element_size() == 4 else torch.int16)
        marks += [bits.sum(dtype=torch.int64), torch.hash_tensor(bits).view(torch.int64)]
    if marks:
        digest.update(torch.stack(marks).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def adapter_layers(model: nn.Module) -> list[nn.Module]:
    """PEFT's layers in a model: what can be switched off and merged."""
    return [m for m in model.modules() if hasattr(m, "disable_adapters") and hasattr(m, "merged")]


def require_origin(groups: Sequence[Group], sampling: Sampling, version: str) -> None:
    """RunStopped unless all completions are of these weights and settings."""
    settings = (sampling.temperature, sampling.top_p, sampling.top_k)
    for origin in {c.origin for group in groups for c in group.completions}:
        if origin is None:
            raise RunStopped.of("no_origin")
        drawn = (origin.temperature, origin.top_p, origin.top_k)
        if drawn != settings:
            raise RunStopped.of("other_sampling", drawn=drawn, settings=settings)
        if origin.weights != version:
            raise RunStopped.of("stale", weights=origin.weights, version=version)


def require_stops(groups: Sequence[Group], tokenizer: Any, stops: Sequence[str]) -> None:
    """RunStopped where a completion goes on after a stop string."""
    texts = Texts(tokenizer, (), stops)
    rows = [c.tokens[:-1] for group in groups if stops for c in group.completions]
    for stop in filter(None, map(texts.stop_in, texts(rows))):
        raise RunStopped.of("beyond_stop", stop=stop)
