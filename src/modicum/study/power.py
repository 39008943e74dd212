"""How many seeds would settle an arm that is undecided.

From the variances A (seeds), B (problems) and E (the rest) of its difference to the control
(`twolevel.Spread.components`), with S seeds and I problems

    h(p)^2 = t(S-1, p)^2 (A/S + E/(S I)) + t(I-1, p)^2 B/I

and, if the difference is what it seems, S seeds show with a chance of 80 % that it is

    not worse, when mean + margin >= h(1 - alpha) + h(0.8)
    worse,     when -mean         >= h(0.975) + h(0.8)

Both are guesses as good as the estimates that go in. More seeds do not shrink B/I: where it
alone is too large, only more problems help.
"""

from modicum.study.twolevel import Spread, half_width

POWER = 0.8
MOST = 100


def seeds_needed(found: Spread, margin: float, alpha: float = 0.05) -> int | None:
    """The smallest number of seeds above those there are; None when `MOST` are not enough.

    `alpha` is one-sided and belongs to "not worse". A single seed shows no spread of seeds,
    so it gives None.
    """
    if found.num_seeds < 2 or found.none:
        return None
    problems, variances = found.num_problems, found.components
    for seeds in range(found.num_seeds + 1, MOST + 1):
        seen = variances.seed / seeds + variances.residual / (seeds * problems)
        power, not_worse, worse = (
            half_width(seeds, problems, probability, (seen, variances.problem / problems))
            for probability in (POWER, 1 - alpha, 0.975)
        )
        if found.mean + margin >= not_worse + power or -found.mean >= worse + power:
            return seeds
    return None
