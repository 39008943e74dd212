"""Part `head`: log-probs and their gradients by chunks of several sizes, at a vocabulary of 151,936.

Shapes: N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from gpu import Asked, Put
from gpu_base import MIB, apart, attempt, device_of, dtype_of, peak, seconds
from torch import Tensor

from modicum.models.device import Widened

CHUNKS = (64, 256, 512, 1024)  # MiB of logits in fp32


def plainly(hidden_NH: Tensor, weight_VH: Tensor) -> Tensor:
    """As modicum does on a CPU: the product in the weights' dtype, made fp32 afterwards."""
    return hidden_NH @ weight_VH.T


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": plainly,
    "fp32 out": Widened.apply,
}


@contextmanager
def chunked(size: float) -> Iterator[None]:
    """The head runs in chunks of so many MiB."""
    from modicum.engine import logprobs

    before = logprobs.CHUNK_BYTES, logprobs.CUDA_CHUNK_BYTES
    logprobs.CHUNK_BYTES = logprobs.CUDA_CHUNK_BYTES = int(size * MIB)
    try:
        yield
    finally:
        logprobs.CHUNK_BYTES, logprobs.CUDA_CHUNK_BYTES = before


def head(asked: Asked, put: Put) -> None:
    """Every chunk size with every product; what reading a number back in every chunk costs."""
    from modicum.config import Sampling
    from modicum.engine import logprobs

    device, dtype = device_of(asked), dtype_of(asked)
    count, width, vocabulary = (24, 16, 96) if asked.small else (16 * 1024, 1536, 151_936)
    chunks = (1 / 256, 1 / 64) if asked.small else CHUNKS
    draw = torch.Generator(device).manual_seed(0)
    hidden_NH = torch.randn(count, width, device=device, generator=draw).to(dtype)
    weight_VH = (0.02 * torch.randn(vocabulary, width, device=device, generator=draw)).to(dtype)
    hidden_NH.requires_grad_()
    token_N = torch.arange(count, device=device) * 7 % vocabulary
    few = min(256, count)
    right_N = (hidden_NH[:few].double() @ weight_VH.double().T).log_softmax(-1)
    right_N = right_N.gather(-1, token_N[:few, None]).squeeze(-1).detach()
    told = []
    for name, product in PRODUCTS.items():
        scorer: Any = SimpleNamespace(
            vocabulary=vocabulary,
            on_cuda=device.type == "cuda",
            logits=lambda h, p=product: p(h, weight_VH),
        )
        for reads in (True, False) if name == "plain" else (False,):
            for size in chunks:

                def loss(policy_N: Tensor, part: slice, read: bool = reads) -> Tensor:
                    value = policy_N.sum() / count
                    if read:  # four numbers a chunk, as a step once did
                        for _ in range(4):
                            float(value.detach())
                    return value

                def work(of: Any = scorer, made: Any = loss) -> Tensor:
                    return logprobs.backward(of, hidden_NH, token_N, Sampling(), made)[0]

                with chunked(size):
                    found = attempt(measured, work, right_N, device)
                key = f"{name}, {size:.3g} MiB{', read back' if reads else ''}"
                put(key, found)
                if "error" not in found:
                    told.append(f"{key} {found['seconds'] * 1e3:.0f}")
    put("tokens", count)
    put("line", f"ms for {count} tokens: " + "; ".join(told))


def measured(work: Callable[[], Tensor], right_N: Tensor, device: torch.device) -> dict[str, Any]:
    """Seconds, memory, and how far the log-probs are from those in fp64, in nats."""
    made_N = work()[: len(right_N)].double()
    return {
        "seconds": seconds(work, device, repeat=3, warm=1),
        "peak_bytes": peak(work, device),
        "mean_nats_off": float((made_N - right_N).abs().mean()),
        "off": apart(made_N, right_N),
    }
