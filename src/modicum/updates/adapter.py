"""What all adapters have in common: PEFT puts them into layers, they train, the base does not.

No dropout: sampling and training would see different policies. The base is never merged into
while training. The reference is the adapter switched off, or its first values: of one that was
there before and goes on (`go_on`), and where the start rewrites the base (`rewrites_base`)."""

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modicum.models.adapters import quiet
from modicum.models.configs import KNOWN
from modicum.models.linear import meanwhile
from modicum.report.words import say
from modicum.types import UserError
from modicum.updates.base import Method, Prepared, Selection
from modicum.updates.layout import MERGE
from modicum.updates.products import ADAPTER, Chain, Link, Trains
from modicum.updates.schedule import Named, Schedule
from modicum.updates.targets import linear_layers, unreached

PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")


class AdapterPrepared(Prepared):
    """A PEFT model whose adapter trains; the reference is the adapter switched off."""

    def __init__(
        self, model: nn.Module, trainable: Named, adapter: "Adapter", given: bool = False
    ) -> None:
        super().__init__(model, trainable, adapter.schedule(model, trainable))
        self.adapter, self.rewrites_base = adapter, adapter.rewrites_base
        # Unless the start has rewritten the base, or was there before.
        self.reference_is_bare = not (self.rewrites_base or given)
        if self.rewrites_base:
            self.swap.keep()
            self.told.append(say("rewritten"))
        if given:
            self.told.append(say("goes_on"))

    def reference(self) -> AbstractContextManager[None]:
        """Switch the adapter off, or to its start, and on again afterwards."""
        if not self.reference_is_bare:
            return self.swap.swapped()
        # PEFT's own switch sets requires_grad by a rule of its own.
        layers = [m for m in self.model.modules() if hasattr(m, "_disable_adapters")]
        return meanwhile(*layers, _disable_adapters=True)

    @torch.no_grad()
    def exportable(self) -> nn.Module:
        """The model with an adapter that PEFT loads onto the base; `model` is spent afterwards.
        What the start took from the base is given back: s (B A - B0 A0), rank doubled."""
        model: Any = self.model
        start = self.swap.originals if self.rewrites_base else {}
        for name, layer in model.named_modules() if start else ():
            for adapter, down in getattr(layer, "lora_A", {}).items():
                up, scale = layer.lora_B[adapter], layer.scaling[adapter]
                down0, up0 = (start[f"{name}.lora_{of}.{adapter}.weight"] for of in "AB")
                base = layer.base_layer.weight
                base.copy_(base.float() + scale * (up0 @ down0))
                down.weight = nn.Parameter(torch.cat([down.weight, down0]))
                up.weight = nn.Parameter(torch.cat([up.weight, -up0], 1))
                layer.r[adapter] *= 2
        for config in model.peft_config.values() if start else ():
            config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
            config.init_lora_weights = True
        return self.adapter.plain(model)


