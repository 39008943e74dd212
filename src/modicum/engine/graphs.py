"""How a token of every row is decoded: what holds keys and values, and what runs a step.

On a GPU a step is a thousand kernels and more, each short: without a graph the time of a token is that
of launching them. Where the shapes stay (`models.static.Static`) they are captured once as a CUDA graph,
which is then replayed for every token until the room of the rows grows.

Shapes: N row that is run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modicum.models.cache import Cache
from modicum.models.decoder import Decoder
from modicum.models.static import Static

Step = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Takes the tokens of rows; the states that enter the lowest trained layer, and logits."""
WARM = 2  # steps that are run as they are before one is captured


class Plain:
    """Runs every step as it is."""

    def __call__(self, step: Step, token_N: Tensor, shape: Any) -> tuple[Tensor, Tensor]:
        """One step; while `shape` stays, all tensors that it reads and writes must."""
        return step(token_N)


class Graph(Plain):
    """Captures a step of each shape, after two that are run as they are, and replays it. What it
    gives is overwritten by the next step."""

    def __init__(self) -> None:
        self.stream: Any = torch.cuda.Stream()
        self.warm = 0
        self.shape: Any = None
        self.graph: Any = None
        self.found: Any = None  # what it gives

    def __call__(self, step: Step, token_N: Tensor, shape: Any) -> tuple[Tensor, Tensor]:
        if shape != self.shape:
            self.shape, self.warm, self.graph, self.found = shape, 0, None, None
        if self.warm < WARM:
            self.warm += 1
            return self._aside(step, token_N)
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the GPU meanwhile. Nothing is computed here.
            with torch.cuda.graph(
                self.graph, stream=self.stream, capture_error_mode="thread_local"
            ):
                self.found = step(token_N)
        self.graph.replay()
        return self.found

    def _aside(self, step: Step, token_N: Tensor) -> tuple[Tensor, Tensor]:
        """A step on the stream of the capture, whose libraries set themselves up for it."""
        main = torch.cuda.current_stream()
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            found = step(token_N)
        main.wait_stream(self.stream)
        return found


class Way(NamedTuple):
    """One way of decoding."""

    plan: type[Cache]
    run: type[Plain]


GROWING, FIXED, REPLAYED = Way(Cache, Plain), Way(Static, Plain), Way(Static, Graph)


def way_for(decoder: Decoder, device: torch.device, graphs: bool | None = None) -> Way:
    """The way of a device: graphs on a GPU, where the model allows it; or as is asked."""
    if not (device.type == "cuda" if graphs is None else graphs) or not decoder.fixed:
        return GROWING
    return REPLAYED if device.type == "cuda" else FIXED
