"""What the figures of a study share: grids of small panels, names that fit, axis numbers."""

from collections.abc import Sequence

from modicum.report.numbers import tick
from modicum.report.style import BROAD, MUTED, NARROW, Axes, Figure, blank

LETTER = 0.62  # width of a letter of the figures' font, in its size


def shorten(text: str, inches: float, size: float = 8) -> str:
    """`text`, cut with an ellipsis where it would be wider than `inches` at `size` points."""
    room = max(4, int(72 * inches / (LETTER * size)))
    return text if len(text) <= room else text[: room - 1] + "…"


def width_of(texts: Sequence[str], size: float = 8) -> float:
    """About how wide the widest of `texts` is, in inches."""
    return max(map(len, texts), default=0) * LETTER * size / 72


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """An axes at inches from the left and from the top of the figure."""
    across, down = figure.get_figwidth(), figure.get_figheight()
    bottom = 1 - (top + height) / down
    return figure.add_axes((left / across, bottom, width / across, height / down))


def grid(
    titles: Sequence[str],
    narrow: bool,
    x_name: str,
    y_name: str,
    height: float = 1.05,
    margin: float = 0.52,
    columns: int = 0,
) -> tuple[Figure, list[Axes]]:
    """A figure of one small panel for each title; only the outer ones have numbers.

    `height` is that of a panel and `margin` the room at the left, in inches. All panels
    are to have the same limits. Without a number of `columns` a few stay small multiples.
    """
    most = BROAD if columns else 2.6
    columns = columns or min(2 if narrow else 5, len(titles))
    lines = -(-len(titles) // columns)
    across = NARROW if narrow else BROAD
    top, gap_x, gap_y, bottom = 0.48, 0.16, 0.36, 0.45
    width = min(most, (across - margin - 0.1 - gap_x * (columns - 1)) / columns)
    down = top + lines * height + (lines - 1) * gap_y + bottom
    figure = blank(across, down)
    panels = []
    for number, title in enumerate(titles):
        line, column = divmod(number, columns)
        left, above = margin + column * (width + gap_x), top + line * (height + gap_y)
        axes = place(figure, left, above, width, height)
        axes.set_title(shorten(title, width), fontsize=8, pad=3)
        # The last of its column has the numbers, also where the last line is not full.
        outer = number + columns >= len(titles)
        axes.tick_params(labelleft=column == 0, labelbottom=outer, labelsize=7, pad=2)
        panels.append(axes)
    figure.text(margin / across, 0.08 / down, x_name, color=MUTED, va="bottom")
    # Above, not turned at the side: a tall figure would have it far from what is seen.
    figure.text(0.02 / across, 1 - 0.06 / down, y_name, color=MUTED, va="top")
    return figure, panels


def numbers(axes: Axes, axis: str, count: int = 4) -> None:
    """At most `count` round numbers on an axis, as 20k, 1.5M."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_major_locator(MaxNLocator(count, steps=[1, 2, 5, 10]))
    chosen.set_major_formatter(FuncFormatter(tick))


def remark(axes: Axes, text: str, high: bool = False) -> None:
    """A few words in the corner of a panel, at its foot unless `high`."""
    place = (0.98, 0.86 if high else 0.05)
    axes.text(*place, text, transform=axes.transAxes, ha="right", fontsize=7, color=MUTED)
