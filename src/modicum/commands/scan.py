"""`modicum scan`."""

from dataclasses import dataclass

from modicum.commands.study import Printed
from modicum.commands.train import add_sources, settings
from modicum.config import TrainConfig, from_mapping
from modicum.options import Parser, add_options, given, show
from modicum.study.scan import Scan, run_scan
from modicum.types import UserError


@dataclass(frozen=True)
class Options:
    """How the runs are made."""

    jobs: int = 1
    """Runs at the same time; several need `--launcher processes`, which shares out the cores."""
    launcher: str = "here"
    """What runs them: `here`, or `processes`, each in one of its own."""
    retry_failed: bool = False
    """Run those that stopped once more; else they stay stopped and are shown."""


def run(args: list[str]) -> int:
    """Train every unit alone, rank them and name the update that the best ones make."""
    parser = Parser("scan")
    add_sources(parser)
    parser.add_argument(
        "--rates",
        nargs="+",
        metavar="X",
        type=float,
        default=[],
        help="learning rates that every unit is tried with",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the scan in --out")
    for cls, title in ((Scan, "scan"), (Options, "runs"), (TrainConfig, "run")):
        add_options(parser, cls, title)
    found = parser.read(args)
    scan = from_mapping(Scan, given(Scan, found), "options")
    options = from_mapping(Options, given(Options, found), "options")
    said = given(TrainConfig, found)
    if "update" in said:
        raise UserError("scan says itself what trains; --method says what is put there")
    config = settings(found, {})
    out = said.get("out", "runs/scan")
    # Recipes and the configs of runs say `test`, but nothing may be chosen on it.
    split = said.get("evaluation", {}).get("eval_split", "tune")
    result = run_scan(
        scan,
        config,
        out,
        found.rates,
        split=split,
        overwrite=found.overwrite,
        observer=Printed(),
        **vars(options),
    )
    if not found.json:
        from modicum.study import ranking

        ranking.show(result)
    lines = [f"note: {text}" for text in result["notes"]]
    lines.append(f"best {len(result['best_units'])}: {result['best']}")
    lines.append(f"files: {out}/scan.json, scan.png, scan.svg")
    show(found.json, result, "\n".join(lines))
    return 0
