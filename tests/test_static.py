"""Decoding with shapes that stay: the same numbers as with shapes that grow, and one graph."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import random_model
from modicum import updates
from modicum.config import Compute, Sampling
from modicum.engine import policy_of
from modicum.engine.samplers import Local
from modicum.engine.split import FIXED, GROWING, REPLAYED, SplitDecoding, SplitEngine, Way, way_for
from modicum.models import cache
from modicum.models.cache import Static, room_for
from modicum.models.decoder import Decoder, view
from modicum.models.load import load
from test_decoder import ALIKE, CPU, PROMPTS, VARIANTS, decoder_of, model_of

GROUP, STEPS = 3, 14
LEAVE = {2: [3, 7], 3: [1, 2, 4], 6: [5], 9: [8]}
"""After so many tokens these rows have ended."""
EXPERTS = [name for name, (_, changes) in VARIANTS.items() if "num_experts" in changes]
COMPILED = ("llama untied", "gemma3", "qwen3_5")
DENSE = [name for name in VARIANTS if name not in EXPERTS]


def begun(decoder: Decoder, way: Way, lowest: int = -1) -> SplitDecoding:
    engine = SplitEngine(decoder, lowest)
    engine.way = way
    prompts = [tuple(prompt.tolist()) for prompt in PROMPTS]
    return engine.decode(prompts, GROUP, STEPS, keep=lowest > 0)


def decoded(decoding: SplitDecoding) -> list[Tensor]:
    """Logits of the rows that live, token by token; they are made to leave at `LEAVE`."""
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 60, (len(PROMPTS) * GROUP, STEPS), generator=draw)
    living, found = list(range(len(tokens))), []
    for step in range(STEPS):
        found.append(decoding.logits_BV.clone())
        if step in LEAVE:
            live = [i for i, row in enumerate(living) if row not in LEAVE[step]]
            living = [living[i] for i in live]
            decoding.keep(live)
        if step + 1 < STEPS:
            decoding.advance(tokens[living, step])
    return found


@pytest.fixture
def small_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 2 tokens at first, then 4, 8 and 14."""
    monkeypatch.setattr(cache, "LEAST", 2)


def test_room_is_doubled_and_never_more_than_is_needed() -> None:
    assert [room_for(n, 3000) for n in (1, 256, 257, 513, 2049)] == [256, 256, 512, 1024, 3000]
    assert room_for(1, 24) == 24
    decoding = begun(decoder_of(model_of("llama untied")), GROWING)
    assert decoding.cache.rows[0][0].shape[3] == STEPS


