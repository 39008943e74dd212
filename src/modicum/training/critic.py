"""The critic of a run: weights of its own that give every token a value (`objectives.ppo`).

It reads states of the policy, without a gradient into it, or has a model of its own: the base with an
adapter, whose other weights are the policy's own memory where neither trains them, or a whole copy. An
`Optimization` moves it, as the policy is moved, with its own clip and its own change proof. States are
read in fp32 and over their root mean square, so that one rate fits layers of any scale.

Shapes: R row, N completion tokens of the rows laid end to end, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from modicum import updates
from modicum.config import Optimizer, TrainConfig
from modicum.engine import Changed, Policy, make
from modicum.engine.flops import CriticWork, FlopCounter
from modicum.objectives.parts import explained
from modicum.objectives.ppo import Head, Ppo
from modicum.training.optimization import Optimization
from modicum.types import Row, UserError
from modicum.updates.base import Prepared
from modicum.updates.schedule import Schedule
from modicum.updates.stepper import StepCounters

LEAST = 0.005  # of a mean that a sigmoid begins at
PLACES = {"first": 0.0, "middle": 0.5, "last": 1.0}
"""Where in a completion the values are taken whose AUC is logged."""
KEPT = ("rollouts", "refits", "asked", "gated")
Fitted = tuple[Any, Tensor, Tensor]
"""What a row is read from, its returns [T], and the values [T] that it had before."""


class CriticSteps(Optimization):
    """The steps of a critic."""

    not_finite = (
        "the critic's loss ({loss:g}) or gradient ({norm:g}) was not finite for {count} steps in a row;"
        " a smaller rate in the objective may help"
    )


def base_of(goal: Any, update: Any, model: nn.Module) -> nn.Module | None:
    """The model of a critic that has one, before an update is applied to `model`.

    Its tensors are the same memory, unless the update rewrites what it does not train.
    """
    if not goal.has_critic or not goal.kind_of_critic.update:
        return None
    rewrites = getattr(getattr(update, "left", update), "rewrites_base", False)
    shared = {} if rewrites else {id(p): nn.Parameter(p.detach()) for p in model.parameters()}
    return deepcopy(model, shared)


def critic_of(
    goal: Any,
    policy: Policy,
    prepared: Prepared,
    config: TrainConfig,
    base: nn.Module | None = None,
) -> Critic | None:
    """The critic of an objective; None: it has none."""
    return Critic(goal, policy, prepared, config, base) if goal.has_critic else None


class Critic:
    """Values, and how they are learnt; `metrics` are those of the last rollout."""

    def __init__(
        self,
        goal: Ppo,
        policy: Policy,
        prepared: Prepared,
        config: TrainConfig,
        base: nn.Module | None = None,
    ) -> None:
        """`base` is what `base_of` gave, and `prepared` the update of the policy."""
        self.goal, self.config, self.scorer = goal, config, policy.scorer
        self.kind: Head = goal.kind_of_critic
        self.rate = goal.rate or self.kind.rate
        self.own: Prepared | None = None
        depth = goal.depth(prepared.lowest_layer, prepared.lowest_ever, policy.scorer.splits)
        counter = None
        if base is not None:
            self.own = self._applied(base, {p.data_ptr() for p in prepared.trainable.values()})
            lowest, compute = self.own.lowest_layer, config.compute
            given = (lowest, compute.engine, compute.checkpointing)
            self.scorer = make(self.own.model, policy.device, *given)
            self.scorer.follow(Changed(self.own.active, lowest))
            counter = FlopCounter(self.own, self.scorer, config.batch, False, True, headless=True)
        self.model = nn.ModuleDict({} if self.own is None else {"model": self.own.model})
        self.work = CriticWork(self.kind.reader(self.scorer.width), goal.passes, depth, counter)
        self.counters = StepCounters()
        self.steps: CriticSteps | None = None
        """None before the first rollout, whose mean it begins with."""
        self.rollouts = self.refits = self.asked = self.gated = 0
        self.metrics: dict[str, float] = {}

    def _applied(self, base: nn.Module, moving: set[int]) -> Prepared:
        """The critic's update on its base, which gets memory of its own for what trains somewhere."""
        try:
            own = updates.parse(self.kind.update).apply(base, self.config.seed)
        except UserError as error:
            raise UserError(f"{self.goal}: for its critic {error}") from None
        for parameter in own.model.parameters():
            if parameter.requires_grad or parameter.data_ptr() in moving:
                parameter.data = parameter.data.clone()
        return own

    @property
    def warm(self) -> bool:
        """Whether the coming rollout is still for the critic alone."""
        return self.rollouts < self.goal.warmup

    def begin(self, mean: float = 0.0) -> None:
        """Say `mean` of every state from now on, without a step behind it."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self.config.seed)
            reader: Any = self.kind.reader(self.scorer.width)
            reader[-1].weight.zero_()
            bce = self.goal.value_loss == "bce"
            reader[-1].bias.copy_(
                torch.tensor([mean]).logit(LEAST) if bce else torch.tensor([mean])
            )
        self.model["reader"] = reader.to(self.scorer.device)
        moved = set(map(id, self.own.active.values())) if self.own else set[int]()
        named = dict(self.model.named_parameters())
        reading = [name for name in named if name.startswith("reader.")]
        trained = {n: p for n, p in named.items() if id(p) in moved or n in reading}
        # What reads a model of its own has the rate of one that reads the policy's.
        rates = dict.fromkeys(reading, Head.rate / self.rate) if self.own else {}
        prepared = Prepared(self.model, trained, Schedule(rates))
        stochastic = self.config.compute.rounding == "stochastic"
        given = (Optimizer(max_grad_norm=self.goal.max_norm), self.counters)
        self.steps = CriticSteps(prepared, *given, self.config.seed, stochastic)

    def follow(self, lowest: int) -> dict[str, int]:
        """Hear of the lowest layer that trains now; what is to be logged.

        Below the layer that the critic reads at nothing must train, or its states would change: it
        begins anew, with another warm-up, where the policy now does.
        """
        if self.work.depth is None or lowest >= self.work.depth:
            return {}
        self.work.depth, self.rollouts, self.refits = lowest, 0, self.refits + 1
        return {"critic_refit_at": lowest}

    # A rollout ---------------------------------------------------------------------------

    def read(self, rows: Sequence[Row]) -> list[Any]:
        """What the values of each row are made of: its states [T, H], or the row itself."""
        if self.own is not None:
            return [replace(row, trunk=None) for row in rows]  # which is the policy's
        states_NH = self.scorer.states(self.scorer.pack(rows), self.work.depth)
        return list(states_NH.split([len(row.tokens) for row in rows]))

    def raw(self, held: Sequence[Any]) -> Tensor:
        """What the reader gives for the tokens [N] of some rows, with a graph if gradients are on."""
        if self.own is None:
            states_NH = torch.cat(list(held))
        else:
            pack = self.scorer.pack(held)
            states_NH = self.scorer.hidden(pack, self.scorer.trunk(pack))
        return self.model["reader"](rms_norm(states_NH.float(), states_NH.shape[-1:])).squeeze(-1)

    @torch.no_grad()
    def values(self, held: Sequence[Any]) -> Tensor:
        """The values [N] of the tokens of some rows."""
        return self.goal.values(self.raw(held)).cpu()

    def judge(
        self, values_N: Tensor, returns_N: Tensor, rewards_R: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """What the policy uses of the values [N]: these, or the mean return if they explain nothing.

        Also makes `metrics`, of rows with a verdict. A success is a reward in the upper half of those
        of the rollout.
        """
        known_R = ~rewards_R.isnan()
        known_N = known_R.repeat_interleave(torch.tensor(lengths))
        values, returns = values_N[known_N], returns_N[known_N]
        start_R = torch.tensor([0, *lengths[:-1]]).cumsum(0)[known_R]
        last_R, earned_R = torch.tensor(lengths)[known_R] - 1, rewards_R[known_R]
        firsts = (values_N[start_R], returns_N[start_R])
        found = {"explained_variance": explained(values, returns)}
        found |= {"explained_variance_first": explained(*firsts)}
        if len(earned_R):
            good_R = earned_R > (earned_R.min() + earned_R.max()) / 2
            for name, share in PLACES.items():
                at_R = values_N[start_R + (share * last_R).long()]
                area = auc(at_R, good_R)
                found |= {} if area is None else {f"auc_{name}": area}
        if self.goal.value_loss == "bce":
            found |= {"brier": float((values - returns).square().mean())}
            found |= {"calibration": miscalibration(values, returns)}
        poor = self.goal.gate and found["explained_variance"] <= 0
        self.asked, self.gated = self.asked + (not self.warm), self.gated + (poor and not self.warm)
        found |= {"gated": self.gated / max(1, self.asked), "refits": self.refits}
        self.metrics = {f"critic/{name}": value for name, value in found.items()}
        return (
            torch.full_like(values_N, float(returns.mean())) if poor and len(returns) else values_N
        )

    def undo(self) -> None:
        """Drop the gradients of a step that is not taken."""
        assert self.steps is not None
        self.steps.begin_anew()

    def backward(self, rows: Sequence[Fitted], count: int) -> float:
        """Add the gradient of some rows' loss, which is a mean over `count` tokens; returns it."""
        assert self.steps is not None
        held, *told = zip(*rows, strict=True)
        returns_N, before_N = (torch.cat(part).float().to(self.scorer.device) for part in told)
        loss = self.goal.fit(self.raw(held), returns_N, before_N).sum() / count
        loss.backward()
        self.steps.masters.collect()
        return float(loss.detach())

    def step(self, loss: float) -> None:
        """Clip and step."""
        assert self.steps is not None
        norm = self.steps.step(loss, self.rate)
        found = {"critic/loss": loss, "critic/grad_norm": norm, "critic/bytes": self.bytes}
        self.metrics = {
            **self.metrics,
            **found,
            "critic/loss": self.metrics.get("critic/loss", loss),
        }

    @property
    def bytes(self) -> int:
        """Of its own weights and of its optimizer's state."""
        assert self.steps is not None
        shared = (
            set[int]()
            if self.own is None
            else {p.data_ptr() for p in self.steps.prepared.frozen.values()}
        )
        weights = [p for p in self.model.parameters() if p.data_ptr() not in shared]
        return sum(p.numel() * p.element_size() for p in weights) + self.steps.state_bytes()

    # Checkpoints -------------------------------------------------------------------------

    def prove(self, when: str) -> str:
        """What its change proof says; RunStopped when it does not hold."""
        return f"; critic: {self.steps.proof.check(f'critic, {when}')}" if self.steps else ""

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs, as tensors."""
        return self.steps.tensors() if self.steps else {}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        found = {name: getattr(self, name) for name in KEPT}
        found |= {"depth": self.work.depth, "counters": asdict(self.counters)}
        if self.steps is not None:
            proof = self.steps.proof
            told = {"pushed": proof.pushed, "moved": proof.moved, "tried": proof.tried}
            found |= {name: sorted(names) for name, names in told.items()}
            found["drawn"] = self.steps.masters.drawn
        return found

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: object) -> None:
        """Set what `state` and `tensors` gave."""
        vars(self).update({name: int(state[name]) for name in KEPT})
        self.work.depth = state["depth"]
        vars(self.counters).update(state["counters"])
        if not tensors:
            return
        self.begin()
        assert self.steps is not None
        self.steps.load(tensors, frozenset(self.steps.prepared.trainable), folder, state["drawn"])
        self.steps.proof.resume(state["pushed"], state["moved"], state["tried"])


def auc(values_R: Tensor, good_R: Tensor) -> float | None:
    """How often a good row's value is above a bad one's, ties half; None: one kind is missing."""
    good, bad = values_R[good_R].tolist(), values_R[~good_R].tolist()
    if not good or not bad:
        return None
    return float(mannwhitneyu(good, bad).statistic) / (len(good) * len(bad))


def miscalibration(values_N: Tensor, returns_N: Tensor) -> float:
    """The mean distance of value and mean return in ten bins of the value (ECE)."""
    bin_N = (values_N * 10).long().clamp(0, 9)
    gaps = [(values_N - returns_N)[bin_N == b].sum().abs() for b in range(10)]
    return float(sum(gaps)) / max(1, len(values_N))
