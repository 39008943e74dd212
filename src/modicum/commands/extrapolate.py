"""`modicum extrapolate`."""

import math
from dataclasses import replace
from pathlib import Path

from modicum import runs
from modicum.face.evaluation import EvaluateConfig, perform, settled, values_of
from modicum.options import Parser, add_options, given, show
from modicum.parts import past_config
from modicum.types import UserError

MORE = "--checkpoint-every N --keep-checkpoints M keeps more of a run, --from 0 takes the base"


def run(args: list[str]) -> int:
    """Evaluate the policies further along the line through two checkpoints of a run."""
    parser = Parser("extrapolate")
    parser.folder("run", "a run folder", metavar="RUN")
    told = "how far beyond b, over the way from a to b; one evaluation each (default 1)"
    parser.add_argument("--k", type=float, nargs="+", metavar="K", help=told)
    told = "in place of --k: the steps of the run whose budget is to be matched"
    parser.add_argument("--budget", type=int, metavar="STEPS", help=told)
    told = "step of a: a checkpoint, or 0 for the base (default: the checkpoint before b)"
    parser.add_argument("--from", type=int, dest="first", metavar="A", help=told)
    parser.add_argument("--to", type=int, metavar="B", help="step of b (default: the newest)")
    add_options(parser, EvaluateConfig, "evaluation")
    found = parser.read(args)
    place = Path(found.run)
    past_config(place)
    saved = {int(path.name.removeprefix("step-")): path for path in runs.checkpoints(place)}
    first, last = _ends(place, sorted(saved), found.first, found.to)
    ks = _factors(found.k, found.budget, first, last)
    options = settled(given(EvaluateConfig, found), place, "options")

    from modicum.display import Display
    from modicum.report.words import filled
    from modicum.training.extrapolation import Extrapolation

    line, made = Extrapolation(saved, first, last), []
    with Display() as display:
        for line.k in ks:
            here = replace(options, out=f"{options.out}/k{line.k:g}" if options.out else "")
            result = perform(here, place, display, past=line)
            step = last + line.k * (last - first)
            made.append({"k": line.k, "step": step, **values_of(here, found.run, result)})
    tensors = line.straight()
    values = {"run": found.run, "from": first, "to": last, "points": [*line.thetas]}
    values |= {**tensors.pop(""), "tensors": tensors, "evaluations": made}
    show(found.json, values, filled("extrapolation.txt", found=values))
    return 0


def _ends(place: Path, saved: list[int], first: int | None, last: int | None) -> tuple[int, int]:
    """The steps a < b; UserError where there are none such."""
    listed = ", ".join(map(str, saved)) or "none"
    last = saved[-1] if last is None and saved else last
    if last not in saved:
        raise UserError(f"{place} has no checkpoint of b; it has: {listed}")
    before = [step for step in saved if step < last]
    if first is None and not before:
        raise UserError(
            f"{place} has no checkpoint before step {last}, and a line needs two; {MORE}"
        )
    first = before[-1] if first is None else first
    if first not in (0, *before):
        raise UserError(
            f"{place}: step {first} is no checkpoint before {last} (there: {listed}); {MORE}"
        )
    if last == 0:
        raise UserError(f"{place} was trained for no step")
    return first, last


def _factors(given: list[float] | None, budget: int | None, first: int, last: int) -> list[float]:
    if given and budget is not None:
        raise UserError("--k and --budget exclude each other")
    if budget is not None and budget <= last:
        raise UserError(f"--budget {budget} lies not beyond step {last}, from which it goes on")
    ks = given or ([1.0] if budget is None else [(budget - last) / (last - first)])
    if odd := [k for k in ks if not math.isfinite(k)]:
        raise UserError(f"--k must be finite numbers, not {odd[0]}")
    return list(dict.fromkeys(ks))
