"""AdaLoRA (arXiv 2303.10512): W + s B diag(E) A, whose ranks are given to where they matter.

Over T steps with a signal the budget of all layers falls from the first ranks' sum b0 to b1:

    b(t) = b1 + (b0 - b1) (1 - (t - warmup) / (T - warmup - tail))^3

PEFT's layers and rank allocator do the work, but nothing drives them by itself under GRPO.
`Ranks` calls the allocator and adds the gradient of the penalty in closed form
(docs/updates.md)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from modicum.limits import Between, Limits
from modicum.types import UserError
from modicum.updates.lora import LowRank
from modicum.updates.members import MAX_STEPS, Rank, Steps
from modicum.updates.products import ADAPTER, Chain, Link, Trains
from modicum.updates.schedule import Decision, Named, Schedule

AVERAGES = ("exp_avg_ipt", "exp_avg_unc")


class Ranks(Schedule):
    """Drives the ranks of PEFT's AdaLoRA and adds the penalty's gradient."""

    edits_gradients = True
    kept_numbers = 3  # importances and their averages
    follows_length = True

    def __init__(self, update: "AdaLora", model: Any, trainable: Named) -> None:
        super().__init__()
        self.update, self.tuner = update, model.base_model
        self.config: Any = self.tuner.peft_config["default"]
        self.matrices = {n: p for n, p in trainable.items() if ".lora_E." not in n}
        self.may_return = frozenset(trainable.keys() - self.matrices.keys())
        self.names = frozenset(trainable)
        self.taken = 0  # steps with a signal so far
        self.told = False  # whether the final ranks have been logged

    @property
    def last(self) -> int:
        """The step of the last allocation."""
        return self.config.total_step - self.config.tfinal

    def plan(self, total_steps: int) -> None:
        """Lay the phases out over the run; UserError when nothing is left to allocate in."""
        shares = self.update.warmup, self.update.tail
        warmup, tail = (s if isinstance(s, int) else int(s * total_steps) for s in shares)
        if warmup + tail >= total_steps:
            raise UserError.of("no_ranks", by=self.update, taken=warmup + tail, steps=total_steps)
        self.config.total_step, self.config.tinit, self.config.tfinal = total_steps, warmup, tail

    @torch.no_grad()
    def gradients(self, found: Mapping[str, Tensor]) -> None:
        """Add that of the penalty: for M = P P^T - 1 the norm |M|_F has 2 M P / |M|_F."""
        weight = self.update.orthogonal / len(self.matrices)
        if weight == 0:
            return
        for name, value in self.matrices.items():
            rows = value if ".lora_A." in name else value.mT
            excess = rows @ rows.mT
            excess.diagonal().sub_(1)
            size = excess.norm()
            if size > 0:
                slope = excess @ rows * (2 * weight / size)
                found[name].add_(slope if rows is value else slope.mT)

    def stepped(self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Take the importances and set what is outside the budget to zero."""
        self.taken += 1
        allocator = self.tuner.rankallocator
        if self.taken == self.last and not allocator.exp_avg_ipt:
            allocator.update_ipt(self.tuner.model)  # the only step; PEFT would have no scores
        self.tuner.update_and_allocate(self.taken)

    def settle(self) -> None:
        """What is cut is 0: its moments or a KL term may have moved it."""
        if pattern := self.config.rank_pattern:
            self.tuner.rankallocator.mask_using_rank_pattern(self.tuner.model, pattern)

    def decide(self, steps: int) -> Decision | None:
        if self.told or self.taken < self.last:
            return None
        self.told = True
        ranks = {name.split(".lora_E")[0]: n for name, n in self.ranks().items()}
        return Decision(self.names, {"budget": sum(ranks.values()), "ranks": ranks})

    def ranks(self) -> dict[str, int]:
        """How many entries of each E are not zero."""
        parameters = dict(self.tuner.named_parameters(prefix="base_model"))
        return {n: int(parameters[n].count_nonzero()) for n in sorted(self.may_return)}

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken, "told": self.told, "pattern": self.config.rank_pattern}

    def tensors(self) -> dict[str, Tensor]:
        allocator = self.tuner.rankallocator
        return {f"{kind}/{n}": t for kind in AVERAGES for n, t in getattr(allocator, kind).items()}

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.taken, self.told = state["taken"], state["told"]
        self.config.rank_pattern = state["pattern"]
        allocator = self.tuner.rankallocator
        allocator.reset_ipt()
        for full, tensor in tensors.items():
            kind, _, name = full.partition("/")
            getattr(allocator, kind)[name] = tensor
            # PEFT begins the averages anew for a name that it has not here.
            allocator.ipt[name] = torch.zeros_like(tensor)


class AdaLora(LowRank):
    """LoRA that begins with `init_rank` everywhere and ends with `rank` on average.

    `warmup` and `tail` are the steps at the start and at the end in which ranks stay as they
    are: shares of the run below 1, else numbers of steps. With E = 0 and small A and B the
    start is slow: the default learning rate is five times that of LoRA."""

    peft_config = "AdaLoraConfig"
    goes_on = False
    trained = ".lora_"  # and no counts of ranks
    passed: ClassVar[dict[str, str]] = {
        **{"rank": "target_r", "init_rank": "init_r", "alpha": "lora_alpha", "every": "deltaT"},
        **{"beta1": "beta1", "beta2": "beta2", "orthogonal": "orth_reg_weight"},
    }
    fixed: ClassVar[dict[str, Any]] = {"total_step": 1}  # until the run's length is known
    init_rank: Rank = 12
    warmup: Annotated[int | float, Limits(0, MAX_STEPS)] = 0.1
    tail: Annotated[int | float, Limits(0, MAX_STEPS)] = 0.2
    every: Steps = 1
    orthogonal: Annotated[float, Limits(0, 1000)] = 0.5
    beta1: Between = 0.85
    beta2: Between = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_rank <= self.rank:
            raise UserError.of("init_rank", update=self)
        shares = [share for share in (self.warmup, self.tail) if not isinstance(share, int)]
        if any(share >= 1 for share in shares):
            raise UserError(f"{self}: warmup and tail are shares below 1 or numbers of steps")
        if sum(shares) >= 1:
            raise UserError(f"{self}: warmup and tail together must be less than the whole run")

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A, at which the diagonal stands, then B."""
        down, up, diagonal = (held[ADAPTER] for held in (layer.lora_A, layer.lora_B, layer.lora_E))
        first = Link(down.numel(), trains(down) or trains(diagonal))
        return Chain((first, Link(up.numel(), trains(up))))

    def factors(self, layer: Any) -> tuple[Tensor, Tensor] | None:
        """E goes into A; PEFT divides by the rank, and by a little more than that."""
        down, up, diagonal = (held[ADAPTER] for held in (layer.lora_A, layer.lora_B, layer.lora_E))
        return down * diagonal, up * (layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + 1e-5))

    def plain(self, model: nn.Module) -> nn.Module:
        """The model, saved with what was pruned as zeros: PEFT warns of layers of rank 0."""
        tuner: Any = model.base_model
        tuner.peft_config["default"].rank_pattern = None
        return model

    def schedule(self, model: nn.Module, trainable: Named) -> Schedule:
        return Ranks(self, model, trainable)
