"""Objectives: advantages, token losses, weights, and what they ask of the batch.

    A_i  = (r_i - mean(r)) / (std(r) + 1e-4)                   group of G, ddof 1
    L    = sum_t w_t [ -min(rho A, clip(rho, 1-e, 1+e) A) + beta k3 ]
    k3   = exp(x) - x - 1,   x = log pi_ref - log pi_theta

An objective is a frozen dataclass with methods (`base`), made of functions (`parts`). To add one: an
`Objective` here with its row in OBJECTIVES, and in tests/test_objectives.py an example worked out by
hand, which the contract suite compares. docs/objectives.md explains them side by side."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from modicum import spec
from modicum.limits import Between, Limits, Share
from modicum.objectives import parts
from modicum.objectives.base import MOST, Above, Clipping, Cut, KlForm, Objective, Tokens, Weight
from modicum.types import Group, UserError

Slope = Annotated[float, Limits(0, MOST, above=True)]
On = Literal["auto", "trunk", "last"]
READS = re.compile(r"head|mlp(\((width=)?(?P<width>[1-9]\d*)\))?")
WIDTH = 256  # of the hidden layer of an mlp, unless it says another
MOST_RATIO = 1e4  # of a token that is masked by its probability and not by its ratio


class Grpo(Clipping):
    """GRPO (arXiv 2402.03300): over the group's standard deviation, mean over each completion."""

    weights = staticmethod(parts.row_mean)


class DrGrpo(Clipping):
    """Dr. GRPO (arXiv 2503.20783): no deviation, a constant length instead of each row's own."""

    advantages = staticmethod(parts.difference)
    weights = staticmethod(parts.longest_mean)


class Dapo(Clipping):
    """DAPO's loss (arXiv 2503.14476): mean over all tokens of the batch, a wider clip upwards."""

    clip_high: Above = 0.28


class Rloo(DrGrpo):
    """RLOO (arXiv 2402.14740): against the mean of the other completions, a constant length."""

    advantages = staticmethod(parts.leave_one_out)


class Maxrl(Clipping):
    """MaxRL (arXiv 2602.02710): over the group's mean, so that a rare success counts most."""

    accuracy_only: ClassVar[bool] = True
    advantages = staticmethod(parts.over_mean)


class Gspo(Clipping):
    """GSPO: the ratio of a completion is the geometric mean over its tokens.

        s_i = exp(mean_t (log pi - log pi_old)),   L_t = -min(s_i A_i, clip(s_i, 1-e, 1+e) A_i)

    arXiv 2507.18071. Its bounds are hundreds of times narrower than a token's. `policy/ratio_error`
    and `policy/clip_fraction` are of the completions' ratios, each counted with its tokens."""

    whole_rows: ClassVar[bool] = True
    weights = staticmethod(parts.row_mean)
    clip: Between = 3e-4
    clip_high: Above = 4e-4

    def log_ratios(self, policy_N: Tensor, tokens: Tokens) -> Tensor:
        """The mean over the tokens of each row, which must be whole."""
        _, row_N, size_R = tokens.row_N.unique_consecutive(return_inverse=True, return_counts=True)
        ratios_N = policy_N - tokens.old_N
        sums_R = ratios_N.new_zeros(len(size_R)).index_add(0, row_N, ratios_N)
        return (sums_R / size_R)[row_N]


class Cispo(Objective):
    """CISPO (arXiv 2506.13585): -sg[min(rho, cap)] A log pi; no token loses its gradient."""

    cap: Annotated[float, Limits(1, MOST)] = 5.0

    def surrogate(self, ratio_N: Tensor, policy_N: Tensor, tokens: Tokens) -> Cut:
        capped_N = ratio_N.detach().clamp(max=self.cap)
        return capped_N * tokens.advantages_N * policy_N, ratio_N > self.cap


