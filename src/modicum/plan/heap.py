"""What glibc's heap grows to for a sequence of tensors that come and go (docs/plan.md).

torch asks for aligned memory, and glibc (malloc.c of 2.36, `_int_memalign`) cuts it out of room for
the size, the alignment and a smallest chunk. What is left at its ends goes to the small objects of
autograd's graph while that grows: then a freed block is no room for one of the same size."""

from bisect import bisect_left, insort

ALIGNMENT = 64  # torch's (c10/core/impl/alloc_cpu.cpp)
HEADER, UNIT, SMALLEST = 16, 16, 32  # of a chunk
LOST = 512  # what is smaller goes to small objects


class Heap:
    """A heap that grows at its top and never shrinks. `top` is what it has taken, in bytes."""

    def __init__(self) -> None:
        self.top = 0
        self.growing = False  # a graph, whose small objects take the ends of blocks (`grow`)
        self._lost: list[tuple[int, int]] = []
        self._holes: list[tuple[int, int]] = []  # (size, start), in order
        self._starts: dict[int, int] = {}  # of holes: start -> size
        self._ends: dict[int, int] = {}  # of holes: end -> start

    def grow(self, now: bool) -> None:
        """A graph grows from now on, or does so no longer."""
        self.growing = now
        while self._lost and not now:
            self.give(*self._lost.pop(0))

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
            if left >= LOST or (left and not self.growing):
                self.give(begin, left)
            elif left:
                self._lost.append((begin, left))
        return at, needed

    def give(self, start: int, length: int) -> None:
        """Free a chunk."""
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
