"""Adapters that are not of LoRA's kind: of a few numbers, of blocks, and of single entries.

PEFT does the work; docs/updates.md has sources and departures. *VeRA*: y + b * (B (d * (A x))).
*TinyLoRA*: W + B R A with R = sum over i of v_i P_i. *MiSS*: one matrix of rank x out numbers,
repeated along the input. *OFT*: the input is rotated by PEFT's series for (I + Q)(I - Q)^-1,
I + 2Q + 2Q^2 + 2Q^3 + Q^4, or by (I - Q)(I + Q)^-1 (`exact`); Q is skew. *SHiRA*: random entries."""

from collections.abc import Callable
from functools import partial
from itertools import count
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
from modicum.updates.products import ADAPTER, Chain, Link, Trains, between
from modicum.updates.targets import linear_layers

OUTPUTS, INPUTS, FUSED = ("k_proj", "v_proj"), ("down_proj",), ("qkv_proj", "c_attn")


class Vera(Adapter):
    """Two trained vectors a layer around frozen random matrices that all layers share."""

    peft_config = "VeraConfig"
    passed: ClassVar[dict[str, str]] = {"rank": "r", "d_initial": "d_initial"}
    fixed: ClassVar[dict[str, Any]] = {"save_projection": True}
    rank: Count = 256
    # With 0 no gradient reaches b, and d never moves.
    d_initial: Annotated[float, Limits(0, 10, above=True)] = 0.1

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """A and B are drawn from the seed, and an exported adapter brings them along."""
        return super().settings(targets, seed) | {"projection_prng_key": seed}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A, the scale d, B."""
        return between(layer, Link(0, trains(layer.vera_lambda_d[ADAPTER])))


class Ia3(Adapter):
    """Trained scales of keys, values and the input of the MLP's last projection."""

    peft_config = "IA3Config"
    everywhere = False

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
        found = linear_layers(model, where)
        fused = [name for name in found if name.endswith(FUSED)]
        if fused:
            raise UserError.of("fused_keys", layer=fused[0])
        kept = [name for name in found if name.endswith(OUTPUTS + INPUTS)]
        if found and not kept:
            raise UserError.of("no_ia3", into=", ".join(OUTPUTS + INPUTS), of=where or "the model")
        return kept

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """Only down projections are scaled at their input."""
        return {"feedforward_modules": [name for name in targets if name.endswith(INPUTS)]}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A scale, of the output or the input."""
        return Chain((Link(0, trains(layer.ia3_l[ADAPTER])),), inside=layer.is_feedforward)


class LnTuning(Adapter):
    """The scales of all norms train, on copies; `parts(norm)` trains the model's own."""

    peft_config = "LNTuningConfig"
    everywhere = False

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
        places = layout(model).places
        chosen = selected(model, where)
        norms = [name.rpartition(".")[0] for name in chosen if "norm" in places[name].parts]
        if not norms:
            raise UserError(f"lntuning: {where or 'the model'} has no norm")
        return list(dict.fromkeys(norms))


class TinyLora(Adapter):
    """`u` numbers train, shared by all linear layers, or fewer layers with less tying."""

    peft_config = "TinyLoraConfig"
    reads_base = True
    passed: ClassVar[dict[str, str]] = {"rank": "r", "u": "u", "weight_tying": "weight_tying"}
    fixed: ClassVar[dict[str, Any]] = {"save_projection": True}
    rank: Count = 2
    u: Count = 13
    weight_tying: Share = 1.0

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """An exported adapter brings its fixed matrices along."""
        spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
        return super().settings(targets, seed) | {"projection_seed": spread}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A, R, B."""
        vector = layer.tinylora_v[ADAPTER][layer._tinylora_v_key[ADAPTER]]
        return between(layer, Link(layer.r[ADAPTER] ** 2, trains(vector)))

    def finish(self, model: Any) -> None:
        """Fix the signs of the singular vectors."""
        for layer in model.modules():
            for name, up in getattr(layer, "tinylora_B", {}).items():
                largest = up.abs().argmax(0, keepdim=True)
                signs = torch.where(up.gather(0, largest) < 0, -1, 1)
                up.mul_(signs)
                layer.tinylora_A[name].mul_(signs.mT)  # type: ignore[index, union-attr]


class Miss(Adapter):
    """One small matrix a layer, shared by the blocks of its input."""

    peft_config = "MissConfig"
    links = ("miss_block",)
    turned = False
    passed: ClassVar[dict[str, str]] = {"rank": "r"}
    rank: Count = 64

    def check(self, name: str, layer: Any) -> None:
        size = layer.in_features
        if size < self.rank:
            raise UserError(f"{self}: the input of {name} has {size} numbers; rank is at most that")


class Oft(Adapter):
    """The input of every linear layer is rotated, block by block."""

    peft_config = "OFTConfig"
    turned = False
    passed: ClassVar[dict[str, str]] = {"block_size": "oft_block_size"}
    block_size: Annotated[int, Limits(2, MAX_COUNT)] = 32
    exact: bool = False

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
        found = super().targets(model, where)
        sizes: dict[str, Any] = {name: model.get_submodule(name).in_features for name in found}
        for name, size in sizes.items():
            if size % self.block_size:
                common = gcd(*sizes.values())
                raise UserError.of("blocks", update=self, name=name, size=size, common=common)
        return found

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """The series for the rotation, or the exact one."""
        return super().settings(targets, seed) | {"use_cayley_neumann": not self.exact}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A rotation of the input, block by block."""
        rotation = layer.oft_R[ADAPTER]
        link = Link(layer.in_features * rotation.block_size, trains(rotation))
        return Chain((link,), inside=True)


class Shira(Adapter):
    """Entries drawn at random train, in every linear layer as many as a LoRA would have."""

    peft_config = "ShiraConfig"
    reads_base = True
    turned = False
    passed: ClassVar[dict[str, str]] = {"rank": "r"}
    rank: Count = 8

    def check(self, name: str, layer: Any) -> None:
        out, size = layer.weight.shape
        if self.rank * (out + size) > out * size:
            told = {"entries": out * size, "most": out * size // (out + size)}
            raise UserError.of("few_entries", by=self, name=name, shape=(out, size), **told)

    def config(self, targets: list[str], seed: int) -> Any:
        config = super().config(targets, seed)
        config.mask_fn = drawn(seed)
        return config

    def finish(self, model: Any) -> None:
        """Make the indices buffers too, which the change proof watches. Sparse tensors need data:
        without it, for the planner, layers add a table without memory."""
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
    numbers = count()

    def mask(layer: nn.Linear, rank: int, **_: Any) -> Tensor | None:
        rng = np.random.default_rng([seed, next(numbers)])
        if layer.weight.is_meta:  # a preview needs no entries
            return None
        many = rank * (layer.in_features + layer.out_features)
        where = rng.choice(layer.weight.numel(), many, replace=False, shuffle=False)
        flat = torch.zeros(layer.weight.numel())
        flat[torch.from_numpy(where)] = 1.0
        return flat.view(layer.weight.shape).to(layer.weight.device)

    return mask
