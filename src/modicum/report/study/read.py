"""A study folder as data: its analysis, its settings and what its run folders hold.

`analysis.json` must be there. Run folders may be missing; then `curves.json` (made of them
by `compact`) takes their place, and without it there are no curves.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modicum.report import weights
from modicum.report.study import cells
from modicum.report.study.analysis import Analysis, Arm, fill, parse
from modicum.spec import check
from modicum.types import UserError

Columns = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Text:
    """What was written on a problem, and whether its marked answer is right."""

    completion: str
    strict: bool = False


@dataclass(frozen=True)
class Problem:
    """A held-out problem; `texts` by an arm's slug, that of the base under ""."""

    question: str
    gold: str
    texts: Mapping[str, Text]


@dataclass(frozen=True)
class Samples:
    """Completions of several arms on the same problems, and how they were chosen."""

    rule: str = ""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Curves:
    """What an arm's runs logged; `seeds` and `evaluations` by seed.

    Columns are float64 of one length a seed, NaN where nothing was logged; `evaluations`
    are (step, held-out accuracy).
    """

    seeds: Mapping[str, Columns]
    evaluations: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    anatomy: weights.Anatomy | None = None
    anatomy_seed: str = ""
    change_proof: str = ""


@dataclass(frozen=True)
class Study:
    """A study folder; `curves` by an arm's slug, of those whose runs or copy were found."""

    folder: Path
    analysis: Analysis
    settings: Mapping[str, Any]
    curves: Mapping[str, Curves]
    samples: Samples
    environment: Mapping[str, Any]
    """Versions and machine of the first run."""
    environments: int
    """How many different ones the runs recorded."""

    @property
    def control(self) -> Arm:
        """The arm that the others are compared with."""
        return next(arm for arm in self.analysis.arms if arm.name == self.analysis.control)


def load(folder: str | Path) -> Study:
    """The study in `folder`; UserError that names the file when one is missing or broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a study folder")
    file = folder / "analysis.json"
    if not file.is_file():
        raise UserError(f"{file} is missing: the study has not been analysed yet")
    analysis = parse(_object(file), str(file))
    stored = folder / "curves.json"
    data = _object(stored) if stored.is_file() else {"format": cells.FORMAT}
    if data.get("format") != cells.FORMAT:
        raise UserError(f"{stored}: 'format' is {data.get('format')!r}, not {cells.FORMAT}")
    fresh = cells.compact(folder, analysis)
    data = data | {name: value for name, value in fresh.items() if value and name != "arms"}
    arms = check(f"{stored}: 'arms'", data.get("arms", {}), dict) | fresh["arms"]
    return Study(
        folder=folder,
        analysis=analysis,
        settings=_settings(folder / "study.toml"),
        curves={
            arm.slug: _curves(arms[arm.slug], f"{stored}: {arm.slug}")
            for arm in analysis.arms
            if arm.slug in arms
        },
        samples=fill(Samples, data.get("samples", {}), f"{stored}: samples"),
        environment=check(f"{stored}: 'environment'", data.get("environment", {}), dict),
        environments=check(f"{stored}: 'environments'", data.get("environments", 0), int),
    )


def compact(folder: str | Path) -> dict[str, Any]:
    """What the study's run folders hold, thinned, as JSON values: the content of `curves.json`.

    Raises UserError when `analysis.json` is missing or a run folder is broken.
    """
    folder = Path(folder)
    file = folder / "analysis.json"
    if not file.is_file():
        raise UserError(f"{file} is missing: the study has not been analysed yet")
    return cells.compact(folder, parse(_object(file), str(file)))


def _curves(data: Any, where: str) -> Curves:
    arm = check(where, data, dict)
    seeds = {
        seed: {name: np.array(column, dtype=float) for name, column in columns.items()}
        for seed, columns in _tables(arm, "seeds", where).items()
    }
    for seed, columns in seeds.items():
        if "step" not in columns or len({len(column) for column in columns.values()}) > 1:
            raise UserError(f"{where}: the columns of seed {seed} are not of one length")
    anatomy = check(f"{where}: 'anatomy'", arm.get("anatomy", {}), dict)
    return Curves(
        seeds=seeds,
        evaluations={
            seed: tuple((float(step), float(accuracy)) for step, accuracy in pairs)
            for seed, pairs in arm.get("evaluations", {}).items()
        },
        config=check(f"{where}: 'config'", arm.get("config", {}), dict),
        anatomy=weights.parse(anatomy, f"{where}: anatomy") if anatomy else None,
        anatomy_seed=str(anatomy.get("seed", "")),
        change_proof=check(f"{where}: 'change_proof'", arm.get("change_proof", ""), str),
    )


def _tables(data: Mapping[str, Any], name: str, where: str) -> dict[str, dict[str, Any]]:
    table = check(f"{where}: {name!r}", data.get(name, {}), dict)
    return {key: check(f"{where}: {name}: {key}", value, dict) for key, value in table.items()}


def _object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error})") from None
    return check(str(file), data, dict)


def _settings(file: Path) -> dict[str, Any]:
    """What study.toml says; nothing where it is missing."""
    if not file.is_file():
        return {}
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
