"""Corrections of what another sampler computes otherwise than the trainer.

    surrogate = w surrogate(pi / o),   w = f(d) without a gradient,   d = log o - log q

q is the probability that the sampler says, o what the trainer's own forward gives before the first
update, pi the policy. That form is `decoupled`; `bypass` has no weight, and the ratio pi / q.

Shapes: T tokens of a row, N those of all rows."""

from abc import ABC, abstractmethod
from dataclasses import field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from modicum import spec
from modicum.limits import Limits
from modicum.objectives.parts import kl3
from modicum.types import UserError, Weights

High = Annotated[float, Limits(1, 100)]
Low = Annotated[float, Limits(0, 1, above=True)]


class Correction(spec.Spec, ABC):
    """What becomes of the difference between sampler and trainer at the tokens of a row."""

    form: ClassVar[str] = "decoupled"
    divides: str = field(default="sampled", init=False)
    """Whether the loss is divided by all tokens, or by those that are kept; others are in none of its terms."""

    @abstractmethod
    def weigh(self, d_T: Tensor) -> Tensor:
        """Weights [T] of d [T] in nats; 0 where it rejects."""

    def weights(self, d_T: Tensor) -> Weights:
        """The weights of a row."""
        rejected = None if self.divides == "kept" else 0.0
        return tuple(weight or rejected for weight in self.weigh(d_T).tolist())


class Uncorrected(Correction):
    """None: the ratio is to what the sampler says."""

    name: ClassVar[str] = "none"
    form: ClassVar[str] = "bypass"

    def weigh(self, d_T: Tensor) -> Tensor:
        return torch.ones_like(d_T)


class Token(Correction):
    """Truncated importance sampling, min(exp d, cap): keeps all tokens, biased by what is cut off."""

    cap: High = 2.0

    def weigh(self, d_T: Tensor) -> Tensor:
        return d_T.exp().clamp(max=self.cap)


class Rejecting(Correction):
    """One that may give a weight of 0."""

    divides: Literal["kept", "sampled"] = field(default="kept", kw_only=True)


class Sequence(Rejecting):
    """exp of the sum of d, one weight a row, within 1 / cap to cap; TRL has the upper bound alone."""

    cap: High = 3.0

    def weigh(self, d_T: Tensor) -> Tensor:
        weight_T = d_T.sum().exp().expand_as(d_T)
        return _within(weight_T, weight_T, 1 / self.cap, self.cap)


class Mask(Rejecting):
    """exp d of the tokens where it is within the bounds."""

    low: Low = 0.5
    high: High = 2.0

    def weigh(self, d_T: Tensor) -> Tensor:
        return _within(d_T.exp(), d_T.exp(), self.low, self.high)


class Geometric(Rejecting):
    """1 for rows whose exp of the mean of d is within the bounds, however long they are."""

    low: Low = 0.999
    high: High = 1.001

    def weigh(self, d_T: Tensor) -> Tensor:
        return _within(torch.ones_like(d_T), d_T.mean().exp(), self.low, self.high)


def _within(weight_T: Tensor, judged_T: Tensor, low: float, high: float) -> Tensor:
    # What is not a number is left to the step, which is skipped.
    return weight_T.masked_fill((judged_T < low) | (judged_T > high), 0.0)


MEMBERS = (Uncorrected, Token, Sequence, Mask, Geometric)
CORRECTIONS: dict[str, type[Correction]] = {cls.name: cls for cls in MEMBERS}


def parse(text: str, in_process: bool) -> Correction:
    """The correction that an expression names; `auto`: none for a sampler in this process, else token."""
    if text == "auto":
        return Uncorrected() if in_process else Token()
    found: Correction = spec.build("correction", text, CORRECTIONS)
    if in_process and found != Uncorrected():
        raise UserError.of("in_process", correction=found)
    return found


def measured(apart_N: Tensor, weights: list[Weights]) -> dict[str, float]:
    """Metrics of d [N], how far trainer and sampler are apart, and of the weights of every row."""
    each = [weight for row in weights for weight in row]
    total, square = sum(w or 0.0 for w in each), sum((w or 0.0) ** 2 for w in each)
    found = {
        "mismatch_mean": float(apart_N.abs().mean()),
        "mismatch_max": float(apart_N.abs().max()),
        "k3": float(kl3(torch.zeros_like(apart_N), apart_N).mean()),
        "weight_mean": total / max(1, len(each) - each.count(None)),
        "rejected_tokens": sum(not weight for weight in each) / len(each),
        "rejected_rows": sum(not any(row) for row in weights) / len(weights),
        "ess": total**2 / (square * len(each)) if square else 0.0,
    }
    return {f"sampler/{name}": value for name, value in found.items()}
