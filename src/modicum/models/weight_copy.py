"""The sampler's own copy of the weights of linear layers, laid out for few rows.

Layers that read the same states (q, k, v; gate, up) are one product. On a CPU their weights lie in the
blocks that oneDNN reads, elsewhere end to end. In fp32 a plain LoRA is folded in, W + s B A. In a lower
precision it is not, since what is below the spacing of W would be gone: there x A of the layers of a
product is one more product, and each has its B. The policy's weights are never touched.

A copy can be stale. It is refreshed where a tensor has trained since it was laid out (`moved`), or lies at
another place in memory, or was written to in a way that torch counts; so a frozen trunk is laid out once.
`check` compares it with the policy's weights by other means."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from modicum.models.linear import is_plain, weight_first
from modicum.types import RunStopped

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that may read the same states."""
ROWS = 32  # that oneDNN lays out for
CLOSE = 1e-5  # a folded weight to the library's, over the largest


def blocks(weight: Tensor) -> bool:
    """Whether oneDNN has blocks for a weight of this kind here."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    known = torch.ops.mkldnn._is_mkldnn_bf16_supported
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and bool(known()))


class Factors(NamedTuple):
    """What a layer's LoRA adds to its product: s B A x."""

    down: Tensor  # A
    up: Tensor  # B
    scale: float

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Those of a layer with plain LoRA."""
        (name,) = layer.active_adapters
        return cls(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


class FusedLinear:
    """Layers that read the same states, as one product."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers
        self.bases: list[nn.Linear] = [getattr(layer, "base_layer", layer) for layer in layers]
        self.adapters = [layer for layer in layers if hasattr(layer, "base_layer")]
        self.folds = self.bases[0].weight.dtype == torch.float32
        self.sizes = [base.out_features for base in self.bases]
        self.known: list[tuple[int, int, int]] = []
        self.held: Tensor | None = None
        self.bias: Tensor | None = None
        self.low: Tensor | None = None
        """Weights, biases, and where they are not folded A of the adapters."""
        self._x: Tensor | None = None
        self._left: dict[int, Tensor] = {}

    def sources(self) -> list[Tensor]:
        """The policy's tensors that it is made of."""
        tensors = [t for base in self.bases for t in (base.weight, base.bias) if t is not None]
        return tensors + [t for layer in self.adapters for t in Factors.of(layer)[:2]]

    @torch.no_grad()
    def refresh(self, moved: Mapping[int, int]) -> bool:
        """Lay it out anew if a tensor is not as it was; whether that was so."""
        known = [(p := t.data_ptr(), t._version, moved.get(p, 0)) for t in self.sources()]
        if known == self.known:
            return False
        weights = [*map(self._whole, self.layers, self.bases)]
        whole = torch.cat(weights) if len(weights) > 1 else weights[0].detach()
        if blocks(whole):
            packed = torch.ops.mkldnn._reorder_linear_weight
            self.held = packed(whole.contiguous(), ROWS)
        else:
            self.held = whole.clone() if len(weights) == 1 else whole
        if self.bases[0].bias is not None:
            self.bias = torch.cat([base.bias for base in self.bases]).detach()
        if self.adapters and not self.folds:
            self.low = torch.cat([Factors.of(layer).down for layer in self.adapters])
        self.known = known
        return True

    def _whole(self, layer: Any, base: nn.Linear) -> Tensor:
        if layer is base or not self.folds:
            return base.weight
        down, up, scale = Factors.of(layer)
        return torch.addmm(base.weight, up, down, alpha=scale)

    def forward(self, layer: Any, x: Tensor) -> Tensor:
        """What `layer(x)` gives, to rounding; the first of the layers computes for all."""
        off = any(a.disable_adapters or a.merged for a in self.adapters)
        if off or self.held is None or x.dtype != self.held.dtype:
            return type(layer).forward(layer, x)
        if self._x is not x or id(layer) not in self._left:
            self._x, self._left = x, dict(zip(map(id, self.layers), self._all(x), strict=True))
        found = self._left.pop(id(layer))
        if not self._left:
            self._x = None
        return found

    def _all(self, x: Tensor) -> list[Tensor]:
        assert self.held is not None
        flat = x.flatten(0, -2)
        if self.held.is_mkldnn:
            out = torch.ops.mkldnn._linear_pointwise(flat, self.held, self.bias, "none", [], "")
        else:
            out = nn.functional.linear(flat, self.held, self.bias)
        parts = list(out.split(self.sizes, -1))
        if self.low is not None:
            factors = [Factors.of(layer) for layer in self.adapters]
            lows = flat.to(self.low.dtype) @ self.low.mT
            each = lows.split([up.shape[1] for _, up, _ in factors], -1)
            for layer, (_, up, scale), low in zip(self.adapters, factors, each, strict=True):
                place = self.layers.index(layer)
                part = parts[place].to(low.dtype)
                parts[place] = torch.addmm(part, low, up.mT, alpha=scale).to(x.dtype)
        return [part.unflatten(0, x.shape[:-1]) for part in parts]

    @torch.no_grad()
    def faults(self) -> Iterator[str]:
        """What is not as the policy's weights are, by PEFT's own reading of them."""
        assert self.held is not None
        whole = self.held.to_dense() if self.held.is_mkldnn else self.held
        parts = whole.split(self.sizes)
        for layer, base, part in zip(self.layers, self.bases, parts, strict=True):
            if layer is base or not self.folds:
                if not torch.equal(part, base.weight):
                    yield "its weight is another"
                continue
            wanted = base.weight + layer.get_delta_weight(layer.active_adapters[0])
            if not (part - wanted).abs().max() <= CLOSE * wanted.abs().max():
                yield "its weight with the adapter is another"
        biases = [base.bias for base in self.bases if base.bias is not None]
        if biases and (self.bias is None or not torch.equal(self.bias, torch.cat([*biases]))):
            yield "its bias is another"
        if self.low is not None:
            downs = [Factors.of(layer).down for layer in self.adapters]
            if not torch.equal(self.low, torch.cat(downs)):
                yield "its adapter's A is another"


