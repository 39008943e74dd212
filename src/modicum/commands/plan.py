"""`modicum plan`."""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import replace

from modicum.commands.train import add_sources, settings
from modicum.config import TrainConfig
from modicum.options import Parser, add_options, show
from modicum.types import UserError

EXAMPLES = """
modicum plan --update 'last(1)'
modicum plan --model Qwen/Qwen2.5-1.5B --update 'lora(rank=8)' --hardware 2x48GB --dtype bf16 --max-tokens 512
modicum plan --model Qwen/Qwen2.5-7B --hardware h100 --dtype bf16 --updates 'full; last(5); lora(rank=8)'
modicum plan --recipe tinyzero --hardware a100-80gb --require-fit
"""


def run(args: list[str]) -> int:
    """Print the plan of a run; with --require-fit exit code 2 if it does not fit."""
    parser = Parser("plan", "Memory, FLOPs and time of a run, from its settings alone.", EXAMPLES)
    add_sources(parser)
    parser.add_argument(
        "--hardware",
        metavar="NAME",
        default="this",
        help="a GPU (h100, a100-80gb, rtx4090), memory (2x48GB), or this machine (default this)",
    )
    parser.add_argument(
        "--prompt-tokens",
        metavar="N",
        type=_tokens,
        help="tokens of a prompt (default: as the task's are, 256 without a tokenizer here)",
    )
    parser.add_argument(
        "--updates", metavar="LIST", help="several updates, separated by ';', as a table"
    )
    parser.add_argument(
        "--models", metavar="LIST", help="several models, separated by ';', as a table"
    )
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--require-fit", action="store_true", help="exit code 2 if it does not fit")
    add_options(parser, TrainConfig)
    found = parser.read(args)
    config = settings(found, {})

    from modicum import curricula
    from modicum.engine import samplers
    from modicum.plan import hardware, overall

    # They change nothing in a plan, and what is no run has none.
    curricula.parse(config.curriculum)
    samplers.parse(config.compute.sampler)
    machine = hardware.parse(found.hardware, config.compute.device, config.compute.dtype)
    several = bool(found.updates or found.models or found.markdown)
    plans = [
        overall.make(
            changed,
            machine,
            overall.lengths_of(changed, found.prompt_tokens),
            advise=not several,
        )
        for changed in _variants(config, found.models, found.updates)
    ]
    made = [plan.to_json() for plan in plans]
    text = overall.table(plans, found.markdown) if several else plans[0].text()
    if several and not found.markdown:
        text = "\n".join([text, *(f"note: {note}" for note in plans[0].assumptions)])
    show(found.json, made if several else made[0], text)
    if found.require_fit and any(plan.fits is not True for plan in plans):
        odd = next(plan for plan in plans if plan.fits is not True)
        raise UserError(f"{odd.update} on {odd.model} does not fit {machine.name}")
    return 0


def _tokens(text: str) -> int:
    """A number of tokens of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"a whole number of at least 1, not {text!r}")
    return int(text)


def _variants(config: TrainConfig, models: str | None, updates: str | None) -> list[TrainConfig]:
    """The config for every model and update that was named, or as it is."""

    def parts(text: str | None, default: str) -> list[str]:
        return [part.strip() for part in (text or "").split(";") if part.strip()] or [default]

    return [
        replace(config, model=model, update=update)
        for model in parts(models, config.model)
        for update in parts(updates, config.update)
    ]
