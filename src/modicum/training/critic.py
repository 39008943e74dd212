"""The critic of a run: weights of its own that give every token a value (`objectives.Ppo`).

It reads states of the policy without a gradient into it, or of a model of its own, which shares the memory
of what neither trains. An `Optimization` moves it, with its own clip and change proof. States are read in
fp32 over their root mean square, so that one rate fits layers of any scale.

Shapes: R row, N completion tokens of the rows laid end to end, H hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from modicum import updates
from modicum.config import Optimizer
from modicum.engine import Changed, make
from modicum.engine.flops import CriticWork
from modicum.objectives import Ppo
from modicum.objectives.parts import explained
from modicum.training.optimization import Optimization
from modicum.types import Row, UserError
from modicum.updates.base import Prepared
from modicum.updates.members import AdamWRule
from modicum.updates.schedule import Schedule
from modicum.updates.stepper import StepCounters

if TYPE_CHECKING:
    from modicum.training.session import Session

PLACES = {"first": 0.0, "middle": 0.5, "last": 1.0}
"""Where in a completion the values are taken whose AUC is logged."""
RATES = {None: 3e-3, True: 1e-3, False: 1e-4}
"""Learning rates: of what reads, of an adapter, of the base's own tensors."""


@dataclass
class CriticCounters(StepCounters):
    """Counts of a critic, and the layer that it reads (None: the last states)."""

    rollouts: int = 0  # since it began, or began anew
    refits: int = 0
    asked: int = 0
    gated: int = 0
    depth: int | None = None


def base_of(goal: Any, update: Any, model: nn.Module) -> nn.Module | None:
    """The model of a critic that has one, from that of the policy before its update.

    It is the same memory, unless the update rewrites what it does not train."""
    if not (goal.has_critic and goal.owns):
        return None
    rewrites = getattr(getattr(update, "left", update), "rewrites_base", False)
    shared = {} if rewrites else {id(p): nn.Parameter(p.detach()) for p in model.parameters()}
    return deepcopy(model, shared)


