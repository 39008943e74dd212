"""Names beside points without overlaps: every label tries places around its point.

Greedy with repair: the most crowded point chooses first, then each label is taken up again
and put where it costs least beside all others, until nothing moves. Everything is in inches
of the figure, so that a label's size is known; the same points give the same places. A box is
left, bottom, right, top.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 8
DISTANCES = (0.09, 0.16, 0.26, 0.4, 0.58, 0.8)
LINE_FROM = 0.2  # a label farther off than this needs a line to its point
Boxes = NDArray[np.float64]


def overlap(boxes: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """[A, B] square inches that each of A boxes [A, 4] shares with each of B [B, 4]."""
    one, two = np.reshape(boxes, (-1, 1, 4)), np.reshape(others, (1, -1, 4))
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    return np.clip(sides, 0, None).prod(-1)


def arrange(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bounds: Sequence[float],
    obstacles: Sequence[Sequence[float]] = (),
) -> tuple[Boxes, list[bool]]:
    """A box for the label of every point, and whether it needs a line to its point.

    `sizes` are widths and heights. Points and `obstacles` are kept clear where there is room,
    `bounds` is not left.
    """
    distances, angles = np.meshgrid(DISTANCES, np.radians(np.arange(0, 360, 15)), indexing="ij")
    steps, across, up = distances.ravel(), np.cos(angles).ravel(), np.sin(angles).ravel()
    # To the right is where a reader looks first, above next.
    taste = 1.2 * steps + 0.02 * (1 - across) + 0.01 * (1 - up)
    at = np.array(points)
    fixed = np.array([*np.hstack([at - 0.06, at + 0.06]), *obstacles])
    choices, costs = [], []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        # The label's nearest edge or corner lies at that distance.
        left = x + steps * across - width * (1 - across) / 2
        bottom = y + steps * up - height / 2 * (1 - up)
        boxes = np.stack([left, bottom, left + width, bottom + height], axis=1)
        outside = np.maximum(0, np.subtract(bounds, boxes) * (1, 1, -1, -1)).sum(1)
        choices.append(boxes)
        costs.append(taste + 60 * outside + 40 * overlap(boxes, fixed).sum(1))
    crowd = (np.hypot(*(at[:, None] - at).T) < 0.8).sum(0)
    chosen: dict[int, int] = {}
    for _ in range(ROUNDS):
        before = dict(chosen)
        for i in sorted(range(len(points)), key=lambda i: (-crowd[i], points[i])):
            others = [choices[j][place] for j, place in chosen.items() if j != i]
            chosen[i] = int(np.argmin(costs[i] + 60 * overlap(choices[i], others).sum(1)))
        if chosen == before:
            break
    found = [chosen[i] for i in range(len(points))]
    boxes = np.array([choices[i][place] for i, place in enumerate(found)])
    return boxes, [bool(steps[place] > LINE_FROM) for place in found]
