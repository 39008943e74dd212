"""`modicum report --paper`: figures, tables, references and a page that compiles."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

import fake_study
from fake_runs import make
from helpers import Fails
from modicum import cli
from modicum.report import paper, style, words

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a paper takes from a study of five arms."""
    root = tmp_path_factory.mktemp("paper")
    fake_study.build(root / "study", runs=False)
    return paper.write([root / "study"])


def size(pdf: bytes) -> tuple[float, float]:
    found = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf)
    assert found is not None
    return float(found[1]), float(found[2])


def test_figures_are_as_wide_as_a_column_and_as_a_page(folder: Path) -> None:
    widths = {"column": 3.3 * 72, "page": 6.75 * 72}
    files = list((folder / "figures").iterdir())
    assert {file.stem for file in files} >= {"differences-column", "accuracy-time-page"}
    for file in files:
        data = file.read_bytes()
        assert size(data)[0] == pytest.approx(widths[file.stem.rpartition("-")[2]], abs=0.1)
        # Type 42, which is TrueType, and no date.
        assert b"/FontFile2" in data and b"/Type3" not in data and b"CreationDate" not in data
        text = b"".join(map(inflated, re.findall(rb"stream\r?\n(.*?)endstream", data, re.DOTALL)))
        letters = re.findall(rb"/F\d+ ([\d.]+) Tf", text)
        assert letters and all(float(points) >= 8 for points in letters)


def test_a_page_that_was_edited_stays(
    tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader's own `paper.tex`, or one of which the first line was taken away, is never replaced."""
    run, out = str(make(tmp_path, "full")), tmp_path / "paper"
    asked = ["report", run, "--paper", "--out", str(out)]
    assert cli.run(asked) == cli.run(asked) == 0  # one of modicum's is
    capsys.readouterr()
    mine = (out / "paper.tex").read_text().partition("\n")[2] + "% mine"
    (out / "paper.tex").write_text(mine)
    (out / "modicum.bib").unlink()
    assert f"{out / 'paper.tex'} is a page of yours" in fails(*asked)
    assert (out / "paper.tex").read_text() == mine and not (out / "modicum.bib").exists()


def inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""


def test_tables_have_the_numbers_and_escape_names(folder: Path) -> None:
    with (folder / "tables" / "the-arms-the-best-first.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["arm"] for row in found][:2] == ["full", "last(1)"]
    assert float(found[1]["trained: number"]) == 0.161 and found[1]["trained"] == "16.1%"
    latex = (folder / "tables" / "the-arms-the-best-first.tex").read_text()
    assert "\\texttt{last(1)} & " in latex and "16.1\\%" in latex and "\\toprule" in latex
    assert paper.tex("a_b & 5 % \\ {é}~") == r"a\_b \& 5 \% \textbackslash{} \{?\}\textasciitilde{}"


def test_references_are_of_what_was_used_and_stand_in_the_documentation(folder: Path) -> None:
    text = (folder / "modicum.bib").read_text()
    assert re.findall(r"@\w+{(\w+),", text) == ["modicum", "bitfit", "galore"]
    places = (*ROOT.glob("docs/*.md"), *(ROOT / "src/modicum/objectives").glob("*.py"))
    known = "".join(place.read_text() for place in places)
    for line in words.file("references.txt").splitlines():
        assert line.split(" | ")[1] in known, line


def test_the_same_folders_give_the_same_bytes(tmp_path: Path) -> None:
    run = make(tmp_path, "last(1)")
    made = [paper.write([run], tmp_path / name) for name in "ab"]
    files = [{p.relative_to(of): p.read_bytes() for p in of.rglob("*.*")} for of in made]
    assert files[0] == files[1] and len(files[0]) > 6


def test_colours_differ_in_grey() -> None:
    def lightness(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        red, green, blue = (
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 116 * (0.2126 * red + 0.7152 * green + 0.0722 * blue) ** (1 / 3) - 16

    found = sorted(map(lightness, (style.INK, *style.SERIES)))
    assert all(after - before > 5 for before, after in itertools.pairwise(found))


def test_the_command_says_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path, "full")
    assert cli.run(["report", str(run), "--paper"]) == 0
    assert capsys.readouterr().out == f"paper: {run / 'paper'}\n"
    assert (run / "paper" / "paper.tex").is_file() and not (run / "report.html").exists()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here")
def test_the_page_compiles(folder: Path, tmp_path: Path) -> None:
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    shutil.copytree(folder, tmp_path / "p")
    names = [f"\\input{{tables/{file.name}}}" for file in (folder / "tables").glob("*.tex")]
    page = (folder / "paper.tex").read_text()
    whole = page.replace("\\end{document}", "\n\n".join([*names, "\\end{document}"]))
    (tmp_path / "p" / "paper.tex").write_text(whole)
    found = subprocess.run(command, cwd=tmp_path / "p", capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-2000:]
