"""How reports write numbers (a missing one is a dash) and lists, and their templates.

Each section of `words.txt` is one text, filled with values by name; that of a figure has its text
alternative, a line ---, and its caption. A text may end its lines anywhere."""

import importlib.resources
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeGuard

import jinja2

NONE = "—"
ARROW = " → "
NAMED = 20  # things that a text names
# Everything of ASCII and Latin-1 control but tab and line end, and lone surrogates.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a number."""
    return value is not None and not math.isnan(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent, without the sign."""
    return f"{100 * value:.{digits}f}" if known(value) else NONE


def share(value: float | None) -> str:
    """The trained share of a model: 100%, 3.1%, 0.052%."""
    if not known(value):
        return NONE
    if value == 1:
        return "100%"
    return f"{100 * value:.1f}%" if value >= 0.01 else f"{100 * value:.2g}%"


def small_percent(value: float | None) -> str:
    """A fraction in percent, with two digits or more: 97.4, 0.20, 0.0012."""
    if not known(value):
        return NONE
    return f"{100 * value:.1f}" if value >= 0.01 else f"{100 * value:#.2g}"


def points(value: float) -> str:
    """A difference in percentage points with its sign and a true minus."""
    return f"{100 * value:+.1f}".replace("-", "−")


def interval(low: float, high: float, write: Callable[[float], str] = points) -> str:
    """Both ends of an interval, in points; nothing where there is none."""
    return "" if math.isnan(low + high) else f"[{write(low)}, {write(high)}]"


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return f"{value:,.0f}" if known(value) else NONE


def short(value: float | None) -> str:
    """A large count in three digits or so: 494M, 14.9M, 550k."""
    if not known(value):
        return NONE
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # From 999.5 of a unit on, three digits round to one of the next.
        if value >= limit * 0.9995:
            return f"{value / limit:.3g}{unit}" if value < 999.5e9 else f"{value / 1e9:,.0f}B"
    return f"{value:.0f}"


def decimal(value: float | None) -> str:
    """A length or a time: two digits below 1, one decimal below 100, none above."""
    if not known(value):
        return NONE
    if 0 < value < 0.95:
        return f"{value:#.2g}"
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def general(value: float) -> str:
    """A number for a text about a figure: three digits or so, thousands separated."""
    if math.isnan(value):
        return "none"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def brief(value: float) -> str:
    """A value in a few letters: 20.8, 0.89, 1.9e−3, 12k."""
    if abs(value) >= 10 or value == 0:
        return tick(float(f"{value:.3g}"))
    return f"{value:.2f}" if abs(value) >= 0.01 else rate(value)


def rate(value: float) -> str:
    """Two digits and a power of ten, short: 8e−4, 6.7e−5."""
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}".replace("-", "−")


def memory(value: float | None) -> str:
    """Bytes as GiB or MiB."""
    if not known(value):
        return NONE
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def setting(name: str, value: Any) -> str:
    """A setting as people write it: 0.0018, not 0.0018000000000000002; bytes as GiB."""
    if isinstance(value, str | float):
        return value if isinstance(value, str) else f"{value:.12g}"
    sized = name.endswith("_bytes") and isinstance(value, int) and value >= 2**20
    return memory(value) if sized else json.dumps(value, default=str)


def duration(seconds: float) -> str:
    """Rounded for people: 4.2 s, 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def flops(value: float) -> str:
    """FLOPs with the largest unit that leaves a number above 1."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:.3g} {unit}FLOP"
    return f"{value:.3g} FLOP"


def aligned(rows: Sequence[Sequence[str]], justify: Any = str.rjust) -> list[str]:
    """Rows as lines of a terminal; the first column stands on the left."""
    first, *rest = (max(map(len, column)) for column in zip(*rows, strict=True))
    cells = ([row[0].ljust(first), *map(justify, row[1:], rest)] for row in rows)
    return ["  ".join(row).rstrip() for row in cells]


def tick(value: float, _: float = 0) -> str:
    """A number on an axis: 0.5, 200, 20k."""
    return (short(value) if abs(value) >= 1000 else f"{value:g}").replace("-", "−")


def listed(texts: Sequence[str], word: str = "and") -> str:
    """a, b and c."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {word} {texts[-1]}"


def some(texts: Sequence[str]) -> str:
    """a; b; c; and how many more."""
    more = len(texts) - NAMED
    return "; ".join(texts[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def say(name: str, part: int = 0, **values: Any) -> str:
    """The text of a section of `words.txt`, its line ends as spaces; `part` 1 is a caption."""
    return on_one_line(_texts()[name][part].render(values))


def on_one_line(text: str) -> str:
    """`text` with its line ends as spaces, a space at a time."""
    return re.sub(r"[ \n]+", " ", text).strip()


def printable(text: str, limit: int | None = None) -> str:
    """`text` with control characters replaced; beyond `limit` letters it says how many more."""
    text = UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))
    if limit is None or len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more letters)"


def marked(text: str) -> list[tuple[bool, str]]:
    """`text` cut at its backticks: (whether it is code, piece)."""
    pieces = re.split("`([^`]*)`", text)
    return [(number % 2 == 1, piece) for number, piece in enumerate(pieces) if piece]


def environment(**filters: Any) -> jinja2.Environment:
    """Templates of this folder, with the functions of this module as filters; those of HTML escape."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(file),
        autoescape=lambda name: bool(name) and str(name).endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= globals() | {"kind": lambda block: type(block).__name__} | filters
    return made


def filled(template: str, /, **values: Any) -> str:
    """The text that a template of this folder makes of values."""
    return environment().get_template(template).render(values).rstrip()


def file(name: str) -> str:
    """The text of a file of this folder."""
    return importlib.resources.files("modicum.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _texts() -> dict[str, list[jinja2.Template]]:
    parts = re.split(r"^== (\w+)\n", file("words.txt"), flags=re.MULTILINE)[1:]
    made = environment()
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: [made.from_string(t) for t in text.split("\n---\n")] for name, text in pairs}
