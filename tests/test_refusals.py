"""What errors say lies in refusals.toml: every text is used, and gets the values that it names."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

from modicum.types import RunStopped, UserError

SOURCE = Path(__file__).parent.parent / "src" / "modicum"
TEXTS = tomllib.loads((SOURCE / "refusals.toml").read_text(encoding="utf-8"))
OF = tuple(f"{end}.of" for end in ("Error", "Stopped"))
CHOSEN = {"not_finite", "loss_not_finite"}  # named by an attribute of the stepper


def fields(text: str) -> set[str]:
    """The values that a text names: of `{held.r}` it is `held`."""
    names = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    return {name.partition(".")[0].partition("[")[0] for name in names}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Where an error is made of a text, its name, and the call."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(OF):
                first = node.args[0]
                for name in (first.body, first.orelse) if isinstance(first, ast.IfExp) else [first]:
                    if isinstance(name, ast.Constant):
                        yield f"{path.relative_to(SOURCE)}:{node.lineno}", str(name.value), node


def test_every_text_is_used_and_every_use_has_one() -> None:
    assert {name for _, name, _ in calls()} | CHOSEN == TEXTS.keys()


@pytest.mark.parametrize(("where", "name", "node"), [pytest.param(*c, id=c[1]) for c in calls()])
def test_a_text_gets_the_values_that_it_names(where: str, name: str, node: ast.Call) -> None:
    given, wanted = {key.arg for key in node.keywords if key.arg}, fields(TEXTS[name])
    if any(key.arg is None for key in node.keywords):  # some are unpacked
        assert given <= wanted, where
    elif isinstance(node.args[0], ast.IfExp):  # one of two texts, of which one may say less
        assert wanted <= given, where
    else:
        assert given == wanted, where


def test_texts_are_one_line() -> None:
    assert not [name for name, text in TEXTS.items() if "\n" in text or "  " in text]


def test_the_error_is_of_the_class_that_is_asked_and_says_the_values() -> None:
    error = RunStopped.of("changed_frozen", when="step 3", name="lm_head", since="")
    assert type(error) is RunStopped
    assert str(error) == "change proof (step 3): lm_head should be frozen and has changed"
    assert str(UserError.of("keep", keep="{x}")).endswith("not {x}")
