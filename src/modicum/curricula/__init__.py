"""Curricula: which problems come next.

To add one: a frozen dataclass (see `base.Curriculum`) and its row in CURRICULA, and in
tests/test_curricula.py an example worked out by hand, which the contract suite compares.
"""

from modicum import spec
from modicum.curricula.base import Curriculum, Order, Seen
from modicum.curricula.members import EasyToHard, Uniform

CURRICULA: dict[str, type] = {cls.name: cls for cls in (Uniform, EasyToHard)}

__all__ = ["CURRICULA", "Curriculum", "Order", "Seen", "parse"]


def parse(text: str) -> Curriculum:
    """The curriculum that an expression such as `easy_to_hard(stages=4)` names."""
    return spec.build("curriculum", text, CURRICULA)
