"""`modicum evaluate`, `extrapolate` and `export`: what models come to, and as files for others."""

import math
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from modicum import hub, runs
from modicum.commands import printed
from modicum.config import Trust
from modicum.face.evaluation import EvaluateConfig, perform, settled, values_of
from modicum.options import given
from modicum.parts import past_bases, past_config
from modicum.report.words import filled
from modicum.types import UserError

MORE = "--checkpoint-every N --keep-checkpoints M keeps more of a run, --from 0 takes the base"


def run(found: Namespace) -> int:
    """Evaluate a model or the trained policy of a run."""
    place = Path(found.run) if found.run else None
    options = settled(given(EvaluateConfig, found), place, "options")

    from modicum.display import Display

    with Display() as display:
        result = perform(options, place, display)
    name = found.run or options.model
    text = filled("evaluation.txt", name=name, found=result, sampling=options.sampling)
    return printed(found.json, values_of(options, name, result), text)


def run_extrapolate(found: Namespace) -> int:
    """Evaluate the policies further along the line through two checkpoints of a run."""
    place = Path(found.run)
    past_config(place)
    saved = {int(path.name.removeprefix("step-")): path for path in runs.checkpoints(place)}
    first, last = _ends(place, sorted(saved), found.first, found.to)
    if (budget := found.budget) is not None and budget <= last:
        raise UserError(f"--budget {budget} lies not beyond step {last}, from which it goes on")
    beyond = 1.0 if budget is None else (budget - last) / (last - first)
    if odd := [k for k in found.k or () if not math.isfinite(k)]:
        raise UserError(f"--k must be finite numbers, not {odd[0]}")
    options = settled(given(EvaluateConfig, found), place, "options")

    from modicum.display import Display
    from modicum.training.extrapolation import Extrapolation

    line, points = Extrapolation(saved, first, last), []
    with Display() as display:
        for line.k in dict.fromkeys(found.k or [beyond]):
            here = replace(options, out=f"{options.out}/k{line.k:g}" if options.out else "")
            result = perform(here, place, display, past=line)
            step = last + line.k * (last - first)
            points.append({"k": line.k, "step": step, **values_of(here, found.run, result)})
    tensors = line.straight()
    values = {"run": found.run, "from": first, "to": last, "points": [*line.thetas]}
    values |= {**tensors.pop(""), "tensors": tensors, "evaluations": points}
    return printed(found.json, values, filled("extrapolation.txt", found=values))


def _ends(place: Path, saved: list[int], first: int | None, last: int | None) -> tuple[int, int]:
    """The steps a < b; UserError where there are none such."""
    listed = ", ".join(map(str, saved)) or "none"
    last = saved[-1] if last is None and saved else last
    if last not in saved:
        raise UserError(f"{place} has no checkpoint of b; it has: {listed}")
    before = [step for step in saved if step < last]
    if first is None and not before:
        why = f"no checkpoint before step {last}, and a line needs two; {MORE}"
        raise UserError(f"{place} has {why}")
    first = before[-1] if first is None else first
    if first not in (0, *before):
        why = f"is no checkpoint before {last} (there: {listed}); {MORE}"
        raise UserError(f"{place}: step {first} {why}")
    if last == 0:
        raise UserError(f"{place} was trained for no step")
    return first, last


def run_export(found: Namespace) -> int:
    """Write a run or a base as a folder that plain transformers or peft loads."""
    if found.format == "adapter" and not found.run:
        raise UserError("--format adapter needs a RUN that trained an adapter")

    from modicum import export
    from modicum.models.load import HUB_ID

    if found.push or found.private or found.dry_run:
        if not HUB_ID.fullmatch(found.push):
            raise UserError(f"--push must name a model on the hub as USER/NAME, not {found.push!r}")
        hub.require_name(found.push)

    out, trust = Path(found.out), given(Trust, found)
    if found.run:
        run, past = Path(found.run), past_config(Path(found.run))
        config = past_bases(run, past, found.model, found.base)
        config = replace(config, trust=replace(past.trust, **trust))
        gap = export.export_run(run, out, found.format, found.overwrite, config, repo=found.push)
    else:
        model = found.model or "tiny"
        gap = export.export_base(model, out, found.overwrite, Trust(**trust), found.base)
    files = sorted(p.name for p in out.iterdir())
    result = {"out": str(out), "files": files, "largest_logit_difference": gap}
    text = f"wrote {out} ({', '.join(files)})\nloaded again: logits differ by at most {gap:.2g}"
    if found.push:
        result["hub"] = hub.push(out, found.push, found.private, found.dry_run)
        text += f"\n{result['hub']}"
    return printed(found.json, result, text)
