"""fp32 numbers in a coarser dtype of 16 bits: to nearest, or up or down by chance.

A value v between its neighbours a < v < b there becomes b with the chance (v - a) / (b - a) and
else a (Gupta et al. 2015, arXiv 1502.02551; Croci et al. 2022, doi 10.1098/rsos.211631). The noise
has 16 bits and is a hash of a key and of the entry's flat index; two neighbours share 32 bits of one."""

import hashlib
import struct

import torch
from torch import Tensor

Key = tuple[int, int]  # two signed 32-bit numbers

# Entries at a time: on a CPU what fits a core's own cache; on a GPU a few kernels of some size.
CHUNK = {"cpu": 2**16}
CHUNK_ELSEWHERE = 2**22
HALF = 2**15


def key_of(seed: int, step: int, name: str) -> Key:
    """The key of a tensor's noise in one optimizer step of a run."""
    digest = hashlib.blake2b(f"{seed} {step} {name}".encode(), digest_size=8).digest()
    first, second = struct.unpack("<2i", digest)
    return first, second


@torch.no_grad()
def rounded(
    values: Tensor, dtype: torch.dtype, key: Key | None, index: Tensor | None = None
) -> Tensor:
    """fp32 values in `dtype`: to nearest without a key, of 16 bits up or down by the key's noise.
    `index` has the flat index of every value in its tensor; None: they are the whole tensor."""
    if key is None or dtype.itemsize != 2:
        return values.to(dtype)
    flat, largest = values.reshape(-1), torch.finfo(dtype).max
    found, size = torch.empty_like(flat, dtype=dtype), CHUNK.get(flat.device.type, CHUNK_ELSEWHERE)
    for start in range(0, flat.numel(), size):
        part, drawn = flat[start : start + size], found[start : start + size]
        if index is None:
            noise = noise_from(key, start, len(part), flat.device)
        else:
            noise = noise_at(key, index.reshape(-1)[start : start + size])
        if dtype == torch.bfloat16:  # added below the mantissa, and what is there is cut off
            bits = torch.add(part.view(torch.int32), noise).add_(HALF).bitwise_right_shift_(16)
            drawn.copy_(bits.to(torch.int16).view(dtype))
        else:
            near, far = (side.float() for side in neighbours(part, dtype))
            share = (part - near) / (far - near)  # nan where fp16 has the value itself
            drawn.copy_(torch.where(share * 2 * HALF >= HALF - noise.float(), far, near))
        # What is beyond the dtype, or no number, stays so.
        drawn.copy_(torch.where(part.abs() <= largest, drawn, part.to(dtype)))
    return found.view(values.shape)


def neighbours(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of a dtype of 16 bits beside fp32 values, the one nearer to zero first; both are
    the value itself where the dtype has it."""
    size = values.abs()
    near = size.to(dtype)
    bits = near.view(torch.int16)
    inner = bits - (near.float() > size).to(torch.int16)
    outer = inner + (near.float() != size).to(torch.int16)
    low, high = (torch.copysign(side.view(dtype), values.to(dtype)) for side in (inner, outer))
    return low, high


# 16 random bits an entry, from -2^15 to 2^15 - 1, by flat indices below 2^63.


def noise_from(key: Key, start: int, size: int, device: torch.device) -> Tensor:
    """The noise of `size` entries from `start`, a multiple of a power of two that is no smaller."""
    word, (first, second) = start // 2, key
    counts = torch.arange((size + 1) // 2, dtype=torch.int32, device=device)
    # No bit of the start is one of the counts.
    words = counts.bitwise_xor_(_signed(word ^ first))
    return _mixed(words, _signed(second + (word >> 32) * HIGH)).view(torch.int16)[:size]


def noise_at(key: Key, index: Tensor) -> Tensor:
    """The noise of entries anywhere."""
    word, (first, second) = index.long() >> 1, key
    words = word.to(torch.int32).bitwise_xor_(first)
    mixed = _mixed(words, (second + (word >> 32) * HIGH).to(torch.int32))
    left = (16 * (1 - (index & 1))).to(torch.int32)  # words are little-endian
    return mixed.bitwise_left_shift_(left).bitwise_right_shift_(16).to(torch.int16)


HIGH = 0x1E3779B9  # what a step of the index's upper half adds to the key


def _mixed(words: Tensor, second: int | Tensor) -> Tensor:
    """A hash of 32 bits, in place: Wellons' and Tolles' two rounds
    (github.com/skeeto/hash-prospector: 16, 21f0aaad, 15, 735a2d97, 15) with a key between them."""
    _fold(words, 16).mul_(0x21F0AAAD).add_(second)
    return _fold(_fold(words, 15).mul_(0x735A2D97), 15)


def _fold(words: Tensor, shift: int) -> Tensor:
    """words ^= words >> shift, without their sign."""
    return words.bitwise_xor_((words >> shift).bitwise_and_(2 ** (32 - shift) - 1))


def _signed(number: int) -> int:
    """The lower 32 bits as a signed number."""
    return (number + 2**31) % 2**32 - 2**31
