"""fp32 masters for what trains, and a warning when steps are too small to be stored.

Gradients are summed in the master, the optimizer moves it, and its rounded value is written back
(`rounding.rounded`). In fp16 the loss is multiplied by a `LossScale` before. Where only some entries of a tensor train, it is the vector of their differences
from the start. docs/precision.md"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modicum.models.rounding import Key, key_of, rounded


class LossScale:
    """What the loss is multiplied by before backward, so that small gradients in fp16 are not 0.

    Halved where a gradient overflows, doubled after 2,000 steps without (Micikevicius et al. 2018,
    arXiv 1710.03740; the constants of torch.amp.GradScaler). Off, it is 1 for good."""

    START, PATIENCE, LEAST = 2.0**16, 2000, 1.0

    def __init__(self, on: bool = False) -> None:
        self.on, self.value, self.calm = on, self.START if on else 1.0, 0

    @classmethod
    def of(cls, model: nn.Module) -> "LossScale":
        """On where some of a model is in fp16."""
        return cls(any(p.dtype == torch.float16 for p in model.parameters()))

    def fall(self) -> bool:
        """Whether a gradient that is not finite can be tried again at half the scale, which it has then."""
        if not self.on or self.value <= self.LEAST:
            return False
        self.value, self.calm = self.value / 2, 0
        return True

    def stepped(self) -> None:
        """A step was taken."""
        self.calm += self.on
        if self.calm == self.PATIENCE:
            self.value, self.calm = self.value * 2, 0


UNSCALED = LossScale()


class Master:
    """What the optimizer holds of one parameter: the parameter itself, or its fp32 copy."""

    def __init__(
        self, parameter: nn.Parameter, tensor: Tensor, scale: LossScale = UNSCALED
    ) -> None:
        self.parameter, self.scale = parameter, scale
        self.place: Tensor = parameter  # where they are written
        self.tensor = tensor  # the numbers that move
        self.leaf = tensor  # the tensor of the optimizer that holds them

    def seen(self, tensor: Tensor) -> Tensor:
        """What of a tensor like the parameter is of interest here."""
        return tensor

    def collect(self) -> None:
        """Add the parameter's gradient to the master's, in fp32."""
        if self.tensor is self.parameter or self.parameter.grad is None:
            return
        gradient = self.taken(self.parameter.grad)
        if self.tensor.grad is None:
            self.tensor.grad = gradient.float()
        else:
            self.tensor.grad.add_(gradient)

    def taken(self, gradient: Tensor) -> Tensor:
        """What is of interest of the parameter's gradient, which it has no longer, as of the loss itself."""
        self.parameter.grad = None
        found = self.seen(gradient)
        return found.float() / self.scale.value if self.scale.on else found

    @property
    def values(self) -> Tensor:
        """What the optimizer has made of what is of interest, before rounding."""
        return self.tensor.detach()

    def published(self, key: Key | None) -> Tensor:
        """What the parameter is to be, in its dtype: rounded by a key, to nearest without."""
        return rounded(self.values, self.parameter.dtype, key)

    def cut(self, tensor: Tensor) -> Tensor:
        """What of a whole tensor as large as the numbers that move is in this process."""
        return tensor

    def furthest(self, go: Callable[..., float], state: Mapping[str, Tensor]) -> float:
        """The most that `go` gives of the numbers that move, with their state of the optimizer."""
        return go(self.tensor, state)

    def release(self) -> None:
        """Leave the parameter alone from now on."""


class SparseMaster(Master):
    """Some entries train: a vector of differences from `origin`, at flat indices `entries`."""

    def __init__(
        self, parameter: nn.Parameter, entries: Tensor, scale: LossScale = UNSCALED
    ) -> None:
        self.entries = entries
        self.origin = self.seen(parameter.detach()).float()
        super().__init__(parameter, torch.zeros_like(self.origin).requires_grad_(), scale)
        self.hook: Any = None
        if parameter.requires_grad:
            self.hook = parameter.register_post_accumulate_grad_hook(lambda _: self.collect())

    def seen(self, tensor: Tensor) -> Tensor:
        return tensor.flatten()[self.entries]

    @property
    def values(self) -> Tensor:
        return self.origin + self.tensor.detach()

    def published(self, key: Key | None) -> Tensor:
        return self._with(rounded(self.values, self.parameter.dtype, key, self.entries))

    def release(self) -> None:
        if self.hook is not None:
            self.hook.remove()

    def at_start(self) -> Tensor:
        """The parameter with the trained entries as they were: all else must be as ever."""
        return self._with(self.origin.to(self.parameter.dtype))

    def _with(self, values: Tensor) -> Tensor:
        flat = self.parameter.detach().clone().flatten()
        flat[self.entries] = values
        return flat.view_as(self.parameter)


