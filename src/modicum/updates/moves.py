"""How far a step goes in a tensor, beside the spacing of its numbers.

A number w of fp32 that is to move by less than half the distance to its neighbour stays as it
is. So a tensor must have changed only when some entry of it was to move by more than that.
Where weight decay acts, its own rounding may undo as much, and a whole spacing is asked for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 2**18  # numbers looked at at a time
HALF = 0.51  # a spacing's half, and room for the rounding of the step itself
FAR = 16.0  # spacings beyond which a tensor does not come back to its start by a few steps


@dataclass(frozen=True)
class Move:
    """The entry that a step took farthest for its spacing."""

    rate: float
    """The learning rate, with the tensor's multiplier."""
    step: float = 0.0
    spacing: float = 0.0
    spacings: float = 0.0
    """The step in spacings, less what weight decay may undo."""

    @property
    def shows(self) -> bool:
        """Whether the entry is certain to have moved."""
        return self.spacings > HALF

    @property
    def far(self) -> bool:
        """Whether it went so far that the tensor must differ from its start from now on."""
        return self.spacings >= FAR

    def __str__(self) -> str:
        return (
            f"a step of {self.step:.2g} at a learning rate of {self.rate:.2g} shows beside a"
            f" spacing of {self.spacing:.2g}"
        )


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor's numbers in order, so many at a time."""
    yield from tensor.detach().reshape(-1).split(PIECE)


def farthest(tensor: Tensor, sizes: Iterable[Tensor], rate: float, decay: float) -> Move:
    """Of fp32 numbers that moved by `rate` times `sizes` (flat, in `pieces`) or not at all.

    It stops at the first piece that goes far.
    """
    best = Move(rate)
    for values, size in zip(pieces(tensor), sizes, strict=False):
        height = values.abs()
        spacing = torch.nextafter(height, height.new_tensor(float("inf"))) - height
        step = rate * (size - decay * height)
        number = torch.where(step > 0, step / spacing, 0.0)
        at = int(number.argmax())
        found = float(number[at]) / (2 if decay else 1)
        if found > best.spacings:
            best = Move(rate, float(step[at]), float(spacing[at]), found)
        if best.far:
            break
    return best
