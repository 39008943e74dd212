"""The units of a scan (layers, blocks of layers, parts), ranked by what they gain, and shown.

docs/scan.md has gain, its two intervals and contribution (arXiv 2607.01232). Departure from the
paper: it trains long runs of large models; a short budget ranks how fast units learn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from modicum import stats
from modicum.disk import writing
from modicum.report.style import INK, MUTED, PAPER, SERIES, blank, styled, svg
from modicum.report.tables import terminal, terminal_table
from modicum.report.words import filled, percent
from modicum.types import Frozen, UserError

Over = Literal["layers", "blocks", "parts"]
Scores = Sequence[float]
FULL = "full"
SHOWN = ("unit", "update", "gain", "by_seed", "over_seeds", "over_problems", "contribution")
SHOWN += ("level_with_best", "learning_rate", "parameters", "seconds", "failed")
WORDS_ACROSS = 8  # labels that fit side by side
HEADS = ("update", "", "gain", "95%, over\nseeds", "95%, over\nproblems", "of full's", "trained")


class Unit(Frozen):
    """One place to train: its short label and its selection."""

    label: str
    place: str


class Standing(Frozen):
    """One unit at one rate, and its place in the ranking; None where a number does not exist."""

    unit: str
    update: str
    base: Scores  # of the untrained model, by problem
    scores: Mapping[int, Scores]  # the same by seed, of runs that have ended
    learning_rate: float | None = None
    parameters: int | None = None
    seconds: float | None = 0.0  # mean over runs; None where they cannot be compared
    failed: tuple[str, ...] = ()  # why runs of it stopped
    contribution: float | None = None
    level_with_best: bool = False  # whether the best one's lead over it may be nothing

    @property
    def by_seed(self) -> tuple[float, ...]:
        """The gain of every seed."""
        return tuple(fmean(scores) - fmean(self.base) for scores in self.scores.values())

    @property
    def gain(self) -> float | None:
        """Of the mean over seeds."""
        return fmean(map(fmean, self.scores.values())) - fmean(self.base) if self.scores else None

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """95 % t-interval of the gain over seeds; None for a single seed."""
        means, start = [fmean(scores) for scores in self.scores.values()], fmean(self.base)
        return _limits(means, [start] * len(means), means=True) if len(means) > 1 else None

    @property
    def over_problems(self) -> tuple[float, float] | None:
        """95 % interval of the gain over problems, paired with the base."""
        by_problem = [fmean(scores) for scores in zip(*self.scores.values(), strict=True)]
        return _limits(by_problem, self.base) if by_problem else None

    @property
    def clear(self) -> bool:
        """Whether the gain is above 0 by every interval that there is."""
        known = [band for band in (self.over_seeds, self.over_problems) if band]
        return bool(known) and all(low > 0 for low, _ in known)

    @property
    def shown(self) -> dict[str, Any]:
        """As `scan.json` has it."""
        return {name: getattr(self, name) for name in SHOWN}


def units(over: Over, num_layers: int, blocks: int, parts: Sequence[str]) -> list[Unit]:
    """The units of a model with `num_layers` layers and these `parts`."""
    if over == "layers":
        return [Unit(str(n), f"layers({n})") for n in range(num_layers)]
    if over == "parts":
        return [Unit(part, f"parts({part})") for part in parts]
    if not 1 < blocks <= num_layers:
        most = f"at most {num_layers}, the number of layers"
        raise UserError(f"blocks must be at least 2 and {most}, not {blocks}")
    return [Unit(f"block {n}", f"surgical({n}, of={blocks})") for n in range(blocks)]


def together(over: Over, places: Sequence[str]) -> str:
    """The selection of several units at once, as a user would write it."""
    if over == "blocks":
        return " + ".join(places)
    inside = [place.removeprefix(f"{over}(").removesuffix(")") for place in places]
    return f"{over}({', '.join(inside)})"


def placed(method: str, sign: str, place: str) -> str:
    """`method sign place` with the brackets that it needs, or the place where there is no method."""
    if not method:
        return place
    left, right = (f"({text})" if " + " in text else text for text in (method, place))
    return f"{left} {sign} {right}"


def judge(tried: Sequence[Standing]) -> list[Standing]:
    """The units by gain, each at its best rate, then those that stopped, `full` last."""

    def rank(one: Standing) -> tuple[int, float]:
        return -len(one.failed), -1.0 if one.gain is None else one.gain

    names = dict.fromkeys(one.unit for one in tried)
    found = [max((one for one in tried if one.unit == name), key=rank) for name in names]
    # A gain of -1 is as low as any.
    found.sort(key=lambda one: (one.unit == FULL, -(-2 if one.gain is None else one.gain)))
    full = found[-1] if found[-1].unit == FULL else None
    scale = full.gain if full and full.clear else None
    shares = (scale and one.gain and one.gain / scale for one in found)
    return [
        replace(one, contribution=share, level_with_best=_level(found[0], one))
        for one, share in zip(found, shares, strict=True)
    ]


def _limits(after: Scores, before: Scores, means: bool = False) -> tuple[float, float]:
    """Of the change of scores by problem or, with `means`, of accuracies by seed."""
    found = (stats.mean_interval if means else stats.paired_interval)(after, before)
    return found.low, found.high


def _level(best: Standing, other: Standing) -> bool:
    """Whether the lead of `best` over `other` could be nothing: paired by seed, or by problem."""
    both = [(best.scores[seed], other.scores[seed]) for seed in best.scores if seed in other.scores]
    if not both:
        return False
    means = [list(map(fmean, side)) for side in zip(*both, strict=True)]
    low, high = _limits(*(both[0] if len(both) == 1 else means), means=len(both) > 1)
    return low <= 0 <= high


def show(result: Mapping[str, Any]) -> None:
    """Print the ranking as a table to standard output."""
    base, full = result["base"], [result["full"]] if result["full"] else []
    on = f"{base['num_problems']} {result['split']} problems, in points; = level with the best"
    caption = f"gain over the base's {percent(base['accuracy'])}% on {on}"
    lines = filled("scan.txt", units=[*result["units"], *full]).splitlines()
    rows = [line.split(" | ") for line in lines]
    terminal().print(terminal_table((*HEADS, "seconds"), rows, caption, wrap=True))


def draw(result: Mapping[str, Any], folder: Path) -> None:
    """Write scan.svg and scan.png: a bar a unit, a dot a seed, full's gain as a dashed line."""
    units = sorted(result["units"], key=lambda unit: unit["place"])
    full = result["full"] and result["full"]["gain"]
    with styled():
        figure = blank(min(12.0, max(4.2, 0.45 * len(units) + 1.4)), 3.2, fitted=True)
        axes = figure.subplots()
        axes.grid(axis="x", visible=False)
        for place, unit in enumerate(units):
            if unit["gain"] is None:
                look = {"ha": "center", "va": "bottom", "rotation": 90, "color": MUTED}
                axes.text(place, 0, "stopped", **look)
                continue
            colour = SERIES[0] if unit["chosen"] else MUTED
            axes.bar(place, 100 * unit["gain"], width=0.66, color=colour, alpha=0.85, linewidth=0)
            low, high = unit["over_seeds"] or unit["over_problems"]
            axes.vlines(place, 100 * low, 100 * high, color=INK, linewidth=1.1)
            look = {"markersize": 4, "mfc": PAPER, "mec": INK, "mew": 0.9, "zorder": 3}
            dots = [100 * gain for gain in unit["by_seed"]]
            axes.plot([place] * len(dots), dots, "o", **look)
        if full is not None:
            axes.axhline(100 * full, color=INK, linewidth=0.9, dashes=(4, 3))
            where = axes.get_yaxis_transform()  # across in shares of the width
            axes.text(0.995, 100 * full, "full", ha="right", va="bottom", transform=where)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        labels = [unit["unit"] for unit in units]
        axes.set_xticks(range(len(units)), labels)
        if len(units) > WORDS_ACROSS and not all(label.isdigit() for label in labels):
            axes.tick_params(axis="x", labelrotation=30)
        seen = [0.0, full or 0.0, *(gain for unit in units for gain in unit["by_seed"])]
        room = 60 * (max(seen) - min(seen)) or 1.0
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 100 * min(seen) - room), min(high, 100 * max(seen) + room))
        axes.set_xlim(-0.6, len(units) - 0.4)
        axes.set_xlabel(f"trained alone ({result['over']})")
        axes.set_ylabel(f"gain on {result['split']} problems (points)")
        text = svg(figure, f"Gain in held-out accuracy of each of the {result['over']} alone")
        with writing(folder):
            (folder / "scan.svg").write_text(text, encoding="utf-8")
            figure.savefig(folder / "scan.png", dpi=150, facecolor="white")