class Masters:
    """The fp32 tensors that the optimizer holds, by name; rounded by noise from `seed`, or not."""

    in_pieces = False  # of which other processes have others

    def __init__(
        self,
        trainable: Mapping[str, nn.Parameter] | None = None,
        entries: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        stochastic: bool = False,
        scale: LossScale = UNSCALED,
    ) -> None:
        self.seed, self.stochastic, self.scale = seed, stochastic, scale
        self.held: dict[str, Master] = {}
        self.drawn: dict[str, int] = {}
        """The optimizer step of the noise that a tensor was last rounded by, also of one whose
        master is elsewhere; without one it is rounded to nearest."""
        for name, parameter in (trainable or {}).items():
            self.add(name, parameter, (entries or {}).get(name))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The masters themselves."""
        return {name: master.tensor for name, master in self.held.items()}

    def add(self, name: str, parameter: nn.Parameter, entries: Tensor | None = None) -> None:
        """Make the master of one more parameter, or of some of its entries."""
        if entries is None:
            # Under a scale gradients are divided as they are collected, those of fp32 tensors too.
            own = parameter.dtype == torch.float32 and not self.scale.on
            tensor = parameter if own else parameter.detach().to(torch.float32, copy=True)
            self.held[name] = Master(parameter, tensor.requires_grad_(), self.scale)
        else:
            self.held[name] = SparseMaster(parameter, entries, self.scale)

    def drop(self, names: Iterable[str]) -> None:
        """Forget masters; the rounded values stay in the model."""
        for name in list(names):
            self.held.pop(name).release()

    def collect(self) -> None:
        """Add the gradients of one backward pass to the masters', in fp32."""
        for master in self.held.values():
            master.collect()

    def norms(self, gradients: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        """The norm of each gradient, and that of all."""
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        return norms, float(norms.norm())

    def published(self, name: str) -> Tensor:
        """What a parameter is to be, in its dtype and as it was last rounded."""
        step = self.drawn.get(name)
        return self.held[name].published(None if step is None else key_of(self.seed, step, name))

    def draw(self, names: Iterable[str], step: int) -> None:
        """Write the masters of these into the model, rounded by the noise of `step`."""
        names = list(names)
        if self.stochastic:
            self.drawn.update({n: step for n in names if is_coarse(self.held[n].parameter)})
        self.publish(names)

    @torch.no_grad()
    def publish(self, names: Iterable[str] | None = None) -> None:
        """Write the masters of these, or all, into the model as they were last rounded."""
        held = {n: self.held[n] for n in (self.held if names is None else names)}
        held = {n: master for n, master in held.items() if master.tensor is not master.parameter}
        plain = {n: m for n, m in held.items() if type(m) is Master and n not in self.drawn}
        if plain:  # rounded to nearest, by a copy of all at once
            places: list[Tensor] = [master.parameter for master in plain.values()]
            torch._foreach_copy_(places, [master.tensor for master in plain.values()])
        for name in [name for name in held if name not in plain]:  # in one order everywhere
            held[name].place.copy_(self.published(name))


class Within(SparseMaster):
    """Some entries train of a tensor that the optimizer moves as a whole."""

    def __init__(self, parameter: nn.Parameter, entries: Tensor) -> None:
        super().__init__(parameter, entries)
        self.release()  # no hook: other trainers clip, unscale and average whole gradients
        self.leaf = parameter
        self.before: Tensor | None = None  # the whole values before the step

    def collect(self) -> None:
        """The gradient of the tensor becomes that of the entries."""
        self.tensor.grad = None
        super().collect()

    def spread(self) -> None:
        """The gradient of the entries becomes that of the tensor, whose values are kept."""
        if self.tensor.grad is not None:
            flat = torch.zeros_like(self.parameter).flatten()
            flat[self.entries] = self.tensor.grad.to(flat.dtype)
            self.parameter.grad = flat.view_as(self.parameter)
            self.before = self.parameter.detach().clone()

    def put_back(self) -> None:
        """After the step: take its difference from the start in the entries, and undo it."""
        if self.before is not None:
            self.tensor.copy_(self.seen(self.parameter).float() - self.origin)
            self.parameter.copy_(self.before)
            self.before = None


class InPlace(Masters):
    """No fp32 tensors: the optimizer holds the model's own, whole."""

    def add(self, name: str, parameter: nn.Parameter, entries: Tensor | None = None) -> None:
        whole = entries is None
        self.held[name] = Master(parameter, parameter) if whole else Within(parameter, entries)

    @property
    def within(self) -> list[Within]:
        """Those of which some entries train."""
        return [master for master in self.held.values() if isinstance(master, Within)]


def is_coarse(parameter: Tensor) -> bool:
    """Whether what an fp32 master holds of it is rounded."""
    return parameter.dtype.itemsize < torch.float32.itemsize


def loses_steps(parameter: Tensor, rounding: str) -> bool:
    """Whether a step far below its spacing does nothing: by chance some entries move."""
    return rounding == "nearest" or not is_coarse(parameter)


@torch.no_grad()
def too_fine(trainable: Mapping[str, nn.Parameter], learning_rate: float) -> list[str]:
    """Names of tensors whose spacing at their own scale is above twice a step of Adam."""
    norms = [torch.linalg.vector_norm(p, dtype=torch.float32) for p in trainable.values()]
    told = zip(trainable.items(), torch.stack(norms).tolist() if norms else [], strict=True)
    return [
        name
        for (name, p), norm in told
        if learning_rate < 0.5 * norm / p.numel() ** 0.5 * torch.finfo(p.dtype).eps
    ]
