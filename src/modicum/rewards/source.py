"""Where a function of the user's own is: `package.module:name` or `path/to/file.py:name`.

Modules are looked for in the current directory last, so that no file of it hides a library. Paths
lead from here, or else from `FOLDERS`. What was edited since it was read is read again when a
function is named (`find`), not while a run goes on (`attribute`)."""

import contextlib
import difflib
import importlib
import operator
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Self

from modicum.spec import short
from modicum.types import UserError

NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
PATH = re.compile(rf"{NAME}:{NAME}")
FILE = re.compile(rf"(.+\.py):({NAME})", re.DOTALL)
PLAIN_FILE = re.compile(rf"[\w./\\~-]+\.py:{NAME}|[A-Za-z]:[\w./\\~-]+\.py:{NAME}")
"""What needs no quotes in an expression."""
QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
TERM = re.compile(
    rf"{QUOTED.pattern}|(?<![\w.:/\\~'-])(?P<path>{PLAIN_FILE.pattern}|{PATH.pattern})"
    r"(?:(?P<more>[ \t]*\([ \t]*(?=[^) \t]))|(?:[ \t]*\([ \t]*\))?(?![\w']))"
)
"""What `rewrite` looks at: texts in quotes, and functions with what begins their arguments."""
LEFT = re.compile(r"[\w./\\~-]+(?:\.py\b|[/\\][\w.-]*:)[\w.:]*")
OWN = "_own_"  # begins the names of modules that are files
MAX_FAULT = 200  # characters of an exception's message that are shown
FOLDERS: ContextVar[Sequence[Path]] = ContextVar("FOLDERS", default=())
HOMES: set[Path] = set()  # folders of files that were read, of which `sys.path` knew nothing
READ: dict[str, bytes] = {}  # the text of every module when it was read, by name


class Guard:
    """Keeps in `fault` what the user's code raises; an interrupt and a lack of memory pass."""

    fault = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> bool:
        if kind is None or issubclass(kind, KeyboardInterrupt | MemoryError):
            return False
        message = " ".join(str(error).split())
        self.fault = f"{kind.__name__}: {message}"[:MAX_FAULT] if message else kind.__name__
        return True


def find(path: str) -> str:
    """Import what `path` names, as it is now; returns the name of its module."""
    if (match := FILE.fullmatch(path)) is None and not PATH.fullmatch(path):
        known = "package.module:function or path/to/file.py:function"
        raise UserError(f"reward: {path!r} is not a function; write {known}")
    file = None if match is None else _file(path, match[1])
    guard, found = Guard(), None
    with guard, contextlib.redirect_stdout(sys.stderr):
        found = _import(path.partition(":")[0]) if file is None else _read(file)
    if found is None:
        raise UserError(f"reward {path}: cannot import {_what(path, guard.fault)}")
    attribute(path, found.__name__)
    return found.__name__


def attribute(path: str, module: str) -> Callable[..., Any]:
    """The callable that `path` names in a module that was imported; else a UserError."""
    found, name = importlib.import_module(module), path.rpartition(":")[2]
    try:
        function = operator.attrgetter(name)(found)
    except AttributeError:
        close = difflib.get_close_matches(name, vars(found), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"reward {path}: the module has no {name!r}{hint}") from None
    if not callable(function):
        raise UserError(f"reward {path}: {name!r} is no function but {short(function)}")
    return function


def file_of(module: ModuleType) -> Path:
    """The file of a module; what is no file if it has none."""
    return Path(getattr(module, "__file__", None) or "")


def _import(name: str) -> ModuleType:
    if not {"", "."} & set(sys.path):
        sys.path.append("")
    sys.path += [str(folder) for folder in FOLDERS.get() if str(folder) not in sys.path]
    module = importlib.import_module(name)
    return module if re.match(r"__main__$|modicum\.", name) else _renewed(module)


