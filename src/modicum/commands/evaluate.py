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
    error = "" if found.standard_error is None else f", standard error {found.standard_error:.1%}"
    lines = [
        f"{name} on {found.task}, split {found.split}: {found.num_problems} problems x"
        f" {found.samples_per_problem} samples at temperature {found.temperature:g},"
        f" top_p {sampling.top_p:g}, at most {sampling.max_tokens} tokens",
        _line("accuracy", found.accuracy, found.low, found.high)
        + f"  strict, avg@{found.samples_per_problem}{error}",
        _line("lenient", found.lenient, found.lenient_low, found.lenient_high),
        _line("greedy", found.greedy, found.greedy_low, found.greedy_high)
        + f"  strict; lenient {found.greedy_lenient:.1%}",
        # Of one sample both are the accuracy.
        *(_line(f"pass@{k}", *band) for k, band in found.pass_at.items() if k != "1"),
        *(_line(f"maj@{k}", *band) for k, band in found.maj_at.items() if k != "1"),
        f"format    {found.format:.1%}  of the samples are in the style {sampling.style}",
        f"truncated {found.truncated:.1%}",
        f"length    {found.length:.1f} tokens",
    ]
    if found.truncated > 0.05:
        lines.append("note: completions were cut; a larger --max-tokens may change the numbers")
    return "\n".join(lines)


def _line(name: str, mean: float, low: float, high: float) -> str:
    return f"{name:<9} {mean:.1%}  [{low:.1%}, {high:.1%}]"
