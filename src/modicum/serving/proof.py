"""The proof of a sampler elsewhere: its weights are the policy's, by what it says and by what it holds.

Log-probs cannot show it: vLLM and transformers in bf16 differ by more than a step moves them. So every
completion says the version of the weights that it was drawn from, and the server's own tensors are compared,
by SHA-256 of their bytes, with the policy's, put together as the server puts them together."""

import hashlib
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from modicum.models.weight_copy import TOGETHER
from modicum.types import RunStopped

FUSED = dict(zip(("qkv_proj", "gate_up_proj"), TOGETHER, strict=True))
"""What a server calls layers of the policy that it holds as one."""
NOTHING = hashlib.sha256(b"").hexdigest()  # of a weight that was laid out anew, on a CPU
PADDED = 64  # a multiple of which are the rows of an embedding there, zeros at the end


class ServerStopped(RunStopped):
    """The completions are not, or would not be, of the policy that is trained."""

    def __init__(self, text: str) -> None:
        super().__init__(f"sampler proof: {text}")


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def require_versions(found: Iterable[tuple[str, ...]], version: str, where: str) -> None:
    """RunStopped unless all completions were drawn from weights of this version, from begin to end."""
    odd = {versions for versions in found if versions != (version,)}
    if odd:
        said = ", ".join(min(odd)) or "no version"
        raise ServerStopped.of("stale_server", where=where, said=said, version=version)


def compare(theirs: Mapping[str, str], ours: Mapping[str, Tensor], where: str) -> str:
    """How many tensors of a server are the policy's, of those that can be compared: RunStopped unless all
    are, and there are some. `theirs` are SHA-256 by the server's names, `ours` tensors of a checkpoint. What
    several devices have in parts is not compared."""
    found: dict[str, set[str]] = {}
    for name, digest in theirs.items():
        found.setdefault(name.rpartition(":")[2].replace(".base_layer.", "."), set()).add(digest)
    odd, equal = list[str](), 0
    for name, digests in found.items():
        tensor = _fused(name, ours)
        if tensor is None or len(digests) > 1 or NOTHING in digests:
            continue
        more = -len(tensor) % PADDED if "embed" in name or "head" in name else 0
        wide = torch.nn.functional.pad(tensor, (*[0] * (2 * tensor.dim() - 1), more))
        if digests & {digest_of(tensor), digest_of(wide)}:
            equal += 1
        else:
            odd.append(name)
    if odd:
        raise ServerStopped.of(
            "other_weights", at=where, n=len(odd), of=equal + len(odd), odd=min(odd)
        )
    if not equal:
        raise ServerStopped(f"{where} holds no tensor that could be compared with the policy's")
    return f"{equal} of {len(found)} tensors of {where} are the policy's, by their bytes"


def _fused(name: str, ours: Mapping[str, Tensor]) -> Tensor | None:
    """The policy's tensor that a server has by this name, if it is there as a whole."""
    for whole, parts in FUSED.items():
        names = [re.sub(rf"\b{whole}\b", part, name) for part in parts]
        if names[0] != name and all(part in ours for part in names):
            return torch.cat([ours[part] for part in names])
    return ours.get(name)
