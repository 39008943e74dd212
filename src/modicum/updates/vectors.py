"""Adapters of a few numbers: VeRA, (IA)^3, the norms alone, and TinyLoRA. PEFT does the work.

*VeRA* (Kopiczko et al. 2023, arXiv 2310.11454): y + b * (B (d * (A x))). A and B are
random (from the run's seed), frozen and shared by all layers, of which each takes its corner;
the vectors d (`d_initial` at first) and b (0) train.

*(IA)^3* (Liu et al. 2022, arXiv 2205.05638): keys, values and the input of the MLP's last
projection are scaled by learned vectors, 1 at first.

*LayerNorm tuning* (Zhao et al. 2023, arXiv 2312.11420): the scales of the norms train, on copies.

Departures from PEFT's defaults: VeRA goes into all linear layers; (IA)^3 into k, v and down, as
in the paper, and not into Qwen2's queries; all norms train, not one a layer.

*TinyLoRA* (arXiv 2602.04118): W + B R A with R = sum over i of v_i P_i. A and B are the largest
`rank` singular directions of W, each times the root of its singular value, P_i are fixed random
rank x rank matrices from the run's seed, and only v (`u` numbers, 0 at first) trains.
`weight_tying` says how many layers share one v: 1 all of them, 0 none, in between runs of
layers in order. The signs of singular vectors, which are arbitrary and differ between devices,
are fixed here: the largest entry of every column of B is positive. Seeds are spread, as PEFT
counts up from the seed by layer and runs with neighbouring seeds would share matrices.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import nn

from modicum.types import UserError
from modicum.updates.adapter import Adapter
from modicum.updates.base import Selection, selected
from modicum.updates.layout import layout
from modicum.updates.members import Count, Limits, Share
from modicum.updates.products import ADAPTER, Chain, Link, Trains
from modicum.updates.targets import linear_layers

OUTPUTS, INPUTS, FUSED = ("k_proj", "v_proj"), ("down_proj",), ("qkv_proj", "c_attn")


@dataclass(frozen=True)
class Vera(Adapter):
    """Two trained vectors a layer around frozen random matrices that all layers share."""

    peft_config = "VeraConfig"
    examples = ("vera(rank=16)", "vera(rank=8, d_initial=0.5) @ last(2)")
    passed: ClassVar[dict[str, str]] = {"rank": "r", "d_initial": "d_initial"}
    rank: Count = 256
    # With 0 no gradient reaches b, and d never moves.
    d_initial: Annotated[float, Limits(0, 10, above=True)] = 0.1

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """An exported adapter brings A and B along."""
        drawn = {"projection_prng_key": seed, "save_projection": True}
        return super().settings(targets, seed) | drawn

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A, the scale d, B."""
        rank = layer.r[ADAPTER]
        down, up = Link(rank * layer.in_features, False), Link(rank * layer.out_features, False)
        return Chain((down, Link(0, trains(layer.vera_lambda_d[ADAPTER])), up))


@dataclass(frozen=True)
class Ia3(Adapter):
    """Trained scales of keys, values and the input of the MLP's last projection."""

    peft_config = "IA3Config"
    everywhere = False
    examples = ("ia3", "ia3 @ (last(2) & parts(mlp))")

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
        found = linear_layers(model, where)
        fused = [name for name in found if name.endswith(FUSED)]
        if fused:
            raise UserError(
                f"ia3: keys and values are no layers of their own in this model ({fused[0]});"
                " ia3 @ parts(mlp) trains what it can"
            )
        kept = [name for name in found if name.endswith(OUTPUTS + INPUTS)]
        if found and not kept:
            raise UserError(
                f"ia3 goes into {', '.join(OUTPUTS + INPUTS)}, and {where or 'the model'} has none"
            )
        return kept

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """Only down projections are scaled at their input."""
        return {"feedforward_modules": [name for name in targets if name.endswith(INPUTS)]}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A scale, of the output or the input."""
        return Chain((Link(0, trains(layer.ia3_l[ADAPTER])),), inside=layer.is_feedforward)


@dataclass(frozen=True)
class LnTuning(Adapter):
    """The scales of all norms train, on copies; `parts(norm)` trains the model's own."""

    peft_config = "LNTuningConfig"
    everywhere = False
    examples = ("lntuning", "lntuning @ middle(1)")

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
        places = layout(model).places
        chosen = selected(model, where)
        norms = [name.rpartition(".")[0] for name in chosen if "norm" in places[name].parts]
        if not norms:
            raise UserError(f"lntuning: {where or 'the model'} has no norm")
        return list(dict.fromkeys(norms))


@dataclass(frozen=True)
class TinyLora(Adapter):
    """`u` numbers train, shared by all linear layers, or fewer layers with less tying."""

    peft_config = "TinyLoraConfig"
    examples = (
        "tinylora",
        "tinylora(u=4, weight_tying=0.0) @ last(2)",
        "tinylora(rank=3, u=5, weight_tying=0.5)",
    )
    passed: ClassVar[dict[str, str]] = {"rank": "r", "u": "u", "weight_tying": "weight_tying"}
    rank: Count = 2
    u: Count = 13
    weight_tying: Share = 1.0

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """An exported adapter brings its fixed matrices along."""
        spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
        drawn = {"projection_seed": spread, "save_projection": True}
        return super().settings(targets, seed) | drawn

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A, R, B."""
        rank = layer.r[ADAPTER]
        vector = layer.tinylora_v[ADAPTER][layer._tinylora_v_key[ADAPTER]]
        down, up = Link(rank * layer.in_features, False), Link(rank * layer.out_features, False)
        return Chain((down, Link(rank * rank, trains(vector)), up))

    @torch.no_grad()
    def finish(self, model: Any) -> None:
        """Fix the signs of the singular vectors."""
        for layer in model.modules():
            for name, up in getattr(layer, "tinylora_B", {}).items():
                largest = up.abs().argmax(0, keepdim=True)
                signs = torch.where(up.gather(0, largest) < 0, -1, 1)
                up.mul_(signs)
                layer.tinylora_A[name].mul_(signs.mT)  # type: ignore[index, union-attr]
