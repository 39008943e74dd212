"""`modicum compare`."""

from dataclasses import asdict

from modicum.options import Parser, show


def run(args: list[str]) -> int:
    """Compare two evaluations of the same problems, problem by problem."""
    parser = Parser("compare")
    parser.folder("after", "a folder of `evaluate --out`, or a run folder", metavar="A")
    parser.folder("before", "what A is compared with; else its base", metavar="B", nargs="?")
    found = parser.read(args)

    from modicum.face import compare
    from modicum.face.evaluation import evaluation_of

    after = evaluation_of(found.after)
    result = compare(found.after, found.before)
    other = found.before or f"{found.after} before training"
    problems = f"split {after.split}, the same {result.num_problems} problems"
    lines = [f"{found.after} minus {other}: {after.task}, {problems}"]
    for name in ("accuracy", "lenient", "greedy"):
        mean, low, high = (100 * value for value in vars(getattr(result, name)).values())
        lines.append(f"{name:<9} {mean:+.1f} points  [{low:+.1f}, {high:+.1f}]")
    lines.append(f"{result.better} problems better, {result.worse} worse (accuracy)")
    values = {"after": found.after, "before": other, **asdict(result)}
    show(found.json, values, "\n".join(lines))
    return 0
