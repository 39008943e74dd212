"""How a study's numbers are made and what they do not say, in a few plain paragraphs."""

from modicum.report.numbers import listed
from modicum.results import Analysis

REFERENCE = "docs/statistics.md has the formulas and the simulations that check them."


def paragraphs(analysis: Analysis) -> list[str]:
    """The paragraphs, in the study's own numbers."""
    margin, control = f"{100 * analysis.margin:g} points", f"`{analysis.control}`"
    return [
        _data(analysis),
        _intervals(analysis),
        f"The margin of {margin} was fixed before the runs. An arm is not worse than {control} by"
        f" more than it when a loss of {margin} or more is refused at 5 %, one-sided: its 90 %"
        f" interval begins above −{margin}. Only then is it tested whether it is better: its 95 %"
        f" interval lies above 0. It is equivalent when the 90 % interval lies within ±{margin} (two"
        " one-sided tests), and worse when the 95 % interval lies below 0. The p-values of each"
        " test are adjusted by Holm over the arms, so that a verdict may be withheld which the"
        " interval alone would allow. Placebos are reported and belong to no such family.",
        "Retention is the arm's gain over the base as a share of the control's, with a joint"
        " interval; it is left out where the control's own gain is not clear.",
        "Not claimed: that an undecided arm equals the control, or that a verdict holds for"
        f" another model, task, budget or grid of rates.{_tuning(analysis)} Seconds and memory are"
        " of the machine below. Only the difference of each arm from the control was tested, not"
        f" that between two other arms. {REFERENCE}",
    ]


def _data(analysis: Analysis) -> str:
    seeds = len(analysis.seeds)
    text = f"Every arm trained once with each of {seeds} seeds" if seeds > 1 else "One run an arm"
    if analysis.budget is not None:
        text += f", each run within {analysis.budget.amount:,.0f} {analysis.budget.unit}"
    if analysis.num_problems is not None:
        text += (
            f". Every trained model answered the same {analysis.num_problems:,}"
            f" {analysis.split} problems, which neither training nor tuning saw"
        )
    if analysis.samples_per_problem is not None:
        text += f", {analysis.samples_per_problem} times each; a problem's score is its mean"
    return f"{text}."


def _tuning(analysis: Analysis) -> str:
    tries = {len(arm.tries) for arm in analysis.arms} - {0}
    if not tries:
        return ""
    count = str(tries.pop()) if len(tries) == 1 else f"{min(tries)} to {max(tries)}"
    return f" Each arm's learning rate was chosen among {count} tries on tuning problems."


def _intervals(analysis: Analysis) -> str:
    methods = {arm.difference.method for arm in analysis.arms if arm.difference} - {""}
    how = f" ({listed(sorted(methods), 'or')})" if methods else ""
    text = (
        "A difference is the arm's accuracy minus the control's, paired by seed and by problem;"
        f" its interval covers the luck of the seed and the choice of problems{how}."
    )
    if len(analysis.seeds) == 1:
        text += (
            " With one seed it covers the problems only: it speaks about these trained models,"
            " not about the methods."
        )
    parts = analysis.variance
    if parts is not None:
        sizes = (
            f"{100 * max(parts.seed, 0) ** 0.5:.1f} and {100 * max(parts.problem, 0) ** 0.5:.1f}"
        )
        text += (
            f" The control's scores have a standard deviation of {sizes} points between seeds and"
            " between problems."
        )
    return text
