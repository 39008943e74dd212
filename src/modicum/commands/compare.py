"""`modicum compare`."""

from __future__ import annotations

import json

from modicum.options import Parser

EXAMPLES = """
modicum compare runs/last1            # a run after and before its training
modicum compare runs/last1 runs/full  # two runs
modicum evaluate runs/last1 --split tune --out runs/last1-tune
modicum evaluate --model tiny --split tune --out runs/tiny-tune
modicum compare runs/last1-tune runs/tiny-tune
"""


def run(args: list[str]) -> int:
    """Compare two evaluations of the same problems, problem by problem."""
    parser = Parser(
        "compare", "The paired difference of two evaluations of the same problems.", EXAMPLES
    )
    parser.add_argument("after", metavar="A", help="a folder of `evaluate --out`, or a run folder")
    parser.add_argument(
        "before", metavar="B", nargs="?", help="what A is compared with; a run has its own base"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    found = parser.read(args)

    from modicum.face import compare
    from modicum.face.evaluation import evaluation_of

    after = evaluation_of(found.after)
    result = compare(found.after, found.before)
    other = found.before or f"{found.after} before training"
    if found.json:
        print(json.dumps({"after": found.after, "before": other, **result.to_json()}))
        return 0
    print(
        f"{found.after} minus {other}: {after.task}, split {after.split},"
        f" the same {result.num_problems} problems"
    )
    for name in ("accuracy", "lenient", "greedy"):
        band = getattr(result, name)
        print(
            f"{name:<9} {100 * band.mean:+.1f} points"
            f"  [{100 * band.low:+.1f}, {100 * band.high:+.1f}]"
        )
    print(f"{result.better} problems better, {result.worse} worse (accuracy)")
    return 0
