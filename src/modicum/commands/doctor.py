"""`modicum doctor`, and `modicum train --dry-run`."""

from dataclasses import dataclass

from modicum.commands.train import add_sources, settings
from modicum.config import TrainConfig, from_mapping
from modicum.limits import Natural
from modicum.options import Parser, add_options, given, show
from modicum.settings import Settings

SUMMARY = """Look at a run before it begins: give it the options of `modicum train`.

Shows the prompt as the model gets it, completions of the untrained model on the problems of the
first step with rewards and reasons, how many groups have a signal, rate, memory and time, and
what looks wrong and what to change. Nothing is trained or written. Exit code 0, also when
something looks wrong; 1 if no group has a signal, so that the run would learn nothing as it is."""
EXAMPLES = """
modicum doctor
modicum doctor --task 'countdown(numbers=3)' --problems 4 --json
modicum doctor --task "file('problems.jsonl')" --max-tokens 400    # needs: your file
modicum doctor --config runs/last1/config.toml --show 8    # needs: modicum train --update 'last(1)' --out runs/last1
"""


@dataclass(frozen=True)
class Options(Settings):
    """How much to look at."""

    problems: Natural = 0
    """Look at so many problems of the first step; 0: at all of them, prompts_per_step."""
    show: Natural = 2
    """Problems whose completions are printed, four of each; --json has all."""


def run(args: list[str]) -> int:
    """Look at the run that the options describe; 1 if it would learn nothing."""
    parser = Parser("doctor", SUMMARY, EXAMPLES)
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
