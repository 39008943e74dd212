"""A step of a run on tensors without data: what is alive in sampling, training and the step.

The engine's own code runs. Done by hand: the sampling loop, of which the first token and the last
are run (between them only the cache would fill), and what the optimizer keeps."""

from collections.abc import Collection, Sequence
from copy import copy
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modicum.config import Sampling, TrainConfig
from modicum.engine import Engine, Policy, Trunk, make
from modicum.engine.base import Decoding
from modicum.engine.logprobs import forward_backward
from modicum.engine.samplers import LocalSampler, num_trunk_bytes
from modicum.engine.sampling import choose, distribution
from modicum.models.linear import meanwhile
from modicum.models.load import inner
from modicum.models.precision import Master, Masters, is_coarse, loses_steps
from modicum.objectives.base import Counts, Objective
from modicum.plan.live import META, Live, without_data
from modicum.plan.shapes import Lengths, cache_numbers
from modicum.serving.members import parse
from modicum.types import Row
from modicum.updates.base import Prepared

CPU = torch.device("cpu")
MOST_PARTS = 3  # micro-batches of a step that are gone through; more leave no other holes


class ResidentBytes(NamedTuple):
    """Bytes that live through training and that the trace does not make itself."""

    optimizer: tuple[int, ...]  # its state, tensor by tensor
    schedule: int  # what it keeps of gradients and importances
    gradients: int  # copies of the groups', for a schedule that is shown them
    step: int  # what the optimizer's step makes and drops again


