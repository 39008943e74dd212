"""What a run shows while it goes: a live line on a terminal, plain lines elsewhere.

All of it goes to standard error, so that results on standard output stay clean.
"""

import sys
import time
from contextlib import AbstractContextManager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from modicum.evaluate import Evaluation
from modicum.training.loop import Observer
from modicum.training.session import Session

PLAIN_EVERY = 10  # steps between lines where there is no terminal


class Screen:
    """Standard error, whatever that is now. What it cannot take is dropped: a terminal that was
    closed or a log on a full disk must not end a run before its checkpoint is written."""

    def write(self, text: str) -> int:
        """Write it, if that can be."""
        with suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is left, if that can be."""
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
    return Console(file=screen, stderr=True, highlight=False, soft_wrap=True, markup=False)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Display(Observer, AbstractContextManager["Display"]):
    """Shows reward, accuracy, length, KL, tokens per second and the time left."""

    def __init__(self) -> None:
        self.console = console()
        self.live = sys.stderr.isatty()
        self.progress: Progress | None = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, session: Session, first_step: int) -> None:
        """Say what trains and what a step is, before anything is done."""
        config = session.config
        share = session.trainable_parameters / session.total_parameters
        rows = config.batch.prompts_per_step * config.batch.group_size
        self.session, self.began, self.first = session, 0.0, first_step
        self.behind = session.progress(first_step)
        self.console.print(
            f"{config.update} on {config.model}: trains"
            f" {len(session.prepared.trainable)} tensors, {session.trainable_parameters:,} of"
            f" {session.total_parameters:,} parameters ({share:.1%})"
        )
        updates = config.batch.updates_per_rollout
        weight = getattr(session.objective, "kl", 0.0)
        shown = f"{session.learning_rate:.3g}" if session.learning_rate else "a rate to be found"
        kl = f"KL {weight:g} in the loss" if weight else "no KL term"
        self.console.print(
            f"{config.task}, reward {session.reward}, {config.objective}, {kl};"
            f" a step samples {config.batch.prompts_per_step} x {config.batch.group_size} completions,"
            f" at most {rows * config.sampling.max_tokens:,} tokens at temperature"
            f" {config.sampling.temperature:g}, and takes {updates}"
            f" optimizer step{'s' * (updates != 1)} at {shown}"
            f" ({session.policy.device}, {config.compute.dtype})"
        )
        if config.budget.budget:
            self.console.print(
                f"ends after {config.budget.budget:,.0f} {config.budget.budget_unit}, or"
                f" {config.steps} steps"
            )
        if first_step:
            self.console.print(f"goes on after step {first_step}")

    def step(self, metrics: dict[str, float]) -> None:
        """Show the metrics of a step."""
        now = time.perf_counter()
        done = int(metrics["step"]) + 1
        if not self.began:
            self.began = now - metrics["time/step_seconds"]
        config, made = self.session.config, self.session.progress(done)
        left = (now - self.began) * (1 - made) / max(made - self.behind, 1e-9)
        over = self.session.ended(done)
        text = (
            f"reward {metrics['reward/mean']:.2f}  accuracy {metrics.get('reward/accuracy', 0):.2f}"
            f"  length {metrics['completions/length_mean']:.0f}"
            f"  KL {metrics.get('policy/kl', 0.0):.3f}"
            f"  {metrics['time/tokens_per_second']:.0f} tok/s"
            f"  left {clock(0.0 if over else left)}"
        )
        if self.live:
            self._bar(config.update, done, config.steps, text)
            if over:
                self.close()
        elif done % PLAIN_EVERY == 0 or over or done == self.first + 1:
            self.console.print(f"step {done}/{config.steps}  {text}")

    def evaluating(self, name: str, done: int, total: int) -> None:
        """Show how far an evaluation is."""
        if self.live:
            self._bar(f"evaluating {name}", done, total, "problems (greedy, then sampled)")
            if done == total:
                self.close()

    def evaluated(self, name: str, found: Evaluation) -> None:
        """Show what an evaluation found."""
        self.close()
        self.console.print(
            f"{name}: sampled {found.accuracy:.1%} [{found.low:.1%}, {found.high:.1%}],"
            f" greedy {found.greedy:.1%}, length {found.length:.0f}"
            f" ({found.num_problems} held-out problems)"
        )
        if found.truncated > 0.05:
            self.note(f"{found.truncated:.0%} of the completions were cut by max_tokens")

    def note(self, text: str) -> None:
        """Show a message."""
        self.console.print(f"note: {text}")

    def _bar(self, title: str, done: int, total: int, text: str) -> None:
        if self.progress is None:
            columns = (
                TextColumn("{task.fields[title]}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", markup=False),
            )
            self.progress = Progress(*columns, console=self.console, transient=True)
            self.progress.add_task("", total=total, title=title, text=text)
            self.progress.start()
        self.progress.update(
            self.progress.task_ids[0], completed=done, total=total, title=title, text=text
        )

    def close(self) -> None:
        """Take the live line away."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