class Sapo(Objective):
    """SAPO (arXiv 2511.20347): -(4 / tau) sigma(tau (rho - 1)) A, a gate in the place of a clip."""

    rising: Slope = 1.0
    falling: Slope = 1.05

    def surrogate(self, ratio_N: Tensor, policy_N: Tensor, tokens: Tokens) -> Cut:
        up_N = tokens.advantages_N > 0
        tau_N = torch.where(up_N, self.rising, self.falling).to(ratio_N.dtype)
        gate_N = torch.sigmoid(tau_N * (ratio_N - 1)) * 4 / tau_N
        return gate_N * tokens.advantages_N, torch.zeros_like(up_N)


class Ipo(Objective):
    """IPO of prime-rl: -rho A where |pi - pi_old| <= eps, else 0; no preference loss."""

    advantages = staticmethod(parts.difference)
    eps: Between = 0.3

    def masked(self, change_N: Tensor, advantages_N: Tensor) -> Tensor:
        """Which tokens train no more, of the change of their probability."""
        return change_N.abs() > self.eps

    def surrogate(self, ratio_N: Tensor, policy_N: Tensor, tokens: Tokens) -> Cut:
        # Cut in value, not in gradient: a rare token that became likely is not dropped.
        capped_N = ratio_N.detach().clamp(max=MOST_RATIO) * (policy_N - policy_N.detach()).exp()
        masked_N = self.masked(parts.change(policy_N, tokens.old_N), tokens.advantages_N)
        return (capped_N * tokens.advantages_N).masked_fill(masked_N, 0.0), masked_N


class Dppo(Ipo):
    """DPPO (arXiv 2602.04879, binary): as `ipo`, but masks only what A would push further."""

    eps: Between = 0.2

    def masked(self, change_N: Tensor, advantages_N: Tensor) -> Tensor:
        return change_N * advantages_N.sign() > self.eps


class ReinforcePp(Clipping):
    """REINFORCE++ (arXiv 2501.03262): r - beta sum_{s >= t} k1_s, whitened over the batch."""

    whitened: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    advantages = staticmethod(lambda rewards_PG: rewards_PG.nan_to_num(0.0))
    kl: Weight = 0.01
    kl_form: KlForm = field(default="k1_reward", kw_only=True)


class ReinforcePpBaseline(Clipping):
    """REINFORCE++-baseline (arXiv 2501.03262): less the group's mean, whitened over the batch."""

    whitened: ClassVar[bool] = True
    advantages = staticmethod(parts.difference)
    kl: Weight = 0.01
    kl_form: KlForm = field(default="k2", kw_only=True)


