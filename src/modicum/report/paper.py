"""What a paper takes from runs or from a study: `modicum report --paper`.

Figures as PDF as wide as a column (3.3 inches) and as a page (6.75), no letter below 8 points; every table
as LaTeX and as CSV; BibTeX of the methods used, as far as docs/ name their sources; and a page that shows
them, `paper.tex`. The same folders, the same bytes."""

import re
from collections.abc import Sequence
from pathlib import Path

from modicum.report import page, style
from modicum.report.document import Figure, Table, Values
from modicum.report.words import environment, file, printable
from modicum.types import UserError

WIDTHS = {"column": True, "page": False}
LETTERS = 8.0  # points, at least
DENSE = {"signals", "changes"}  # have no room for such letters
SPECIAL = dict(line.split(" ", 1) for line in file("special.txt").splitlines())


def write(folders: Sequence[str | Path], out: str | Path = "", title: str = "") -> Path:
    """Write the folder `out`, or `paper` in that of a single run or study; its path."""
    paths = [Path(folder) for folder in folders]
    document = page.read(paths, title)
    to = Path(out) if out else (paths[0] if len(paths) == 1 else Path()) / "paper"
    figures = [figure for figure in document.blocks(Figure) if figure.name not in DENSE]
    tables = document.blocks(Table)
    said = repr((tables, document.blocks(Values)))
    lines = [line.split(" | ") for line in file("references.txt").splitlines()]
    known = [line for line in lines if re.search(rf"\b{line[0]}\b", said)]
    values = {"document": document, "figures": figures, "tables": tables, "references": known}
    made = {name: filled(name, **values) for name in ("paper.tex", "modicum.bib")}
    mark, there = made["paper.tex"].partition("\n")[0].encode(), to / "paper.tex"
    if there.is_file() and not there.read_bytes().startswith(mark):
        why = "is a page of yours, not of modicum's: name another folder by --out, or rename it"
        raise UserError(f"{there} {why}")
    for table in tables:
        name = "tables/" + re.sub(r"[^a-z0-9]+", "-", table.name.lower()).strip("-")
        made |= {
            f"{name}.tex": filled("table.tex", table=table, without=()),
            f"{name}.csv": filled("table.csv", table=table),
        }
    files = {to / name: text.encode() for name, text in made.items()}
    with style.styled(style.PAPER_STYLE):
        for figure in figures:
            for width, narrow in WIDTHS.items():
                files[to / "figures" / f"{figure.name}-{width}.pdf"] = drawn(figure, narrow)
    page.write_files(files)
    return to


def drawn(figure: Figure, narrow: bool) -> bytes:
    """A figure as PDF, its letters large enough."""
    from matplotlib.text import Text

    found = figure.draw(narrow)
    for text in found.findobj(Text):
        text.set_fontsize(max(LETTERS, text.get_fontsize()))
    return style.pdf(found)


def filled(name: str, **values: object) -> str:
    """A template of LaTeX or BibTeX, whose own texts are escaped by the filter `tex`."""
    return environment(tex=tex).get_template(name).render(values)


def tex(text: str) -> str:
    """A text as LaTeX that shows it as it is."""
    return "".join(SPECIAL.get(c, c if c.isascii() else "?") for c in printable(text))
