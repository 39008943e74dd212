"""`modicum export`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from modicum.config import Trust
from modicum.options import Parser, given, show
from modicum.parts import past_bases, past_config
from modicum.types import UserError


@dataclass(frozen=True)
class Options:
    """What to write where."""

    model: str = "tiny"
    """What to export when no RUN is named: `tiny`, a folder, a PEFT adapter, a GGUF file, or a
    hub id; with a RUN, where its base is now if it has moved."""
    base: str = ""
    """Where the base of `model` is, if that is an adapter; empty: where the adapter says."""
    out: str = ""
    """The folder to write; needed."""
    format: Literal["merged", "adapter"] = "merged"
    """An ordinary model folder, or only the PEFT adapter of a run that has one."""
    trust: Trust = field(default_factory=Trust)


def run(args: list[str]) -> int:
    """Write a run or a base as a folder that plain transformers or peft loads."""
    parser = Parser("export")
    parser.folder("run", "a run folder; none exports --model", nargs="?", metavar="RUN")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in --out")
    found, options = parser.options(args, Options, "export")
    if not options.out:
        raise UserError("export needs --out FOLDER")
    if options.format == "adapter" and not found.run:
        raise UserError("--format adapter needs a RUN that trained an adapter")

    from modicum import export

    out, said = Path(options.out), given(Options, found)
    if found.run:
        run, past = Path(found.run), past_config(Path(found.run))
        config = past_bases(run, past, said.get("model", ""), said.get("base", ""))
        config = replace(config, trust=replace(past.trust, **said.get("trust", {})))
        difference = export.export_run(run, out, options.format, found.overwrite, config)
    else:
        difference = export.export_base(
            options.model, out, found.overwrite, options.trust, options.base
        )
    files = sorted(p.name for p in out.iterdir())
    result = {"out": str(out), "files": files, "largest_logit_difference": difference}
    text = (
        f"wrote {out} ({', '.join(files)})\nloaded again: logits differ by at most {difference:.2g}"
    )
    show(found.json, result, text)
    return 0
