"""The house rules, read from the source: import order, what stays free of torch, sizes."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "modicum"

# A module or package imports from itself and from what stands before it.
ORDER = [
    "types",
    "limits",
    "spec",
    "child",
    "grading",
    "answers",
    "disk",
    "cache",
    "runs",
    "stats",
    "logged",
    "results",
    "machine",
    "hub",
    "settings",
    "stopping",
    "draws",
    "config",
    "options",
    "naming",
    "tracking",
    "status",
    "report",
    "live",
    "tasks",
    "rewards",
    "objectives",
    "curricula",
    "models",
    "updates",
    "anatomy",
    "engine",
    "serving",
    "parallel",
    "evaluate",
    "learned",
    "recipes",
    "parts",
    "plan",
    "findings",
    "training",
    "doctor",
    "card",
    "export",
    "display",
    "study",
    "face",
    "commands",
    "cli",
    "__main__",
]
NO_TORCH = [
    *(
        "types",
        "limits",
        "spec",
        "child",
        "grading",
        "answers",
        "disk",
        "cache",
        "runs",
        "stats",
        "logged",
        "results",
        "machine",
        "hub",
    ),
    *(
        "settings",
        "stopping",
        "draws",
        "config",
        "options",
        "naming",
        "status",
        "live",
        "tracking",
        "report",
        "tasks",
        "rewards",
        "curricula",
        "evaluate",
        "recipes",
        "parts",
        "findings",
        "face",
        "cli",
    ),
]
HEAVY = ("torch", "transformers", "peft", "datasets", "tokenizers", "safetensors")
MAX_LINES = 300
MAX_STATEMENTS = 50
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {path.relative_to(SOURCE).as_posix(): path for path in FILES}


def of_every_file(check: Callable[[str], None]) -> Callable[[], None]:
    """One test that makes a check of every source file, and names all that fail it."""

    def test() -> None:
        failed = []
        for name in MODULES:
            try:
                check(name)
            except AssertionError as error:
                failed.append(f"{name}: {error}")
        assert not failed, "\n".join(failed)

    test.__name__, test.__doc__ = check.__name__, check.__doc__
    return test


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def owner(path: Path) -> str:
    """The top-level module or package that a source file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}:{node.lineno} is a relative import"
            # `from modicum import runs` names modules, `from modicum.runs import Run` does not.
            if node.module == "modicum":
                yield from ((node.lineno, f"modicum.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level module) of every import of the package's own modules."""
    for line, name in imported(path):
        first, _, rest = name.partition(".")
        if first == "modicum":
            yield line, rest.partition(".")[0]


def test_the_order_names_every_module_once() -> None:
    found = {owner(path) for path in FILES} - {"__init__"}
    assert sorted(ORDER) == sorted(found)


@of_every_file
def test_imports_go_one_way(name: str) -> None:
    path = MODULES[name]
    if name == "__init__.py":  # what type checkers see; test_face.py measures the rest
        (checked,) = (n for n in tree(path).body if isinstance(n, ast.If))
        assert ast.unparse(checked.test) == "TYPE_CHECKING"
        lines = range(checked.lineno, checked.body[-1].lineno + 1)
        assert [line for line, _ in own_imports(path) if line not in lines] == []
        return
    known = ORDER[: ORDER.index(owner(path)) + 1]
    wrong = [f"{name}:{line} imports {used}" for line, used in own_imports(path)]
    assert [w for w in wrong if w.rsplit(" ", 1)[1] not in known] == []


def test_the_check_of_imports_sees_all_forms(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "import modicum.training\n"
        "from modicum import evaluate, types as t\n"
        "def f():\n"
        "    from modicum.engine.samplers import draw\n"
    )
    assert [name for _, name in own_imports(path)] == ["training", "evaluate", "types", "engine"]


@of_every_file
def test_no_relative_imports(name: str) -> None:
    nodes = ast.walk(tree(MODULES[name]))
    assert [n.lineno for n in nodes if isinstance(n, ast.ImportFrom) and n.level] == []


def test_light_modules_stay_free_of_torch() -> None:
    names = [f"modicum.{name}" for name in NO_TORCH]
    names += [f"modicum.serving.{name}" for name in ("client", "child", "keeper")]
    for package in ("commands", "study", "report", "tracking", "face"):
        found = (SOURCE / package).rglob("[a-z]*.py")
        names += [
            ".".join(("modicum", *p.relative_to(SOURCE).with_suffix("").parts)) for p in found
        ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    bad = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "    assert not bad, f'{name} imports {bad}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@of_every_file
def test_files_and_functions_stay_small(name: str) -> None:
    path = MODULES[name]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = sum(isinstance(inner, ast.stmt) for inner in ast.walk(node)) - 1
            assert count <= MAX_STATEMENTS, f"{node.name} has {count} statements"


def forbidden(module: ast.Module) -> Iterator[str]:
    """What a file does that no file may: run text as code, unpickle, catch everything."""
    for node in ast.walk(module):
        match node:
            case ast.Call(func=ast.Name(id="eval" | "exec" | "compile" | "__import__" as name)):
                yield f"{node.lineno}: {name}"
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="os" | "torch" as base), attr=name)
            ) if name in ("system", "popen", "load"):
                yield f"{node.lineno}: {base}.{name}"
            case ast.keyword(arg="shell"):
                yield f"{node.lineno}: shell"
            case ast.keyword(arg="trust_remote_code", value=ast.Constant(value=True)):
                yield f"{node.lineno}: trust_remote_code"
            case ast.Import(names=names) if {a.name for a in names} & {"pickle", "marshal", "dill"}:
                yield f"{node.lineno}: pickle"
            case ast.ImportFrom(module="pickle" | "marshal" | "dill"):
                yield f"{node.lineno}: pickle"
            case ast.ExceptHandler(type=None):
                yield f"{node.lineno}: bare except"
            case ast.ExceptHandler(type=kind):
                caught = {n.id for n in ast.walk(kind) if isinstance(n, ast.Name)}
                if caught & {"Exception", "BaseException"}:
                    yield f"{node.lineno}: broad except"


