"""The shared cases: one line of JSON each, with an id, a function, its input and output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "data" / "math_cases.jsonl"


def load(fn: str) -> list[dict[str, Any]]:
    """The cases of the function `fn`: dicts with id, input, expected and, for some, tol."""
    lines = PATH.read_text(encoding="utf-8").splitlines()
    found = [case for case in map(json.loads, lines) if case["fn"] == fn]
    assert found, f"{PATH.name} has no case of {fn!r}"
    return found