@pytest.mark.parametrize(
    "variant",
    [n if n not in ALIKE else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS],
)
def test_shapes_that_stay_give_what_shapes_that_grow_do(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows leave, rooms are made anew, and a trunk is kept."""
    decoder = decoder_of(model_of(variant))
    with torch.inference_mode():
        wanted = begun(decoder, GROWING, 2)
        logits = decoded(wanted)
        monkeypatch.setattr(cache, "LEAST", 2)
        for way, close in ((GROWING, 0.0), (FIXED, 2e-5)):
            found = begun(decoder, way, 2)
            for one, other in zip(decoded(found), logits, strict=True):
                torch.testing.assert_close(one, other, atol=close, rtol=close)
            if way is FIXED:
                assert isinstance(found.cache, Static) and found.cache.shape == (4, STEPS)
            lengths = [14, 4, 4, 3, 4, 7, 14, 3, 10]
            for one, other in zip(found.trunks(lengths), wanted.trunks(lengths), strict=True):
                assert one is not None and other is not None
                torch.testing.assert_close(one.completion, other.completion, atol=2e-5, rtol=2e-5)


# One graph ----------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["full", "lora(rank=2)"])
@pytest.mark.parametrize(
    "variant",
    [n if n in COMPILED else pytest.param(n, marks=pytest.mark.slow) for n in DENSE],
)
def test_a_step_is_one_graph(variant: str, update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With shapes that stay, over 12 tokens, and none is compiled again."""
    prepared = updates.parse(update).apply(deepcopy(model_of(variant)), 0)
    decoder = view(prepared.model)
    assert decoder is not None and decoder.fixed
    counter = CompileCounterWithBackend("eager")
    dynamo.reset()
    with torch.no_grad():
        wanted, found = (begun(decoder, way) for way in (GROWING, FIXED))
        step: Any = torch.compile(found._step, fullgraph=True, backend=counter, dynamic=False)
        monkeypatch.setattr(found, "_step", step)
        for _ in range(12):
            token_B = wanted.logits_BV.argmax(-1)
            wanted.advance(token_B)
            found.advance(token_B)
            torch.testing.assert_close(found.logits_BV, wanted.logits_BV, atol=2e-5, rtol=2e-5)
    assert counter.frame_count == 1
    dynamo.reset()


@pytest.mark.parametrize("update", ["last(2)", "lora(rank=2)"])
def test_a_run_samples_the_same(update: str, small_rooms: None) -> None:
    """The shipped base, rows that end, trunks kept."""
    found = []
    for sampler in ("local(graphs=False)", "local(graphs=True)"):
        loaded = load("tiny", "cpu", "fp32")
        prepared = updates.parse(update).apply(loaded.model)
        policy = policy_of(loaded, prepared, Compute(sampler=sampler))
        prompts, keys = [(40, 41, 42, 43), (50,), (60, 61)], [("test", n) for n in range(3)]
        groups = policy.sample(prompts, keys, 6, Sampling(max_tokens=20), keep_trunk=True)
        found.append([completion for group in groups for completion in group])
    for one, other in zip(*found, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        if one.trunk is not None and other.trunk is not None:
            torch.testing.assert_close(one.trunk.completion, other.trunk.completion)
    assert len({len(completion.tokens) for completion in found[0]}) > 1


@pytest.mark.parametrize("way", [GROWING, FIXED])
def test_what_a_rollout_held_is_dropped_with_it(way: Way) -> None:
    """At once: a cycle would keep the cache until the collector of garbage comes by."""
    decoder = decoder_of(model_of("llama untied"))  # others have it too, with gradients
    with torch.inference_mode():
        decoding = begun(decoder, way)
        decoded(decoding)
    held = weakref.ref(decoding.cache)
    del decoding
    assert held() is None


@pytest.mark.parametrize("variant", EXPERTS)
def test_models_that_choose_experts_keep_shapes_that_grow(variant: str) -> None:
    decoder = decoder_of(model_of(variant))
    assert not decoder.fixed
    assert way_for(decoder, torch.device("cuda")) is GROWING


def test_a_rope_that_goes_by_the_length_keeps_shapes_that_grow() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    decoder = view(random_model("llama", rope_parameters=rope))
    assert decoder is not None and not decoder.fixed


def test_the_device_chooses() -> None:
    decoder = decoder_of(model_of("qwen2"))
    assert way_for(decoder, CPU) is GROWING
    assert way_for(decoder, CPU, True) is FIXED
    assert way_for(decoder, torch.device("cuda")) is REPLAYED
    assert way_for(decoder, torch.device("cuda"), False) is GROWING
    assert str(Local(graphs=False)) == "local(graphs=False)"


# A CUDA graph, pretended --------------------------------------------------------------------


class Tape(TorchDispatchMode):
    """What a CUDA graph does: remembers operations with their tensors, and does them again."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op._schema.is_mutable:
            self.before.append((args[0], args[0].clone()))
        found = op(*args, **(kwargs or {}))
        self.kept.append((op, args, kwargs or {}, found))
        return found

    def forget(self) -> None:
        """A capture computes nothing: all that was written is as it was."""
        for tensor, values in reversed(self.before):
            tensor.copy_(values)

    def replay(self) -> None:
        told.append("replay")
        for op, args, kwargs, kept in self.kept:
            found = op(*args, **kwargs)
            if not op.is_view and isinstance(kept, Tensor) and found is not kept:
                kept.copy_(found)


class Stream:
    def wait_stream(self, other: Stream) -> None:
        told.append("wait")


told: list[str] = []


@contextmanager
def aside(stream: Stream) -> Iterator[None]:
    told.append("warm")
    yield


@contextmanager
def capture(graph: Tape, stream: Stream, capture_error_mode: str) -> Iterator[None]:
    told.append("capture")
    with graph:
        yield
    graph.forget()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    told.clear()
    fakes = {"Stream": Stream, "stream": aside, "graph": capture, "CUDAGraph": Tape}
    for name, fake in {**fakes, "current_stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, fake)


@pytest.mark.parametrize("variant", ["llama untied", "gemma2", "qwen3_5"])
def test_a_step_is_captured_once_and_replayed(
    variant: str, pretended: None, small_rooms: None
) -> None:
    """Two steps as they are, then one graph, until the room of 8 tokens is full."""
    decoder = decoder_of(model_of(variant))
    with torch.no_grad():
        wanted, found = decoded(begun(decoder, GROWING)), decoded(begun(decoder, REPLAYED))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)
    warm = ["wait", "warm", "wait"] * 2
    rooms = [
        warm,
        warm,
        [*warm, "capture", "replay", "replay"],
        [*warm, "capture", *["replay"] * 3],
    ]
    assert told == [word for words in rooms for word in words]
