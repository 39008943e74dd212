r"""A parser for the formulas in answers: LaTeX or plain text to a small tree.

    expression  = term {("+" | "-") term}
    term        = factor {("*" | "/" | nothing) factor}
    factor      = sign factor | primary {"!" | "%" | degree} ["^" exponent]
    relation    = expression {("=" | "<" | ...) expression}

A tree is a nested tuple: ("num", Fraction), ("var", name), ("const", name), ("neg", a),
("add" | "mul" | "div" | "pow", a, b) or ("fn", name, arguments...). What is not certain to be read as
meant (1/ab, words, 204_5, sums and integrals) is `Unreadable`."""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from modicum.grading import WORDS, patterns, rules
from modicum.grading.spelling import clean

Node = tuple[Any, ...]

MAX_NESTING = 30
RELATIONS = frozenset(("=", "<", ">", "<=", ">=", "!="))
CLOSING = {"(": ")", "[": "]", "{": "}"}
OPENING = (*CLOSING, "\\")
CONSTANTS = frozenset(("pi", "e", "i"))
POSTFIX = {"!": "factorial", "%": "percent", "°": "degree"}
MAX_TOKENS = 400
MAX_WORD = 3  # letters in a row that are read as a product

(TOKEN,) = patterns("formula")
DATE = re.compile(r"\d+([-/])\d+\1\d+", re.ASCII)
WORD = re.compile(r"[A-Za-z]{3,}|[A-Z]{2}")  # as a whole answer
PLAIN = rules("formulas")
FUNCTIONS = frozenset(WORDS["analytic"].split() + WORDS["functions"].split())
GREEK = frozenset(WORDS["greek"].split())


class Unreadable(Exception):
    """The text is no formula that is understood for certain."""


class TooLarge(Unreadable):
    """The formula is read, but its numbers are too large for exact values."""


class Relations(NamedTuple):
    """Expressions joined by relations; one expression alone has no relation."""

    sides: tuple[Node, ...]
    relations: tuple[str, ...]


@lru_cache(maxsize=512)
def parse(text: str) -> Relations:
    """The tree of a formula; raises Unreadable."""
    return _Parser(tokens_of(text)).chain()


def tokens_of(text: str) -> list[str]:
    """The tokens of a formula: numbers, commands, signs, variables with a dot before their names."""
    text = clean(text).replace("{,}", ",")
    if DATE.fullmatch(text) or (WORD.fullmatch(text) and text not in GREEK):
        raise Unreadable("a date or a word")
    tokens: list[str] = []
    for match in TOKEN.finditer(PLAIN(text).rstrip()):
        if match["other"]:
            raise Unreadable(match["other"])
        if word := match["word"]:
            tokens.extend(_letters(word))
        elif marked := match["marked"]:
            tokens.append("." + re.sub(r"[^A-Za-z]+", " ", marked).strip())
        elif command := match["command"]:
            tokens.append("." + command[1:] if command[1:] in GREEK else command)
        else:
            if match["num"] and "," in match[0] and not {"(", "["}.isdisjoint(tokens):
                raise Unreadable("(1,200) may be a pair")
            tokens.append("^" if match["op"] == "**" else match["num"] or match["op"])
        if len(tokens) > MAX_TOKENS:
            raise Unreadable("too long")
    return tokens


