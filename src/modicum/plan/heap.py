"""What glibc's heap grows to for a sequence of tensors that come and go.

A process that trains keeps what it frees (`machine.reuse_memory`), so its memory is the top
of the heap, and that is above what lives: there are holes. torch asks for aligned memory
(`posix_memalign`), and for that glibc (malloc.c of 2.36, `_int_memalign`) looks for room for
the size, the alignment and a smallest chunk, and cuts the aligned part out. What is left at
its ends is a few dozen bytes, which the small objects of autograd's graph take and keep until
backward has used them. So while a graph grows, a block that was freed is no room for another
one of the same size, and does not join its neighbours; with many blocks of one size, as a
model's layers make them, the heap exceeds what lives by a fifth to a half.

Here: the smallest hole that is large enough, else the top; neighbours that touch are joined
at once; while `growing`, ends are lost, and they are free when it ends. Measured in a
forward of the tiny base where 124 MiB live under LoRA and 135 in full training: the heap
grew by 187 and 165 MiB, and by 180 and 177 here.
"""

from bisect import bisect_left, insort

ALIGNMENT = 64  # torch's (c10/core/impl/alloc_cpu.cpp)
HEADER, UNIT, SMALLEST = 16, 16, 32  # of a chunk
LOST = 512  # what is smaller goes to small objects


class Heap:
    """A heap that grows at its top and never shrinks. `top` is what it has taken, in bytes."""

    def __init__(self) -> None:
        self.top = 0
        self._growing = False
        self._lost: list[tuple[int, int]] = []
        self._holes: list[tuple[int, int]] = []  # (size, start), in order
        self._starts: dict[int, int] = {}  # of holes: start -> size
        self._ends: dict[int, int] = {}  # of holes: end -> start

    @property
    def growing(self) -> bool:
        """Whether a graph grows, whose small objects take the ends of blocks."""
        return self._growing

    @growing.setter
    def growing(self, now: bool) -> None:
        if self._growing and not now:
            for start, length in self._lost:
                self._add(start, length)
            self._lost = []
        self._growing = now

    def take(self, size: int) -> tuple[int, int]:
        """Room for `size` bytes: the start and the length of its chunk."""
        needed = -(-(size + HEADER) // UNIT) * UNIT
        asked = needed + ALIGNMENT + SMALLEST
        found = bisect_left(self._holes, (asked, 0))
        if found < len(self._holes):
            length, start = self._holes[found]
            self._remove(start, length)
        else:
            # A hole at the end is used up before the top rises.
            start = self._ends.get(self.top, self.top)
            if start < self.top:
                self._remove(start, self.top - start)
            length, self.top = asked, start + asked
        # What the caller gets begins after the header, at a multiple of the alignment.
        at = -(-(start + HEADER) // ALIGNMENT) * ALIGNMENT - HEADER
        for begin, left in ((start, at - start), (at + needed, start + length - at - needed)):
            if left >= LOST or (left and not self._growing):
                self._add(begin, left)
            elif left:
                self._lost.append((begin, left))
        return at, needed

    def give(self, start: int, length: int) -> None:
        """Free a chunk."""
        self._add(start, length)

    def _add(self, start: int, length: int) -> None:
        if (before := self._ends.get(start)) is not None:
            self._remove(before, start - before)
            start, length = before, start + length - before
        if (after := self._starts.get(start + length)) is not None:
            self._remove(start + length, after)
            length += after
        self._starts[start], self._ends[start + length] = length, start
        insort(self._holes, (length, start))

    def _remove(self, start: int, length: int) -> None:
        del self._starts[start], self._ends[start + length]
        del self._holes[bisect_left(self._holes, (length, start))]
