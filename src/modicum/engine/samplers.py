"""Samplers: what draws the completions of a step. `local` is the one of this process.

To add one: a file with a `Sampler`, a frozen dataclass of its settings (`SamplerSettings`),
and its row in SAMPLERS. The contract suite (tests/test_samplers.py) picks it up.

Shapes: P prompt, G member, B living row, R = P x G rows begun, T token, V vocabulary."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from modicum import machine, spec
from modicum.config import Compute, Sampling
from modicum.engine.base import Asked, Changed, Decoding, Engine, Groups, Prompts, Sampler, Scorer
from modicum.engine.sampling import choose, distribution, noise
from modicum.engine.split import SplitEngine, way_for
from modicum.engine.text import Texts
from modicum.models.decoder import Decoder
from modicum.models.device import index
from modicum.models.load import Loaded
from modicum.models.weight_copy import WeightCopy
from modicum.types import Completion, Origin, UserError
from modicum.updates.base import Prepared

WIDE = 512  # of a hidden state, from where a copy of the weights pays
ASK_EVERY, SELDOM = {"cpu": 1}, 16
"""Tokens between two questions of which rows have ended, by type of device, and elsewhere."""


@dataclass(eq=False)
class LocalSampler(Sampler):
    """Draws token by token with an engine of this process, which holds the policy itself.

    At most `rollout_batch` rows (but at least one group) are sampled at a time, half as many from
    then on when memory runs out. Trunks are kept, where they are asked for, if those of all rows
    fit into `trunk_bytes`."""

    in_process: ClassVar[bool] = True

    engine: Engine
    tokenizer: Any
    end_tokens: Sequence[int]
    rollout_batch: int = 512
    trunk_bytes: int = 0
    changed: Changed = field(default_factory=lambda: Changed({}, -1), init=False)

    def follow(self, changed: Changed) -> None:
        """The engine runs the policy's own tensors; which train is remembered for the version."""
        self.changed = changed
        if (copy := self.engine.weight_copy) is not None:
            copy.moved(changed.tensors.values())

    def _version(self) -> str:
        """Of the weights that are sampled from: the policy's, or those of the copy, which follows."""
        if (copy := self.engine.weight_copy) is None:
            return self.changed.version
        copy.refresh(self.changed.version)
        return copy.version

    def prove(self) -> None:
        if (copy := self.engine.weight_copy) is not None:
            copy.check()

    def sample(self, asked: Asked) -> Groups:
        """Completions of every prompt; the member is added to its key in the noise table."""
        prompts, group_size, sampling = asked.prompts, asked.group_size, asked.sampling
        engine, limit = self.engine, sampling.max_tokens
        most = num_trunk_bytes(engine, prompts, group_size, limit)
        keep = asked.keep_trunk and most <= self.trunk_bytes
        settings = (sampling.temperature, sampling.top_p, sampling.top_k)
        origin = Origin(self._version(), *settings)
        texts = Texts(self.tokenizer, self.end_tokens, sampling.stop or ())
        groups: dict[int, tuple[Completion, ...]] = {}
        while len(groups) < len(prompts):
            left = [number for number in range(len(prompts)) if number not in groups]
            if engine.of_one_length:
                least = min(len(prompts[number]) for number in left)
                left = [number for number in left if len(prompts[number]) == least]
            part = left[: max(1, self.rollout_batch // group_size)]
            rows = [(*asked.keys[n], member) for n in part for member in range(group_size)]
            try:
                table = np.stack([noise(row, limit) for row in rows])
                uniforms_RT = torch.from_numpy(table).to(engine.device)
                with torch.inference_mode():
                    decoding = engine.decode([prompts[n] for n in part], group_size, limit, keep)
                    drawn = draw(decoding, uniforms_RT, sampling, texts)
                    trunks = decoding.trunks([len(tokens) for tokens, _ in drawn])
            except (RuntimeError, MemoryError) as error:
                machine.require_out_of_memory(error)
                if len(part) == 1:
                    raise UserError.of("memory_in_sampling", size=group_size, limit=limit) from None
                self.rollout_batch = len(part) // 2 * group_size
                decoding = uniforms_RT = None
            else:
                whole = texts([tokens for tokens, _ in drawn])
                # In their texts nothing follows a stop string.
                made = [
                    Completion(tokens, found, texts.cut(text), texts.ended(tokens), trunk, origin)
                    for (tokens, found), text, trunk in zip(drawn, whole, trunks, strict=True)
                ]
                for place, number in enumerate(part):
                    groups[number] = tuple(made[place * group_size :][:group_size])
                asked.progress(len(groups))
                continue
            machine.drop_caches()  # now that nothing holds what was made
        return [groups[number] for number in range(len(prompts))]


Drawn = tuple[tuple[int, ...], tuple[float, ...]]
"""Tokens, up to and with the one that ends the row, and their log-probs."""


def num_trunk_bytes(scorer: Scorer, prompts: Prompts, group_size: int, max_tokens: int) -> int:
    """The most that the trunks of a rollout can take."""
    tokens = sum(map(len, prompts)) + len(prompts) * group_size * max_tokens
    return tokens * scorer.state_bytes


def draw(decoding: Decoding, uniforms_RT: Tensor, sampling: Sampling, texts: Texts) -> list[Drawn]:
    """Tokens and log-probs of every row up to its end; UserError for one that is not finite.

    Where the host must wait for an answer, it asks which rows have ended once in `SELDOM` tokens;
    those that have go on until then, and what they draw is dropped."""
    device, (count, steps) = uniforms_RT.device, uniforms_RT.shape
    every, asked = ASK_EVERY.get(device.type, SELDOM), 0
    rows = list(range(count))  # the living ones
    row_B = torch.arange(count, device=device)  # where their results go
    tokens_RT = torch.zeros(count, steps, dtype=torch.long, device=device)
    logprobs_RT = torch.zeros(count, steps, device=device)
    greedy = sampling.temperature == 0
    written_R: list[list[int]] = [[] for _ in rows]
    for step in range(steps):
        logprobs_BV = distribution(decoding.logits_BV, sampling)
        token_B = choose(logprobs_BV, uniforms_RT[row_B, step], greedy)
        tokens_RT[row_B, step] = token_B
        logprobs_RT[row_B, step] = logprobs_BV.gather(-1, token_B[:, None]).squeeze(-1)
        if (step + 1) % every == 0 or step + 1 == steps:
            new = tokens_RT[row_B, asked : step + 1].tolist()
            asked = step + 1
            pairs = enumerate(zip(rows, new, strict=True))
            live = [n for n, (row, of) in pairs if not ends_within(texts, written_R[row], of)]
            if not live or step + 1 == steps:
                break
            if len(live) < len(rows):
                rows, live_B = [rows[n] for n in live], index(live, device)
                row_B, token_B = row_B[live_B], token_B[live_B]
                decoding.keep(live)
        decoding.advance(token_B)
    pairs = zip(written_R, logprobs_RT.tolist(), strict=True)
    drawn = [(tuple(tokens), tuple(found[: len(tokens)])) for tokens, found in pairs]
    if not all(math.isfinite(logprob) for _, found in drawn for logprob in found):
        raise UserError.of("broken_logits")
    return drawn


def ends_within(texts: Texts, written: list[int], tokens: Sequence[int]) -> bool:
    """Whether a row ends within its next tokens; those up to its end join what it has written."""
    for token in tokens:
        written.append(token)
        if texts.ended(written):
            return True
    return False


class SamplerSettings(spec.Spec, ABC):
    """Settings that begin a sampler; `in_process` is the sampler's."""

    in_process: ClassVar[bool] = False

    def require(self) -> None:
        """UserError if it surely cannot begin here; asked before a model is loaded."""

    def held(self, memory: int, device: str) -> tuple[int, int]:
        """Bytes of so many on such a device that its server takes: while completions are drawn, and
        while the policy trains."""
        return 0, 0

    @abstractmethod
    def begin(
        self, engine: Engine, loaded: Loaded, prepared: Prepared | None, compute: Compute, rows: int
    ) -> Sampler:
        """A sampler of the policy as it is now, of so many rows at a time; `prepared` is its update, if
        it trains."""


class Local(SamplerSettings):
    """This process, token by token, with the engine that trains."""

    in_process: ClassVar[bool] = True

    weight_copy: bool | None = None
    """Whether it has a copy of the weights, laid out for few rows (docs/engine.md); None: for a wide
    model on a CPU."""
    graphs: bool | None = None
    """Whether shapes stay, so that a step is captured once as a CUDA graph (docs/engine.md); None: on a
    GPU."""

    def copied(self, decoder: Decoder, device: str) -> WeightCopy | None:
        """The copy for a decoder on such a device, if it has one."""
        pays = device == "cpu" and decoder.config.hidden_size >= WIDE
        wanted = pays if self.weight_copy is None else self.weight_copy
        return WeightCopy(decoder) if wanted else None

    def begin(
        self, engine: Engine, loaded: Loaded, prepared: Prepared | None, compute: Compute, rows: int
    ) -> Sampler:
        if isinstance(engine, SplitEngine):
            engine.weight_copy = self.copied(engine.decoder, engine.device.type)
            engine.way = way_for(engine.decoder, engine.device, self.graphs)
        elif self.weight_copy or self.graphs:
            raise UserError(f"sampler {self}: only engine split decodes so, and this is another")
        ends = loaded.end_tokens
        return LocalSampler(engine, loaded.tokenizer, ends, rows, compute.trunk_bytes)


SAMPLERS: dict[str, type] = {cls.name: cls for cls in (Local,)}


def parse(text: str) -> SamplerSettings:
    """The sampler that an expression names."""
    return spec.build("sampler", text, SAMPLERS)
