"""The command line. Each command imports what it needs inside, so that help is instant.

Results go to standard output (`--json` for scripts), progress to standard error."""

import codecs
import io
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module

from modicum import disk
from modicum.machine import Interrupts, Stopped
from modicum.options import HELP
from modicum.types import RunInterrupted, UserError

COMMANDS = {name: text["line"] for name, text in HELP["commands"].items()}
SIGNS = str.maketrans("—–−×·“”‘’█•", "---x.\"\"''#*") | {ord("→"): "->", ord("…"): "..."}
SIGNS |= str.maketrans("━▁▂▃▄▅▆▇", "=_.,-~+*")


def usage() -> str:
    """The text of `modicum --help`."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return HELP["usage"] + "\n".join(lines)


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
    if (name := args[0]) not in COMMANDS:
        from modicum.spec import nearest

        raise UserError(f"modicum: unknown command {name!r}; {nearest(name, COMMANDS)}")
    from modicum.commands import parser

    found = parser(name).read(args[1:])
    module, _, function = HELP["commands"][name].get("run", f"{name}.run").partition(".")
    return getattr(import_module(f"modicum.commands.{module}"), function)(found)


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
    code = 1
    # So that what is open is closed; what comes after the last word changes nothing.
    with suppress(KeyboardInterrupt), Interrupts(at_once=True):
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
