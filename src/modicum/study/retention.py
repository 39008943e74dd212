"""The share of the control's gain that an arm keeps, with a joint interval.

    r = (arm - base) / (control - base)

The interval holds every r for which the interval of (arm - base) - r (control - base), over
seeds and problems at once, holds 0 (Fieller 1954). It has two ends exactly when the control's
own gain is clear; else there is no ratio to speak of.

    S seed, I problem
"""

from collections.abc import Callable

from modicum.stats import Interval, no_spread
from modicum.study.twolevel import Spread, Table, spread

LEVEL = 0.95
MAX_STEPS = 40  # Doublings of the distance from the estimate; 2^40 is no ratio.


def retention(arm_SI: Table, control_SI: Table, base_I: Table) -> Interval | str:
    """The retained share with its 95 % interval, or why there is none; rows are paired seeds."""
    arm, control = spread(arm_SI - base_I), spread(control_SI - base_I)
    both = spread(arm_SI - control_SI)
    if control.none or abs(control.mean) <= control.half_width(LEVEL):
        return "the control's own gain is not clear"
    if control.mean < 0:
        return "the control lost accuracy"
    ratio = arm.mean / control.mean
    if both.none:
        # Equal up to a constant: how sure that is says Wilson's interval, not the ratio.
        seen = no_spread(both.mean, both.num_problems, LEVEL, (-1.0, 1.0))
        return Interval(ratio, 1 + seen.low / control.mean, 1 + seen.high / control.mean)

    def excess(value: float) -> float:
        """Above 0 where the interval of (arm - base) - value (control - base) lies beside 0."""
        found = _combined(arm, control, both, value)
        return abs(found.mean) - found.half_width(LEVEL)

    low, high = _end(excess, ratio, -1.0), _end(excess, ratio, 1.0)
    if low is None or high is None:
        return "the control's own gain is not clear"
    return Interval(ratio, low, high)


def _combined(arm: Spread, control: Spread, both: Spread, value: float) -> Spread:
    """The spread of arm - value x control from those of arm, control and arm - control.

    A mean square is quadratic in what it is of, so the cross term is known from the three.
    """

    def square(a: float, c: float, d: float) -> float:
        return max(0.0, (1 - value) * a + value * d + (value * value - value) * c)

    return Spread(
        arm.num_seeds,
        arm.num_problems,
        arm.mean - value * control.mean,
        square(arm.seeds, control.seeds, both.seeds),
        square(arm.problems, control.problems, both.problems),
        square(arm.residual, control.residual, both.residual),
    )


def _end(excess: Callable[[float], float], ratio: float, sign: float) -> float | None:
    """Where `excess` first becomes positive from `ratio` on; None where it does not."""
    inside, step = ratio, 0.01
    for _ in range(MAX_STEPS):
        outside = ratio + sign * step
        if excess(outside) > 0:
            for _ in range(20):  # bisection to a millionth of the bracket
                middle = (inside + outside) / 2
                inside, outside = (inside, middle) if excess(middle) > 0 else (middle, outside)
            return outside
        inside, step = outside, 2 * step
    return None
