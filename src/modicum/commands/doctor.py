"""`modicum doctor`, and `modicum train --dry-run`."""

from dataclasses import dataclass

from modicum.commands.train import add_sources, settings
from modicum.config import TrainConfig, from_mapping
from modicum.limits import Natural
from modicum.options import Parser, add_options, given, show
from modicum.settings import Settings


@dataclass(frozen=True)
class Options(Settings):
    """How much to look at."""

    problems: Natural = 0
    """Look at so many problems of the first step; 0: at all of them, prompts_per_step."""
    show: Natural = 2
    """Problems whose completions are printed, four of each; --json has all."""


def run(args: list[str]) -> int:
    """Look at the run that the options describe; 1 if it would learn nothing."""
    parser = Parser("doctor")
    add_sources(parser)
    add_options(parser, Options, "doctor")
    add_options(parser, TrainConfig)
    found = parser.read(args)
    options = from_mapping(Options, given(Options, found), "options")
    return tell(settings(found, {}), found.json, options)


def tell(config: TrainConfig, as_json: bool, options: Options | None = None) -> int:
    """Print what the doctor finds."""
    from modicum import doctor

    options = options or Options()
    seen = doctor.examine(config, options.problems)
    show(as_json, seen, doctor.text(seen, options.show))
    return int(not seen["learns"])
