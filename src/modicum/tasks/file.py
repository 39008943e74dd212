"""Problems of your own: JSONL, JSON (a list of objects), CSV, TSV, Parquet, or a hub data set.

Of one file or part a problem belongs to train, tune or test (80/10/10 %) by a hash of its question, so
that equal questions are never in two splits and added rows move no others. With a file or files
to test on, the rest is divided into train and tune (90/10 %).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from modicum.spec import check
from modicum.tasks import forms, hub, readers
from modicum.tasks.dataset import BadRows, DataTask, check_path
from modicum.tasks.loading import Reader, Role, RowPart, roles_of
from modicum.types import UserError

HINT = "; question= and answer= name columns, also inner ones such as reward_model.ground_truth"


@dataclass(frozen=True)
class FileTask(DataTask):
    """The rows of the file or folder `path`; `question` and `answer` name columns.

    A folder has `*train*` and `*test*` files, perhaps `*valid*` ones; `test` is a file of its
    own to test on. When `question` and `answer` are left at their defaults, rows in the forms
    of verl, TRL, ShareGPT, OpenAI and Alpaca are known by their columns. Answers may be texts,
    numbers, whole solutions with a marked answer, or lists, of which any is right, or with
    several='all' the whole set. `solution` names worked solutions; `difficulty` a column of
    numbers, larger ones are harder, or easier as in 'solve_rate:desc'. A row that cannot be a
    problem is a UserError with its line, or is skipped and counted with bad_rows='skip'.
    """

    name: ClassVar[str] = "file"
    aliases: ClassVar[Mapping[str, str]] = {"train": "path"}
    of_files: ClassVar[bool] = True
    own_rows: ClassVar[bool] = True
    path: str
    question: str = "question"
    answer: str = "answer"
    difficulty: str | None = None
    bad_rows: BadRows = "refuse"
    test: str | None = None
    solution: str | None = None
    several: forms.Several = "any"

    def __post_init__(self) -> None:
        check_path(self.name, self.path, hub_too=False)
        check(f"{self.name}: several", self.several, forms.Several)
        for field in ("question", "answer", "difficulty", "solution", "test"):
            value = getattr(self, field)
            needed = field in ("question", "answer") or value is not None
            if needed and (not isinstance(value, str) or not value.strip()):
                what = f"{self.name}: {field} must be a text that is not empty"
                raise UserError(f"{what}, not {value!r}")
        if readers.ending(self.question) in readers.READERS:
            raise UserError(f"file: {self.question!r} is no column; a file to test on is test=...")
        for path in (self.path, self.test or self.path) if self.of_files else ():
            # A folder may have a dot in its name, but then hardly a word after it.
            named = readers.ending(path)
            if named[1:].isalpha() and named not in readers.READERS and not Path(path).is_dir():
                raise UserError(f"file: {path!r} must be a folder or end in {readers.ENDS}")

    def reader(self, part: RowPart) -> Reader:
        """By the columns that the arguments name, or by those of the rows."""
        named = self.question, self.answer, self.solution, self.difficulty
        form = forms.recognise(part.origin, part.records, *named, self.several, HINT)
        return form.item, form.note

    def advice(self) -> str:
        """How every split gets problems."""
        return f"{super().advice()}, or name others to test on with test="

    def file_name(self, path: str) -> str:
        """The file's name with its ending."""
        return Path(path).name

    def _files(self) -> list[tuple[str, Role, str]]:
        found = super()._files()
        if self.test is None:
            return found
        if Path(found[0][2]) != Path(self._place(self.path)):
            raise UserError(f"file: {self.path} is a folder, whose *test* files are what is tested")
        # Its name may be that of the other file, in another folder.
        test = self._place(self.test)
        return [(found[0][0], "train", found[0][2]), (f"test/{Path(test).name}", "test", test)]


@dataclass(frozen=True)
class HubTask(FileTask):
    """The rows of the data set `path` on the Hugging Face hub, such as 'openai/gsm8k'.

    Or of a folder that the library `datasets` has saved or reads. `config` names a configuration;
    `train` and `test` name parts, which by themselves are known by their names (train, validation,
    test). Columns and all else are as in `file(...)`.
    """

    name: ClassVar[str] = "hub"
    aliases: ClassVar[Mapping[str, str]] = {}
    of_files: ClassVar[bool] = False
    config: str | None = None
    train: str | None = None

    def _files(self) -> list[tuple[str, Role, str]]:
        return []

    def _parts(self) -> list[RowPart]:
        place = self._place(self.path) if Path(self.path).expanduser().is_dir() else self.path
        found = hub.read(self.name, place, self.config, None)
        given = {"train": self.train, "test": self.test}
        named = {name: role for role, name in given.items() if name}
        for name in [name for name in found if name not in named]:
            roles = readers.parts_of(name) or [""] * (len(found) == 1)
            if len(roles) == 1 and not given.get(roles[0]):
                named[name] = roles[0]
        told = list(named.values())
        if named.keys() - found.keys() or len(set(told)) < len(told) or not {"", "train"} & {*told}:
            raise UserError(
                f"hub: {self.path} has the parts {', '.join(found)}; train= and test= name those"
                " to train on and to test on"
            )
        by_role = roles_of(told)
        return [
            RowPart(name or "rows", by_role[role], f"{self.path} {name}".strip(), found[name])
            for name, role in named.items()
        ]
