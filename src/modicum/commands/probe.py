"""`modicum probe`."""

from modicum.commands.train import add_sources, settings
from modicum.config import TrainConfig
from modicum.options import Parser, add_options, show
from modicum.types import UserError


def run(args: list[str]) -> int:
    """Print rates, gains and costs of some updates."""
    parser = Parser("probe")
    add_sources(parser)
    parser.add_argument("--updates", metavar="TEXT", help="separated by ';' (default: a choice)")
    add_options(parser, TrainConfig)
    found = parser.read(args)
    config = settings(found, {})

    from modicum import updates as known
    from modicum.display import console
    from modicum.training import probe

    one = [config.update] if hasattr(found, "update") else []
    several = [part.strip() for part in (found.updates or "").split(";") if part.strip()]
    if found.updates is not None and one:
        raise UserError("--update and --updates exclude each other")
    if found.updates is not None and not several:
        raise UserError(f"--updates {found.updates!r} names no update")
    said = list(dict.fromkeys(one or several))
    for update in said:
        known.parse(update)
    made = probe.probe(config, said or probe.usual(config), console().print)
    show(found.json, made.to_json(), made.text())
    return 0
