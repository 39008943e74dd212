"""What a run's training did to the weights, as `result.json` has it: the texts.

The numbers are those of modicum.anatomy, explained in docs/anatomy.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modicum.spec import check

NONE = "—"


@dataclass(frozen=True)
class Part:
    """One part of the model (attention, mlp, ...); None where a number does not exist."""

    relative_norm: float | None
    effective_rank: float | None
    rank_share: float | None


@dataclass(frozen=True)
class Anatomy:
    """What changed in the weights; shares are fractions of all entries."""

    dtype: str
    tensors: int
    tensors_changed: int
    entries: int
    entries_in_changed: int
    changed: Mapping[str, float]
    """By threshold, and `bf16`."""
    relative_norm: float | None
    parts: Mapping[str, Part]
    map: Mapping[str, tuple[float | None, ...]]
    """Part -> the relative norm of its change in every layer."""


def parse(data: Mapping[str, Any], where: str) -> Anatomy:
    """The anatomy from an object of JSON; what is missing or of a wrong type is a UserError."""
    number = float | None
    parts = {name: check(f"{where}: {name}", p, dict) for name, p in _table(data, "parts", where)}
    names = ("tensors", "tensors_changed", "entries", "entries_in_changed")
    return Anatomy(
        dtype=check(f"{where}: 'dtype'", data.get("dtype"), str),
        **{name: check(f"{where}: {name!r}", data.get(name), int) for name in names},
        changed={k: check(f"{where}: {k!r}", v, float) for k, v in _table(data, "changed", where)},
        relative_norm=check(f"{where}: 'relative_norm'", data.get("relative_norm"), number),
        parts={
            name: Part(
                *(
                    check(f"{where}: {name}: {key!r}", part.get(key), number)
                    for key in ("relative_norm", "effective_rank", "rank_share")
                )
            )
            for name, part in parts.items()
        },
        map={
            k: check(f"{where}: map: {k}", v, tuple[number, ...])
            for k, v in _table(data, "map", where)
        },
    )


def _table(data: Mapping[str, Any], name: str, where: str) -> list[tuple[str, Any]]:
    return list(check(f"{where}: {name!r}", data.get(name), dict).items())


def measures(found: Sequence[Anatomy | None]) -> list[tuple[str, list[str]]]:
    """Name -> a text for each run; nothing when no run was measured."""
    known = [a for a in found if a is not None]
    if not known:
        return []
    rows: list[tuple[str, list[str]]] = [
        ("Tensors changed", [f"{a.tensors_changed} of {a.tensors}" if a else NONE for a in found])
    ]
    for key in known[0].changed:
        if key != "bf16":
            name = "at all" if key == "0" else f"by more than {key}"
            rows.append((f"Entries changed {name} (%)", [_share(a, key) for a in found]))
    rows.append(("Entries changed that bf16 shows (%)", [_share(a, "bf16") for a in found]))
    rows.append(
        ("The same, within changed tensors (%)", [_share(a, "bf16", within=True) for a in found])
    )
    rows.append(
        (
            "Size of the change, of the weights' norm (%)",
            [NONE if a is None else _percent(a.relative_norm) for a in found],
        )
    )
    for part in dict.fromkeys(name for a in known for name in a.parts):
        texts = [_rank(a.parts.get(part)) if a else NONE for a in found]
        if set(texts) != {NONE}:
            rows.append((f"Effective rank, {part} (of full rank)", texts))
    return rows


def _share(found: Anatomy | None, key: str, within: bool = False) -> str:
    if found is None:
        return NONE
    share = found.changed.get(key)
    if share is None or (within and not found.entries_in_changed):
        return NONE
    return _percent(share * (found.entries / found.entries_in_changed if within else 1))


def _percent(share: float | None) -> str:
    """A share in percent, with two digits or more: 97.4, 0.20, 0.0012."""
    if share is None:
        return NONE
    value = 100 * share
    return f"{value:.1f}" if value >= 1 else f"{value:#.2g}"


def _rank(part: Part | None) -> str:
    if part is None or part.effective_rank is None or part.rank_share is None:
        return NONE
    return f"{part.effective_rank:.1f} ({100 * part.rank_share:.0f}%)"
