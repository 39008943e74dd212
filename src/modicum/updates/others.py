"""Adapters that are not of LoRA's kind: of a few numbers, of blocks, and of single entries.

PEFT does the work. Departures from its defaults: VeRA, MiSS and SHiRA go into all linear layers;
(IA)^3 into k, v and down, as in the paper, and not into Qwen2's queries; all norms train, not one
a layer.

*VeRA* (Kopiczko et al. 2023, arXiv 2310.11454): y + b * (B (d * (A x))). A and B are
random (from the run's seed), frozen and shared by all layers, of which each takes its corner;
the vectors d (`d_initial` at first) and b (0) train.

*(IA)^3* (Liu et al. 2022, arXiv 2205.05638): keys, values and the input of the MLP's last
projection are scaled by learned vectors, 1 at first.

*LayerNorm tuning* (Zhao et al. 2023, arXiv 2312.11420): the scales of the norms train, on copies.

*TinyLoRA* (arXiv 2602.04118): W + B R A with R = sum over i of v_i P_i. A and B are the largest
`rank` singular directions of W, each times the root of its singular value, P_i are fixed random
rank x rank matrices from the run's seed, and only v (`u` numbers, 0 at first) trains.
`weight_tying` says how many layers share one v: 1 all of them, 0 none, in between runs of
layers in order. The signs of singular vectors, which are arbitrary and differ between devices,
are fixed here: the largest entry of every column of B is positive. Seeds are spread, as PEFT
counts up from the seed by layer and runs with neighbouring seeds would share matrices.

*MiSS* (Kang and Yin 2024, arXiv 2409.15371, first named Bone): the change of a weight is
one matrix D of rank x out numbers, zero at first, repeated along the input. A rank that does
not divide the input's size is padded with zeros.

*OFT* (Qiu et al. 2023, arXiv 2306.07280): the input is rotated, block by block, before the
base layer; a rotation of size b has b (b - 1) / 2 trained numbers, the upper triangle of a
skew matrix Q, zero at first. By default the rotation is PEFT's series for (I + Q)(I - Q)^-1,
I + 2Q + 2Q^2 + 2Q^3 + Q^4, which is orthogonal but for terms of size |Q|^4; `exact=True`
solves for (I - Q)(I + Q)^-1. No constraint on |Q| (COFT), no dropout of blocks.

*SHiRA* (Bhardwaj et al. 2024, arXiv 2406.13175): rank x (in + out) random entries of every
weight train, drawn from the run's seed for every layer anew; PEFT would draw the same for all
layers of one shape. Every forward copies the whole weight to add the entries, and backward
makes its whole gradient. With a bf16 base the sum is rounded to bf16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from modicum.limits import Limits, Share
from modicum.types import UserError
from modicum.updates.adapter import Adapter
from modicum.updates.base import Selection, selected
from modicum.updates.layout import layout
from modicum.updates.members import MAX_COUNT, Count
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


@dataclass(frozen=True)
class Miss(Adapter):
    """One small matrix a layer, shared by the blocks of its input."""

    peft_config = "MissConfig"
    links = ("miss_block",)
    turned = False
    examples = ("miss(rank=4)", "miss(rank=5) @ last(1)")
    passed: ClassVar[dict[str, str]] = {"rank": "r"}
    rank: Count = 64

    def check(self, name: str, layer: Any) -> None:
        size = layer.in_features
        if size < self.rank:
            raise UserError(f"{self}: the input of {name} has {size} numbers; rank is at most that")


@dataclass(frozen=True)
class Oft(Adapter):
    """The input of every linear layer is rotated, block by block."""

    peft_config = "OFTConfig"
    turned = False
    examples = (
        "oft(block_size=8)",
        "oft(block_size=4, exact=True) @ last(1)",
    )
    passed: ClassVar[dict[str, str]] = {"block_size": "oft_block_size"}
    block_size: Annotated[int, Limits(2, MAX_COUNT)] = 32
    exact: bool = False

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
        found = super().targets(model, where)
        sizes: dict[str, Any] = {name: model.get_submodule(name).in_features for name in found}
        for name, size in sizes.items():
            if size % self.block_size:
                raise UserError(
                    f"{self}: the input of {name} has {size} numbers, which blocks of"
                    f" {self.block_size} do not divide; divisors of {gcd(*sizes.values())} fit"
                    " every layer here"
                )
        return found

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """The series for the rotation, or the exact one."""
        return super().settings(targets, seed) | {"use_cayley_neumann": not self.exact}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A rotation of the input, block by block."""
        rotation = layer.oft_R[ADAPTER]
        link = Link(layer.in_features * rotation.block_size, trains(rotation))
        return Chain((link,), inside=True)


@dataclass(frozen=True)
class Shira(Adapter):
    """Entries drawn at random train, in every linear layer as many as a LoRA would have."""

    peft_config = "ShiraConfig"
    turned = False
    examples = ("shira(rank=2)", "shira(rank=1) @ last(2)")
    passed: ClassVar[dict[str, str]] = {"rank": "r"}
    rank: Count = 8

    def check(self, name: str, layer: Any) -> None:
        out, size = layer.weight.shape
        if self.rank * (out + size) > out * size:
            raise UserError(
                f"{self}: {name} has {out * size} entries, fewer than rank x ({out} + {size});"
                f" rank is at most {out * size // (out + size)} there"
            )

    def config(self, targets: list[str], seed: int) -> Any:
        config = super().config(targets, seed)
        config.mask_fn = drawn(seed)
        return config

    def finish(self, model: Any) -> None:
        """Make the indices buffers too, which the change proof watches.

        Sparse tensors need data: without it, for the planner, layers add a table that takes no
        memory, and where the entries lie (16 bytes a number) is left out.
        """
        # As they are; said out loud, as torch warns of the silent default.
        torch.sparse.check_sparse_tensor_invariants.disable()
        for layer in model.modules():
            for indices in getattr(layer, "shira_indices", {}).values():
                layer.register_buffer("trained_entries", indices, persistent=False)
            if hasattr(layer, "shira_weight") and layer.weight.is_meta:
                layer.get_delta_weight = partial(_expanded, layer)

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """No matrix of its own, but the gradient of the whole weight."""
        return Chain((Link(0, trains(layer.shira_weight[ADAPTER])),), whole=True)


def _expanded(layer: Any, adapter: str) -> Tensor:
    """A table of the weight's shape through which the adapter's numbers get a gradient."""
    total = (layer.shira_weight[adapter] * layer.scaling[adapter]).sum()
    return total.expand(layer.out_features, layer.in_features)


def drawn(seed: int) -> Callable[..., Tensor | None]:
    """PEFT's mask function: 1 at entries drawn from the seed, for one layer after the other."""
    number = 0

    def mask(layer: nn.Linear, rank: int, **_: Any) -> Tensor | None:
        nonlocal number
        rng = np.random.default_rng([seed, number])
        number += 1
        if layer.weight.is_meta:  # a preview needs no entries
            return None
        count = rank * (layer.in_features + layer.out_features)
        where = rng.choice(layer.weight.numel(), count, replace=False, shuffle=False)
        flat = torch.zeros(layer.weight.numel())
        flat[torch.from_numpy(where)] = 1.0
        return flat.view(layer.weight.shape).to(layer.weight.device)

    return mask
