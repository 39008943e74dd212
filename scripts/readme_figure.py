"""The README's figure, from the shipped study: python scripts/readme_figure.py

It reads studies/which-layers/arithmetic/analysis.json and writes docs/figures/which-layers.svg, which
follows the reader's light or dark scheme."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "studies" / "which-layers" / "arithmetic" / "analysis.json"
OUT = ROOT / "docs" / "figures" / "which-layers.svg"

LEFT, RIGHT, TOP, ROW, WIDTH = 200, 620, 54, 25, 720
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2328; }
.arm { font-family: ui-monospace, monospace; font-size: 13px; }
.small { font-size: 12px; fill: #59636e; }
.grid { stroke: #d1d9e0; }
.base { stroke: #59636e; stroke-dasharray: 4 3; }
.full { stroke: #0969da; stroke-dasharray: 4 3; }
.bar { stroke-width: 2; }
.better { stroke: #1a7f37; fill: #1a7f37; }
.worse { stroke: #bc4c00; fill: #bc4c00; }
.undecided, .control { stroke: #0969da; fill: #0969da; }
.placebo { stroke: #818b98; fill: #818b98; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .small { fill: #9198a1; }
  .grid { stroke: #3d444d; }
  .base { stroke: #9198a1; }
  .full { stroke: #4493f8; }
  .better { stroke: #3fb950; fill: #3fb950; }
  .worse { stroke: #f0883e; fill: #f0883e; }
  .undecided, .control { stroke: #4493f8; fill: #4493f8; }
}
circle.seed { fill-opacity: 0.45; stroke: none; }
"""


def main() -> None:
    """Write the figure."""
    OUT.write_text(drawn(json.loads(STUDY.read_text(encoding="utf-8"))), encoding="utf-8")
    print(OUT.relative_to(ROOT))


def at(accuracy: float) -> float:
    """Pixels from the left of an accuracy."""
    return round(LEFT + accuracy * (RIGHT - LEFT), 1)


def drawn(study: dict[str, Any]) -> str:
    """The figure of a study: every arm's accuracy with its interval, and every seed as a dot."""
    arms = sorted(study["arms"], key=lambda arm: -arm["accuracy"]["mean"])
    bottom = TOP + ROW * len(arms)
    full = next(arm for arm in arms if arm["name"] == study["control"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 44}"'
        f' width="{WIDTH}" role="img" aria-labelledby="title">',
        '<title id="title">Accuracy after the same number of generated tokens, by what was trained</title>',
        f"<style>{STYLE}</style>",
        '<text class="small" x="12" y="20">trained</text>',
        f'<text class="small" x="{WIDTH - 12}" y="20" text-anchor="end">of the parameters</text>',
    ]
    for percent in range(0, 101, 20):
        x = at(percent / 100)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP - 10}" y2="{bottom}"/>')
        label = f'<text class="small" x="{x}" y="{bottom + 18}" text-anchor="middle">'
        parts.append(f"{label}{percent}</text>")
    for name, value in (("base", study["base"]["mean"]), ("full", full["accuracy"]["mean"])):
        x = at(value)
        line = f'<line class="{name}" x1="{x}" x2="{x}" y1="{TOP - 16}" y2="{bottom}"/>'
        word = f"{name} {100 * value:.1f}"
        parts += [
            line,
            f'<text class="small" x="{x}" y="{TOP - 22}" text-anchor="middle">{word}</text>',
        ]
    for number, arm in enumerate(arms):
        parts += row(arm, TOP + ROW * number + ROW // 2)
    axis = "accuracy on held-out problems, %: five seeds (dots), their mean and 95 % interval"
    parts.append(
        f'<text class="small" x="{WIDTH / 2}" y="{bottom + 38}" text-anchor="middle">{axis}</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def row(arm: dict[str, Any], y: int) -> list[str]:
    """One arm at a height."""
    kind = "placebo" if arm["placebo"] else arm["verdict"].split(":")[0].split()[-1]
    kind = kind if kind in ("better", "worse", "undecided", "control") else "placebo"
    found = arm["accuracy"]
    low, high, mean = (at(found[key]) for key in ("low", "high", "mean"))
    percent = 100 * arm["cost"]["share"]
    share = f"{percent:.0f} %" if percent > 10 else f"{percent:.2g} %"
    seeds = [
        f'<circle class="{kind} seed" cx="{at(v)}" cy="{y}" r="3"/>'
        for v in arm["by_seed"].values()
    ]
    return [
        f'<text class="arm" x="12" y="{y + 4}">{escape(arm["name"])}</text>',
        f'<line class="{kind} bar" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>',
        *seeds,
        f'<circle class="{kind}" cx="{mean}" cy="{y}" r="5"/>',
        f'<text class="small" x="{WIDTH - 12}" y="{y + 4}" text-anchor="end">{share}</text>',
    ]


if __name__ == "__main__":
    main()
