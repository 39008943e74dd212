"""Names beside points without overlaps: every label tries places around its point.

Greedy with repair: the most crowded point chooses first, then each label is taken up again
and put where it costs least beside all others, until nothing moves. Everything is in inches
of the figure, so that a label's size is known; the same points give the same places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROUNDS = 8
DISTANCES = (0.09, 0.16, 0.26, 0.4, 0.58, 0.8)
ANGLES = tuple(math.radians(degrees) for degrees in range(0, 360, 15))
LINE_FROM = 0.2  # a label farther off than this needs a line to its point


Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A rectangle in inches."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The area that both cover, in square inches."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.top, other.top) - max(self.bottom, other.bottom)
        return across * up if across > 0 and up > 0 else 0.0


@dataclass(frozen=True)
class LabelPlace:
    """Where a label goes: its middle, its box, and how far it is from its point."""

    y: float
    distance: float
    cost: float
    box: Box

    @property
    def needs_line(self) -> bool:
        """Whether a reader would not see which point it belongs to."""
        return self.distance > LINE_FROM


def arrange(
    points: Sequence[Point],
    sizes: Sequence[Point],
    bounds: Box,
    obstacles: Sequence[Box] = (),
) -> list[LabelPlace]:
    """A place for the label of every point; `sizes` are widths and heights.

    Points and `obstacles` are kept clear where there is room, `bounds` is not left.
    """
    marks = [Box(x - 0.06, y - 0.06, x + 0.06, y + 0.06) for x, y in points]
    fixed = [*marks, *obstacles]
    choices = [
        _choices(point, size, bounds, fixed) for point, size in zip(points, sizes, strict=True)
    ]
    crowd = [sum(math.dist(a, b) < 0.8 for b in points) for a in points]
    order = sorted(range(len(points)), key=lambda i: (-crowd[i], points[i]))
    chosen: dict[int, LabelPlace] = {}
    for _ in range(ROUNDS):
        moved = False
        for i in order:
            others = [(points[j], place) for j, place in chosen.items() if j != i]
            best = min(choices[i], key=lambda place: _total(points[i], place, others))
            moved |= chosen.get(i) != best
            chosen[i] = best
        if not moved:
            break
    return [chosen[i] for i in range(len(points))]


def _choices(point: Point, size: Point, bounds: Box, fixed: Sequence[Box]) -> list[LabelPlace]:
    """All places around a point with what each costs by itself."""
    found = []
    for distance in DISTANCES:
        for angle in ANGLES:
            # The label's nearest edge or corner lies at that distance.
            across, up = math.cos(angle), math.sin(angle)
            x = point[0] + distance * across - size[0] * (1 - across) / 2
            y = point[1] + distance * up + size[1] / 2 * up
            box = Box(x, y - size[1] / 2, x + size[0], y + size[1] / 2)
            sides = (bounds.left - box.left, box.right - bounds.right)
            ends = (bounds.bottom - box.bottom, box.top - bounds.top)
            outside = sum(max(0.0, gap) for gap in (*sides, *ends))
            covered = sum(box.overlap(other) for other in fixed)
            # To the right is where a reader looks first, above next.
            taste = 0.02 * (1 - across) + 0.01 * (1 - up)
            cost = 1.2 * distance + 60 * outside + 40 * covered + taste
            found.append(LabelPlace(y, distance, cost, box))
    return found


def _total(point: Point, place: LabelPlace, others: Sequence[tuple[Point, LabelPlace]]) -> float:
    cost = place.cost
    line = (point, _middle(place))
    for other_point, other in others:
        cost += 60 * place.box.overlap(other.box)
        if place.needs_line and other.needs_line:
            cost += 0.3 * _cross(line, (other_point, _middle(other)))
    return cost


def _middle(place: LabelPlace) -> Point:
    return (place.box.left + place.box.right) / 2, place.y


def _cross(one: tuple[Point, Point], two: tuple[Point, Point]) -> bool:
    """Whether two segments cross."""

    def side(a: Point, b: Point, c: Point) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    (a, b), (c, d) = one, two
    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
