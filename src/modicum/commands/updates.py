"""`modicum updates`."""

from dataclasses import asdict, dataclass, field

from modicum.config import Trust
from modicum.options import Parser, show


@dataclass(frozen=True)
class Options:
    """Where to look."""

    model: str = "tiny"
    """The model to preview in: `tiny`, a local folder (a model or a PEFT adapter), a GGUF file, or
    a hub id (only its config is read)."""
    base: str = ""
    """Where the base of `model` is, if that is an adapter; empty: where the adapter says."""
    trust: Trust = field(default_factory=Trust)


def run(args: list[str]) -> int:
    """List the updates, or preview what an expression trains."""
    parser = Parser("updates")
    parser.add_argument("expression", nargs="?", metavar="UPDATE", help="an update expression")
    found, options = parser.options(args, Options, "preview")

    from modicum import spec, updates

    if found.expression is None:
        entries = [
            {**spec.describe(cls), "kind": cls.kind, "default": cls.examples[0]}  # type: ignore[attr-defined]
            for cls in updates.UPDATES.values()
        ]
        lines = [f"{entry['signature']}\n    {entry['summary']}" for entry in entries]
        lines += [
            "\na + b: both   a & b: what both select   method @ a: where a method applies",
            "optimizer @ update: which rule moves what the update trains",
        ]
        show(found.json, entries, "\n".join(lines))
        return 0

    from modicum.updates.preview import preview

    update = updates.parse(found.expression)
    result = preview(update, options.model, options.trust, options.base)
    show(found.json, asdict(result), result.text())
    return 0
