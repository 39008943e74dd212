"""A step of a run on tensors without data: what is alive in sampling, training and the step.

The engine's own code runs, so that adapters, partial selections, kept trunks, chunks of the
head and checkpointing cost what they cost there. Done by hand: the sampling loop, of which
the first token and the last are run (between them only the cache would fill), and what the
optimizer keeps (`Rule.state_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from modicum import objective
from modicum.config import Sampling, TrainConfig
from modicum.engine import Engine, logprobs, make
from modicum.engine.base import Decoding, Trunk, tokens_of
from modicum.engine.rollout import num_trunk_bytes
from modicum.engine.sampling import choose, distribution
from modicum.engine.split import SplitDecoding
from modicum.models.load import inner
from modicum.models.precision import Masters
from modicum.plan.live import Live, renewed, without_data
from modicum.plan.shapes import Lengths, cache_numbers
from modicum.types import Row
from modicum.updates.base import Prepared

CPU = torch.device("cpu")


MOST_PARTS = 3  # micro-batches of a step that are gone through; more leave no other holes


@dataclass(frozen=True)
class ResidentBytes:
    """Bytes that live through training and that the trace does not make itself."""

    optimizer: tuple[int, ...]
    """State of the optimizer, tensor by tensor."""
    schedule: int
    """What the schedule keeps of gradients and importances."""
    gradients: int
    """Copies of the groups' gradients, for a schedule that is shown them."""
    step: int
    """What the optimizer's step makes and drops again."""