class Trace:
    """Runs the phases of a step on a model of the meta device. `live` has what was found."""

    def __init__(
        self,
        prepared: Prepared,
        config: TrainConfig,
        lengths: Lengths,
        on: str,
        goal: Objective,
        pieces: int = 1,
        apart: Collection[Tensor] = (),
    ) -> None:
        """`pieces`: in so many masters lie, one a process, and in training what is `apart`."""
        self.apart = {*apart}
        self.prepared, self.config, self.lengths, self.pieces = prepared, config, lengths, pieces
        self.live, self.hooks = Live(varlen=on == "cuda"), list[Any]()
        # Room for later tokens that is never written to is not resident on a CPU.
        self.on_host = on == "cpu"
        self.room = lengths.longest if self.on_host else config.sampling.max_tokens
        without_data(prepared.model)
        self.objective, self.here = goal, parse(config.compute.sampler).in_process
        if goal.needs_reference:
            prepared.keep_reference()
        self.others: Tensor | None = None

    def run(self, held: ResidentBytes) -> None:
        """Set-up, evaluation and two steps: sampling, micro-batches, and the optimizer's step."""
        lowest, self.active = self.prepared.lowest_layer, self.prepared.active
        with Live(self.live.varlen):  # a library's forward is tried out
            self.engine: Engine = make(self.prepared.model, CPU, lowest, self.config.compute)
        self.engine.device, self.engine.on_cuda = CPU, not self.on_host  # indices are on the CPU
        try:
            self._run(held)
        finally:
            for hook in self.hooks:
                hook.remove()
            for parameter in self.prepared.trainable.values():
                parameter.grad = None

    def _run(self, held: ResidentBytes) -> None:
        live, batch, held_out = self.live, self.config.batch, self.config.evaluation

        def tell(parameter: Tensor) -> None:
            if parameter.grad is not None:
                live.recount(parameter.grad, "gradients")
                if parameter in self.apart:  # summed as it is made, of which a piece stays
                    whole, parameter.grad = parameter.grad.float(), None
                    rows.append(self._hold("gradients", 4 * whole.numel() // self.pieces))

        rows: list[Tensor] = []
        self.hooks = [p.register_post_accumulate_grad_hook(tell) for p in self.active.values()]
        parts = -(-batch.prompts_per_step * batch.group_size // batch.micro_batch)
        with live:
            masters = self._masters()
            if held_out.eval_problems and self.here:
                with live.phase("evaluation"):
                    for group in {1, held_out.eval_samples}:
                        together = max(1, batch.rollout_batch // group)
                        self._sample(min(held_out.eval_problems, together), group, keep=False)
            kept = [self._hold("schedule", held.schedule)]
            began = len(live.events)
            trunks = self._step_sampling()
            copies = self._hold("gradients", held.gradients)
            trained = len(live.events)
            self._training(masters, trunks)
            ended = len(live.events)
            if self.on_host:  # elsewhere the second step is fuller, at every moment
                self._more(parts, trained, ended)
            with live.phase("optimizer step"):
                kept += [self._hold("optimizer", size) for size in held.optimizer]
                self._hold("step", held.step)
            for master in masters.held.values():
                master.tensor.grad = master.parameter.grad = None
            del trunks, copies, rows[:]
            self.others = None
            with live.phase("training"):
                live.again(began, ended)
                self._more(parts, trained, ended)

    def _more(self, parts: int, start: int, stop: int) -> None:
        for _ in range(min(parts, MOST_PARTS if self.on_host else 2) - 1):
            self.live.again(start, stop, passing="gradients")

    def _hold(self, category: str, size: int) -> Tensor:
        with self.live.category(category):
            return torch.empty(size, dtype=torch.uint8, device=META)

    def _masters(self) -> Masters:
        entries: dict[str, Tensor] = {}
        with self.live.phase("set-up"), self.live.category("masters"):
            for name, parameter in self.active.items():
                size = self.prepared.schedule.size(name, parameter)
                if size < parameter.numel() and not self.prepared.schedule.holds:
                    entries[name] = torch.empty(size, dtype=torch.int64, device=META)
            masters = Masters({} if self.pieces > 1 else self.active, entries)
            for name, parameter in self.active.items() if self.pieces > 1 else ():
                whole = torch.empty((), device=META).expand(parameter.shape)  # as its gradient is
                masters.held[name] = Master(parameter, whole.requires_grad_())
            numbers = sum(p.numel() for p in self.active.values()) * (self.pieces > 1)
            self.piece = self._hold("masters", 4 * numbers // self.pieces)
            self.hooks += [m.hook for m in masters.held.values() if getattr(m, "hook", None)]
            # `precision.too_fine` makes every tensor that it is asked of fp32.
            rounding, active = self.config.compute.rounding, self.active.values()
            sizes = [p.numel() for p in active if is_coarse(p) and loses_steps(p, rounding)]
            self._hold("other", 4 * max(sizes, default=0))
            return masters

    # Sampling ----------------------------------------------------------------------------

    def _step_sampling(self) -> list[Trunk | None]:
        """The trunks of the rows that were sampled together; the others' are held too."""
        if not self.here:
            return [None]
        batch, settings = self.config.batch, self.config.sampling
        count = min(batch.prompts_per_step, max(1, batch.rollout_batch // batch.group_size))
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
            decoding = self.engine.decode(self.lengths.prompts(count), group_size, self.room, keep)
            self._recount(decoding)
            drawn = self._draw(decoding.logits_BV, settings)
            if longest > 1:
                decoding.skip_to(longest - 2)
                self._recount(decoding)  # its room may have grown
            rows, base, grown = count * group_size, inner(self.prepared.model), 0
            if "cache" not in decoding.held():  # the library's grows as it decodes
                grown = rows * longest * cache_numbers(base.config) * base.dtype.itemsize
            cache = self._hold("cache", grown)
            if longest > 1:
                decoding.advance(torch.zeros(rows, dtype=torch.long))
            del drawn, cache
            self._draw(decoding.logits_BV, settings)
            return decoding.trunks([len(row) for row in self._completions(rows, rows)])

    def _recount(self, decoding: Decoding) -> None:
        for category, tensors in decoding.held().items():
            for tensor in tensors:
                self.live.recount(tensor, category)

    def _draw(self, logits_BV: Tensor, settings: Sampling) -> Tensor:
        """As `engine.samplers.draw`; returns what that holds on to."""
        with self.live.category("logits"):
            logprobs_BV = distribution(logits_BV, settings)
            choose(logprobs_BV, torch.zeros(len(logits_BV)), False)
        return logprobs_BV

    # Training ----------------------------------------------------------------------------

    def _training(self, masters: Masters, trunks: Sequence[Trunk | None]) -> None:
        live, config, batch = self.live, self.config, self.config.batch
        step, size = batch.prompts_per_step * batch.group_size, batch.group_size
        count = min(batch.micro_batch, step)
        sampled = count if trunks[0] is None else len(trunks)
        prompts = self.lengths.prompts(-(-count // size))
        # Rows that are sampled later have trunks of the same sizes.
        pairs = zip(self._completions(count, sampled), cycle(trunks), strict=False)
        rows = [
            Row(prompts[n % sampled // size], tokens, (0.0,) * len(tokens), 1.0, n // size, trunk)
            for n, (tokens, trunk) in enumerate(pairs)
        ]
        both = watched(self.engine, live), LocalSampler(self.engine, None, ())
        policy = Policy(self.prepared.model, None, (), CPU, *both)
        tokens = sum(len(row.tokens) for row in rows)
        counts = Counts(len(rows), tokens, config.sampling.max_tokens)
        with live.phase("training"), live.category("activations"):
            given = (policy, self.prepared, self.objective)
            forward_backward(*given, rows, counts, config.sampling, None)
            with live.category("gradients"):
                for master in masters.held.values():
                    master.collect()
            for master in masters.held.values():
                if master.tensor.grad is not None:
                    live.recount(master.tensor.grad, "gradients")

    def _completions(self, count: int, sampled: int) -> list[tuple[int, ...]]:
        """So many, in blocks of a micro-batch: as long as their trunks, of which there are `sampled`."""
        step = self.config.batch.prompts_per_step * self.config.batch.group_size
        block = self.lengths.completions(min(self.config.batch.micro_batch, step, sampled))
        return [block[number % sampled % len(block)] for number in range(count)]


def watched(engine: Engine, live: Live) -> Engine:
    """An engine whose work is counted as what it is: trunk, activations, logits."""

    def trunk(pack: Any) -> Tensor | None:
        found = engine.trunk(pack)
        if found is not None:
            live.recount(found, "trunk")
        return found

    def hidden(pack: Any, trunk: Tensor | None) -> Tensor:
        live.counted = "activations"
        with meanwhile(live, growing=torch.is_grad_enabled()):
            hidden_NH = engine.hidden(pack, trunk)
        live.counted = "logits"
        if hidden_NH.requires_grad:
            hidden_NH.register_hook(back)
        return hidden_NH

    def back(_: Tensor) -> None:
        live.counted = "activations"

    made = copy(engine)
    vars(made).update(trunk=trunk, hidden=hidden)
    return made
