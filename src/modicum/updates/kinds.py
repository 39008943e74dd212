"""Kinds of updates: what an arm of a study is called, and coloured by, among many."""

from typing import Literal, get_args

Kind = Literal[
    "adapters", "schedules, masks", "optimizers", "layers", "parts of layers", "whole model"
]


def leading(*kinds: Kind) -> Kind:
    """Of an update that is joined from several: the one that says most, as `Kind` lists them."""
    return min(kinds, key=get_args(Kind).index)
