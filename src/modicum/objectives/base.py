"""What all objectives share: advantages, weights, a KL term, an entropy bonus.

Weights, and all else that looks at more than one token, are made of the whole batch before it is cut
into micro-batches and chunks. Shapes: P problem, G member, R row, N completion tokens end to end."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from modicum import spec
from modicum.limits import Between, Limits
from modicum.objectives import parts
from modicum.objectives.parts import Counts as Counts
from modicum.types import Advantage, Frozen, Group, UserError

MOST = 100.0  # of the upper bound of a ratio and of the weight of the KL term; usual: below 1
Weight = Annotated[float, Limits(0, MOST)]
Above = Annotated[float | None, Limits(0, MOST, above=True)]
Dual = Annotated[float | None, Limits(1, MOST, above=True)]
KlForm = Literal["k3", "k3_corrected", "k2", "k1_reward"]
Cut = tuple[Tensor, Tensor]
Sums = dict[str, Tensor]  # sums over tokens, for the log


class Tokens(Frozen):
    """What a loss needs to know of N completion tokens laid end to end, row after row."""

    old_N: Tensor  # log-probs at sampling
    advantages_N: Tensor
    """The advantage of each token; most objectives give all tokens of a row the same."""
    reference_N: Tensor | None  # log-probs under the reference; None if the objective needs none
    weights_N: Tensor  # from `Objective.weights`
    row_N: Tensor  # the number of each token's row, rising

    def part(self, where: slice) -> "Tokens":
        """Some of the tokens."""
        known = {name: value[where] for name, value in vars(self).items() if value is not None}
        return replace(self, **known)


class Objective(spec.Spec, ABC):
    """A loss for group-relative policy optimisation; its `surrogate` is a member's own. Advantages
    are GRPO's and weights those of a mean over all tokens, unless a member has its own. `kl` weighs
    a term to the reference, `entropy` a bonus for the entropy of every token; only the share
    `entropy_share` of tokens with the highest entropy (`training.hearing`) gets an advantage."""

    whole_rows: ClassVar[bool] = False  # whether `token_loss` must see all tokens of a row at once
    whitened: ClassVar[bool] = False  # whether advantages are whitened over all tokens of the batch
    compares: ClassVar[bool] = True
    """Whether advantages compare the completions of a group, so that one alone has none."""
    has_critic: ClassVar[bool] = False
    """Whether advantages are taken against `Completion.values` (`objectives.Ppo`)."""
    accuracy_only: ClassVar[bool] = False  # whether rewards are to be the verdict alone
    advantages = staticmethod(parts.over_deviation)
    """Advantages [P, G] of rewards [P, G], before whitening; NaN is no verdict and gets 0."""
    weights = staticmethod(parts.token_mean)
    """The weight of every token's loss, [N], for rows of such lengths [R] in a batch of such counts."""

    kl: Weight = 0.0
    kl_form: KlForm = field(default="k3", kw_only=True)
    entropy: Weight = field(default=0.0, kw_only=True)
    entropy_share: Annotated[float, Limits(0, 1, above=True)] = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kl and self.kl_form != type(self).kl_form:
            raise UserError(f"{self.name}: kl_form does nothing while kl is 0")
        if self.whole_rows and (self.kl_in_reward or self.entropy_share < 1):
            raise UserError.of("whole_rows", name=self.name)

    @classmethod
    def kind(cls) -> tuple[object, ...]:
        """What is left of it where every ratio is 1, its terms aside."""
        return cls.advantages, cls.weights, cls.whitened

    @property
    def needs_reference(self) -> bool:
        """Whether it looks at the reference's log-probs."""
        return self.kl > 0

    @property
    def kl_in_reward(self) -> bool:
        """Whether advantages are made of the reference's log-probs (`Completion.reference`)."""
        return self.kl > 0 and self.kl_form == "k1_reward"

    @property
    def droppable(self) -> bool:
        """Whether a row without advantage has no gradient, so that it need not be run."""
        return not (self.needs_reference or self.entropy or self.whitened)

    def signal(self, rewards_PG: Tensor) -> Tensor:
        """Whether the rewards of each group, or of the batch, say where to go, [P]."""
        compared = rewards_PG if self.compares else rewards_PG.reshape(1, -1)
        return parts.has_signal(compared).expand(len(rewards_PG))

    def row_advantages(
        self, groups: Sequence[Group], rewards_PG: Tensor, part_PG: Tensor | None = None
    ) -> Sequence[Sequence[Advantage]]:
        """The advantage of every row: one number, or one for each of its tokens.
        With the KL in the reward that of token t is less by beta times the sum over s >= t of
        log pi_old - log pi_ref. Whitening leaves out rows without a verdict, and those without a
        part in the loss if `part_PG` says which have one; they get 0."""
        advantages_PG = self.advantages(rewards_PG)
        if not (self.whitened or self.kl_in_reward):
            return advantages_PG.tolist()
        lengths = [len(c.tokens) for group in groups for c in group.completions]
        token_N = self.credit(self.returns(groups, advantages_PG), groups)
        if self.whitened:
            known_PG = ~rewards_PG.isnan() if part_PG is None else part_PG & ~rewards_PG.isnan()
            known_N = known_PG.flatten().repeat_interleave(torch.tensor(lengths))
            token_N = parts.whitened(token_N, known_N)
        rows = iter(token_N.split(lengths))
        return [[tuple(next(rows).tolist()) for _ in group.completions] for group in groups]

    def returns(self, groups: Sequence[Group], advantages_PG: Tensor) -> Tensor:
        """What each token is followed by [N], in fp64: its completion's, less the KL in the reward."""
        completions = [c for group in groups for c in group.completions]
        lengths = [len(c.tokens) for c in completions]
        token_N = advantages_PG.double().flatten().repeat_interleave(torch.tensor(lengths))
        if not self.kl_in_reward:
            return token_N
        pairs = [pair for c in completions for pair in zip(c.logprobs, c.reference, strict=True)]
        old, there = torch.tensor(pairs, dtype=torch.double).reshape(-1, 2).unbind(1)
        return token_N - self.kl * parts.to_go(old - there, lengths)

    def credit(self, returns_N: Tensor, groups: Sequence[Group]) -> Tensor:
        """The advantage of each token [N], before whitening."""
        return returns_N

    def log_ratios(self, policy_N: Tensor, tokens: Tokens) -> Tensor:
        """The log of the ratio of each token, [N]."""
        return policy_N - tokens.old_N

    @abstractmethod
    def surrogate(self, ratio_N: Tensor, policy_N: Tensor, tokens: Tokens) -> Cut:
        """What is maximised, [N], and of which tokens it cuts the gradient or the ratio, [N]."""

    def token_loss(self, policy_N: Tensor, tokens: Tokens) -> tuple[Tensor, Sums]:
        """Unweighted losses [N], and sums: `clipped` tokens, `kl`, `ratio_error` (|rho - 1|)."""
        # An infinite ratio times a zero advantage, or a zero gradient, would be NaN.
        ratio_N = torch.exp(self.log_ratios(policy_N, tokens).clamp(max=parts.MOST_NATS))
        surrogate_N, cut_N = self.surrogate(ratio_N, policy_N, tokens)
        losses_N = -surrogate_N
        sums = {"clipped": cut_N.sum(), "ratio_error": (ratio_N.detach() - 1).abs().sum()}
        sums["kl"] = torch.zeros((), device=policy_N.device)
        if tokens.reference_N is not None:
            old_N = (policy_N.detach() - tokens.old_N).clamp(max=parts.MOST_NATS).exp()
            kl_N, value_N = parts.kl_term(self.kl_form, policy_N, tokens.reference_N, old_N)
            losses_N = losses_N + self.kl * kl_N
            sums["kl"] = value_N.detach().sum()
        return losses_N, sums

    def loss(self, policy_N: Tensor, tokens: Tokens, entropy_N: Any = None) -> tuple[Tensor, Sums]:
        """The weighted loss of some tokens, to be added up, and sums; a bonus takes `entropy_N`."""
        losses_N, sums = self.token_loss(policy_N, tokens)
        if entropy_N is not None:
            losses_N = losses_N - self.entropy * entropy_N
        return (losses_N * tokens.weights_N).sum(), sums


class Clipping(Objective):
    """PPO's clipped surrogate: min(rho A, clip(rho, 1-clip, 1+clip_high) A).
    With `dual_clip` it is at least dual_clip A where A < 0 (arXiv 1912.09729): a token that has
    become much more likely does not push without bound."""

    # A ratio is above 0, so that a lower bound of 1 or more below 1 would bound nothing.
    clip: Between = 0.2
    clip_high: Above = None
    dual_clip: Dual = field(default=None, kw_only=True)

    def surrogate(self, ratio_N: Tensor, policy_N: Tensor, tokens: Tokens) -> Cut:
        high = self.clip if self.clip_high is None else self.clip_high
        surrogate_N = parts.clipped(ratio_N, tokens.advantages_N, self.clip, high)
        if self.dual_clip is not None:
            least_N = self.dual_clip * tokens.advantages_N.clamp(max=0)
            surrogate_N = torch.maximum(surrogate_N, least_N)
        return surrogate_N, surrogate_N != ratio_N * tokens.advantages_N