def _letters(word: str) -> list[str]:
    word = WORDS["aliases"].get(word, word)
    if word in FUNCTIONS or word in ("sqrt", "pi"):
        return ["\\" + word]
    if len(word) > 2 and word in GREEK:  # theta; xi and mu may be products
        return ["." + word]
    if len(word) > MAX_WORD:
        raise Unreadable(word)
    return ["." + letter for letter in word]


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens = [*tokens, ""]
        self.place = 0
        self.depth = 0
        self.bars = 0  # |...| that are open: within, a bar closes

    @property
    def next(self) -> str:
        return self.tokens[self.place]

    def take(self, *wanted: str) -> str:
        """The next token if it is one of `wanted`, else nothing."""
        if self.next and self.next in wanted:
            self.place += 1
            return self.tokens[self.place - 1]
        return ""

    def need(self, wanted: str) -> None:
        if not self.take(wanted):
            raise Unreadable(f"{wanted} is missing")

    def chain(self) -> Relations:
        sides, relations = [self.sum()], []
        while self.next in RELATIONS:
            relations.append(self.take(self.next))
            sides.append(self.sum())
        if self.next:
            raise Unreadable(self.next)
        return Relations(tuple(sides), tuple(relations))

    def sum(self, least: int = 0) -> Node:
        """Terms with their signs, or where `least` is 1 a term: factors side by side."""
        total, divided = self.factor(), False
        while True:
            if least < 1 and (sign := self.take("+", "-")):
                term = self.sum(1)
                total = ("add", total, term if sign == "+" else ("neg", term))
            elif sign := self.take("*", "/"):
                factor = self.factor()
                total = ("mul" if sign == "*" else "div", total, factor)
                # 1/ab may be meant as 1/(ab); (1/2)x is what 1/2x is taken for.
                divided = sign == "/" and factor[0] != "num"
            elif self.begins_factor():
                if divided:
                    raise Unreadable("a/bc")
                total = ("mul", total, self.factor())
            else:
                return total

    def begins_factor(self) -> bool:
        token = self.next
        if token[:1].isdigit():
            return self.tokens[self.place - 1] == "!"  # 3!5!
        opens = token[:1] in OPENING and token not in (r"\rfloor", r"\rceil", r"\choose")
        variable = token[:1] == "." and token[1].isalpha()
        return opens or variable or (token == "|" and not self.bars)

    def factor(self) -> Node:
        if self.take("+"):
            return self.factor()
        return ("neg", self.factor()) if self.take("-") else self.power()

    def power(self) -> Node:
        base = self.primary()
        while sign := self.take(*POSTFIX):
            if sign == self.next == "!":
                raise Unreadable("a double factorial")
            base = ("fn", POSTFIX[sign], base)
        return ("pow", base, self.exponent()) if self.next == "^" else base

    def exponent(self) -> Node:
        self.need("^")
        if self.take("{"):
            return self.until("}")
        return ("neg", self.power()) if self.take("-") else self.power()

    def until(self, closing: str) -> Node:
        inner = self.sum()
        if closing == "}" and self.take(r"\choose"):
            inner = ("fn", "binom", inner, self.sum())
        self.need(closing)
        return inner

    def argument(self) -> Node:
        r"""What \frac and the like take: a group in braces, or one sign (\frac12)."""
        if self.take("{"):
            return self.until("}")
        if self.next[:1].isdigit() and len(self.next) > 1:
            digit, self.tokens[self.place] = self.next[0], self.next[1:]
            return ("num", Fraction(digit))
        return self.primary()

    def primary(self) -> Node:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise Unreadable("nested too deeply")
        node = self.atom(self.next)
        self.depth -= 1
        return node

    def atom(self, token: str) -> Node:
        """A number, a variable, a command with its arguments, or a group in brackets."""
        self.place += bool(token)
        if token in CLOSING:
            return self.until(CLOSING[token])
        if token == "|":
            self.bars += 1
            inner = self.until("|")
            self.bars -= 1
            return ("fn", "abs", inner)
        if token[:1].isdigit() or (token[:1] == "." and token[1:2].isdigit()):
            return self.number(token)
        if token.startswith("."):
            return self.variable(token[1:])
        if token.startswith("\\"):
            return self.command(token[1:])
        raise Unreadable(token or "the end")

    def number(self, token: str) -> Node:
        whole: Node = ("num", Fraction(token.replace(",", "").removesuffix(".")))
        if self.next == "_":
            raise Unreadable("a base")
        if token.isdigit() and self.next == r"\frac":
            before = self.place
            self.place += 1
            part = ("div", self.argument(), self.argument())
            if part[1][0] == part[2][0] == "num" and 0 < part[1][1] < part[2][1]:
                return ("num", whole[1] + part[1][1] / part[2][1])
            self.place = before
        return whole

    def variable(self, name: str) -> Node:
        if self.take("_"):
            name += "_" + self.subscript()
        while prime := self.take("'"):
            name += prime
        after = self.tokens[self.place + 2 : self.place + 3]
        if self.next == "(" and (name == "f" or (name in "gh" and after == [")"])):
            raise Unreadable("f(x) is no product; h(a+b) and g(m-n) may be")
        return ("const", name) if name in CONSTANTS else ("var", name)

    def subscript(self) -> str:
        if not self.take("{"):
            return (self.take(self.next) or "?").lstrip(".")
        name = ""
        while self.next not in ("", "{", "}"):
            name += self.take(self.next).lstrip(".")
        self.need("}")
        return name

    def command(self, name: str) -> Node:
        if name in CONSTANTS:
            return ("const", name)
        if name in ("frac", "binom"):
            both = self.argument(), self.argument()
            return ("div", *both) if name == "frac" else ("fn", "binom", *both)
        if name in ("lfloor", "lceil"):
            return ("fn", name[1:], self.until("\\r" + name[1:]))
        if name == "sqrt":
            degree = self.until("]") if self.take("[") else ("num", Fraction(2))
            return ("fn", "root", self.until("}") if self.take("{") else self.primary(), degree)
        if name in FUNCTIONS:
            return self.function(name)
        raise Unreadable("\\" + name)

    def function(self, name: str) -> Node:
        base: tuple[Node, ...] = ()
        if name in ("log", "lg") and self.take("_"):
            base = (self.argument(),)
        power = self.exponent() if self.next == "^" else None
        if power == ("neg", ("num", Fraction(1))):
            if name not in ("sin", "cos", "tan"):
                raise Unreadable(f"{name}^-1")
            name, power = "arc" + name, None
        if opening := self.take("(", "[", "{"):
            inner = self.sum()
            if name == "log" and not base and self.take(","):  # log(8, 2), as in programs
                base = (self.sum(),)
            self.need(CLOSING[opening])
        else:
            # \sin 2x \cos x: factors side by side, up to the next function.
            inner = self.factor()
            while self.begins_factor() and self.next[1:] not in FUNCTIONS and self.next not in "([":
                inner = ("mul", inner, self.power())
        applied = ("fn", name, inner, *base)
        return applied if power is None else ("pow", applied, power)