class Trace:
    """Runs the phases of a step on tensors without data. `live` has what was found.

    `prepared` is a model on the meta device; it is spent.
    """

    def __init__(
        self, prepared: Prepared, config: TrainConfig, lengths: Lengths, device: str = "cpu"
    ) -> None:
        self.prepared, self.config, self.lengths = prepared, config, lengths
        # Room for later tokens that is never written to is not resident on a CPU.
        self.room = lengths.longest if device == "cpu" else config.sampling.max_tokens
        made, self.mode = without_data(prepared.model)
        for held in (prepared.trainable, prepared.frozen, prepared.active):
            held |= renewed(held, made)
        self.live = Live()
        _without_sparse(prepared)
        self.engine: Engine = make(
            prepared.model,
            CPU,
            prepared.lowest_layer,
            config.compute.engine,
            config.compute.checkpointing,
        )
        self.goal = objective.parse(config.objective)
        self.others: Tensor | None = None

    def run(self, held: ResidentBytes) -> None:
        """Set-up, evaluation and two steps: sampling, micro-batches, and the optimizer's step.

        The optimizer's state is there from the first step's end.
        """
        self._tell_gradients()
        live, batch = self.live, self.config.batch
        parts = -(-batch.prompts_per_step * batch.group_size // batch.micro_batch)
        with live:
            masters = self._masters()
            self._evaluation()
            kept = [self._hold("schedule", held.schedule)]
            began = len(live.events)
            trunks = self._step_sampling()
            copies = self._hold("gradients", held.gradients)
            trained = len(live.events)
            self._training(masters, trunks)
            ended = len(live.events)
            self._more(parts, trained, ended)
            with live.phase("optimizer step"):
                kept += [self._hold("optimizer", size) for size in held.optimizer]
                self._hold("step", held.step)
            for master in masters.held.values():
                master.tensor.grad = master.parameter.grad = None
            del trunks, copies
            self.others = None
            with live.phase("training"):
                live.again(began, ended)
                self._more(parts, trained, ended)

    def _more(self, parts: int, start: int, stop: int) -> None:
        """The other micro-batches of a step, which add to the gradients of the first."""
        for _ in range(min(parts, MOST_PARTS) - 1):
            self.live.again(start, stop, passing="gradients")

    def _hold(self, category: str, size: int) -> Tensor:
        with self.live.category(category), self.mode:
            return torch.empty(size, dtype=torch.uint8)

    def _tell_gradients(self) -> None:
        """Have gradients counted as such from the moment they are there."""

        def tell(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.live.recount(parameter.grad, "gradients")

        for parameter in self.prepared.active.values():
            parameter.register_post_accumulate_grad_hook(tell)

    def _masters(self) -> Masters:
        """fp32 copies of what trains, and the entries of what trains in part."""
        entries: dict[str, Tensor] = {}
        with self.live.phase("set-up"), self.live.category("masters"):
            for name, parameter in self.prepared.active.items():
                size = self.prepared.schedule.size(name, parameter)
                if size < parameter.numel() and not self.prepared.schedule.holds:
                    with self.mode:
                        entries[name] = torch.empty(size, dtype=torch.int64)
            masters = Masters(self.prepared.active, entries)
            # `precision.too_fine` squares every tensor.
            self._hold("other", 4 * max(p.numel() for p in self.prepared.active.values()))
            return masters

    # Sampling ----------------------------------------------------------------------------

    def _evaluation(self) -> None:
        held, batch = self.config.evaluation, self.config.batch
        if held.eval_problems == 0:
            return
        with self.live.phase("evaluation"):
            for group in {1, held.eval_samples}:
                count = min(held.eval_problems, max(1, batch.rollout_batch // group))
                self._sample(count, group, keep=False)

    def _step_sampling(self) -> list[Trunk | None]:
        """The trunks of the rows that were sampled together; the others' are held too."""
        batch, settings = self.config.batch, self.config.sampling
        together = max(1, batch.rollout_batch // batch.group_size)
        count = min(batch.prompts_per_step, together)
        prompts = self.lengths.prompts(batch.prompts_per_step)
        most = num_trunk_bytes(self.engine, prompts, batch.group_size, settings.max_tokens)
        size = num_trunk_bytes(self.engine, prompts, batch.group_size, self.room)
        with self.live.phase("sampling"):
            keep = most <= self.config.compute.trunk_bytes
            trunks = self._sample(count, batch.group_size, keep)
            if trunks[0] is not None:
                self.others = self._hold("trunk", size - size * count // len(prompts))
        return trunks

    @torch.no_grad()
    def _sample(self, count: int, group_size: int, keep: bool) -> list[Trunk | None]:
        settings, longest = self.config.sampling, self.lengths.longest
        with self.live.category("activations"):
            prompts = self.lengths.prompts(count)
            decoding = self.engine.decode(prompts, group_size, self.room, keep)
            self._recount(decoding)
            drawn = self._draw(decoding.logits_BV, settings)
            if longest > 1 and isinstance(decoding, SplitDecoding):
                decoding.cache.length = longest - 2
            cache = self._hold("cache", self._library_cache(decoding, count * group_size))
            if longest > 1:
                decoding.advance(torch.zeros(count * group_size, dtype=torch.long))
            del drawn, cache
            self._draw(decoding.logits_BV, settings)
            rows = self.lengths.completions(count * group_size)
            return decoding.trunks([len(row) for row in rows])

    def _library_cache(self, decoding: Decoding, rows: int) -> int:
        """Bytes of the library's cache of completions, which grows as it decodes."""
        if isinstance(decoding, SplitDecoding):
            return 0
        base = inner(self.prepared.model)
        return rows * self.lengths.longest * cache_numbers(base.config) * base.dtype.itemsize

    def _recount(self, decoding: Any) -> None:
        """Count the cache and the kept states as what they are."""
        if not isinstance(decoding, SplitDecoding):
            return
        cache = decoding.cache
        for pair in (*cache.prompts.values(), *cache.rows.values()):
            for tensor in pair:
                self.live.recount(tensor, "cache")
        if decoding.states_STH is not None:
            for tensor in (*decoding.prompts, decoding.states_STH):
                self.live.recount(tensor, "trunk")

    def _draw(self, logits_BV: Tensor, settings: Sampling) -> Tensor:
        """What `engine.rollout.draw` makes of logits; returns what it holds on to."""
        with self.live.category("logits"):
            logprobs_BV = distribution(logits_BV, settings)
            choose(logprobs_BV, torch.zeros(len(logits_BV)), False)
        return logprobs_BV

    # Training ----------------------------------------------------------------------------

    def _training(self, masters: Masters, trunks: Sequence[Trunk | None]) -> None:
        live, rows = self.live, self._rows(trunks)
        with live.phase("training"), live.category("activations"):
            token_N = tokens_of(rows, CPU)
            pack = self.engine.pack(rows)
            trunk = self.engine.trunk(pack)
            if trunk is not None:
                live.recount(trunk, "trunk")
            if self.goal.kl > 0:
                self._reference(pack, trunk, token_N)
            with live.growing():
                hidden_NH = self.engine.hidden(pack, trunk)
            if hidden_NH.requires_grad:
                # Called when backward leaves the head for the layers.
                hidden_NH.register_hook(lambda _: live.switch("activations"))
            with live.category("logits"):
                logprobs.backward(self.engine, hidden_NH, token_N, self.config.sampling, _loss)
            with live.category("gradients"):
                masters.collect()
            for master in masters.held.values():
                if master.tensor.grad is not None:
                    live.recount(master.tensor.grad, "gradients")

    @torch.no_grad()
    def _reference(self, pack: Any, trunk: Tensor | None, token_N: Tensor) -> None:
        same = self.prepared.lowest_ever == self.prepared.lowest_layer
        hidden_NH = self.engine.hidden(pack, trunk if same else None)
        with self.live.category("logits"):
            logprobs.head_logprobs(self.engine, hidden_NH, token_N, self.config.sampling)

    def _rows(self, trunks: Sequence[Trunk | None]) -> list[Row]:
        """The rows of a micro-batch that all have a signal."""
        batch = self.config.batch
        count = min(batch.micro_batch, batch.prompts_per_step * batch.group_size)
        prompts = self.lengths.prompts(-(-count // batch.group_size))
        rows = []
        for number, tokens in enumerate(self.lengths.completions(count)):
            group = number // batch.group_size
            # Rows that are sampled later have trunks of the same sizes.
            given = (prompts[group], tokens, (0.0,) * len(tokens), 1.0, group)
            rows.append(Row(*given, trunk=trunks[number % len(trunks)]))
        return rows


def _loss(policy_N: Tensor, where: slice) -> Tensor:
    """A sum over tokens, as every objective is."""
    return policy_N.exp().sum()


def _without_sparse(prepared: Prepared) -> None:
    """Let SHiRA's layers add something that has no memory either, for sparse tensors need data.

    Where its weights lie (16 bytes a number) is left out.
    """
    for layer in prepared.model.modules():
        if hasattr(layer, "shira_weight"):
            layer.get_delta_weight = partial(_expanded, layer)  # type: ignore[assignment]


def _expanded(layer: Any, adapter: str) -> Tensor:
    """A table of the weight's shape through which the adapter's numbers get a gradient."""
    total = (layer.shira_weight[adapter] * layer.scaling[adapter]).sum()
    return total.expand(layer.out_features, layer.in_features)