class WeightCopy:
    """The copy of all linear layers of a decoder."""

    version = ""  # of the weights that it was last laid out from

    def __init__(self, decoder: Any) -> None:
        names = {id(m): n for n, m in decoder.decoder.named_modules()}
        groups: dict[tuple[Any, ...], dict[int, Any]] = {}
        self.others: list[nn.Linear] = []
        self._moved = Counter[int]()
        # What rests in 4 bits is left to its own layers.
        plain = [a for a in decoder.adapted if is_plain(a) and type(a.base_layer) is nn.Linear]
        within = {id(layer.base_layer) for layer in plain}
        for layer in (*plain, *decoder.linears):
            path = names.get(id(layer), "head")
            if ".lora_" in path:
                self.others.append(layer)
            elif id(layer) not in within:
                parent, _, name = path.removesuffix(".base_layer").rpartition(".")
                kind = next((of for of in TOGETHER if name in of), name)
                base = getattr(layer, "base_layer", layer)
                key = (parent, kind, base.in_features, base.bias is None, base.weight.dtype)
                groups.setdefault(key, {})[id(base)] = layer
        named = ((f"{parent} {kind}", of) for (parent, kind, *_), of in groups.items())
        self.products = {name: FusedLinear([*of.values()]) for name, of in named}
        pairs = [(layer, of.forward) for of in self.products.values() for layer in of.layers]
        pairs += [(layer, weight_first) for layer in self.others]
        self._forwards = [(layer.__dict__, partial(forward, layer)) for layer, forward in pairs]

    @property
    def num_bytes(self) -> int:
        """Of the copies of weights."""
        bases = (base for product in self.products.values() for base in product.bases)
        return sum(base.weight.nbytes for base in bases)

    def moved(self, tensors: Iterable[Tensor]) -> None:
        """These may have other values now."""
        self._moved.update(tensor.data_ptr() for tensor in tensors)

    def refresh(self, version: str = "") -> int:
        """Lay out anew what has changed; how many products that were."""
        self.version = version
        return sum(product.refresh(self._moved) for product in self.products.values())

    @contextmanager
    def used(self) -> Iterator[None]:
        """Run the layers by the copy while this lasts."""
        try:
            for held, forward in self._forwards:
                held["forward"] = forward
            yield
        finally:
            for held, _ in self._forwards:
                held.pop("forward", None)

    def check(self) -> None:
        """RunStopped where the copy is not the policy."""
        for name, product in self.products.items():
            for fault in product.faults():
                raise RunStopped(f"agreement proof: the sampler's copy of {name}: {fault}")
