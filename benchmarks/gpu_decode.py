"""Part `decode`: tokens a second by every way of decoding that there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from gpu import Asked, Put
from gpu_base import attempt, device_of, dtype_of, peak, random_model, seconds, shape, wait
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

FEW = 16
Decoder = Callable[[Any, Sequence[tuple[int, ...]], int, int], Any]
"""Takes an engine, prompts, members of a group and tokens; begins an `engine.base.Decoding`."""


def today(engine: Any, prompts: Sequence[tuple[int, ...]], group: int, tokens: int) -> Any:
    """As its engine decodes."""
    return engine.decode(prompts, group, tokens, False)


def growing(engine: Any, *given: Any) -> Any:
    """Shapes that grow, one launch a kernel."""
    from modicum.engine.split import GROWING

    engine.way = GROWING
    return today(engine, *given)


def fixed(engine: Any, *given: Any) -> Any:
    """Shapes that stay, one launch a kernel."""
    from modicum.engine.split import FIXED

    engine.way = FIXED
    return today(engine, *given)


def replayed(engine: Any, *given: Any) -> Any:
    """As a run decodes: shapes that stay, on a GPU one launch a token."""
    from modicum.engine.split import way_for

    engine.way = way_for(engine.decoder, engine.device, True)
    return today(engine, *given)


DECODERS: dict[str, Decoder] = {"growing": growing, "fixed": fixed, "replayed": replayed}
"""The first is what the others are compared with. Another is a function and its row here."""


def rates(asked: Asked) -> dict[str, float]:
    """Bytes a second of a copy (read and written), and FLOPs a second of a large product."""
    device, dtype = device_of(asked), dtype_of(asked)
    size, side = (2**20, 256) if asked.small else (2**32, 8192)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return {
        "bytes_per_second": 2 * size / seconds(lambda: target.copy_(source), device),
        "flops_per_second": 2 * side**3 / seconds(lambda: a @ b, device),
    }


def decode(asked: Asked, put: Put) -> None:
    """16 and 128 rows of 256 tokens, dense and with an adapter, at 1.5B shapes."""
    from modicum import updates
    from modicum.engine import make

    device, dtype = device_of(asked), dtype_of(asked)
    put("rates", copy := rates(asked))
    group, tokens, counts = (2, 4, (2, 4)) if asked.small else (8, 256, (16, 128))
    told = []
    for text in ("full", "lora(rank=8)"):
        model = random_model(shape(asked), device, dtype)
        weights = sum(p.nbytes for p in {id(p): p for p in model.parameters()}.values())
        prepared = updates.parse(text).apply(model, 0)
        engine = make(prepared.model, device, prepared.lowest_layer)
        for rows in counts:
            found: dict[str, dict[str, Any]] = {}
            for name, decoder in DECODERS.items():
                made = attempt(measured, engine, decoder, rows, group, tokens)
                if "error" not in made:
                    # What the weights alone, read once a token, would take.
                    made["share_of_bandwidth"] = (
                        weights / made["seconds_per_token"] / copy["bytes_per_second"]
                    )
                    first = next(iter(found.values()), made).get("drawn", made["drawn"])
                    made["same_tokens"] = same(first, made["drawn"])
                    told.append(f"{text} x {rows} {name} {made['tokens_per_second']:,.0f}")
                found[name] = made
            for made in found.values():
                made.pop("drawn", None)
            put(f"{text}, {rows} rows", found)
        del model, prepared, engine
        if device.type == "cuda":
            torch.cuda.empty_cache()
    put("line", "tokens/s: " + "; ".join(told))


def measured(engine: Any, decoder: Decoder, rows: int, group: int, tokens: int) -> dict[str, Any]:
    """The rate of one way, the most memory that it takes, its kernels a token, and what it drew."""
    from modicum.config import Sampling
    from modicum.engine.samplers import draw
    from modicum.engine.text import Texts

    device, prompt = engine.device, (16 if tokens < 16 else 64)
    prompts = [tuple(range(p + 2, p + 2 + prompt)) for p in range(max(1, rows // group))]
    uniforms_RT = torch.rand(
        rows, max(tokens, 2 * FEW), generator=torch.Generator().manual_seed(0)
    ).to(device)
    texts = Texts(None)
    drawn: list[Any] = []

    def run(limit: int) -> None:
        with torch.inference_mode():
            decoding = decoder(engine, prompts, min(group, rows), limit)
            drawn[:] = draw(decoding, uniforms_RT[:, :limit], Sampling(), texts)

    run(min(tokens, 8))
    wait(device)
    began = time.perf_counter()
    most = peak(lambda: run(tokens), device)
    taken = time.perf_counter() - began
    return {
        "seconds": taken,
        "seconds_per_token": taken / tokens,
        "tokens_per_second": rows * tokens / taken,
        "peak_bytes": most,
        "drawn": [list(row) for row, _ in drawn],
        "kernels_per_token": attempt(kernels, run, device),
    }


def kernels(run: Callable[[int], None], device: torch.device) -> dict[str, float]:
    """Of a token: kernels; on a CPU operations that would be kernels, and those that the host would
    wait for. They are of 16 tokens, that of 16 before them left out."""
    short, long = (counted(run, FEW * times, device) for times in (1, 2))
    return {name: (long[name] - short[name]) / FEW for name in long}


def counted(run: Callable[[int], None], tokens: int, device: torch.device) -> dict[str, int]:
    """What is launched while so many tokens are drawn."""
    if device.type != "cuda":
        found = Kernels()
        with patch.dict("modicum.engine.samplers.ASK_EVERY", clear=True), found, Lists(found):
            run(tokens)
        return {"operations": found.count, "waits": found.waits}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        run(tokens)
        torch.cuda.synchronize()
    events = [event for event in watched.events() if "cuda" in str(event.device_type).lower()]
    return {"kernels": len(events)}


class Kernels(TorchDispatchMode):
    """Counts operations but views, and those whose answer the host needs."""

    WAITS = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = self.waits = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op is not torch.ops.prim.device.default:
            with self:  # without gradients an operation may still be made of others
                found = op.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        name = op.__name__.partition(".")[0]
        self.count += not (op.is_view or "empty" in name or name == "_unsafe_view")
        masks = [x for x in args[1] if x is not None] if name in ("index", "index_put_") else ()
        self.waits += name in self.WAITS or any(x.dtype == torch.bool for x in masks)
        return op(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """Tells a counter of every tensor that becomes a list, which is no operation on a CPU."""

    def __init__(self, told: Kernels) -> None:
        super().__init__()
        self.told = told

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.told.waits += func is torch.Tensor.tolist
        return func(*args, **(kwargs or {}))


def same(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """The share of tokens that are equal, place by place."""
    pairs = [a == b for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(pairs) / max(1, len(pairs))