def _file(path: str, name: str) -> Path:
    home = Path(name).expanduser()
    for place in (home, *(folder / home for folder in FOLDERS.get())):
        if place.is_file():
            return place.resolve()
    raise UserError(f"reward {path}: there is no file {name}")


def _read(file: Path) -> ModuleType:
    """A file as a module that no import finds; its own imports find what lies beside it."""
    name = f"{OWN}{re.sub(r'[^A-Za-z0-9]', '_', file.stem)}_{zlib.crc32(bytes(file)):x}"
    if name not in sys.modules:
        module = sys.modules[name] = ModuleType(name)
        module.__file__, READ[name] = str(file), b""
        if str(home := file.parent) not in sys.path:
            HOMES.add(home)
        others = HOMES - {home}
        for other, known in list(sys.modules.items()):  # of the same name in another such folder
            if file_of(known).parent in others and (home / f"{other}.py").is_file():
                del sys.modules[other]
        sys.path[:] = [place for place in sys.path if Path(place) not in HOMES]
        sys.path += map(str, (*(HOMES - others), *others))
    return _renewed(sys.modules[name])


class _Text(SourceFileLoader):
    """Reads the text of a module, and not its bytecode, which may be of a text just as long."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _renewed(module: ModuleType) -> ModuleType:
    """A module that is read anew if its file was edited, or one beside it that it names."""
    file, name = file_of(module), module.__name__
    if file.suffix == ".py":
        text = file.read_bytes()
        words = {*re.findall(r"\w+", text.decode(errors="replace"))} - {"__main__"}
        edited = {n for n in _edited(file.parent) if n == name or n.rpartition(".")[2] in words}
        for other in edited - {name}:
            del sys.modules[other], READ[other]
        if edited:
            READ[name] = b""  # until it is read whole
            _Text(name, str(file)).exec_module(module)
            READ[name] = text
        _edited(file.parent)  # what was imported meanwhile
    return module


def _edited(folder: Path) -> list[str]:
    """The modules of a folder whose files have another text than when this was asked first."""
    named = ((n, getattr(m, "__file__", None) or "") for n, m in list(sys.modules.items()))
    files = [(n, Path(file)) for n, file in named if folder.name in file]  # paths are slow to make
    texts = {n: file.read_bytes() for n, file in files if file.parent == folder and file.is_file()}
    return [name for name, text in texts.items() if READ.setdefault(name, text) != text]


def _what(path: str, fault: str) -> str:
    """What could not be imported and why; for a module that is only a file, its path."""
    name, _, function = path.rpartition(":")
    text, file = f"{name!r} ({fault})", f"{name.replace('.', '/')}.py"
    if fault != f"ModuleNotFoundError: No module named {name.partition('.')[0]!r}":
        return text
    near = [*Path().glob(f"[!.]*/{file}"), *Path().glob(f"[!.]*/[!.]*/{file}"), Path("..", file)]
    found = next((place for place in sorted(near) if place.is_file()), f"path/to/{file}")
    return f"{text}; a file is named by its path: {shown(f'{found}:{function}')}"


def shown(path: str, *arguments: str) -> str:
    """The expression of a function, in quotes where it has to be."""
    if PATH.fullmatch(path) or PLAIN_FILE.fullmatch(path):
        return path + (f"({', '.join(arguments)})" if arguments else "")
    return f"function({', '.join([repr(path), *arguments])})"


def rewrite(text: str) -> str:
    """`text` with every function outside quotes as a term: `function('m:f')`."""
    if (match := FILE.fullmatch(text.strip())) and Path(match[1]).is_file():
        return f"function({match[0]!r})"  # with blanks, say

    def as_term(match: re.Match[str]) -> str:
        named = f"function({match['path']!r}" + (", " if match["more"] else ")")
        return named if match["path"] else match[0]

    found = TERM.sub(as_term, text)
    if left := LEFT.search(QUOTED.sub(" ", found)):
        raise UserError(f"reward: {left[0]} is no function; write path/to/file.py:function")
    return found