class Critic:
    """Values, and how they are learnt; `metrics` are those of the last rollout."""

    def __init__(self, session: Session, base: nn.Module | None) -> None:
        """`base` is what `base_of` gave."""
        self.goal = goal = cast(Ppo, session.objective)
        self.config, prepared, policy = session.config, session.prepared, session.policy
        self.scorer, self.model, self.own = policy.scorer, nn.ModuleDict(), None
        if base is not None:
            self.own = self._applied(base, {p.data_ptr() for p in prepared.trainable.values()})
            lowest = self.own.lowest_layer
            self.scorer = make(self.own.model, policy.device, lowest, self.config.compute)
            self.scorer.follow(Changed(self.own.active, lowest))
            self.model["model"] = self.own.model
        self.rate = goal.rate or RATES[self.own and self.own.adapter is not None]
        where = (prepared.lowest_layer, prepared.lowest_ever, policy.scorer.splits)
        self.counters = CriticCounters(depth=goal.depth(*where))
        work = (goal, policy.scorer, self.own, self.config.batch, self.counters)
        session.flops.critic = CriticWork(*work)
        self.metrics: dict[str, float] = {}
        self.begin()

    def _applied(self, base: nn.Module, moving: set[int]) -> Prepared:
        """The critic's update on its base, with memory of its own for what trains somewhere."""
        try:
            own = updates.parse(self.goal.critic).apply(base, self.config.seed)
            same = type(own.schedule) is Schedule and vars(own.schedule) == vars(Schedule())
            if not same or type(own.rule) is not AdamWRule:
                raise UserError(f"{self.goal.critic} has a schedule or rates of its own")
        except UserError as error:
            raise UserError(f"ppo: a critic is head, mlp or a plain update; {error}") from None
        for parameter in own.model.parameters():
            if parameter.requires_grad or parameter.data_ptr() in moving:
                parameter.data = parameter.data.clone()
        return own

    @property
    def warm(self) -> bool:
        """Whether the coming rollout is still for the critic alone."""
        return self.counters.rollouts < self.goal.warmup

    def begin(self, mean: float = 0.0) -> None:
        """Say `mean` of every state from now on, without a step behind it."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self.config.seed)
            reader: Any = self.goal.reader(self.scorer.width).to(self.scorer.device)
            reader[-1].weight.zero_()
            reader[-1].bias.fill_(mean)
        self.model["reader"] = reader
        trained = {f"reader.{name}": p for name, p in reader.named_parameters()}
        # What reads a model of its own has the rate of one that reads the policy's.
        rates = dict.fromkeys(trained, RATES[None] / self.rate) if self.own else {}
        trained |= {f"model.{n}": p for n, p in self.own.active.items()} if self.own else {}
        given = (Optimizer(max_grad_norm=self.goal.max_norm), self.counters, self.config.seed)
        rounds = self.config.compute.rounding == "stochastic"
        self.steps = Optimization(Prepared(self.model, trained, Schedule(rates)), *given, rounds)

    def follow(self, lowest: int) -> dict[str, int]:
        """Hear of the lowest layer that trains now; what is to be logged.

        Where it is below the layer whose input is read, which would change, the critic begins anew."""
        counters = self.counters
        if counters.depth is None or lowest >= counters.depth:
            return {}
        counters.depth, counters.rollouts, counters.refits = lowest, 0, counters.refits + 1
        return {"critic_refit_at": lowest}

    # A rollout ---------------------------------------------------------------------------

    def read(self, rows: Sequence[Row]) -> list[Any]:
        """What the values of each row are made of: its states [T, H], or the row itself."""
        if self.own is not None:
            return [replace(row, trunk=None) for row in rows]  # which is the policy's
        states_NH = self.scorer.states(self.scorer.pack(rows), self.counters.depth)
        return list(states_NH.split([len(row.tokens) for row in rows]))

    def values(self, held: Sequence[Any]) -> Tensor:
        """The values [N] of the tokens of some rows, with a graph if gradients are on."""
        if self.own is None:
            states_NH = torch.cat(list(held))
        else:
            pack = self.scorer.pack(held)
            states_NH = self.scorer.hidden(pack, self.scorer.trunk(pack))
        found: Tensor = self.model["reader"](rms_norm(states_NH.float(), states_NH.shape[-1:]))
        return found.squeeze(-1)

    def judge(
        self, values_N: Tensor, returns_N: Tensor, rewards_R: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """What the policy uses of the values [N]: these, or the mean return if they explain nothing.

        Also makes `metrics`, of rows with a verdict. A success is a reward in the upper half of the
        range in the rollout."""
        counters, known_R = self.counters, ~rewards_R.isnan()
        known_N = known_R.repeat_interleave(torch.tensor(lengths))
        start_R = torch.tensor([0, *lengths[:-1]]).cumsum(0)[known_R]
        last_R, earned_R = torch.tensor(lengths)[known_R] - 1, rewards_R[known_R]
        found: dict[str, float] = {
            "explained_variance": explained(values_N[known_N], returns_N[known_N]),
            "explained_variance_first": explained(values_N[start_R], returns_N[start_R]),
        }
        poor = self.goal.gate and found["explained_variance"] <= 0
        if not self.warm:
            counters.asked, counters.gated = counters.asked + 1, counters.gated + poor
        found |= {"gated": counters.gated / max(1, counters.asked), "refits": counters.refits}
        good_R = earned_R * 2 > sum(earned_R.aminmax()) if len(earned_R) else known_R[:0]
        if 0 < good_R.sum() < len(good_R):
            for name, share in PLACES.items():
                at_R = values_N[start_R + (share * last_R).long()]
                wins = mannwhitneyu(at_R[good_R].tolist(), at_R[~good_R].tolist()).statistic
                found[f"auc_{name}"] = float(wins / (good_R.sum() * (~good_R).sum()))
        self.metrics = {f"critic/{name}": value for name, value in found.items()}
        return returns_N[known_N].mean().nan_to_num(0.0).expand_as(values_N) if poor else values_N

    def learn(self, fitted: Sequence[tuple[Any, Tensor]], count: int) -> float:
        """Add the gradient of the loss of what some rows are read from, with their returns [T].

        It is a mean over `count` tokens, and returned."""
        held, returns = zip(*fitted, strict=True)
        returns_N = torch.cat(returns).float().to(self.scorer.device)
        loss = (self.values(held) - returns_N).square().sum() / 2 / count
        (loss * self.steps.masters.scale.value).backward()
        self.steps.masters.collect()
        return float(loss.detach())

    def step(self, loss: float) -> None:
        """Clip and step."""
        norm, trained = self.steps.step(loss, self.rate), self.steps.prepared.trainable.values()
        size = sum(p.numel() * p.element_size() for p in trained) + self.steps.state_bytes()
        found = {"critic/loss": loss, "critic/grad_norm": norm, "critic/bytes": size}
        self.metrics = found | self.metrics  # those of the first pass

    # Checkpoints -------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values; its tensors are those of `steps`."""
        return asdict(self.counters) | self.steps.state()

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: object) -> None:
        """Set what these gave."""
        vars(self.counters).update({name: state[name] for name in vars(self.counters)})
        self.steps.load(tensors, state, folder)
