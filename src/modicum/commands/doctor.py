"""`modicum doctor`, and `modicum train --dry-run`."""

from dataclasses import dataclass

from modicum.commands.train import add_sources, settings
from modicum.config import TrainConfig, from_mapping
from modicum.options import Parser, add_options, given, show
from modicum.spec import at_least


@dataclass(frozen=True)
class Options:
    """How much to look at."""

    problems: int = 0
    """Look at so many problems of the first step; 0: at all of them, prompts_per_step."""
    show: int = 2
    """Problems whose completions are printed, four of each; --json has all."""

    def __post_init__(self) -> None:
        at_least(self, problems=0, show=0)


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