class Ppo(Clipping):
    """PPO (arXiv 1707.06347): less a critic's value of each token, whitened over the batch.

        D_t = R_t - V_t,   A_t = D_t - D_{t+1} + lambda A_{t+1}    (GAE, gamma 1, both 0 after the end)

    R_t is what token t is followed by: the reward of its completion, less the KL from t on if that is in
    the reward. V_t is read where token t is predicted, the first at the last token of the prompt. The end
    is terminal, also of a completion that was cut. A is whitened over all tokens of the batch. The target
    of V_t is R_t, whatever the lambda. `training.critic` has the weights and says how they learn.

    GAE: arXiv 1506.02438. Departures: the critic has no trained layer in common with the policy, and its
    loss, half of the squared error, is not clipped. It begins as the mean reward of the first rollout,
    learns alone in `warmup` rollouts, and where its values explain nothing (`gate`, as EVPO) the mean
    return is taken."""

    whitened: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    has_critic: ClassVar[bool] = True
    advantages = staticmethod(lambda rewards_PG: rewards_PG.nan_to_num(0.0))

    critic: str = field(default="head", kw_only=True)
    on: On = field(default="auto", kw_only=True)
    lambda_: Share = field(default=1.0, kw_only=True)
    adaptive: Share = field(default=0.0, kw_only=True)
    warmup: Annotated[int, Limits(0, 10**6)] = field(default=10, kw_only=True)
    passes: Annotated[int, Limits(1, 100)] = field(default=2, kw_only=True)
    rate: Annotated[float | None, Limits(0, 1, above=True)] = field(default=None, kw_only=True)
    max_norm: Annotated[float, Limits(0, MOST)] = field(default=1.0, kw_only=True)
    gate: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.owns and self.on != "auto":
            raise UserError(f"{self.name}: {self.critic} has states of its own; leave on out")
        if self.adaptive and self.lambda_ != 1:
            raise UserError(f"{self.name}: adaptive makes lambda of the length; leave lambda_ out")

    @classmethod
    def kind(cls) -> tuple[object, ...]:
        return *super().kind(), cls

    @property
    def owns(self) -> bool:
        """Whether the critic has a model of its own, which `critic` is the update of."""
        return READS.fullmatch(self.critic) is None

    def reader(self, size: int) -> nn.Sequential:
        """What makes a value of a state of such a size."""
        found = READS.fullmatch(self.critic)
        if not self.critic.startswith("mlp") or not found:
            return nn.Sequential(nn.Linear(size, 1))
        width = int(found["width"] or WIDTH)
        return nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, 1))

    def depth(self, lowest: int, lowest_ever: int, splits: bool) -> int | None:
        """The layer whose input is read, by the lowest that train now and ever; None: last states."""
        there = lowest_ever > 0 and splits
        if self.on == "trunk" and not there:
            raise UserError.of("no_trunk" if splits else "run_whole", name=self.name)
        return lowest if there and self.on != "last" and not self.owns else None

    def credit(self, returns_N: Tensor, groups: Sequence[Group]) -> Tensor:
        """Advantages [N] before whitening; a completion without values has 0 for each."""
        rows = [c for group in groups for c in group.completions]
        values = [value for c in rows for value in c.values or (0.0,) * len(c.tokens)]
        ahead = (returns_N - returns_N.new_tensor(values)).split([len(c.tokens) for c in rows])
        return torch.cat([parts.discounted(row_T, self.decay(len(row_T))) for row_T in ahead])

    def decay(self, length: int) -> float:
        """The lambda of a completion of so many tokens."""
        return max(0.0, 1 - 1 / (self.adaptive * length)) if self.adaptive else self.lambda_


MEMBERS = (Grpo, DrGrpo, Dapo, Rloo, Maxrl, Gspo, Cispo, Sapo, Ipo, Dppo, ReinforcePp)
OBJECTIVES: dict[str, type[Objective]] = {c.name: c for c in (*MEMBERS, ReinforcePpBaseline, Ppo)}


def parse(text: str) -> Objective:
    """The objective that an expression such as `grpo(kl=0.04)` names."""
    return spec.build("objective", text, OBJECTIVES)


def method(goal: Objective, updates_per_rollout: int, any_scale: bool = False) -> Hashable:
    """What two objectives have in common if they are one method: equal keys, equal gradients.
    In the first update on a batch every ratio is 1, and what is left is advantages, weights, KL and
    entropy. With `any_scale` gradients may differ by a factor, as under Adam without clipping."""
    cls = type(goal)
    if updates_per_rollout > 1 or cls not in OBJECTIVES.values() or goal.has_critic:
        return goal
    # On policy the corrected k3 has the gradient of k2.
    form = goal.kl and {"k3_corrected": "k2"}.get(goal.kl_form, goal.kl_form)
    if any_scale and cls is Rloo and not (goal.kl or goal.entropy):
        cls = DrGrpo
    return *cls.kind(), goal.kl, form, goal.entropy, goal.entropy_share


def notes(goal: Objective, updates_per_rollout: int, num_terms: int = 1) -> list[str]:
    """What the user should know of an objective in a run whose reward has so many terms."""
    found, cls = list[str](), type(goal)
    same = [n for n, c in OBJECTIVES.items() if c.kind() == cls.kind() and c is not cls]
    if same and updates_per_rollout == 1:
        words = f"with one update a rollout {goal.name} is the same method as {', '.join(same)}:"
        found.append(f"{words} every ratio is 1, and nothing is clipped (docs/objectives.md)")
    if goal.accuracy_only and num_terms > 1:
        words = "divides by the mean reward of a group, which terms beside accuracy raise:"
        less = "a rare success counts less than it should (--reward accuracy)"
        found.append(f"{goal.name} {words} {less}")
    return found
