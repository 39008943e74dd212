"""Curricula: which problems come next.

To add one: a file with a frozen dataclass (see `base.Curriculum`) that brings an example
worked out by hand, and its row in CURRICULA. The contract suite (tests/test_curricula.py)
picks it up.
"""

from modicum import spec
from modicum.curricula.base import Curriculum, Draw, Order, OrderExample, Seen
from modicum.curricula.easy_to_hard import EasyToHard
from modicum.curricula.uniform import Uniform

CURRICULA: dict[str, type] = {cls.name: cls for cls in (Uniform, EasyToHard)}

__all__ = ["CURRICULA", "Curriculum", "Draw", "Order", "OrderExample", "Seen", "parse"]


def parse(text: str) -> Curriculum:
    """The curriculum that an expression such as `easy_to_hard(stages=4)` names."""
    return spec.build("curriculum", text, CURRICULA)
