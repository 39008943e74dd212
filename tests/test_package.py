"""What is published: wheel and source package, and the wheel alone at work.

The environment is fresh and has modicum from the wheel only; its dependencies are those of the
environment that runs the tests, by a path file, since nothing is downloaded here."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "modicum"
LOAD = """
import modicum, sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
assert Path(modicum.__file__).is_relative_to(sys.prefix), modicum.__file__
model, tokenizer = (of.from_pretrained("out") for of in (AutoModelForCausalLM, AutoTokenizer))
chat = [{"role": "user", "content": "What is 1+2?"}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=4)[0]))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with wheel and source package."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_the_wheel_has_the_package_and_nothing_else(built: Path) -> None:
    names = set(zipfile.ZipFile(only(built, "*.whl")).namelist())
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == source
    for name in ("py.typed", "styles.toml", "tasks/handed_chat.jinja", "report/card.md"):
        assert f"modicum/{name}" in names
    assert "modicum/models/tiny/model.safetensors" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_metadata_is_what_an_index_asks_for(built: Path) -> None:
    wheel = zipfile.ZipFile(only(built, "*.whl"))
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    text = wheel.read(name).decode()
    for said in (
        *("Name: modicum", "License-Expression: Apache-2.0", "Requires-Python: >=3.11"),
        *("Classifier: Typing :: Typed", "Description-Content-Type: text/markdown"),
        *(f"Classifier: Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
    ):
        assert f"{said}\n" in text
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in extras["optional-dependencies"]:
        assert f"Provides-Extra: {extra}\n" in text


def test_the_source_package_has_what_it_needs_and_the_licences_of_data(built: Path) -> None:
    with tarfile.open(only(built, "*.tar.gz")) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for name in ("LICENSE", "README.md", "CITATION.cff", "pyproject.toml", "tests/test_package.py"):
        assert name in names
    assert "tests/data/gsm8k/LICENSE" in names
    assert not [n for n in names if n.split("/")[0] in ("runs", "studies", "models", ".venv")]


def test_the_wheel_alone_trains_and_exports(built: Path, tmp_path: Path) -> None:
    home = tmp_path / "env"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    wheel = str(only(built, "*.whl"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_TOKEN")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}

    def run(*args: str, code: int = 0) -> str:
        done = subprocess.run(
            args, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    run(*pip, wheel)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    place = home / "lib" / version / "site-packages" / "others.pth"
    place.write_text(sysconfig.get_path("purelib") + "\n")
    modicum = str(home / "bin" / "modicum")
    assert "export" in run(modicum, "--help")
    few = ("--prompts-per-step", "2", "--group-size", "2", "--eval-problems", "4")
    run(modicum, "train", "--steps", "2", *few, "--out", "run", "--update", "last(1)", "--json")
    said = run(modicum, "export", "run", "--out", "out", "--push", "me/mine", code=2)
    assert "out is there, and was not uploaded (" in said
    assert "HF_HUB_OFFLINE is set; later: hf upload me/mine out" in said
    assert "What is 1+2?" in run(str(python), "-c", LOAD)
    assert "## Scores" in (tmp_path / "out" / "README.md").read_text()
