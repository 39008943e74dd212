"""Marks of tensors that are not on a CPU: what changes them, and how they get there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modicum.models import device
from modicum.models import identity as marks
from modicum.models.identity import fingerprint
from pretend import pretend

WEIGHTS_R = marks.odd_weights()
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)


def test_the_weights_are_fit() -> None:
    """Odd, and no two differ by a multiple of 2^33: numbers of 32 bits that swap places show."""
    assert bool((WEIGHTS_R & 1).all())
    low = np.sort(WEIGHTS_R.numpy() & (2**33 - 1))
    assert len(np.unique(low)) == marks.ROW


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_bit_or_a_swap_changes_the_sums(dtype: torch.dtype) -> None:
    size = 2 * marks.ROW + 5
    drawn = torch.randint(
        0, 256, (size * dtype.itemsize,), generator=torch.Generator().manual_seed(0)
    )
    values = drawn.to(torch.uint8).view(dtype)
    bits = values.view(marks.BITS[dtype.itemsize])
    start = marks.sums(values, WEIGHTS_R)
    assert len(start) == 3
    for place in (0, marks.ROW - 1, marks.ROW, size - 1):
        for bit in range(8 * dtype.itemsize):
            raw = bits.clone().view(torch.uint8)
            raw[place * dtype.itemsize + bit // 8] ^= 1 << bit % 8
            changed = marks.sums(raw.view(dtype), WEIGHTS_R) != start
            assert changed.sum() == 1 and bool(changed[place // marks.ROW])
    for one, other in ((0, 1), (3, marks.ROW + 3), (7, size - 1), (marks.ROW - 1, marks.ROW)):
        swapped = bits.clone()
        swapped[[one, other]] = bits[[other, one]]
        same = bool(bits[one] == bits[other])
        assert bool((marks.sums(swapped.view(dtype), WEIGHTS_R) == start).all()) == same


def test_sums_are_those_of_the_numbers() -> None:
    values = torch.tensor([1.5, -2.0, 0.0])
    bits = values.numpy().view(np.int32).astype(object)
    wanted = int(sum(b * int(w) for b, w in zip(bits, WEIGHTS_R.tolist(), strict=False)))
    assert marks.sums(values, WEIGHTS_R).item() == (wanted + 2**63) % 2**64 - 2**63


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(5, marks.ROW)
    whole = marks.sums(values, WEIGHTS_R)
    monkeypatch.setattr(marks, "PIECE", 2 * marks.ROW)
    assert torch.equal(marks.sums(values, WEIGHTS_R), whole)


def test_on_a_cpu_a_mark_is_the_fingerprint() -> None:
    held = {"a": torch.randn(3, 4), "b": torch.randn(7).bfloat16()}
    assert marks.marks(held) == {name: fingerprint(tensor) for name, tensor in held.items()}
    assert marks.marks(held, torch.float32)["b"] == fingerprint(held["b"].float())


def test_elsewhere_marks_come_down_at_once() -> None:
    here = {str(n): torch.randn(n, 5) for n in (1, 2, 2000, 0)}
    with pretend() as record:
        there = {name: tensor.to("pretend") for name, tensor in here.items()}
        before = len(record.syncs)
        found = marks.marks(there)
        waits = record.syncs[before:]
        assert [sync.what for sync in waits] == ["copy up", "copy to the CPU"]
        again = marks.marks({name: tensor.clone() for name, tensor in there.items()})
        there["2"][1, 3] += 1
        changed = marks.marks(there)
    assert found == again
    assert {name for name in found if found[name] != changed[name]} == {"2"}
    assert len(set(found.values())) == len(found)


def test_tensors_go_up_by_one_copy() -> None:
    given = [
        torch.arange(5),
        torch.tensor([True, False, True]),
        torch.randn(2, 3),
        torch.empty(0, dtype=torch.long),
        torch.arange(12).view(3, 4).T,
        torch.tensor(2.5),
    ]
    assert all(a is b for a, b in zip(device.up(torch.device("cpu"), *given), given, strict=True))
    with pretend() as record:
        found = device.up(torch.device("pretend"), *given)
        assert len(record.copies_up) == 1 and not record.syncs
        assert all(tensor.device.type == "pretend" for tensor in found)
        for tensor, wanted in zip(found, given, strict=True):
            assert torch.equal(tensor.cpu(), wanted) and tensor.dtype == wanted.dtype
