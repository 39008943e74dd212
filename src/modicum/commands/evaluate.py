"""`modicum evaluate`."""

from pathlib import Path

from modicum.config import Sampling
from modicum.face.evaluation import EvaluateConfig, perform, settled, values_of
from modicum.options import Parser, add_options, given, show
from modicum.scorecard import Evaluation


def run(args: list[str]) -> int:
    """Evaluate a model or the trained policy of a run."""
    parser = Parser("evaluate")
    parser.folder("run", "a run folder; none evaluates --model", nargs="?", metavar="RUN")
    add_options(parser, EvaluateConfig, "evaluation")
    found = parser.read(args)
    place = Path(found.run) if found.run else None
    options = settled(given(EvaluateConfig, found), place, "options")

    from modicum.display import Display

    with Display() as display:
        result = perform(options, place, display)
    name = found.run or options.model
    text = text_of(name, result, options.sampling)
    show(found.json, values_of(options, name, result), text)
    return 0


def text_of(name: str, found: Evaluation, sampling: Sampling) -> str:
    """The evaluation as lines to read."""
    from modicum.report.words import environment

    template = environment().get_template("evaluation.txt")
    return template.render(name=name, found=found, sampling=sampling).rstrip()
