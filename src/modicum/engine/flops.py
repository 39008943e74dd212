"""How many matrix FLOPs a step costs in this engine (one multiplication and addition are two).

    sampling    2 x (linear numbers of the layers) a prompt token, once for a group; the same
                and the head a completion token but the last; scores 4 x H x (tokens looked at)
    critic      what reads, for values and for every pass over the rollout; the policy up to the
                states, unless they were kept, or a model of its own without its head
    training    the forward that a correction hears of another sampler's completions; then per
                micro-batch: trunk forward (unless kept from sampling), reference forward
                (with a KL term, at the first update), forward, backward, and under
                checkpointing the forward of the trained layers once more

Backward is `updates.products`: one product for a trained matrix, one for the input of every
matrix above the lowest trained tensor (F.1, F.2 in docs/updates.md). Rows without a signal
are not in the batch and cost nothing. Scores of packed rows are counted as they are
computed, over whole tables of the longest prompt and row; backward recomputes them.

Left out: the check of two completions by the library's forward, slots of a cache whose row
has ended (and, off a CPU, what such a row still draws), element-wise work, and what does not grow with the tokens (DoRA's norms).

Shapes: W what work grows with (`WORK`), L layer, the head after the last."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modicum.config import Steps
from modicum.engine.base import Scorer
from modicum.models.configs import attention_sizes
from modicum.models.load import inner
from modicum.types import Batch, Frozen, Group, Row
from modicum.updates.base import Prepared
from modicum.updates.products import Product, backward_products, place

FUSED_BACKWARD = 2.5  # five products where forward has two: scores are computed again
PLAIN_BACKWARD = 2.0
WORK = TOKENS, PREDICTING, PAIRS = 0, 1, 2
"""Tokens through the layers, those through the head, and pairs of a query and a key, of one head."""
Array = NDArray[np.float64]


class StepFlops(Frozen):
    """Matrix FLOPs of one step."""

    sampling: float
    training: float
    critic: float = 0.0

    @property
    def total(self) -> float:
        """All together."""
        return self.sampling + self.training + self.critic


class FlopCounter:
    """Counts the matrix FLOPs of steps."""

    critic: "CriticWork | None" = None

    def __init__(
        self, prepared: Prepared, scorer: Scorer, batch: Steps, reference: bool, heard: bool = False
    ) -> None:
        self.prepared, self.batch, self.reference, self.heard = prepared, batch, reference, heard
        self.split, self.recompute = scorer.splits, scorer.recomputes
        config: Any = inner(prepared.model).config.get_text_config()
        self.num_layers: int = config.num_hidden_layers
        scored = [heads * size for heads, _, size in attention_sizes(config)]
        pair = 4.0 * sum(scored) / len(scored)  # the mean, where layers differ
        capped = getattr(config, "attn_logit_softcapping", None) is not None
        self.pair_backward = pair * (PLAIN_BACKWARD if capped else FUSED_BACKWARD)
        self.base_LW = np.zeros((self.num_layers + 1, len(WORK)))
        self.base_LW[:-1, PAIRS] = pair
        self.adapted_LW = self.base_LW.copy()
        self.tail_L = np.zeros(self.num_layers)
        """Of a token in each layer's last product, which checkpointing need not repeat."""
        for layer, column, product in self._products():
            flops = 2.0 * product.numbers
            self.adapted_LW[layer, column] += flops
            # Those of the head are the reference's, too.
            if product.base or layer == self.num_layers:
                self.base_LW[layer, column] += flops
            if layer < self.num_layers:
                # The products of a module come in order: its own, then its adapter's.
                self.tail_L[layer] = flops
        # Nothing after it keeps what it gives, unless a norm follows.
        if any("post_feedforward" in name for name, _ in prepared.model.named_parameters()):
            self.tail_L[:] = 0.0
        self.token = float(self.adapted_LW[:, :PAIRS].sum())
        """FLOPs of a token's forward, without its attention."""
        self.reference_LW = self.base_LW if prepared.reference_is_bare else self.adapted_LW
        self.judged = False  # whether a reward model on the base reads all completions

    def step(
        self, groups: Sequence[Group], batch: Batch, updates: int, rounds: Sequence[int] = ()
    ) -> StepFlops:
        """The FLOPs of sampling `groups`, in such rounds, and of `updates` steps on `batch`.

        What trains now must be what trained in the step."""
        ends = pairwise((0, *accumulate(rounds or [len(groups)])))
        sampling = sum(self._sampling(groups[start:end]) for start, end in ends)
        training = self.training(batch.rows, updates)
        told = [(n, g.prompt, c) for n, g in enumerate(groups) for c in g.completions if c.sampled]
        for _, load_W in self._parts([Row(p, c.tokens, (), 0.0, n) for n, p, c in told]):
            training += float(self.adapted_LW.sum(0) @ load_W)
        for group in groups if self.judged else ():
            rows = [Row(group.prompt, (*c.tokens, 0), (), 0.0) for c in group.completions]
            load_W = _packed(rows) if self.split else _padded(rows)
            training += float(self.base_LW[:-1].sum(0) @ load_W)
        return StepFlops(sampling, training, self._critic(groups))

    def _critic(self, groups: Sequence[Group]) -> float:
        """The critic's values of all completions, and its passes over them."""
        if (critic := self.critic) is None:
            return 0.0
        told = [(number, g.prompt, c) for number, g in enumerate(groups) for c in g.completions]
        rows = [Row(prompt, c.tokens, (), 0.0, number, c.trunk) for number, prompt, c in told]
        total = critic.token * sum(len(row.tokens) for row in rows)
        if critic.own is not None:
            bare = [replace(row, trunk=None) for row in rows]
            return total + critic.own.training(bare, critic.passes)
        lowest, depth = max(0, self.prepared.lowest_layer), critic.at.depth
        for kept, load_W in self._parts(rows):
            first = lowest if kept and depth in (None, lowest) else 0
            layers = slice(first, self.num_layers if depth is None else depth)
            total += float(self.adapted_LW[layers].sum(0) @ load_W)
        return total

    def _parts(self, rows: Sequence[Row]) -> Iterator[tuple[bool, Array]]:
        """Of every micro-batch whether its trunk was kept, and its load."""
        for start in range(0, len(rows), self.batch.micro_batch):
            part = rows[start : start + self.batch.micro_batch]
            kept = self.split and all(row.trunk is not None for row in part)
            yield kept, _packed(part) if self.split else _padded(part)

    def _sampling(self, groups: Sequence[Group]) -> float:
        load_W = np.zeros(len(WORK))
        size = max(1, self.batch.rollout_batch // self.batch.group_size)
        for start in range(0, len(groups), size):
            part = groups[start : start + size]
            longest = max(len(group.prompt) for group in part)
            for group in part:
                load_W += len(group.prompt) if self.split else longest, 1, longest**2
                for completion in group.completions:
                    fed = len(completion.tokens) - 1
                    load_W += fed, fed, fed * longest + fed * (fed + 1) / 2
        return float(self.adapted_LW.sum(0) @ load_W)

    def training(self, rows: Sequence[Row], updates: int) -> float:
        """The FLOPs of so many updates on some rows."""
        total, backward_W = 0.0, self._backward() if rows else 0.0
        first = max(0, self.prepared.lowest_layer) if self.split else 0
        since = first if self.prepared.trunk_is_reference else 0
        for kept, load_W in self._parts(rows):
            work_W = self.adapted_LW[first if kept else 0 :].sum(0) + backward_W
            work_W *= updates
            if self.heard:  # for its entropy, before the first update
                work_W += self.adapted_LW[first if kept else 0 :].sum(0)
            if self.reference:
                work_W += self.reference_LW[since:].sum(0)
            total += float(work_W @ load_W)
        return total

    def _backward(self) -> Array:
        """Of backward while the same tensors train, with what is recomputed."""
        lowest = min(place(name, self.num_layers) for name in self.prepared.active)
        work_W = np.zeros(len(WORK))
        for _, column, product in self._products():
            work_W[column] += 2.0 * product.numbers * product.passes
        # Scores have a gradient where something before o_proj trains.
        scored = sum(lowest < (layer, 2) for layer in range(self.num_layers))
        work_W[PAIRS] = self.pair_backward * scored
        if self.recompute:
            again = slice(max(0, lowest[0]), self.num_layers)
            work_W += self.adapted_LW[again].sum(0)
            work_W[TOKENS] -= self.tail_L[again].sum()
        return work_W

    def _products(self) -> Iterator[tuple[int, int, Product]]:
        for product in backward_products(self.prepared, self.prepared.active, self.num_layers):
            layer = place(product.name, self.num_layers)[0]
            yield layer, PREDICTING if layer == self.num_layers else TOKENS, product


class _Headless(FlopCounter):
    def _products(self) -> Iterator[tuple[int, int, Product]]:
        return (found for found in super()._products() if found[0] < self.num_layers)


class CriticWork:
    """What a critic runs."""

    def __init__(self, goal: Any, scorer: Scorer, own: Any, batch: Steps, at: Any) -> None:
        """`scorer` is the policy's, `own` its own model, if any, `at.depth` the layer that it reads."""
        sizes = [p.numel() for p in goal.reader(scorer.width).parameters() if p.dim() > 1]
        deeper = sum(sizes[own is None :])  # whose input has a gradient
        self.token = 2.0 * (sum(sizes) * (1 + 2 * goal.passes) + deeper * goal.passes)
        """FLOPs of what reads, for a token."""
        self.at, self.passes = at, goal.passes
        self.own = _Headless(own, scorer, batch, False, heard=True) if own else None


def _packed(rows: Sequence[Row]) -> Array:
    """Rows with the prompt of every group once; a row's last token predicts nothing."""
    prompts = {(row.group, row.prompt): len(row.prompt) for row in rows}
    fed = [len(row.tokens) - 1 for row in rows]
    longest, width = max(prompts.values()), max(fed)
    pairs = len(prompts) * longest**2 + len(rows) * width * (longest + width)
    return np.array([sum(prompts.values()) + sum(fed), sum(fed) + len(rows), pairs], float)


def _padded(rows: Sequence[Row]) -> Array:
    width = max(len(row.prompt) + len(row.tokens) for row in rows)
    predicting = sum(len(row.tokens) for row in rows)
    return np.array([len(rows) * width, predicting, len(rows) * width**2], float)
