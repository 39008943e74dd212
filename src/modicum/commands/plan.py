"""`modicum plan`, and `modicum updates`: what a run takes, and what it would train."""

import gc
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Annotated, Any

import modicum.evaluate as scorecard
from modicum import cache, draws
from modicum.commands import parser, printed
from modicum.commands.train import read
from modicum.config import TrainConfig, Trust
from modicum.limits import Limits, within
from modicum.options import several
from modicum.settings import Settings
from modicum.types import UserError

SILENT = 3.0  # seconds before it says that it works


@dataclass(frozen=True)
class Options(Settings):
    """Of which machine and runs."""

    hardware: str = "this"
    """A GPU (t4, rtx4090, h100), memory (2x48GB, '24GB 100TFLOPS 600GB/s'), or this machine."""
    prompt_tokens: Annotated[int | None, Limits(1)] = None
    """Tokens of a prompt (default: as the task's are, 256 without a tokenizer here)."""
    updates: str = ""
    """Several updates, separated by ';', as a table."""
    models: str = ""
    """Several models, separated by ';', as a table."""
    markdown: bool = False
    """Print a Markdown table."""
    pass_rate: str = ""
    """Share of right completions (0.1), or the folder of a run: how many groups have a signal."""
    require_fit: bool = False
    """Exit code 2 if it does not fit."""


def run(args: list[str]) -> int:
    """Print the plan of a run; with --require-fit exit code 2 if it does not fit."""
    found, options, config = read("plan", args, Options)
    many = bool(options.updates or options.models or options.markdown)
    wanted = partial(_made, config, options, many)
    # What is free here changes.
    here = options.hardware.strip().lower() == "this"
    text, made = wanted() if here else cache.once(wanted, config, options)
    if options.pass_rate:
        signal, told = _signal(config, options.pass_rate)
        text, made = f"{text}\n{told}", [plan | signal for plan in made]
    code = printed(found.json, made if many else made[0], text)
    if options.require_fit and (odd := [plan for plan in made if plan["fits"] is not True]):
        of = odd[0]
        raise UserError(f"{of['update']} on {of['model']} does not fit {of['machine']['name']}")
    return code


def _made(config: TrainConfig, options: Options, many: bool) -> tuple[str, list[Any]]:
    slow = Timer(SILENT, print, ["planning ..."], {"file": sys.stderr, "flush": True})
    slow.start()
    gc.disable()  # a fifth of the time, for a program of seconds
    try:
        from modicum import curricula
        from modicum.plan import hardware, overall
        from modicum.serving import members

        # They change nothing in a plan, and what is no run has none.
        curricula.parse(config.curriculum)
        members.parse(config.compute.sampler)
        machine = hardware.parse(options.hardware, config.compute.device, config.compute.dtype)
        plans = [
            overall.make(
                replace(config, model=model, update=update),
                machine,
                advise=not many,
                prompt=options.prompt_tokens,
            )
            for model in several(options.models) or [config.model]
            for update in several(options.updates) or [config.update]
        ]
    finally:
        slow.cancel()
        gc.enable()
    text = overall.table(plans, options.markdown) if many else plans[0].text()
    if many and not options.markdown:
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
    within("--pass-rate", mean, 0, 1)
    choice, shape = draws.parse(batch.groups), (batch.prompts_per_step, batch.group_size)
    rates = {"alike": [mean]} | ({"each": scores} if scores else {})
    made = {name: draws.expected(choice, of, *shape)._asdict() for name, of in rates.items()}
    said = {"mean": mean, "problems": len(scores), "where": rate, "prompts": shape[0]}
    return {"signal": made}, filled("signal.txt", signal=made, groups=choice, **said)


@dataclass(frozen=True)
class UpdatesOptions:
    """Where to look."""

    model: str = "tiny"
    """The model to preview in: `tiny`, a local folder (a model or a PEFT adapter), a GGUF file, or
    a hub id (only its config is read)."""
    base: str = ""
    """Where the base of `model` is, if that is an adapter; empty: where the adapter says."""
    trust: Trust = field(default_factory=Trust)


def run_updates(args: list[str]) -> int:
    """List the updates, or preview what an expression trains."""
    found, options = parser("updates").options(args, UpdatesOptions, "preview")

    from modicum import spec, updates
    from modicum.report.words import filled

    if found.expression is None:
        entries = [
            {**spec.describe(cls), "kind": cls.kind, "default": cls.examples[0]}  # type: ignore[attr-defined]
            for cls in updates.UPDATES.values()
        ]
        return printed(found.json, entries, filled("updates.txt", entries=entries))

    from modicum.updates.preview import preview

    result = preview(updates.parse(found.expression), options.model, options.trust, options.base)
    return printed(found.json, asdict(result), result.text())
