"""`modicum updates`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from modicum.config import Trust, from_mapping
from modicum.options import Parser, add_options, given

EXAMPLES = """
modicum updates
modicum updates 'last(1) + parts(norm)'
modicum updates 'lora(rank=8) @ middle(2)' --model models/SmolLM2-135M-Instruct
"""


@dataclass(frozen=True)
class Options:
    """Where to look."""

    model: str = "tiny"
    """The model to preview in: `tiny`, a local folder, a GGUF file, or a hub id (only its config is read)."""
    trust: Trust = field(default_factory=Trust)


def run(args: list[str]) -> int:
    """List the updates, or preview what an expression trains."""
    parser = Parser("updates", "List the updates, or preview what one trains in a model.", EXAMPLES)
    parser.add_argument("expression", nargs="?", metavar="UPDATE", help="an update expression")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    add_options(parser, Options, "preview")
    found = parser.read(args)
    options = from_mapping(Options, given(Options, found), "options")

    from modicum import spec, updates

    if found.expression is None:
        entries = [
            {**spec.describe(cls), "kind": cls.kind, "default": cls.examples[0]}  # type: ignore[attr-defined]
            for cls in updates.UPDATES.values()
        ]
        if found.json:
            print(json.dumps(entries))
        else:
            for entry in entries:
                print(f"{entry['signature']}\n    {entry['summary']}")
            print("\na + b: both   a & b: what both select   method @ a: where a method applies")
            print("optimizer @ update: which rule moves what the update trains")
        return 0

    from modicum.updates.preview import preview

    result = preview(updates.parse(found.expression), options.model, options.trust)
    if found.json:
        print(json.dumps(result.to_json()))
    else:
        print(result.text())
    return 0
