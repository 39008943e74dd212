"""The name of a run without `out`: its update, what differs from the defaults, its seed.

    full-seed0    last-1-Qwen--Qwen2.5-0.5B-gsm8k-lr1e-05-seed0    full-and-so-on-1f0c3a-seed0

Two runs that differ have two names. How long a run is, and what changes memory or files only, is left
out. What its letters do not give again, or is too long, ends in a hash."""

import hashlib
import re
from pathlib import Path
from typing import Any

from modicum.config import KINDS, TrainConfig
from modicum.settings import settings

LONGEST = 80  # letters of a name
SHORT = {"learning_rate": "lr", "prompts_per_step": "prompts"}
SHORT |= {"group_size": "group", "max_tokens": "tokens"}
PLAIN = {"model", "dtype", "schedule", "template", "style", *KINDS}  # values say what they are
# Signs are left out, so no argument may read like another: a=1 is letters and a number, a1 is not.
_NUMBER = r"\d[\d.]*(e\d+)?"
_NAMED = rf"[a-z_]+=({_NUMBER}|True|False)"
_ARGUMENTS = rf"([a-z_.]+|{_NUMBER}|{_NAMED})(,({_NUMBER}|{_NAMED}))*"
_TERM = rf"(\d[\d.]*\*)?[a-zA-Z_][\w.]*(\({_ARGUMENTS}\))?"
EXPRESSION = re.compile(rf"{_TERM}([+&@]{_TERM})*(?<!\.)", re.ASCII)
WORD = re.compile(r"\w[\w.]*(?<!\.)", re.ASCII)
# No part of a path after a - reads like another setting (bf16, gsm8k, lr0.1), of which all are small.
_PART = r"([A-Z][\w.]*|\d[\d.]*[A-Z]*)"
PATH = re.compile(rf"(\w[\w.-]*/)?{_PART}(-{_PART})*(?<!\.)", re.ASCII)
SIGNS = {"(": "-", ")": "", ",": "-", "=": "", "&": "-and-", "@": "-at-", "*": "x", "/": "--"}


def run_folder(config: TrainConfig) -> Path:
    """The folder that the config names, or one under runs/ made from what differs in it."""
    return Path(config.out) if config.out else Path("runs") / name_of(config)


def name_of(config: TrainConfig) -> str:
    """The name of a run, at most LONGEST letters, of which a shell needs none quoted."""
    usual = {name: value for name, _, value in settings(TrainConfig())}
    same, bases = ("member", "fixed"), ("model", "init_adapter")
    named = (s for s in settings(config) if s[1] in same or s[0] in bases)
    ordered = sorted(named, key=lambda setting: setting[0] not in PLAIN)
    differ = {name: value for name, _, value in ordered if value != usual[name]}
    if "optimizer.schedule" in differ or "curriculum" in differ:
        differ["steps"] = config.steps  # which they are spread over
    rest = [_piece(n, value) for n, value in differ.items() if n not in ("update", "seed")]
    if len(name := "-".join([slug(config.update), *rest])) > LONGEST - 8:
        name = f"{name[: LONGEST - 16].rstrip('-')}-{_hash(name)}"
    return f"{name}-seed{config.seed}"


def slug(text: str, kind: str = "update") -> str:
    """An expression or a path in letters that a file system and a shell take as they are."""
    tight = re.sub(r"\s", "", text)
    plain = "".join(SIGNS.get(c, c) for c in tight if c.isascii())
    pattern = PATH if kind == "model" else EXPRESSION if kind in KINDS else WORD
    if pattern.fullmatch(tight if kind in KINDS else text):
        return plain
    last = re.split(r"[^\w.-]+", text.rstrip("/'\")"))[-1] if "/" in text else plain
    short = re.sub(r"[^\w.+-]+|-+", "-", last, flags=re.ASCII).strip("-.")[:24].rstrip("-.")
    return f"{short}-{_hash(text)}".lstrip("-")


def _piece(name: str, value: Any) -> str:
    """A setting that differs: `lr0.001`, `bf16`, `system-1f0c3a`."""
    key = name.rpartition(".")[2]
    label = SHORT.get(key, key.replace("_", "-"))
    if isinstance(value, int | float):
        return f"{label}{value:g}" if float(f"{value:g}") == value else f"{label}{value!r}"
    text = slug(value, key) if isinstance(value, str) else _hash(repr(value))
    return text if key in PLAIN else f"{label}-{text}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:6]
