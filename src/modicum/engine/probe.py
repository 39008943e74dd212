"""What an architecture's own forward can do, tried out on a few tokens before it is used.

No attribute says whether one decodes padded prompts with a cache that can be repeated and thinned
out. So the engine `library` is tried against forwards of each sequence alone, and its decoder
with the head around it. What differs is not used (`library.Abilities`).

Shapes: B row, V vocabulary."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from modicum.engine.base import Prompt, Prompts
from modicum.engine.library import FOUND, Abilities, LibraryDecoding, LibraryEngine
from modicum.models.load import inner
from modicum.types import UserError

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
    pairs = ((_alone(model, device, sequence)[-1], logits_V) for sequence, logits_V in decoded)
    return not compared or all(_same(logits_V, alone_V) for alone_V, logits_V in pairs)


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
