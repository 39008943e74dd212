"""The policy: one model under one name, with what samples from it and what scores it.

And what an architecture's own forward can do, tried out on a few tokens before it is used. No attribute
says whether one decodes padded prompts with a cache that can be repeated and thinned out. So the engine
`library` is tried against forwards of each sequence alone, and its decoder with the head around it. What
differs is not used (`library.Abilities`).

Shapes: B row, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from modicum.config import Compute, Sampling
from modicum.engine import samplers
from modicum.engine.base import Changed, Engine, Prompt, Prompts, Sampler, Scorer
from modicum.engine.library import FOUND, Abilities, LibraryDecoding, LibraryEngine
from modicum.engine.split import SplitEngine
from modicum.engine.text import begun
from modicum.engine.version import adapter_layers
from modicum.models.decoder import view
from modicum.models.device import repeatable
from modicum.models.load import Loaded, inner
from modicum.tasks.prompts import stops
from modicum.types import Completion, UserError
from modicum.updates.base import Prepared

# What forwards of others raise where they do not do what is tried: a wrong shape, an argument that
# they do not know, a cache of another kind, an assertion, a package that is not there.
REFUSALS = (
    *(RuntimeError, ValueError, TypeError, AttributeError),
    *(LookupError, AssertionError, ImportError),
)
LONG, SHORT = 7, 3  # tokens of the two prompts
# Expected |difference of log-probs| of a token, in nats, as in the agreement proof.
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
LOW_ROUNDING = 0.5  # in bf16 single tokens are a tenth of a nat apart by rounding alone


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
    draw: Callable[..., list[tuple[Completion, ...]]] | None = None
    """What asks this sampler and those of other processes, if there are any."""

    def sample(
        self,
        prompts: Prompts,
        keys: Sequence[tuple[object, ...]],
        group_size: int,
        sampling: Sampling,
        keep_trunk: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """`group_size` completions for every prompt (see `Sampler.sample`).

        Unset stop strings become those that the prompt invites, and texts begin with the
        thinking that their prompt has opened. Raises UserError when a prompt and a completion
        together are longer than the model's positions."""
        check_length(prompts, self.model, sampling)
        told = replace(sampling, stop=stops(self.tokenizer, sampling))
        draw = partial(self.draw, self.sampler.sample) if self.draw else self.sampler.sample
        groups = draw(prompts, keys, group_size, told, keep_trunk, progress)
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
    engine = make(model, loaded.device, lowest, compute.engine, compute.checkpointing)
    engine.notes = (*loaded.notes, *engine.notes)
    settings = samplers.parse(compute.sampler)
    sampler = settings.begin(engine, loaded, prepared, compute, rollout_batch)
    rest = (loaded.tokenizer, loaded.end_tokens, loaded.device, engine, sampler)
    policy = Policy(model, *rest, adapter_layers(model))
    if prepared is not None:
        policy.follow(prepared)
    return policy


def make(
    model: Any,
    device: torch.device,
    lowest: int = -1,
    kind: str = "auto",
    recompute: bool | None = False,
) -> Engine:
    """The engine of a model whose lowest trained layer is `lowest` (-1: the embedding).

    `auto` splits the forward where the family is known. `recompute` is gradient
    checkpointing. Raises UserError for what an architecture cannot do."""
    decoder = None if kind == "library" else view(model)
    if decoder is not None:
        return SplitEngine(decoder, lowest, bool(recompute))
    if kind == "split":
        name = model.config.model_type
        raise UserError(f"engine split: the architecture {name!r} is not one that it knows")
    if recompute:
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
        raise UserError(
            f"a prompt and max_tokens = {sampling.max_tokens} make {longest} tokens;"
            f" the model has positions for {limit}"
        )


@torch.no_grad()
def probe(model: Any, device: torch.device) -> None:
    """Find out what `model` can do, for every `LibraryEngine` of it that is made later.

    Raises UserError for an architecture whose forward cannot be run, or looks ahead."""
    from transformers import PreTrainedModel

    base = inner(model)
    if not isinstance(base, PreTrainedModel):
        return  # not the library's: whoever made it knows what it can do
    head = base.get_output_embeddings()
    if head is None:
        raise _refusal(base, "it has no output embedding")
    count, rows = len(head.weight), len(base.get_input_embeddings().weight)  # type: ignore[arg-type]
    if count > rows:
        raise _refusal(base, f"it samples {count} tokens and has embeddings for {rows}")
    FOUND.pop(base, None)
    if head.weight.is_meta and not isinstance(head.weight, FakeTensor):
        return  # nothing is decoded there
    training = model.training
    model.eval()  # without dropout
    try:
        _try(model, device, base, head.weight)
    finally:
        model.train(training)


