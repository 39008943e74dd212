"""The expression language: what it builds, what it refuses, and that nothing is evaluated."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest

from modicum import curricula, objectives, rewards, spec, tasks, updates
from modicum.types import UserError
from modicum.updates.base import Intersection, Placed, Union
from modicum.updates.dense import Full, Last, Layers, Parts
from modicum.updates.lora import Lora

PARSERS = {
    "update": updates.parse,
    "task": tasks.parse,
    "reward": rewards.parse,
    "objective": objectives.parse,
    "curriculum": curricula.parse,
}


class Member(spec.Spec):
    """A member with an argument of every type."""

    name: ClassVar[str] = "member"
    count: int
    rate: float = 0.5
    note: str = ""
    flag: bool = False
    kind: Literal["soft", "hard"] = "soft"
    sizes: tuple[int, ...] = ()
    limit: int | None = None


class Many(spec.Spec):
    """A member with any number of arguments."""

    name: ClassVar[str] = "many"
    varargs: ClassVar[str | None] = "items"
    items: tuple[float, ...]


def build(text: str) -> Any:
    return spec.build("thing", text, {"member": Member, "many": Many})


def refusal(text: str) -> str:
    """The message with which `text` is refused, checked to be one line."""
    with pytest.raises(UserError) as caught:
        build(text)
    message = str(caught.value)
    assert message
    assert len(message.splitlines()) == 1
    return message


# What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("member(sums.csv)", "quotes are missing: 'sums.csv'"),
        ("member(note=data/sums.csv)", "quotes are missing: 'data/sums.csv'"),
        ("member(my/data)", "quotes are missing: 'my/data'"),
        ("member(./sums.csv)", "(a path stands in quotes)"),
        ("member(note=~/sums.csv)", "(a path stands in quotes)"),
        ("member(/at/sums.csv)", "(a path stands in quotes)"),
        ("member(4/2)", "'4 / 2' is not a value"),
        ("member(2", "was never closed"),
    ],
)
def test_a_path_without_quotes_is_told(text: str, message: str) -> None:
    assert refusal(text).endswith(message) or message in refusal(text)
    assert ("quotes" in refusal(text)) == ("quotes" in message)


# What is built ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("member(3)", Member(3)),
        ("  member( 3 )\n", Member(3)),
        ("member(count=3)", Member(3)),
        ("member(3, 1)", Member(3, 1.0)),
        ("member(3, 0.25, 'x y', true_)", None),
        ("member(-3, rate=-1e-3)", Member(-3, -0.001)),
        ("member(4.0)", Member(4)),
        ("member(1, note=plain)", Member(1, note="plain")),
        ("member(1, note='it''s')", Member(1, note="its")),
        ("member(1, flag=True)", Member(1, flag=True)),
        ("member(1, kind=hard)", Member(1, kind="hard")),
        ("member(1, kind='hard')", Member(1, kind="hard")),
        ("member(1, sizes=[2, 3])", Member(1, sizes=(2, 3))),
        ("member(1, sizes=(2.0,))", Member(1, sizes=(2,))),
        ("member(1, sizes=[])", Member(1)),
        ("member(1, limit=None)", Member(1)),
        ("member(1, limit=7)", Member(1, limit=7)),
        ("many()", Many(())),
        ("many", Many(())),
        ("many(1, 2.5)", Many((1.0, 2.5))),
        ("many(items=[1, 2])", Many((1.0, 2.0))),
    ],
)
def test_arguments(text: str, expected: spec.Spec | None) -> None:
    if expected is None:
        assert "must be true or false" in refusal(text)
        return
    made = build(text)
    assert made == expected
    for field, value in vars(expected).items():
        assert type(getattr(made, field)) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("last(1) + parts(norm)", Union(Last(1), Parts(("norm",)))),
        ("last(2) & parts(mlp, norm)", Intersection(Last(2), Parts(("mlp", "norm")))),
        # As in Python: @ before +, + before &.
        ("full & last(1) + last(2)", Intersection(Full(), Union(Last(1), Last(2)))),
        ("(full & last(1)) + last(2)", Union(Intersection(Full(), Last(1)), Last(2))),
        ("last(1) + last(2) + last(3)", Union(Union(Last(1), Last(2)), Last(3))),
        ("lora @ last(1)", Placed(Lora(), Last(1))),
        (
            "lora(rank=2) @ (last(1) + parts(mlp))",
            Placed(Lora(2), Union(Last(1), Parts(("mlp",)))),
        ),
        ("layers(0, -1)", Layers((0, -1))),
        ("((full))", Full()),
    ],
)
def test_operators_of_updates(text: str, expected: updates.Update) -> None:
    assert updates.parse(text) == expected
    assert updates.parse(str(expected)) == expected


def test_operators_of_rewards() -> None:
    both = rewards.parse("accuracy + 0.2*format")
    assert both == rewards.Accuracy() + 0.2 * rewards.Format()
    assert rewards.parse("format*0.2 + accuracy") == both
    assert rewards.parse("0.5*(accuracy + 0.4*format)") == 0.5 * both.__class__(
        ((1.0, rewards.Accuracy()), (0.4, rewards.Format()))
    )


ROUND_TRIPS = {
    "update": [
        *(text for cls in updates.UPDATES.values() for text in cls.examples),
        *("full", "first(2)", "last(3)", "middle(1)", "layers(0, -1)", "parts(attention, bias)"),
        *("lora", "lora(rank=2, alpha=4)", "lora @ last(1)", "lora @ (parts(mlp, attention))"),
        *("last(1) + parts(norm) + parts(head)", "(last(1) + first(1)) & parts(mlp)"),
        *("(last(2) & parts(mlp)) + parts(norm)", "lora(rank=1) @ (last(2) & parts(mlp))"),
        "last(1) & (parts(mlp) & (first(3) + last(1)))",
    ],
    "task": [
        *("arithmetic", "arithmetic(terms=3, digits=1)", "arithmetic(operators='+-*')"),
        *("countdown", "countdown(numbers=3)", "gsm8k", "gsm8k(path='data')"),
        *("file('a b.jsonl')", 'file("it\'s.csv")', r"file('C:\\data\\x.json')"),
        *("file('ü.tsv', question='frage', difficulty='level')", "products(digits=3)"),
        *("addition", "addition(below=20)", "matrix('inverse')", "matrix('rref', rows=2)"),
        *("gym('chain_sum')", "gym('chain_sum', min_terms=2, max_terms=3)"),
        *("math", "math(levels=(1, 2), subject='Algebra')", "math500", "openthoughts"),
        *(
            "hub('openai/gsm8k', config='main')",
            "aime(year=2025)",
            "amc(split='hash')",
            "gsm8k(bad_rows='skip')",
        ),
    ],
    "reward": [
        *("accuracy", "format", "accuracy + 0.2*format", "2*(accuracy + 0.1*format)"),
        *("language(lang='zh')", "consistency", "length(100, buffer=20)", "repetition(n=2)"),
        *("random(p=0.25, seed=3)", "learned('models/reward', force=True)"),
        *("accuracy + 0.5*math:dist", "function('math:dist', chat=True)"),
    ],
    "objective": [
        *("grpo", "grpo(kl=0.04)", "grpo(clip_high=0.3)", "dr_grpo(clip=0.1, clip_high=0.3)"),
        *("dapo", "dapo(clip_high=None)", "dapo(kl=1)", "rloo", "gspo(clip=0.001)"),
        *("maxrl", "cispo(cap=4)", "sapo", "ipo(eps=0.2)", "dppo", "reinforce_pp(kl=0.02)"),
        "reinforce_pp_baseline",
    ],
    "curriculum": [
        "uniform",
        "uniform()",
        "easy_to_hard(stages=3, cumulative=False)",
        "easy_to_hard(cumulative=false)",
        *("hard_to_easy(stages=2)", "e2h(schedule=gaussian)", "competence(c0=0.2)"),
        *("adarft(rescale=True)", "prioritized(weight=informative)", "bandit(difficulty='a.json')"),
        *("pools(medium=2)", "placebo(easy_to_hard(stages=2))", "placebo('e2h')"),
    ],
}


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, ts in ROUND_TRIPS.items() for t in ts])
def test_the_text_of_an_object_gives_the_object_back(kind: str, text: str) -> None:
    made = PARSERS[kind](text)
    assert type(PARSERS[kind](str(made))) is type(made)
    assert str(PARSERS[kind](str(made))) == str(made)
    if kind != "update":  # a + (b + c) is said as a + b + c
        assert PARSERS[kind](str(made)) == made


def test_every_member_of_every_kind_is_in_a_round_trip() -> None:
    known = {
        "update": updates.UPDATES,
        "task": tasks.TASKS,
        "reward": rewards.REWARDS,
        "objective": objectives.OBJECTIVES,
        "curriculum": curricula.CURRICULA,
    }
    for kind, members in known.items():
        for name in members:
            assert any(name in text for text in ROUND_TRIPS[kind]), name


FREE = {"random.seed", "addition.below"}  # any whole number, or one of a hundred digits


def numeric() -> list[tuple[str, type, str, Any]]:
    """Kind, member, field and type of every argument that is one number."""
    known: dict[str, dict[str, type]] = {
        "update": updates.UPDATES,
        "task": tasks.TASKS,
        "reward": rewards.REWARDS,
        "objective": objectives.OBJECTIVES,
        "curriculum": curricula.CURRICULA,
    }
    found = []
    for kind, members in known.items():
        for name, cls in members.items():
            hints = get_type_hints(cls)
            for field in spec.arguments(cls):
                hint = hints[field.name]
                types = {hint, *get_args(hint)} if get_origin(hint) is not tuple else set[Any]()
                if types & {int, float} and f"{name}.{field.name}" not in FREE:
                    found.append((kind, cls, field.name, types))
    return found


def test_numbers_without_any_meaning_are_refused() -> None:
    """Of every argument of every member, as objects and as expressions."""
    checked = numeric()
    assert len(checked) > 70
    for kind, cls, field, types in checked:
        needed: dict[str, Any] = {
            f.name: 1 for f in spec.arguments(cls) if f.default is dataclasses.MISSING
        }
        values = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30] if float in types else []
        for value in [*values, 10**30, -(10**30)]:
            wrong: dict[str, Any] = {**needed, field: value}
            with pytest.raises(UserError):
                made = cls(**wrong)
                pytest.fail(f"{made} is accepted")
            shown = {name: "1e999" if given != given else given for name, given in wrong.items()}
            text = ", ".join(f"{name}={given}" for name, given in shown.items())
            with pytest.raises(UserError):
                PARSERS[kind](f"{cls.name}({text})".replace("inf", "1e999"))  # type: ignore[attr-defined]
                pytest.fail(f"{cls.name}({text}) is accepted")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "kind, text, words",
    [
        ("objective", "grpo(clip_high=-0.5)", "grpo: clip_high must be above 0 and at most 100"),
        ("objective", "dapo(clip_high=-2)", "dapo: clip_high must be above 0 and at most 100"),
        ("objective", "grpo(clip=5)", "grpo: clip must be above 0 and below 1, not 5.0"),
        ("objective", "gspo(clip=1)", "gspo: clip must be above 0 and below 1, not 1.0"),
        ("objective", "grpo(kl=1e30)", r"grpo: kl must be at least 0 and at most 100, not 1e\+30"),
        ("update", "lora(alpha=0)", "lora: alpha must be at least 1 and at most 65536, not 0"),
        ("update", "vera(d_initial=-1)", "vera: d_initial must be above 0 and at most 10"),
        ("update", "badam(every=0)", r"badam: every must be at least 1 and at most 1000000"),
        ("update", "snr(threshold=2)", "snr: threshold must be at least 0 and at most 1"),
        ("reward", "1e9*format", r"the weight of format must be above 0 and at most 1000000"),
    ],
)
def test_an_error_says_what_is_allowed(kind: str, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        PARSERS[kind](text)


def test_describe_gives_signature_and_summary() -> None:
    found = spec.describe(Member)
    assert found["name"] == "member"
    assert found["signature"].startswith("member(count, rate=0.5, note='', flag=False")
    assert found["summary"] == "A member with an argument of every type."
    assert spec.describe(Many)["signature"] == "many(items, ...)"
    assert spec.describe(Full)["signature"] == "full"


# What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("membre(1)", ["unknown thing 'membre'", "did you mean 'member'", "many"]),
        ("zzz", ["unknown thing 'zzz'", "known are many, member"]),
        ("member(cuont=1)", ["no argument 'cuont'", "count", "rate=0.5", "sizes=()"]),
        ("member()", ["needs 'count'", "rate=0.5"]),
        ("member", ["needs 'count'"]),
        ("member(1, 2, 'x', False, 'soft', [], 1, 9)", ["takes count, rate=0.5"]),
        ("member(1, count=2)", ["'count' twice"]),
        ("member(count=1, count=2)", ["'count' twice"]),
        ("many(1, items=[2])", ["'items' twice"]),
        ("member(**{'count': 1})", ["no argument '**'"]),
        ("member(*[1])", ["not a value"]),
        ("member('4')", ["count must be a whole number", "'4'"]),
        ("member(True)", ["count must be a whole number", "True"]),
        ("member(4.5)", ["count must be a whole number", "4.5"]),
        ("member(None)", ["count must be a whole number"]),
        ("member([4])", ["count must be a whole number"]),
        ("member(1e999)", ["count must be a whole number", "inf"]),
        ("member(1, rate='0.5')", ["rate must be a number"]),
        ("member(1, rate=False)", ["rate must be a number"]),
        ("member(1, rate=1e999)", ["rate must be a number", "inf"]),
        ("member(1, rate=1" + "0" * 400 + ")", ["rate must be a number"]),
        ("member(1, note=3)", ["note must be a text"]),
        ("member(1, flag=1)", ["flag must be true or false"]),
        ("member(1, kind=sotf)", ["did you mean 'soft'", "hard"]),
        ("member(1, sizes=[2, 'x'])", ["sizes must be a whole number", "'x'"]),
        ("member(1, sizes=3)", ["sizes must be a list", "whole number"]),
        ("member(1, limit='x')", ["limit must be a whole number or nothing"]),
        ("member(1) + member(2)", ["cannot be joined with +", "'member(1)'"]),
        ("member(1) @ many", ["cannot be joined with @"]),
        ("member(1) - many", ["not allowed"]),
        ("7", ["thing '7' is a number"]),
        ("2*3 + 1", ["is a number, not one of member, many"]),
    ],
)
def test_a_wrong_expression_is_explained(text: str, parts: list[str]) -> None:
    message = refusal(text)
    for part in parts:
        assert part in message


HOSTILE = [
    *("", " ", "\n", "#", "member(1", "member(1))", "member 1", "member(1) many", "=", "a = 1"),
    *("__import__('os')", "__import__('os').system('true')", "().__class__", "member.__init__"),
    *("member(1).count", "member(().__class__)", "member(open('x'))", "member(1)(2)", "many[0]"),
    *("lambda: 1", "(lambda: many)()", "10**10**10", "10**10**10*many", "1 << 999999999"),
    *("[many for _ in (1,)]", "{many}", "{1: many}", "(yield)", "await many", "(x := many)"),
    *("f'{many}'", "member(f'{1}')", "'many'", "b'many'", "many if 1 else many", "not many"),
    *("-many", "~many", "many and many", "many < many", "many, many", "member(1j)", "..."),
    *("member(1, note=b'x')", "member(1, note=...)", "member(--1)", "member(-many)"),
    *("many\x00", "\x00", "\ud800", "many\n\nmany", "import os", "exec('1')", "eval('1')"),
    *(r"many('\d')", "1()", "1 is 1", "(" * 150 + "many" + ")" * 150 + "+", "many;many"),
    *("x" * 5000, "many" + " " * 5000 + "+", "(" * 900, "[" * 900, "(" * 190 + ")" * 190),
    *("-" * 1500 + "1", "not " * 450 + "1", ".".join("a" * 900), "+".join("1" * 900), "a" * 1999),
    *("many(" * 190 + ")" * 190, "many([" + "[" * 90 + "]" * 90 + "])", "9" * 1999),
    *("9" * 1000 + "*0.5*many", "9" * 400 + ".0*many", "1e308*10*many"),
]


@pytest.mark.parametrize("kind", ["thing", *PARSERS])
def test_hostile_text_is_refused_in_one_line(kind: str) -> None:
    parse = PARSERS.get(kind, build)
    for text in HOSTILE:
        with warnings.catch_warnings(record=True) as warned, pytest.raises(UserError) as caught:
            warnings.simplefilter("always")
            parse(text)
        assert warned == [], text  # Python's own would be a second line
        assert len(str(caught.value).splitlines()) == 1, text


def test_nothing_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *_: ran.append("print"))
    monkeypatch.setattr("os.system", lambda *_: ran.append("system"))
    calls = ["print('x')", "__import__('os').system('x')", "(lambda: print(1))()", "f'{print(1)}'"]
    for call in calls:
        for text in (call, f"member({call})", f"many + {call}", f"member(1, note={call})"):
            refusal(text)
    assert ran == []


def test_a_long_sum_is_built_or_refused_but_never_crashes() -> None:
    text = " + ".join(["full"] * 285)
    assert len(text) < spec.MAX_LENGTH
    try:
        assert str(updates.parse(text)).count("full") == 285
    except UserError as error:
        assert "deep" in str(error)


def test_a_member_may_be_decorated_too_and_is_frozen() -> None:
    class Plain(spec.Spec):
        size: int = 2

    @dataclasses.dataclass(frozen=True)
    class Decorated(Plain):
        depth: int = 3

    for made in (Plain(), Decorated(size=1)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.size = 4  # type: ignore[misc]
        with pytest.raises(dataclasses.FrozenInstanceError):
            del made.size  # type: ignore[misc]
    assert str(Decorated(size=1)) == "decorated(size=1)" and hash(Plain()) == hash(Plain())
