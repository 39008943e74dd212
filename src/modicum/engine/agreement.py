"""The agreement proof: completions were sampled from the policy that is trained.

docs/agreement.md has the checks and what each finds that the others cannot, the slopes, and how
much rounding may make (`Agreement.own`, measured at every check)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from modicum.config import Sampling
from modicum.engine import slopes
from modicum.engine.policy import Policy
from modicum.engine.slopes import FADE, FAULTS, ROWS, Array, Groups, Scored, Slope
from modicum.models.linear import widened
from modicum.types import Row, RunStopped
from modicum.updates.base import Prepared, Swap

EXACT = 1e-4  # most that two fp32 computations differ, in nats over 1 - p
ROUNDING = 4.0  # times the model's own
UNKNOWN = {"bf16": 0.25, "fp16": 0.03}  # that of a model which was not measured
PRIOR = 4.0  # doubt (1 - p, summed over tokens) that a measurement needs to count half
CUT = 0.1  # of the tokens, and one, that rounding may move by much: at a cut, in a wild policy
ELSEWHERE = 0.01  # nats beyond twice the first difference, of a sampler elsewhere
FIRST = 5  # steps that are all checked
REMEMBERED = 2**26  # bytes of the step before, at most

LEAST = {"base": 0.5, "previous": 0.5, "temperature": 0.01}
"""How large a slope must be at least to be a fault."""


class Agreement:
    """What the proof has seen of a run so far."""

    def __init__(self, dtype: str, every: int, sampling: Sampling | None = None) -> None:
        self.sampling = sampling = sampling or Sampling()
        self.low, self.every = dtype != "fp32", every
        self.sharp = 1 / min(1.0, sampling.temperature or 1.0)
        """What the temperature makes of a rounding of logits."""
        self.cuts = sampling.top_p < 1 or sampling.top_k > 0
        self.unknown = UNKNOWN.get(dtype, EXACT / ROUNDING) * self.sharp
        self.own = self.unknown
        self.noise, self.room = 0.0, self.own
        """Rounding of this model: mean over 1 - p, root mean square in nats; what may be, of which
        little was seen."""
        self.seen = [0.0] * 4
        """Of all checks, which fade: |rounding|, 1 - p, rounding squared, tokens."""
        self.exact_max = 0.0  # largest difference without rounding so far, over 1 - p
        self.slopes: dict[str, Slope] = {}
        self.measured = False
        self.first: float | None = None
        """Mean |difference| at the first check, of a sampler elsewhere whose weights had been proved."""
        self.before: Swap | None = None  # the values of the step before, where they are few

    def due(self, step: int) -> bool:
        """Whether the library is asked in this step."""
        return self.every > 0 and (step < FIRST or step % self.every == 0)

    # Checks ------------------------------------------------------------------------------

    @torch.no_grad()
    def check(self, policy: Policy, prepared: Prepared, groups: Groups, step: int) -> float:
        """Ask the library; mean |its log-prob - the sampler's|, in nats. RunStopped: no."""
        policy.sampler.prove()
        if self.low:
            with widened(policy.model):
                again = slopes.rehearsal(policy, groups, self.sampling, step)
                self._exact(policy, prepared, slopes.score(policy, again, self.sampling))
        found = slopes.score(policy, slopes.some(groups), self.sampling)
        if not np.isfinite(found.ways["trainer"]).all():
            return 0.0  # so will the loss be, and the step is skipped and counted
        if not self.low:
            self._exact(policy, prepared, found)
        else:
            with widened(policy.model):
                exact_N, found.entropy_N = slopes.by(policy.scorer, found.rows, self.sampling)
            found.ways["exact"] = exact_N
            self._measure(found.ways["library"], exact_N)
            self._other_weights(policy, prepared, found)
            for way in ("trainer", "library"):
                self._follow(way, found.ways[way] - found.sampler_N, found)
        mean = self._apart(found.ways["library"], found.sampler_N, "library")
        if not policy.sampler.in_process:
            self.first = mean if self.first is None else self.first
            if mean > (most := 2 * self.first + ELSEWHERE):
                raise RunStopped.of("apart_elsewhere", mean=mean, first=self.first, most=most)
        return mean

    @torch.no_grad()
    def trained(
        self, rows: Sequence[Row], trainer_N: Array, entropy_N: Array, policy: Policy | None = None
    ) -> float:
        """The trainer's log-probs of a step's tokens; mean |difference|, in nats.

        `policy` is asked how much it rounds now when they are far apart. What is not finite is
        left to the step, which is skipped. RunStopped: no."""
        if not np.isfinite(trainer_N).all():
            return 0.0
        found = Scored(rows, entropy_N, {"exact": trainer_N})
        if self.low:
            if policy is not None and self._far(trainer_N - found.sampler_N, trainer_N) > 1:
                taken = [replace(row, trunk=None) for row in rows[:: -(-len(rows) // ROWS)]]
                rounded_N = slopes.by(policy.scorer, taken, self.sampling)[0]
                with widened(policy.model):
                    self._measure(rounded_N, slopes.by(policy.scorer, taken, self.sampling)[0])
            self._follow("training", trainer_N - found.sampler_N, found)
        return self._apart(trainer_N, found.sampler_N, "trainer")

    def remember(self, prepared: Prepared) -> None:
        """Keep what is about to change, where a check of the next step can look at it."""
        size = sum(p.numel() * p.element_size() for p in prepared.active.values())
        self.before = None
        if self.low and self.every and size <= REMEMBERED:
            self.before = Swap(prepared.active)
            self.before.keep()

    # Pieces ------------------------------------------------------------------------------

    def _exact(self, policy: Policy, prepared: Prepared, found: Scored) -> None:
        """Sampler, trainer and library agree where nothing is rounded."""
        library_N = found.ways["library"]
        ways = {"trainer": found.ways["trainer"]}
        if policy.sampler.in_process or not self.low:
            ways = {"sampler": found.sampler_N} | ways
        for name, other_N in ways.items():
            if name == "trainer" and not np.isfinite(other_N).all():
                return  # so will the loss be, and the step is skipped and counted
            _finite(other_N, name)
            d_N = library_N - other_N
            kept = self._kept(d_N, self.cuts)
            far = slopes.over_doubt(d_N[kept], library_N[kept])
            self.exact_max = max(self.exact_max, far)
            if not far <= EXACT * self.sharp:
                self._other_weights(policy, prepared, found)
                like, mean = slopes.looks_like(d_N, found), np.abs(d_N).mean()
                raise RunStopped.of("apart_exact", name=name, mean=mean, like=like)

    def _other_weights(self, policy: Policy, prepared: Prepared, found: Scored) -> None:
        known = {"base": prepared.reference} if prepared.reference_known else {}
        if self.before is not None:
            known["previous"] = self.before.swapped
        for name, weights in known.items():
            with weights(), widened(policy.model):
                found.others[name] = slopes.by(policy.scorer, found.rows, self.sampling)[0]

    def _measure(self, rounded_N: Array, exact_N: Array) -> None:
        """The model's own rounding: that of all checks, and room for as much as it has now."""
        if not (np.isfinite(rounded_N).all() and np.isfinite(exact_N).all()):
            return
        apart_N, doubted = rounded_N - exact_N, slopes.doubt(exact_N)
        now = [float(np.abs(apart_N).sum()), doubted, float(apart_N @ apart_N), len(apart_N)]
        self.seen = [old * FADE + new for old, new in zip(self.seen, now, strict=True)]
        prior = self.unknown * PRIOR
        self.own = self.seen[0] / self.seen[1]
        self.room = max((prior + of[0]) / (PRIOR + of[1]) for of in (self.seen, now))
        self.noise = max(of[2] / of[3] for of in (self.seen, now)) ** 0.5
        self.measured = True

    @staticmethod
    def _kept(d_N: Array, trim: bool) -> Array:
        """Indices of all tokens, or with `trim` of those that do not differ most."""
        order = np.argsort(np.abs(d_N), kind="stable")
        return np.sort(order[: len(d_N) - int(CUT * len(d_N)) - 1] if trim else order)

    def _far(self, d_N: Array, logprob_N: Array) -> float:
        """How large differences are beside what rounding may make."""
        # A policy on the edge of collapse has tokens that rounding moves from one to nothing.
        kept = self._kept(d_N, self.cuts or self.low)
        return slopes.over_doubt(d_N[kept], logprob_N[kept]) / (ROUNDING * self.room)

    def _follow(self, way: str, d_N: Array, found: Scored) -> None:
        """Add a check to the slopes; RunStopped when one is what a fault gives."""
        s_N = self.own * (1 - np.exp(found.ways["exact"]))
        group_N = np.repeat([r.group for r in found.rows], [len(r.tokens) for r in found.rows])
        kept = self._kept(d_N, self.cuts)
        for name, x_N in found.directions().items():
            slope = self.slopes.setdefault(f"{way} {name}", Slope())
            slope.add(d_N[kept], x_N[kept], s_N[kept], group_N[kept])
            size, error, limit = slope.estimate()
            # The sampler prefers tokens that its own rounding has made likelier.
            least = max(LEAST.get(name, EXACT), 4 * self.noise**2)
            if abs(size) > max(least, limit * error):
                fault = FAULTS[name][size < 0]
                raise RunStopped.of("follows", of=way, like=fault, slope=size, error=error)

    def _apart(self, other_N: Array, sampler_N: Array, way: str) -> float:
        """Mean |difference|; RunStopped when it is more than rounding."""
        _finite(sampler_N, "sampler")
        _finite(other_N, way)
        d_N = other_N - sampler_N
        mean, far = float(np.abs(d_N).mean()), self._far(d_N, other_N)
        if not far <= 1:
            raise RunStopped.of("apart", way=way, mean=mean, far=far)
        return mean

    def report(self) -> str:
        """A sentence that says what was found."""
        found = [f"in fp32 sampler, trainer and library differ by at most {self.exact_max:.1g}"]
        if self.measured:
            found.append(f"the model's own rounding is {self.own:.2g}")
        text = " and ".join(found) + " nats over 1 - p"
        for name in ("base", "temperature"):
            slope, error, limit = self.slopes.get(f"library {name}", Slope()).estimate()
            if limit * error < 1:
                text += f"; {name} slope {slope:.2g} with standard error {error:.1g}"
        return text if self.exact_max else "not asked"

    # Checkpoints -------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """As JSON values. What comes of the step before is not in it, nor are its values."""
        lasting = ((n, s) for n, s in self.slopes.items() if not n.endswith("previous"))
        slopes = {name: slope.sums for name, slope in lasting}
        names = ("own", "noise", "room", "seen", "measured", "exact_max", "first")
        return {name: getattr(self, name) for name in names} | {"slopes": slopes}

    def load(self, state: dict[str, Any]) -> None:
        """Set what `state` gave."""
        vars(self).update(state)
        self.slopes = {name: Slope(sums) for name, sums in state["slopes"].items()}


def _finite(values_N: Array, by: str) -> None:
    """RunStopped with what is wrong, where a comparison would only say that it failed."""
    if not np.isfinite(values_N).all():
        count = int((~np.isfinite(values_N)).sum())
        raise RunStopped.of("no_numbers", count=count, size=values_N.size, by=by)
