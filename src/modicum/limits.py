"""What the values of a field are within, said in its type: `Annotated[int, Limits(1, 50)]`."""

import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, get_type_hints

from modicum.types import UserError

MAX_FLOAT = sys.float_info.max


class Limits(NamedTuple):
    """What the values of a field are within, whose type is annotated with it; `above` and `below`
    leave out the lower and the upper end."""

    low: float
    high: float = MAX_FLOAT
    above: bool = False
    below: bool = False

    def check(self, what: str, value: float) -> None:
        """UserError that begins with `what` when a value is outside, or not a number."""
        low, high, above, below = self
        if not low <= value <= high or (above and value == low) or (below and value == high):
            least, most = "above" if above else "at least", "below" if below else "at most"
            end = "" if high == MAX_FLOAT else f" and {most} {high:.12g}"
            raise UserError(f"{what} must be {least} {low:g}{end}, not {value}")


Natural = Annotated[int, Limits(0)]
Positive = Annotated[int, Limits(1)]
Share = Annotated[float, Limits(0, 1)]
ShareBelowOne = Annotated[float, Limits(0, 1, below=True)]
Between = Annotated[float, Limits(0, 1, above=True, below=True)]


def check_limits(owner: Any, start: str = "") -> None:
    """UserError that begins with `start` when a field is outside of the `Limits` of its type."""
    for name, limits in _limits(type(owner)).items():
        value = getattr(owner, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None:
                limits.check(start + name, one)


@lru_cache(maxsize=256)
def _limits(cls: type) -> Mapping[str, Limits]:
    hints = get_type_hints(cls, include_extras=True)
    return {n: limits for n, hint in hints.items() for limits in getattr(hint, "__metadata__", ())}
