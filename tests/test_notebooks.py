"""The notebooks of examples/: clean, and they run from top to bottom (slow)."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))
GSM8K = ROOT / "tests" / "data" / "gsm8k"
# As a kernel runs them: one namespace, and what a cell ends with is shown.
RUNNER = """
import ast, json, pathlib, sys
names = {"__name__": "__main__"}
for cell in json.loads(pathlib.Path(sys.argv[1]).read_text("utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]))
        shown = tree.body and isinstance(tree.body[-1], ast.Expr) and tree.body.pop()
        exec(compile(tree, cell["id"], "exec"), names)
        if shown:
            value = eval(compile(ast.Expression(shown.value), cell["id"], "eval"), names)
            print(getattr(value, "_repr_html_", lambda: repr(value))())
"""


def cells_of(path: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in found["cells"] if cell["cell_type"] == kind]


def run(name: str, folder: Path, **environment: str) -> str:
    """What a notebook prints when all its cells are run in a process of their own."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUNNER, str(ROOT / "examples" / name)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_there_are_two() -> None:
    assert [path.name for path in NOTEBOOKS] == ["gpu.ipynb", "laptop.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.name for path in NOTEBOOKS])
def test_a_notebook_is_clean(path: Path) -> None:
    """No outputs, no numbers of runs, no path of a machine; every cell is Python and has an id."""
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
    for cell in cells_of(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        ast.parse("".join(cell["source"]))
    assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text(encoding="utf-8"))
    assert cells_of(path, "markdown")[0]["source"][0].startswith("# ")


@pytest.mark.slow
def test_the_laptop_notebook_learns(tmp_path: Path) -> None:
    said = run("laptop.ipynb", tmp_path)
    before, after = map(float, re.findall(r"([\d.]+)% → ([\d.]+)%", said)[0])
    assert after > before + 20
    assert (tmp_path / "runs/laptop.html").is_file()
    assert said.rstrip().endswith("997760")


@pytest.mark.slow
def test_the_gpu_notebook_runs_on_a_small_model(tmp_path: Path) -> None:
    known = os.environ.get("MODICUM_SMOLLM2", ROOT / "models" / "SmolLM2-135M-Instruct")
    model = Path(known)
    if not model.is_dir():
        pytest.skip("needs models/SmolLM2-135M-Instruct (scripts/fetch_smollm2.py)")
    sizes = {"STEPS": "2", "PROMPTS": "2", "GROUP": "2", "TOKENS": "24", "PROBLEMS": "2"}
    sizes |= {
        "MODEL": str(model),
        "TASK": f"gsm8k({str(GSM8K)!r})",
        "DTYPE": "fp32",
        "REWARD": "random",
    }
    sizes |= {"HARDWARE": "24GB"}
    said = run("gpu.ipynb", tmp_path, **{f"MODICUM_NOTEBOOK_{k}": v for k, v in sizes.items()})
    assert "last(5)" in said and "after training" in said
    assert "of 45 trainable tensors changed" in said and "0 of 45" not in said
    assert (tmp_path / "runs/gpu-adapter/adapter_config.json").is_file()
