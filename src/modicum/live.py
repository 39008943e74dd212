"""A run while it goes, of the files of its folder: a page that loads itself anew, a terminal's view.

They take a hundredth of the run's time at most, and no error of theirs ends it."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from modicum.disk import write_whole
from modicum.logged import metric_of
from modicum.report import words as n
from modicum.report.words import environment, printable
from modicum.status import Status

PAGE = "live.html"
SHARE = 200  # times its own cost, that long it is not shown anew
SECONDS = 2.0  # nor is it within these
CURVES = ("reward/mean", "kept/reward", "reward/accuracy", "completions/length_mean", "policy/kl")
CURVES += ("policy/entropy", "groups/no_signal")
POINTS = 120
BARS = "▁▂▃▄▅▆▇█"
GROUPS, MEMBERS = 2, 8  # what is shown of the last step


def _curve(title: str, x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    last, size = y[-1], math.ceil(len(y) / POINTS)
    chunks = [slice(k, k + size) for k in range(0, len(y), size)]
    x, y = [x[c][-1] for c in chunks], [sum(y[c]) / len(y[c]) for c in chunks]
    low, high = min(y), max(y)
    blocks = [BARS[round((v - low) / (high - low or 1) * 7)] for v in y]
    made = {"title": title, "last": n.general(last), "x": x, "y": y, "low": low, "high": high}
    return made | {"bars": lambda wide: "".join(blocks[k * len(y) // wide] for k in range(wide))}


def _shown(found: Status) -> dict[str, Any]:
    lines = [("Held-out accuracy", [(e["step"], e["accuracy"]) for e in found.within])]
    for key in CURVES:
        logged = ((m["step"], m.get(key)) for m in found.metrics)
        known = [pair for pair in logged if pair[1] is not None and math.isfinite(pair[1])]
        lines.append((metric_of(key).title, known))
    seen: dict[Any, str] = {}  # accuracy that is the reward is not drawn twice
    for title, pairs in lines:
        if len(pairs) > 1 and any(y for _, y in pairs):
            seen.setdefault(tuple(pairs), title)
    samples = found.last("samples.jsonl", GROUPS * 1024)
    samples = [row for row in samples if row.get("step") == samples[-1].get("step")]
    groups = [list(rows)[:MEMBERS] for _, rows in groupby(samples, lambda row: row["question"])]
    curves = [_curve(title, *zip(*pairs, strict=True)) for pairs, title in seen.items()]
    shown = {"found": found, "values": found.values, "groups": groups[:GROUPS], "n": n}
    decisions = found.last("decisions.jsonl", 3)
    return shown | {"decisions": decisions, "every": SECONDS, "curves": curves}


def view(found: Status, width: int, height: int, doing: str = "") -> Group:
    """What a terminal of so many columns and lines shows."""
    made = environment().get_template("live.txt")
    wide, members = max(10, min(POINTS, width - 36)), max(2, height - 16)
    text = made.render(_shown(found), wide=wide, members=members, doing=doing)
    lines = [Text(line, "bold" * line.startswith(("run ", "step "))) for line in text.split("\n")]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Group(*lines)


def write(found: Status) -> None:
    """Write `live.html` into the run's folder; while the run goes it asks for itself anew."""
    text = environment().get_template("live.html").render(_shown(found))
    write_whole(found.folder / PAGE, printable(text))


class Shown(AbstractContextManager["Shown"]):
    """Shows a run anew from time to time; what goes wrong in it is a note, and the last time."""

    def __init__(self, folder: Path, show: Callable[[Status], None], note: Callable[[str], None]):
        self.folder, self.show, self.note, self.due = folder, show, note, 0.0

    def update(self, now: bool = False) -> None:
        """Show it, unless that was a moment ago and need not be `now`."""
        if (began := time.monotonic()) >= self.due or (now and self.due < math.inf):
            with self:
                self.show(Status(self.folder))
                self.due = began + max(SECONDS, SHARE * (time.monotonic() - began))

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, Exception):
            self.due = math.inf
            self.note(f"the run goes on and is not shown ({type(error).__name__}: {error})")
        return isinstance(error, Exception)


@contextmanager
def written(folder: Path, on: bool, note: Callable[[str], None]) -> Iterator[Callable[[Any], None]]:
    """A context of a run, which gives what writes its page anew; it does so at the end as well."""
    shown = Shown(folder, write, note)
    try:
        yield lambda _: shown.update() if on else None
    finally:
        if shown.due:
            shown.update(now=True)