def _try(model: Any, device: torch.device, base: Any, weight: Tensor) -> None:
    # Different ordinary tokens: the first ones are often special.
    start = len(weight) // 2
    tokens = tuple((start + 5 * place) % len(weight) for place in range(LONG + SHORT))
    prompts = tokens[:LONG], tokens[LONG:]
    if isinstance(weight, FakeTensor):
        # Without data nothing can be compared; what raises is known all the same.
        FOUND[base] = Abilities(_cache(model, device, prompts, compared=False))
        return
    try:
        alone = [_alone(model, device, prompt) for prompt in prompts]
        padded_BT = torch.zeros(2, LONG, dtype=torch.long)
        padded_BT[0], padded_BT[1, :SHORT] = torch.tensor(prompts[0]), torch.tensor(prompts[1])
        found = model(input_ids=padded_BT.to(device), use_cache=False).logits
    except REFUSALS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _refusal(base, reason) from None
    if alone[0].log_softmax(-1).isnan().any():
        return  # sampling says that the weights are broken
    begun = _alone(model, device, prompts[0][:SHORT])
    if not (_same(found[1, SHORT - 1], alone[1][-1]) and _same(alone[0][SHORT - 1], begun[-1])):
        raise _refusal(base, "what follows a token changes what is predicted before it")
    FOUND[base] = Abilities()
    # Whether the model's own logits can be had from the states of its decoder.
    engine, ids_1T = LibraryEngine(model, device), torch.tensor(prompts[:1], device=device)
    try:
        found_TV = engine.logits(engine.hidden((ids_1T, torch.arange(LONG, device=device)), None))
        whole = found_TV.shape != alone[0].shape or not _same(found_TV, alone[0])
    except REFUSALS:
        whole = True
    FOUND[base] = Abilities(_cache(model, device, prompts), whole)


def _cache(
    model: Any, device: torch.device, prompts: Prompts, compared: bool = True
) -> Literal["padded", "equal", "none"]:
    long, short = prompts
    # No mask is given without padding.
    if all(_right(model, device, tried, compared) for tried in (prompts, [long])):
        return "padded"
    if all(_right(model, device, tried, compared) for tried in ([long, long[::-1]], [short])):
        return "equal"
    return "none"


def _right(model: Any, device: torch.device, prompts: Prompts, compared: bool) -> bool:
    """Whether a cache can be had of these prompts, and gives what forwards give."""
    try:
        decoded = list(_decoded(model, device, prompts))
    except REFUSALS:
        return False
    return not compared or all(
        _same(logits_V, _alone(model, device, sequence)[-1]) for sequence, logits_V in decoded
    )


def _decoded(model: Any, device: torch.device, prompts: Prompts) -> Iterator[tuple[Prompt, Tensor]]:
    """Sequences and the logits after them, from a cache: two rows a prompt, one leaves."""
    decoding = LibraryDecoding(LibraryEngine(model, device), prompts, 2, LONG)
    rows = [prompt for prompt in prompts for _ in range(2)]
    pad: Any = getattr(inner(model).config.get_text_config(), "pad_token_id", None)
    for step in range(3):
        tokens = [prompts[0][(row + step) % len(prompts[0])] for row in range(len(rows))]
        if step == 0 and pad in range(len(inner(model).get_output_embeddings().weight)):
            tokens[0] = pad  # it may be sampled too, and some do not count it as a position
        decoding.advance(torch.tensor(tokens, device=device))
        rows = [(*row, token) for row, token in zip(rows, tokens, strict=True)]
        yield from zip(rows, decoding.logits_BV, strict=True)
        if step == 0:
            live = [0, *range(2, len(rows))]
            decoding.keep(live)
            rows = [rows[row] for row in live]


def _alone(model: Any, device: torch.device, sequence: Prompt) -> Tensor:
    return model(input_ids=torch.tensor([sequence], device=device), use_cache=False).logits[0]


def _same(one: Tensor, two: Tensor) -> bool:
    """Whether logits [..., V] give the same log-probs up to rounding in their dtype."""
    logprobs, others = one.float().log_softmax(-1), two.float().log_softmax(-1)
    probs = others.exp()
    apart = (probs * (logprobs - others).abs()).where(probs > 0, 0.0).sum(-1)
    return bool((apart <= ROUNDING.get(two.dtype, LOW_ROUNDING)).all())


def _refusal(base: Any, reason: str) -> UserError:
    return UserError(f"the architecture {base.config.model_type!r} cannot be run: {reason}")
