"""The change proof: what should train did change, all else is bit-identical (docs/updates.md).

Every tensor is hashed before training, after the first step, at each checkpoint and at the end.
The hashes of loading (`models.identity`) are not taken over for what is frozen: some adapters
rewrite it when they begin, and a proof that believed an older hash would prove less."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from modicum.models.identity import combined, fingerprints, mark, marks
from modicum.models.precision import Masters, SparseMaster, is_coarse
from modicum.models.rounding import neighbours
from modicum.types import RunStopped
from modicum.updates.base import Prepared
from modicum.updates.members import FAR


class Proof:
    """Remembers the start and checks against it; `since` says of what start messages speak."""

    def __init__(self, prepared: Prepared, masters: Masters, since: str = "") -> None:
        self.prepared, self.masters, self.since = prepared, masters, since
        self.frozen = marks(prepared.frozen)
        # In checkpoints, which another device may go on from.
        on_cpu = all(tensor.device.type == "cpu" for tensor in prepared.frozen.values())
        self.at_start = combined(self.frozen if on_cpu else fingerprints(prepared.frozen))
        # In fp32, so that a weight and its master compare.
        self.started = marks(prepared.trainable, torch.float32)
        self.resting: dict[str, str] = {}
        self.outside: dict[str, tuple[SparseMaster, str]] = {}
        self.tried: set[str] = set()  # tensors that have had a gradient
        self.pushed: set[str] = set()  # those whose steps were too large for them to stay
        self.moved: set[str] = set()  # tensors that were seen to have changed
        self.last: dict[str, float | None] = {}  # the last step of those that were waited for

    def resume(self, pushed: Iterable[str], moved: Iterable[str], tried: Iterable[str]) -> None:
        """Go on from a checkpoint, whose values are in the model by now, with the same start."""
        self.pushed, self.moved, self.tried = set(pushed), set(moved), set(tried)
        self.resting, self.outside = {}, {}
        self.rest()

    @property
    def waiting(self) -> bool:
        """Whether some tensor need not have changed yet."""
        return len(self.pushed) < len(self.started)

    def push(self, names: Iterable[str], sure: bool = True) -> None:
        """Tell which tensors had a gradient in a step that was taken; `sure`: they must move."""
        names = set(names)
        self.tried |= names
        self.pushed |= names if sure else set()

    def unsure(self) -> list[str]:
        """Tensors that train and had a gradient, and need not have changed yet."""
        return sorted(self.tried & self.prepared.active.keys() - self.pushed)

    def expect(self, moves: Mapping[str, float | None]) -> None:
        """Hear by how many spacings each tensor went in a step that was taken; None: passed over.
        One that went a few may come back to its start. It must have left it once, right then."""
        self.last |= moves
        for name, move in moves.items():
            if move is not None and move < FAR:
                if not move or name in self.moved:
                    continue
                self.look([name])
                if name in self.moved:
                    continue
            self.push([name])

    def look(self, names: Iterable[str]) -> None:
        """See which masters have left their start; call before these stop or begin anew."""
        held = {name: self.masters.held[name] for name in sorted(names)}
        few = {n: m.tensor for n, m in held.items() if isinstance(m, SparseMaster)}
        now = {n: marks({n: m.values}, torch.float32)[n] for n, m in held.items() if n not in few}
        left = {name for name, found in now.items() if found != self.started[name]}
        left |= {n for n, tensor in few.items() if bool(tensor.any())}
        for name in held:
            if name in left:
                self.moved.add(name)
            elif name in self.pushed - self.prepared.schedule.may_return - self.outside.keys():
                self.moved.discard(name)

    def rest(self) -> None:
        """What trains has changed: hash what stopped, check and forget what started."""
        active = self.prepared.active
        started = self.resting.keys() & active.keys()
        self._check_resting("when it started to train again", started)
        for name in started:
            del self.resting[name]
        for name, parameter in self.prepared.trainable.items():
            if name not in active and name not in self.resting:
                self.resting[name] = mark(parameter)
        held = self.masters.held
        ended = [name for name, (master, _) in self.outside.items() if held.get(name) is not master]
        self._check_outside("when what trains changed", ended)
        for name in ended:
            del self.outside[name]
        for name, master in held.items():
            if isinstance(master, SparseMaster) and name not in self.outside:
                self.outside[name] = (master, mark(master.at_start()))

    def _check_resting(self, when: str, names: Iterable[str]) -> None:
        now = marks({name: self.prepared.trainable[name] for name in sorted(names)})
        require(when, now, self.resting, "{} rested and has changed")

    def _check_outside(self, when: str, names: Iterable[str]) -> None:
        now = {name: mark(self.outside[name][0].at_start()) for name in names}
        known = {name: self.outside[name][1] for name in now}
        require(when, now, known, "{} has changed where it should not train")

    def check(self, when: str, resting: bool = True) -> str:
        """A sentence that says what was proven; RunStopped when it does not hold."""
        what = f"{{}} should be frozen and has changed{self.since}"
        require(when, marks(self.prepared.frozen), self.frozen, what)
        if resting:
            self._check_resting(when, self.resting)
        self._check_outside(when, self.outside)
        self.look(self.prepared.active.keys() & self.masters.held.keys())
        # What may come back to its start cannot be told from what never left it.
        same = self.tried - self.moved - self.prepared.schedule.may_return
        still, small = sorted(same & self.pushed), same - self.pushed
        return (
            f"{len(self.moved)} of {len(self.started)} trainable tensors changed"
            + (f", {len(self.resting)} of them rest now" if self.resting else "")
            + (self.stayed(when, still) if still else "")
            + (f", {len(small)} had steps too small to show in fp32" if small else "")
            + f", {len(self.frozen)} frozen ones are bit-identical"
        )

    def stayed(self, when: str, still: Sequence[str]) -> str:
        """What to say of tensors that had a gradient and did not change."""
        return f", {len(still)} had a gradient and did not change"


class ChangeProof(Proof):
    """Of the package's own loop: also of buffers and masters, and of what must have changed."""

    def __init__(self, prepared: Prepared, masters: Masters) -> None:
        super().__init__(prepared, masters)
        self.buffers = marks(_buffers(prepared))

    def check(self, when: str, resting: bool = True) -> str:
        """Buffers are as they were too, and weights are their masters, rounded."""
        require(when, marks(_buffers(self.prepared)), self.buffers, "the buffer {} has changed")
        for name in sorted(self.masters.held.keys() - self.resting.keys()):
            if not torch.equal(self.masters.published(name), self.masters.held[name].parameter):
                raise RunStopped(f"change proof ({when}): {name} {self._fault(name)}")
        return super().check(when, resting)

    def _fault(self, name: str) -> str:
        """In what a weight is not its master, rounded."""
        master, text = self.masters.held[name], "is not its fp32 master, rounded"
        wanted, found = map(master.seen, (self.masters.published(name), master.parameter.detach()))
        if not is_coarse(found):
            return text
        inner, outer = neighbours(master.values, found.dtype)
        if far := int(((found != inner) & (found != outer)).sum()):
            return f"{text}: {far} entries are neither of the two numbers beside it"
        step = self.masters.drawn.get(name)
        right = "the nearest" if step is None else f"the one drawn in optimizer step {step}"
        other = int((found != wanted).sum())
        return f"{text}: {other} entries are the other number beside it, not {right}"

    def stayed(self, when: str, still: Sequence[str]) -> str:
        move = self.last.get(still[0], 0.0)
        went = f", though a step went {move:.2g} spacings" if move else ""
        why = ", the optimizer has passed it over" if move is None else went
        what = f"{still[0]} trains and has not changed ({len(still)} such tensors)"
        raise RunStopped(f"change proof ({when}): {what}{why}")


def require(when: str, now: Mapping[str, str], known: Mapping[str, str], what: str) -> None:
    """RunStopped that says `what` of the first tensor whose mark is not the one that is known."""
    for name, found in now.items():
        if found != known.get(name):
            raise RunStopped(f"change proof ({when}): {what.format(name)}")


def _buffers(prepared: Prepared) -> dict[str, Tensor]:
    """All tensors of the model that are no parameters, but for rotary frequencies."""
    return {n: b for n, b in prepared.model.named_buffers() if not n.endswith("inv_freq")}
