"""The policy: one model under one name, with what samples from it and what scores it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from modicum.config import Compute, Sampling
from modicum.engine import samplers
from modicum.engine.base import Asked, Changed, Engine, Groups, Keys, Prompts, Sampler, Scorer
from modicum.engine.library import LibraryEngine
from modicum.engine.probe import probe
from modicum.engine.split import SplitEngine
from modicum.engine.text import begun
from modicum.engine.version import adapter_layers
from modicum.models.decoder import view
from modicum.models.device import repeatable
from modicum.models.load import Loaded, inner
from modicum.tasks.prompts import stops
from modicum.types import Completion, UserError
from modicum.updates.base import Prepared


@dataclass
class Policy:
    """A model, adapters included, and all that it takes to run it."""

    model: nn.Module
    tokenizer: Any
    end_tokens: tuple[int, ...]
    device: torch.device
    scorer: Scorer
    sampler: Sampler
    adapters: Sequence[nn.Module] = ()  # the layers of an adapter
    changed: Changed = field(default_factory=lambda: Changed({}, -1))
    """What was last told to sampler and scorer."""
    ledger: dict[str, dict[str, int]] = field(default_factory=dict)
    """Completions and tokens that were generated, by the first word of their keys."""
    draw: Callable[..., Groups] = lambda draw, asked: draw(asked)
    """What asks this sampler and those of other processes, if there are any."""

    def sample(
        self, prompts: Prompts, keys: Keys, group_size: int, sampling: Sampling, **more: Any
    ) -> Groups:
        """`group_size` completions for every prompt (see `Sampler.sample`), `more` as in `Asked`.

        Unset stop strings become those that the prompt invites, and texts begin with the
        thinking that their prompt has opened. Raises UserError when a prompt and a completion
        together are longer than the model's positions."""
        check_length(prompts, self.model, sampling)
        told = replace(sampling, stop=stops(self.tokenizer, sampling))
        groups = self.draw(self.sampler.sample, Asked(prompts, keys, group_size, told, **more))
        for key, group in zip(keys, groups, strict=True):
            self.move(str(key[0]), group)
        pairs = zip(prompts, groups, strict=True)
        return [begun(self.tokenizer, prompt, group) for prompt, group in pairs]

    def move(self, purpose: str, group: Sequence[Completion], before: str = "") -> None:
        """Enter a group in the ledger, where it may have stood under another purpose."""
        tokens = sum(len(completion.tokens) for completion in group)
        for name, sign in (purpose, 1), (before, -1):
            if name:
                entry = self.ledger.setdefault(name, {"completions": 0, "tokens": 0})
                entry["completions"] += sign * len(group)
                entry["tokens"] += sign * tokens

    def follow(self, prepared: Prepared) -> None:
        """Tell sampler and scorer what trains now; call after every change of the weights."""
        self.changed = Changed(prepared.active, prepared.lowest_layer, self.adapters)
        self.scorer.follow(self.changed)
        self.sampler.follow(self.changed)


def policy_of(
    loaded: Loaded,
    prepared: Prepared | None = None,
    compute: Compute | None = None,
    rollout_batch: int = 512,
) -> Policy:
    """The policy of a loaded model, under an update if it trains."""
    compute = compute or Compute()
    repeatable(compute.deterministic, loaded.device)
    model = loaded.model if prepared is None else prepared.model
    lowest = -1 if prepared is None else prepared.lowest_layer
    engine = make(model, loaded.device, lowest, compute)
    engine.notes = (*loaded.notes, *engine.notes)
    settings = samplers.parse(compute.sampler)
    sampler = settings.begin(engine, loaded, prepared, compute, rollout_batch)
    rest = (loaded.tokenizer, loaded.end_tokens, loaded.device, engine, sampler)
    policy = Policy(model, *rest, adapter_layers(model))
    if prepared is not None:
        policy.follow(prepared)
    return policy


def make(
    model: Any, device: torch.device, lowest: int = -1, compute: Compute | None = None
) -> Engine:
    """The engine of a model whose lowest trained layer is `lowest` (-1: the embedding).

    `auto` splits the forward where the family is known. Raises UserError for what an architecture
    cannot do."""
    compute = compute or Compute()
    decoder = None if compute.engine == "library" else view(model)
    if decoder is not None:
        return SplitEngine(decoder, lowest, bool(compute.checkpointing))
    if compute.engine == "split":
        raise UserError.of("not_known", kind=model.config.model_type)
    if compute.checkpointing:
        raise UserError("gradient checkpointing needs engine split, which this model cannot use")
    probe(model, device)
    return LibraryEngine(model, device)


def check_length(prompts: Prompts, model: Any, sampling: Sampling) -> None:
    """UserError when a prompt and a completion are longer than the model's positions."""
    limit = getattr(inner(model).config, "max_position_embeddings", None)
    if not sampling.max_tokens:
        raise UserError("max_tokens: a run settles auto; here it takes a number")
    longest = max(map(len, prompts)) + sampling.max_tokens
    if limit is not None and longest > limit:
        raise UserError.of("too_long", max_tokens=sampling.max_tokens, longest=longest, limit=limit)
