"""fp32 numbers in a coarser dtype: to nearest, or up or down by chance.

A value v between its neighbours a < v < b in the dtype becomes b with the chance
(v - a) / (b - a) and else a, so that it is right on average however small a step was
(Gupta et al. 2015, arXiv 1502.02551; Croci et al. 2022, doi 10.1098/rsos.211631). What the
dtype holds stays as it is. Beyond its largest number, where there is no second neighbour,
and for inf and nan, it is the nearest.

The noise has 16 bits and is a hash of a key and of the entry's flat index, so that it does
not depend on threads, on the device or on what else is rounded: a part of a tensor gets the
noise of the whole. Two neighbouring entries share the 32 bits of one hash.
"""

import hashlib

import torch
from torch import Tensor

Key = tuple[int, int]
"""Two signed 32-bit numbers."""

# Entries at a time: on a CPU what fits a core's own cache; on a GPU a few kernels of some size.
CHUNK = {"cpu": 2**16}
CHUNK_ELSEWHERE = 2**22
HALF = 2**15


def key_of(seed: int, step: int, name: str) -> Key:
    """The key of a tensor's noise in one optimizer step of a run."""
    digest = hashlib.blake2b(f"{seed} {step} {name}".encode(), digest_size=8).digest()
    first, second = (
        int.from_bytes(part, "little", signed=True) for part in (digest[:4], digest[4:])
    )
    return first, second


@torch.no_grad()
def rounded(
    values: Tensor, dtype: torch.dtype, key: Key | None, index: Tensor | None = None
) -> Tensor:
    """fp32 values in `dtype`: to nearest without a key, else up or down by the key's noise.

    `index` has the flat index of every value in its tensor; None: they are the whole tensor.
    """
    if key is None or dtype.itemsize >= values.dtype.itemsize:
        return values.to(dtype)
    flat, where = values.reshape(-1), None if index is None else index.reshape(-1)
    found = torch.empty_like(flat, dtype=dtype)
    size = CHUNK.get(flat.device.type, CHUNK_ELSEWHERE)
    noise, largest = Noise(key, min(size, flat.numel()), flat.device), torch.finfo(dtype).max
    draw = _cut if dtype == torch.bfloat16 else _choose
    for start in range(0, flat.numel(), size):
        part, drawn = flat[start : start + size], found[start : start + size]
        bits = (
            noise.run(start, len(part)) if where is None else noise.of(where[start : start + size])
        )
        drawn.copy_(draw(part, bits, dtype))
        low, high = part.aminmax()  # nan if there is one
        if not (-largest <= float(low) and float(high) <= largest):
            drawn.copy_(torch.where(part.abs() <= largest, drawn, part.to(dtype)))
    return found.view(values.shape)


def _cut(values: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
    """bf16: the noise is added below the mantissa, and what is there is cut off."""
    bits = torch.add(values.view(torch.int32), noise)
    return bits.add_(HALF).bitwise_right_shift_(16).to(torch.int16).view(dtype)


def _choose(values: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
    """Any dtype of 16 bits: one of the two neighbours."""
    inner, outer = neighbours(values, dtype)
    start = inner.float()
    chance = (values - start) / (outer.float() - start)  # nan where the dtype has the value
    return torch.where(noise.float() + (HALF + 0.5) < chance * (2 * HALF), outer, inner)


def neighbours(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of a dtype of 16 bits beside fp32 values, the one nearer to zero first.

    Both are the value itself where the dtype has it.
    """
    size = values.abs()
    near = size.to(dtype)
    bits = near.view(torch.int16)
    inner = bits - (near.float() > size).to(torch.int16)
    outer = inner + (near.float() != size).to(torch.int16)
    low, high = (torch.copysign(side.view(dtype), values.to(dtype)) for side in (inner, outer))
    return low, high


class Noise:
    """16 random bits an entry, from -2^15 to 2^15 - 1, by flat indices below 2^63."""

    def __init__(self, key: Key, size: int, device: torch.device) -> None:
        self.first, self.second = key
        count = (size + 1) // 2
        self.counts = torch.arange(count, dtype=torch.int32, device=device)
        self.words, self.spare = torch.empty_like(self.counts), torch.empty_like(self.counts)

    def run(self, start: int, size: int) -> Tensor:
        """The noise of `size` entries from `start`, a multiple of the largest size."""
        count, word = (size + 1) // 2, start // 2
        words = self.words[:count]
        # No bit of the start is one of the counts.
        torch.bitwise_xor(self.counts[:count], _signed(word ^ self.first), out=words)
        second = _signed(self.second + (word >> 32) * HIGH)
        return _mixed(words, second, self.spare[:count]).view(torch.int16)[:size]

    def of(self, index: Tensor) -> Tensor:
        """The noise of entries anywhere."""
        word = index.long() >> 1
        words = word.to(torch.int32).bitwise_xor_(self.first)
        second = (self.second + (word >> 32) * HIGH).to(torch.int32)
        mixed = _mixed(words, second, torch.empty_like(words))
        left = (16 * (1 - (index & 1))).to(torch.int32)  # words are little-endian
        return mixed.bitwise_left_shift_(left).bitwise_right_shift_(16).to(torch.int16)


HIGH = 0x1E3779B9
"""What a step of the index's upper half adds to the key."""


def _mixed(words: Tensor, second: int | Tensor, spare: Tensor) -> Tensor:
    """A hash of 32 bits, in place: Wellons' and Tolles' two rounds with a key between them.

    github.com/skeeto/hash-prospector: 16, 21f0aaad, 15, 735a2d97, 15.
    """
    _fold(words, 16, spare).mul_(0x21F0AAAD).add_(second)
    _fold(words, 15, spare).mul_(0x735A2D97)
    return _fold(words, 15, spare)


def _fold(words: Tensor, shift: int, spare: Tensor) -> Tensor:
    """words ^= words >> shift, without their sign."""
    torch.bitwise_right_shift(words, shift, out=spare).bitwise_and_(2 ** (32 - shift) - 1)
    return words.bitwise_xor_(spare)


def _signed(number: int) -> int:
    """The lower 32 bits as a signed number."""
    return (number + 2**31) % 2**32 - 2**31
