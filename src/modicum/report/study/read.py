"""A study folder as data: its analysis, its settings and what its run folders hold.

`analysis.json` must be there. Run folders may be missing; then `curves.json` (made of them
by `cells.compact`) takes their place, and without it there are no curves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modicum.config import read_toml
from modicum.report.read import Columns
from modicum.report.study import cells
from modicum.results import Analysis, Anatomy, ArmResult, fill
from modicum.runs import read_object
from modicum.types import UserError


@dataclass(frozen=True)
class ShownText:
    """What was written on a problem, and whether its marked answer is right."""

    completion: str
    strict: bool = False

    @property
    def about(self) -> str:
        """The verdict in a word."""
        return "right" if self.strict else "wrong"


@dataclass(frozen=True)
class ShownProblem:
    """A held-out problem; `texts` by an arm's slug, that of the base under ""."""

    question: str
    gold: str
    texts: Mapping[str, ShownText]


@dataclass(frozen=True)
class ShownSamples:
    """Completions of several arms on the same problems, and how they were chosen."""

    rule: str = ""
    problems: tuple[ShownProblem, ...] = ()


@dataclass(frozen=True)
class ArmCurves:
    """What an arm's runs logged; `seeds` and `evaluations` by seed.

    Columns are float64 of one length a seed, NaN where nothing was logged; `evaluations`
    are (step, held-out accuracy).
    """

    seeds: Mapping[str, Columns]
    evaluations: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    anatomy: Anatomy | None = None
    change_proof: str = ""


@dataclass(frozen=True)
class CurvesFile:
    """`curves.json`: what the report shows of the runs, by an arm's slug."""

    format: int
    arms: Mapping[str, ArmCurves] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions and machine of the first run."""
    environments: int = 0
    """How many different ones the runs recorded."""
    samples: ShownSamples = ShownSamples()


@dataclass(frozen=True)
class StudyRecord:
    """A study folder; `runs` holds what its run folders or their copy do."""

    folder: Path
    analysis: Analysis
    settings: Mapping[str, Any]
    runs: CurvesFile

    @property
    def curves(self) -> dict[str, ArmCurves]:
        """By slug, in the order of the arms, of those whose runs or copy were found."""
        return {
            a.slug: self.runs.arms[a.slug] for a in self.analysis.arms if a.slug in self.runs.arms
        }

    @property
    def control(self) -> ArmResult:
        """The arm that the others are compared with."""
        return next(arm for arm in self.analysis.arms if arm.name == self.analysis.control)


def load(folder: str | Path) -> StudyRecord:
    """The study in `folder`; UserError that names the file when one is missing or broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a study folder")
    file, stored, design = (folder / n for n in ("analysis.json", "curves.json", "study.toml"))
    if not file.is_file():
        raise UserError(f"{file} is missing: the study has not been analysed yet")
    analysis = Analysis.from_json(read_object(file), str(file))
    data = read_object(stored) if stored.is_file() else {"format": cells.FORMAT}
    if data.get("format") != cells.FORMAT:
        raise UserError(f"{stored}: 'format' is {data.get('format')!r}, not {cells.FORMAT}")
    fresh = cells.compact(folder, analysis)
    arms = {**data.get("arms", {}), **fresh["arms"]}
    data |= {name: value for name, value in fresh.items() if value}
    # A run without an anatomy has an empty one there.
    data["arms"] = {slug: {k: v for k, v in arm.items() if v} for slug, arm in arms.items()}
    runs = fill(CurvesFile, data, str(stored))
    for slug, curves in runs.arms.items():
        for seed, columns in curves.seeds.items():
            if "step" not in columns or len({len(column) for column in columns.values()}) > 1:
                raise UserError(
                    f"{stored}: {slug}: the columns of seed {seed} are not of one length"
                )
    return StudyRecord(folder, analysis, read_toml(design) if design.is_file() else {}, runs)
