"""The command line. Each command imports what it needs inside, so that help is instant.

Results go to standard output (`--json` for scripts), progress to standard error. What the
user got wrong is one line and exit code 2.
"""

import codecs
import io
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module

from modicum import disk
from modicum.machine import Interrupts, Stopped
from modicum.types import RunInterrupted, UserError

COMMANDS = {
    "demo": "train the shipped base three ways and compare (minutes, two cores)",
    "train": "train a model with GRPO, updating the part that you name",
    "doctor": "prompt, completions, rewards and memory before a run, and what looks wrong",
    "study": "compare updates over seeds at one budget, with a verdict",
    "plan": "memory, FLOPs and time of a run, before it",
    "probe": "learning rates of updates, and how far a first step of each helps",
    "difficulty": "how hard problems are for a model, for curricula",
    "scan": "train every layer, block or part alone and rank them",
    "evaluate": "accuracy and pass@k of a model or a run on held-out problems",
    "compare": "two evaluations of the same problems, problem by problem",
    "grade": "grade answers that exist already: JSON lines in, JSON lines out",
    "recipes": "list whole configs for known set-ups, or show one",
    "updates": "list the updates, or preview what one trains in a model",
    "tasks": "list the tasks, or show problems of one",
    "audit-reward": "try degenerate answers on a reward, before training",
    "runs": "list, sort and search runs, or show some side by side",
    "watch": "show a run while it goes: in the terminal, and as a page",
    "report": "make an HTML report and a table of finished runs",
    "export": "write a run or the base as an ordinary Hugging Face folder or PEFT adapter",
}

USAGE = """usage: modicum COMMAND [options]

How little of a language model must reinforcement learning update?

modicum COMMAND --help explains a command.

examples:
  modicum demo
  modicum train --update 'last(1)' --steps 40
  modicum updates 'last(1) + parts(norm)' --model tiny

commands:
"""
SIGNS = str.maketrans("—–−×·“”‘’█•", "---x.\"\"''#*") | {ord("→"): "->", ord("…"): "..."}
SIGNS |= str.maketrans("━▁▂▃▄▅▆▇", "=_.,-~+*")


def usage() -> str:
    """The text of `modicum --help`."""
    width = max(map(len, COMMANDS))
    return USAGE + "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())


def run(args: list[str]) -> int:
    """Run the command line `args`; returns the exit code. Raises UserError."""
    if args[:1] == ["help"] and args[1:2]:
        args = [args[1], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"modicum {version('modicum')}")
        return 0
    name = args[0]
    if name not in COMMANDS:
        from modicum.spec import nearest

        raise UserError(f"modicum: unknown command {name!r}; {nearest(name, COMMANDS)}")
    module = import_module(f"modicum.commands.{name.replace('-', '_')}")
    command: Callable[[list[str]], int] = module.run
    return command(args[1:])


def main() -> None:
    """The entry point of the `modicum` command."""
    # Progress bars of the libraries would mix with ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    codecs.register_error("modicum", plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="modicum")
    with Interrupts(at_once=True):  # so that what is open is closed
        code = _code_of(sys.argv[1:])
    sys.exit(code)


def plain(error: UnicodeError) -> tuple[str, int]:
    """What a terminal that is not UTF-8 shows of what it cannot."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(SIGNS)
    return text.encode("ascii", "replace").decode(), error.end


def _code_of(args: list[str]) -> int:
    """Run the command line; the exit code, after one line for whatever ended it."""
    try:
        code = run(args)
        sys.stdout.flush()  # a full disk is found here, and not after the end
        return code
    except RunInterrupted as error:
        return _ended(str(error), 128 + error.number)
    except UserError as error:
        return _ended(f"error: {error}", 2)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        text = "interrupted" if number == signal.SIGINT else f"ended by {error}"
        return _ended(text, 128 + number)
    except BrokenPipeError:
        # The reader of our output has gone (`modicum tasks | head`).
        return _ended("", 1)
    except disk.errors() as error:
        if not disk.number(error):
            raise
        return _ended(f"error: {disk.explained(error)}", 2)


def _ended(text: str, code: int) -> int:
    """Say why it ended, where that can still be said, and return the exit code."""
    try:
        if text:
            print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:
        # What is left of the output has nowhere to go, at the end of the process neither.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code
