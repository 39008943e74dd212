"""What a scan found (`scan.json`): its table for a terminal and its figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modicum.disk import writing
from modicum.report.style import INK, MUTED, PAPER, SERIES, blank, styled, svg
from modicum.report.tables import terminal, terminal_table
from modicum.report.words import NONE, decimal, interval, percent, points, short

WORDS_ACROSS = 8  # labels that fit side by side
HEADS = ("update", "", "gain", "95%, over\nseeds", "95%, over\nproblems", "of full's", "trained")


def show(result: Mapping[str, Any]) -> None:
    """Print the ranking as a table to standard output."""
    base, full = result["base"], [result["full"]] if result["full"] else []
    caption = (
        f"gain over the base's {percent(base['accuracy'])}% on {base['num_problems']}"
        f" {result['split']} problems, in points; = level with the best"
    )
    rows = [
        (
            unit["update"],
            "=" if unit["level_with_best"] else "",
            "stopped" if unit["gain"] is None else points(unit["gain"]),
            *(interval(*unit[k]) if unit[k] else NONE for k in ("over_seeds", "over_problems")),
            NONE if unit["contribution"] is None else f"{percent(unit['contribution'], 0)}%",
            short(unit["parameters"]),
            decimal(unit["seconds"]),
        )
        for unit in (*result["units"], *full)
    ]
    terminal().print(terminal_table((*HEADS, "seconds"), rows, caption, wrap=True))


def draw(result: Mapping[str, Any], folder: Path) -> None:
    """Write scan.svg and scan.png: a bar for every unit, full's gain as a dashed line.

    A dot is a seed, the line its interval over seeds (over problems where there is one
    seed). The interval of two seeds would press all else flat: it may leave the figure.
    """
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
