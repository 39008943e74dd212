"""Adapters of a few vectors: VeRA, (IA)^3, and the norms alone. PEFT does the work.

*VeRA* (Kopiczko et al. 2023, arXiv 2310.11454): y + b * (B (d * (A x))). A and B are
random, frozen and shared by all layers (each takes its corner of the largest); the vectors
d (`d_initial` at first) and b (0) train: rank + out numbers a layer. A and B come from the
run's seed. Departure from PEFT's defaults: all linear layers are adapted.

*(IA)^3* (Liu et al. 2022, arXiv 2205.05638): keys and values are scaled by learned vectors,
and so is the input of the MLP's last projection; all begin at 1. Departure from PEFT's
defaults, which take queries in the place of keys for Qwen2: k, v and down, as in the paper.

*LayerNorm tuning* (Zhao et al. 2023, arXiv 2312.11420): the scales of the norms train, on
copies, so that the base keeps its own. Departure from PEFT's defaults, which for Qwen take
one of the norms of a layer: all norms train, the final one and q/k norms included.

Rates. One number of a vector scales a whole row or column, and is of size 1 (norms, (IA)^3)
or acts through a small product (VeRA): steps must be larger than for matrices. `rate_scale`
100 makes five steps on one batch of the tiny base move the policy (by KL) as far as tuned
rates of `full` and `lora` do. A starting point, not a tuned rate.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from modicum.spec import within
from modicum.types import UserError
from modicum.updates.adapter import Adapter, at_least_one
from modicum.updates.base import Selection
from modicum.updates.chains import ADAPTER, Chain, Link, Trains
from modicum.updates.layout import layout
from modicum.updates.targets import linear_layers

OUTPUTS, INPUTS, FUSED = ("k_proj", "v_proj"), ("down_proj",), ("qkv_proj", "c_attn")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


@dataclass(frozen=True)
class Vera(Adapter):
    """Two trained vectors a layer around frozen random matrices that all layers share."""

    name: ClassVar[str] = "vera"
    peft_config: ClassVar[str] = "VeraConfig"
    rate_scale: ClassVar[float] = 100.0
    examples: ClassVar[tuple[str, ...]] = ("vera(rank=16)", "vera(rank=8, d_initial=0.5) @ last(2)")
    rank: int = 256
    d_initial: float = 0.1

    def __post_init__(self) -> None:
        at_least_one(self, rank=self.rank)
        # With 0 no gradient reaches b, and d never moves.
        within("vera: d_initial", self.d_initial, 0, 10, above=True)

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """An exported adapter brings A and B along."""
        drawn = {"projection_prng_key": seed, "save_projection": True}
        return {"r": self.rank, "d_initial": self.d_initial, **drawn}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A, the scale d, B."""
        rank = layer.r[ADAPTER]
        down, up = Link(rank * layer.in_features, False), Link(rank * layer.out_features, False)
        return Chain((down, Link(0, trains(layer.vera_lambda_d[ADAPTER])), up))


@dataclass(frozen=True)
class Ia3(Adapter):
    """Trained scales of keys, values and the input of the MLP's last projection."""

    name: ClassVar[str] = "ia3"
    peft_config: ClassVar[str] = "IA3Config"
    everywhere: ClassVar[bool] = False
    rate_scale: ClassVar[float] = 100.0
    examples: ClassVar[tuple[str, ...]] = ("ia3", "ia3 @ (last(2) & parts(mlp))")

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
        """The k, v and down projections among the selected linear layers."""
        found = linear_layers(model, where)
        fused = [name for name in found if _last(name) in FUSED]
        if fused:
            raise UserError(
                f"ia3: keys and values are no layers of their own in this model ({fused[0]});"
                " ia3 @ parts(mlp) trains what it can"
            )
        kept = [name for name in found if _last(name) in OUTPUTS + INPUTS]
        if found and not kept:
            raise UserError(
                f"ia3 goes into {', '.join(OUTPUTS + INPUTS)}, and {where or 'the model'} has none"
            )
        return kept

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """Only down projections are scaled at their input."""
        return {"feedforward_modules": [name for name in targets if _last(name) in INPUTS]}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A scale, of the output or the input."""
        return Chain((Link(0, trains(layer.ia3_l[ADAPTER])),), inside=layer.is_feedforward)


@dataclass(frozen=True)
class LnTuning(Adapter):
    """The scales of all norms train, on copies; `parts(norm)` trains the model's own."""

    name: ClassVar[str] = "lntuning"
    peft_config: ClassVar[str] = "LNTuningConfig"
    everywhere: ClassVar[bool] = False
    rate_scale: ClassVar[float] = 100.0
    examples: ClassVar[tuple[str, ...]] = ("lntuning", "lntuning @ middle(1)")

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
        places = layout(model).places
        chosen = places if where is None else where.select(model)
        norms = [name.rpartition(".")[0] for name in chosen if "norm" in places[name].parts]
        if not norms:
            raise UserError(f"lntuning: {where or 'the model'} has no norm")
        return list(dict.fromkeys(norms))

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """Nothing: no linear layer is touched."""
        return Chain()
