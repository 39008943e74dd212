"""What an adapter does to a linear layer: a chain of matrices beside or inside it.

Every adapter says its own (`adapter.Adapter.chain`), and `products` counts them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ADAPTER = "default"  # PEFT's name of the only adapter
Trains = Callable[[Any], bool]
"""Whether a parameter, or any in a module, trains."""


@dataclass(frozen=True)
class Link:
    """A matrix that an adapter multiplies by, or a scale, which has no product (0 numbers)."""

    numbers: int
    trains: bool


@dataclass(frozen=True)
class Chain:
    """What an adapter does, in order.

    `inside`: it changes the input of the base layer. `whole`: its gradient is made from
    that of the whole weight.
    """

    links: tuple[Link, ...] = ()
    inside: bool = False
    whole: bool = False