@of_every_file
def test_nothing_dangerous_or_broad(name: str) -> None:
    assert list(forbidden(tree(MODULES[name]))) == []


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "exec('1')",
        "__import__('os')",
        "import os\nos.system('x')",
        "import torch\ntorch.load('x')",
        "subprocess.run('x', shell=True)",
        "import pickle",
        "from pickle import loads",
        "try:\n    pass\nexcept:\n    pass",
        "try:\n    pass\nexcept (ValueError, Exception):\n    pass",
    ],
)
def test_the_check_finds_what_is_dangerous(code: str) -> None:
    assert len(list(forbidden(ast.parse(code)))) == 1


# Parts are joined here so that this file does not name what it looks for.
ABSOLUTE = re.compile(
    r"(?<![\w.$}~<>)/:*+-])/(?:" + "|".join(["work", "tmp", "root", "home"]) + r")/\w"
)
REGISTRIES = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download.pytorch", "org"),
        ("anaconda", "org"),
        ("npmjs", "org"),
        ("crates", "io"),
        ("ghcr", "io"),
        ("docker", "io"),
    ]
]


def test_the_search_for_absolute_paths_finds_them() -> None:
    for folder in ("work", "tmp", "root", "home"):
        assert ABSOLUTE.search(f"see /{folder}/x")
        assert ABSOLUTE.search(f'"/{folder}/x"')
    for text in ("a/work/x", "https://x.y/root/z", "../tmp/x", "work/x"):
        assert not ABSOLUTE.search(text)


def test_no_absolute_paths_or_registries_in_tracked_files() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no git here")
    listed = subprocess.run(
        [git, "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout
    wrong = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if not path.is_file() or path.suffix in (".safetensors", ".png"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found = [*ABSOLUTE.findall(text), *(host for host in REGISTRIES if host in text)]
        wrong += [f"{name}: {found[0]}"] if found else []
    assert wrong == []


DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_the_design_lists_the_modules_in_their_order() -> None:
    house = DESIGN.split("```\nsrc/modicum/\n")[1].split("\n```")[0]
    listed = re.findall(r"^  ([a-z_]+)(?:\.py|/) ", house, re.M)
    assert listed == [name for name in ORDER if name != "__main__"]


def test_names_in_the_design_are_names_in_the_code() -> None:
    """Every `module.name` in its drawings and its text can be had."""
    modules = "|".join(name for name in ORDER if name != "__main__")
    found = set(re.findall(rf"(?<![\w./-])((?:{modules})(?:\.\w+)+)", DESIGN))
    found = {name for name in found if not name.endswith((".py", ".toml", ".md"))}
    assert len(found) > 15
    assert [name for name in sorted(found) if not there(name)] == []


def there(dotted: str) -> bool:
    """Whether a dotted name below the package is a module or something in one."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            held: Any = importlib.import_module(".".join(["modicum", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            held = getattr(held, name, None)
        return held is not None
    return False
