"""What a run shows on standard error: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from modicum import live
from modicum.evaluate import Evaluation
from modicum.report.words import filled, say
from modicum.status import Status
from modicum.training.loop import Observer
from modicum.training.session import Session

PLAIN_EVERY = 10  # steps between lines where there is no terminal


class Screen:
    """Standard error, whatever that is now. What it cannot take is dropped: a terminal that was
    closed or a log on a full disk must not end a run before its checkpoint is written."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()

    @property
    def _file(self) -> Any:
        # Under a live line rich has its own in the place of it.
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def console() -> Console:
    """The console for progress and messages; brackets in what it prints are just brackets."""
    screen: Any = Screen()
    # A terminal gets its lines broken between words, a file gets them whole.
    whole = not sys.stderr.isatty()
    return Console(file=screen, stderr=True, highlight=False, soft_wrap=whole, markup=False)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Display(Observer, AbstractContextManager["Display"]):
    """Shows reward, accuracy, length, KL, tokens per second and the time left; of the run that
    is written in the folder `watch` all that `modicum watch` shows."""

    def __init__(self, watch: Path | None = None) -> None:
        self.console = console()
        self.live = sys.stderr.isatty()
        self.shown: Live | None = None
        self.watched = live.Shown(watch, self._view, self.note) if watch else None
        self.doing = ""

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, session: Session, first_step: int) -> None:
        """Say what trains and what a step is, before anything is done."""
        self.session, self.began, self.first = session, 0.0, first_step
        self.behind = session.progress(first_step)
        values = {"session": session, "config": session.config, "first_step": first_step}
        self.console.print(filled("begins.txt", **values))

    def step(self, metrics: dict[str, float]) -> None:
        """Show the metrics of a step."""
        now = time.perf_counter()
        done = int(metrics["step"]) + 1
        if not self.began:
            self.began = now - metrics["time/step_seconds"]
        config, made = self.session.config, self.session.progress(done)
        left = (now - self.began) * (1 - made) / max(made - self.behind, 1e-9)
        over = self.session.ended(done)
        fields = say("step", logged=metrics, left=clock(0.0 if over else left)).split(" | ")
        if self.live:
            self._bar(config.update, done, config.steps, fields)
            if over:
                self.close()
        elif done % PLAIN_EVERY == 0 or over or done == self.first + 1:
            self.console.print(f"step {done}/{config.steps}  {'  '.join(fields)}")

    def evaluating(self, name: str, done: int, total: int) -> None:
        """Show how far an evaluation is."""
        if self.live:
            half = total // 2  # a greedy pass over all problems, then the samples
            how = "greedy" if done <= half else "sampled"
            self._bar(f"evaluating {name}", done - half * (done > half), half, ["problems", how])

    def evaluated(self, name: str, found: Evaluation) -> None:
        """Show what an evaluation found."""
        self.close()
        self.console.print(say("evaluated", of=name, found=found))
        if found.truncated > 0.05:
            self.note(f"{found.truncated:.0%} of the completions were cut by max_tokens")

    def note(self, text: str) -> None:
        """Show a message."""
        self.console.print(f"note: {text}")

    def _bar(self, title: str, done: int, total: int, fields: list[str]) -> None:
        self.doing = f"{title} {done}/{total}" if title.startswith("evaluating") else ""
        if self.watched is None:
            self._set(Text(line(title, done, total, fields, self.console.width), no_wrap=True))
        else:
            self.watched.update(now=self.shown is None)

    def _view(self, found: Status) -> None:
        self._set(live.view(found, *self.console.size, self.doing))

    def _set(self, shown: RenderableType) -> None:
        if self.shown is None:
            self.shown = Live(console=self.console, auto_refresh=False, transient=True)
            self.shown.start()
        self.shown.update(shown, refresh=True)

    def close(self) -> None:
        """Take the live line away."""
        if self.shown is not None:
            self.shown.stop()
            self.shown = None


def line(title: str, done: int, total: int, fields: list[str], width: int) -> str:
    """A line of progress in a terminal of so many columns: of the fields the first that fit."""
    count, room = f"{done}/{total}", 20 if width >= 100 else 10
    most = max(8, width - len(count) - room - 16)
    title = title if len(title) <= most else title[: most - 1] + "…"
    text = f"{title} {'━' * round(room * done / max(1, total)):<{room}} {count}"
    for field in fields:
        if len(text) + 2 + len(field) >= width:
            break
        text += f"  {field}"
    return text