class Adapter(Method):
    """A PEFT adapter. Members say their config; the rest is here, to be overridden."""

    kind = "adapters"
    peft_config: ClassVar[str]  # PEFT's class for the adapter's config
    passed: ClassVar[dict[str, str]] = {}
    """PEFT's names of the arguments that its config gets as they are."""
    fixed: ClassVar[dict[str, Any]] = {}  # what else it gets
    goes_on: ClassVar[bool] = False
    """Whether it is of the LoRA kind and starts as A and B alone: then one may be trained on."""
    links: ClassVar[tuple[str, ...]] = ()
    """PEFT's names in a layer of the matrices that it multiplies by, in order."""
    rewrites_base: ClassVar[bool] = False
    reads_base: ClassVar[bool] = False
    """Whether it begins with the base's weights or calculates with them: then they must be whole."""
    start_tolerance: ClassVar[float] = 1e-6
    """How far the start's logits may be from the base's, over the largest of them (at least 1)."""
    turned: ClassVar[bool] = True
    """Whether PEFT puts it into GPT-2's Conv1D, a linear layer with its matrix turned."""
    everywhere: ClassVar[bool] = True  # whether it is meant for all matrices
    trained: ClassVar[str] = ""  # what the names of the tensors have that train, of all of PEFT's

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """What the PEFT config says of the adapter, beside where it goes."""
        return {theirs: getattr(self, ours) for ours, theirs in self.passed.items()} | self.fixed

    def config(self, targets: list[str], seed: int) -> Any:
        """The PEFT config that puts the adapter into the modules named `targets`."""
        import peft

        settings = self.settings(targets, seed)
        made = getattr(peft, self.peft_config)
        return made(target_modules=targets, task_type="CAUSAL_LM", **settings)

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """What the adapter multiplies by in `layer`, PEFT's module around a linear one."""
        held = [getattr(layer, name)[ADAPTER] for name in self.links]
        held = [getattr(module, "weight", module) for module in held]
        return Chain(tuple(Link(tensor.numel(), trains(tensor)) for tensor in held))

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
        """The modules that get an adapter."""
        found = linear_layers(model, where)
        for name in found:
            layer = model.get_submodule(name)
            if not (self.turned or isinstance(layer, nn.Linear)):
                raise UserError.of("odd_layer", update=self, kind=type(layer).__name__, name=name)
            self.check(name, layer)
        return found

    def parameters(self, model: nn.Module, where: Selection | None) -> list[str]:
        """The tensors that get an adapter and are no layers."""
        return []

    def check(self, name: str, layer: Any) -> None:
        """UserError when the adapter does not fit into a linear layer of this name."""

    def finish(self, model: Any) -> None:
        """Change what PEFT has made, without gradients, before it is known what trains."""

    def plain(self, model: nn.Module) -> nn.Module:
        """The model with an adapter of a kind that PEFT loads; `model` is spent afterwards."""
        return model

    def factors(self, layer: Any) -> tuple[Tensor, Tensor] | None:
        """A [rank, in] and B [out, rank], scale included, where all that it does in `layer`, PEFT's
        module around a linear one, is to add B A to the weight; None: it does more, or otherwise."""
        return None

    def schedule(self, model: nn.Module, trainable: Named) -> Schedule | None:
        """What is driven or scaled while training; None: nothing."""
        return None

    def apply(self, model: nn.Module, seed: int = 0, where: Selection | None = None) -> Prepared:
        import peft

        if hasattr(model, "get_base_model"):
            return self.go_on(model, where)
        targets, more = self.targets(model, where), self.parameters(model, where)
        if not targets and not more:
            raise UserError.of("no_linear" if where else "no_linear_at_all", by=where or self)
        left = unreached(model, where, {*targets, *more}) if self.everywhere else ""
        config = self.config(targets, seed)
        if more:
            config.target_parameters = more
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(seed)
            adapted: Any = peft.get_peft_model(model, config)  # type: ignore[arg-type]
            with torch.no_grad():
                self.finish(adapted)
        adapted.eval()
        named = adapted.named_parameters()
        trainable = {n: p for n, p in named if p.requires_grad and self.trained in n}
        prepared = AdapterPrepared(adapted, trainable, self)
        prepared.told += [left] * bool(left)
        return prepared

    def go_on(self, model: Any, where: Selection | None) -> Prepared:
        """Train the adapter that `model` has already; UserError unless it is this one."""
        held, merge = model.peft_config[ADAPTER], f"the way round: {MERGE}"
        if (kind := held.peft_type.value) != "LORA":
            raise UserError(f"{self}: the model is a {kind} adapter, which cannot go on; {merge}")
        beside = [name for name in KNOWN["beside"] if getattr(held, name, None)]
        beside += ["bias"] if held.bias != "none" else []
        beside += ["use_rslora and use_dora"] if held.use_rslora and held.use_dora else []
        if held.init_lora_weights not in PLAIN_STARTS:
            beside += [f"init_lora_weights = {held.init_lora_weights!r}"]
        if beside:
            raise UserError.of("beside", update=self, what=beside[0], merge=merge)
        asked = {"use_rslora": False, "use_dora": False, **self.settings([], 0)}
        same = all(getattr(held, name, None) == asked[name] for name in asked)
        experts = getattr(self, "experts", False) == bool(held.target_parameters)
        if not (self.goes_on and same and experts):
            name = "dora" if held.use_dora else "rslora" if held.use_rslora else "lora"
            more = ", experts=True" if held.target_parameters else ""
            raise UserError.of("unlike", update=self, name=name, held=held, more=more, merge=merge)
        base = model.get_base_model()
        wanted = {n for n in linear_layers(base, where) if ".lora_" not in n} if where else set()
        odd = wanted ^ {n for n, _ in base.named_modules() if n.endswith(".base_layer")}
        if where and odd:
            first = min(odd).removesuffix(".base_layer")
            raise UserError.of("elsewhere", update=self, where=where, first=first)
        named = model.named_parameters()
        trainable = {n: p for n, p in named if ".lora_" in n and self.trained in n}
        return AdapterPrepared(model, trainable, self, given=True)
