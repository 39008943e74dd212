"""How many matrix FLOPs a step costs in this engine (one multiplication and addition are two).

    sampling    2 x (linear numbers of the layers) a prompt token, once for a group; the same
                and the head a completion token but the last; scores 4 x H x (tokens looked at)
    training    per micro-batch: trunk forward (unless kept from sampling), reference forward
                (with a KL term, at the first update), forward, backward, and under
                checkpointing the forward of the trained layers once more

Backward is `updates.products`: one product for a trained matrix, one for the input of every
matrix above the lowest trained tensor (F.1, F.2 in docs/updates.md). Rows without a signal
are not in the batch and cost nothing. Scores of packed rows are counted as they are
computed, over whole tables of the longest prompt and row; backward recomputes them.

Left out: the check of two completions by the library's forward, slots of a cache whose row
has ended, element-wise work, and what does not grow with the tokens (DoRA's norms).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from modicum.config import Steps
from modicum.engine.base import Scorer
from modicum.models.configs import attention_sizes
from modicum.models.load import inner
from modicum.types import Batch, Group, Row
from modicum.updates.base import Prepared
from modicum.updates.products import Product, backward_products, place

FUSED_BACKWARD = 2.5  # five products where forward has two: scores are computed again
PLAIN_BACKWARD = 2.0


@dataclass(frozen=True)
class StepFlops:
    """Matrix FLOPs of one step."""

    sampling: float
    training: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.sampling + self.training


@dataclass(frozen=True)
class Load:
    """What one forward over packed rows has to do.

    `tokens` go through the layers, `predicting` through the head; `pairs` of a query and a
    key are scored in each layer, for every head.
    """

    tokens: int
    predicting: int
    pairs: int


@dataclass(frozen=True)
class Work:
    """FLOPs of some layers: for each token, and for each pair of query and key."""

    token: float = 0.0
    pair: float = 0.0

    def of(self, load: Load) -> float:
        """The FLOPs of a load."""
        return self.token * load.tokens + self.pair * load.pairs


class FlopCounter:
    """Counts the matrix FLOPs of steps; what depends on what trains now is remembered."""

    def __init__(self, prepared: Prepared, scorer: Scorer, batch: Steps, reference: bool) -> None:
        self.prepared, self.batch, self.reference = prepared, batch, reference
        self.split, self.recompute = scorer.splits, scorer.recomputes
        config: Any = inner(prepared.model).config.get_text_config()
        self.num_layers: int = config.num_hidden_layers
        scored = [heads * size for heads, _, size in attention_sizes(config)]
        self.pair = 4.0 * sum(scored) / len(scored)  # the mean, where layers differ
        capped = getattr(config, "attn_logit_softcapping", None) is not None
        self.pair_backward = self.pair * (PLAIN_BACKWARD if capped else FUSED_BACKWARD)
        self.base, self.adapted = [0.0] * self.num_layers, [0.0] * self.num_layers
        self.head = 0.0
        for layer, product in self._products():
            flops = 2.0 * product.numbers
            if layer == self.num_layers:
                self.head += flops
                continue
            self.adapted[layer] += flops
            self.base[layer] += flops if product.base else 0.0
        self.tails = self._tails()
        self.of_reference = self.base if prepared.reference_is_bare else self.adapted
        self._known: dict[frozenset[str], tuple[Work, float, Work]] = {}

    def step(self, groups: Sequence[Group], batch: Batch, updates: int) -> StepFlops:
        """The FLOPs of sampling `groups` and of `updates` optimizer steps on `batch`.

        What trains now must be what trained in the step.
        """
        return StepFlops(self._sampling(groups), self._training(batch, updates))

    # Sampling ----------------------------------------------------------------------------

    def _sampling(self, groups: Sequence[Group]) -> float:
        each, total = sum(self.adapted), 0.0
        pairs = self.pair * self.num_layers
        size = max(1, self.batch.rollout_batch // self.batch.group_size)
        for start in range(0, len(groups), size):
            part = groups[start : start + size]
            longest = max(len(group.prompt) for group in part)
            for group in part:
                prompt = len(group.prompt)
                total += each * (prompt if self.split else longest) + self.head
                total += pairs * longest**2
                for completion in group.completions:
                    fed = len(completion.tokens) - 1
                    total += fed * (each + self.head)
                    total += pairs * (fed * longest + fed * (fed + 1) / 2)
        return total

    # Training ----------------------------------------------------------------------------

    def _training(self, batch: Batch, updates: int) -> float:
        if not batch.rows:
            return 0.0
        size = self.batch.micro_batch
        total, (layers, head, again) = 0.0, self._backward()
        first = max(0, self.prepared.lowest_layer) if self.split else 0
        for start in range(0, len(batch.rows), size):
            rows = batch.rows[start : start + size]
            load = self._packed(rows) if self.split else _padded(rows)
            kept = self.split and all(row.trunk is not None for row in rows)
            trunk = 0.0 if kept else self._forward(self.adapted, 0, first).of(load)
            forward = self._forward(self.adapted, first).of(load) + self.head * load.predicting
            behind = layers.of(load) + head * load.predicting
            if self.recompute:
                behind += again.of(load)
            total += updates * (trunk + forward + behind)
            if self.reference:
                since = first if self.prepared.trunk_is_reference else 0
                total += self._forward(self.of_reference, since).of(load)
                total += self.head * load.predicting
        return total

    def _forward(self, numbers: Sequence[float], start: int, stop: int | None = None) -> Work:
        """The forward of layers start .. stop - 1."""
        chosen = numbers[start:stop]
        return Work(sum(chosen), self.pair * len(chosen))

    def _backward(self) -> tuple[Work, float, Work]:
        """Of backward while the same tensors train: layers, head (a token), what is recomputed."""
        names = frozenset(self.prepared.active)
        if names not in self._known:
            lowest = min(place(name, self.num_layers) for name in names)
            layers = head = 0.0
            for layer, product in self._products():
                flops = 2.0 * product.numbers * product.passes
                head += flops if layer == self.num_layers else 0.0
                layers += flops if layer < self.num_layers else 0.0
            # Scores have a gradient where something before o_proj trains.
            scored = sum(lowest < (layer, 2) for layer in range(self.num_layers))
            again = self._forward(self.adapted, max(0, lowest[0]))
            again = Work(again.token - sum(self.tails[max(0, lowest[0]) :]), again.pair)
            self._known[names] = Work(layers, self.pair_backward * scored), head, again
        return self._known[names]

    def _tails(self) -> list[float]:
        """FLOPs a token of each layer's last product, which checkpointing need not repeat.

        Nothing after it keeps what it gives, unless a norm follows.
        """
        tails = [0.0] * self.num_layers
        if any("post_feedforward" in name for name, _ in self.prepared.model.named_parameters()):
            return tails
        for layer, product in self._products():
            if layer < self.num_layers:
                # The products of a module come in order: its own, then its adapter's.
                tails[layer] = 2.0 * product.numbers
        return tails

    def _packed(self, rows: Sequence[Row]) -> Load:
        """Rows with the prompt of every group once; a row's last token predicts nothing."""
        prompts = {(row.group, row.prompt): len(row.prompt) for row in rows}
        fed = [len(row.tokens) - 1 for row in rows]
        longest, width = max(prompts.values()), max(fed)
        return Load(
            sum(prompts.values()) + sum(fed),
            sum(fed) + len(rows),
            len(prompts) * longest**2 + len(rows) * width * (longest + width),
        )

    def _products(self) -> Iterator[tuple[int, Product]]:
        """Every product with its layer."""
        for product in backward_products(self.prepared, self.prepared.active, self.num_layers):
            yield place(product.name, self.num_layers)[0], product


def _padded(rows: Sequence[Row]) -> Load:
    """Rows with their prompts, filled up to the longest."""
    width = max(len(row.prompt) + len(row.tokens) for row in rows)
    predicting = sum(len(row.tokens) for row in rows)
    return Load(len(rows) * width, predicting, len(rows) * width**2)
