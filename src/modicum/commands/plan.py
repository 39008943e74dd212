"""`modicum plan`, and `modicum updates`: what a run takes, and what it would train."""

import sys
from argparse import Namespace
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import modicum.evaluate as scorecard
from modicum import cache, draws
from modicum.commands import printed
from modicum.commands.train import settings
from modicum.config import TrainConfig, Trust
from modicum.limits import Limits
from modicum.options import config_of, several
from modicum.types import UserError

SILENT = 3.0  # seconds before it says that it works


def run(found: Namespace) -> int:
    """Print the plan of a run; with --require-fit exit code 2 if it does not fit."""
    config = settings(found)
    many = bool(found.updates or found.models or found.markdown)
    wanted = partial(_made, config, found, many)
    # What is free here changes.
    here = found.hardware.strip().lower() == "this"
    asked = found.hardware, found.prompt_tokens, found.updates, found.models, found.markdown
    text, plans = wanted() if here else cache.once(wanted, config, *asked)
    if found.pass_rate:
        signal, told = _signal(config, found.pass_rate)
        text, plans = f"{text}\n{told}", [plan | signal for plan in plans]
    code = printed(found.json, plans if many else plans[0], text)
    if found.require_fit and (odd := [plan for plan in plans if plan["fits"] is not True]):
        of = odd[0]
        raise UserError(f"{of['update']} on {of['model']} does not fit {of['machine']['name']}")
    return code


def _made(config: TrainConfig, found: Namespace, many: bool) -> tuple[str, list[Any]]:
    slow = Timer(SILENT, print, ["planning ..."], {"file": sys.stderr, "flush": True})
    slow.start()
    try:
        from modicum import curricula
        from modicum.plan import hardware, overall
        from modicum.serving import members

        # They change nothing in a plan, and what is no run has none.
        curricula.parse(config.curriculum)
        members.parse(config.compute.sampler)
        machine = hardware.parse(found.hardware, config.compute.device, config.compute.dtype)
        how = {"advise": not many, "prompt": found.prompt_tokens}
        plans = [
            overall.make(replace(config, model=model, update=update), machine, **how)
            for model in several(found.models) or [config.model]
            for update in several(found.updates) or [config.update]
        ]
    finally:
        slow.cancel()
    text = overall.table(plans, found.markdown) if many else plans[0].text()
    if many and not found.markdown:
        text = "\n".join([text, *(f"note: {note}" for note in plans[0].assumptions)])
    return text, [plan.to_json() for plan in plans]


def _signal(config: TrainConfig, rate: str) -> tuple[dict[str, Any], str]:
    """What of a step has a signal at a pass rate, or at each problem's of a run: JSON and words."""
    from modicum.report.words import filled

    batch, scores = config.batch, list[float]()
    try:
        mean = float(rate)
    except ValueError:
        base = scorecard.read(Path(rate), "base")
        mean, scores = base.accuracy, base.scores
    Limits(0, 1).check("--pass-rate", mean)
    choice, shape = draws.parse(batch.groups), (batch.prompts_per_step, batch.group_size)
    rates = {"alike": [mean]} | ({"each": scores} if scores else {})
    made = {name: draws.expected(choice, of, *shape)._asdict() for name, of in rates.items()}
    said = {"mean": mean, "problems": len(scores), "where": rate, "prompts": shape[0]}
    return {"signal": made}, filled("signal.txt", signal=made, groups=choice, **said)


def run_updates(found: Namespace) -> int:
    """List the updates, or preview what an expression trains."""
    from modicum import spec, updates
    from modicum.report.words import filled

    if found.expression is None:
        entries = [
            {**spec.describe(cls), "kind": cls.kind, "default": cls.examples[0]}  # type: ignore[attr-defined]
            for cls in updates.UPDATES.values()
        ]
        return printed(found.json, entries, filled("updates.txt", entries=entries))

    from modicum.updates.preview import preview

    trust = config_of(Trust, found)
    result = preview(updates.parse(found.expression), found.model, trust, found.base)
    return printed(found.json, asdict(result), result.text())
