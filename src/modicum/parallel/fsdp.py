"""`zero` whose layers lie in pieces as well while gradients are made (ZeRO, arXiv 1910.02054, stage 3).

Of the layers from the lowest trained one up a process then has its rows of every matrix, and one layer
whole: that which runs, forward or back. A gradient is summed as it is made, and each keeps its rows. At all
other times layers are whole, and the tensors that they always were (docs/parallel.md)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from modicum.models.decoder import view
from modicum.models.precision import Master, Masters
from modicum.parallel.ddp import together
from modicum.parallel.zero import ROWS, Zero, here
from modicum.types import Row, UserError
from modicum.updates.base import Prepared


class Fsdp(Zero, frozen=False):
    """`zero`, and layers in pieces while gradients are made."""

    def masters_fit(self, prepared: Prepared) -> None:
        super().masters_fit(prepared)
        apart = {tensor for tensors in self.apart(prepared).values() for tensor in tensors}
        if prepared.adapter is not None or apart.isdisjoint(prepared.trainable.values()):
            raise UserError.of("fsdp_layers")

    def apart(self, prepared: Prepared) -> dict[nn.Module, list[nn.Parameter]]:
        decoder = view(prepared.model)
        layers = decoder.layers[max(0, prepared.lowest_layer) :] if decoder else []
        # Vectors are small; what rests in 4 bits is left as it is.
        return {
            m: [p for p in m.parameters() if p.dim() > 1 and p.is_floating_point()] for m in layers
        }

    def micro_batches(self, rows: Sequence[Row], size: int) -> list[list[Row]]:
        found = super().micro_batches(rows, size)
        return found + [[]] * (max(self.lines([len(found)])) - len(found))

    @contextmanager
    def divided(self, prepared: Prepared, masters: Masters) -> Iterator[None]:
        """An error in here ends the run: what lies in pieces stays so."""
        owners = {m.parameter: m for name, m in masters.held.items() if name in prepared.active}
        layers, hooks, self.present = self.apart(prepared), list[Any](), list[nn.Parameter]()
        # Where each was, and the rows of this process.
        self.held: dict[nn.Parameter, tuple[Tensor, DTensor]] = {}
        for layer, tensors in layers.items():
            for parameter in tensors:
                storage = parameter.untyped_storage()
                if not storage.resizable() or storage.nbytes() != parameter.nbytes:
                    parameter.data = parameter.data.clone()  # of a file, or with others
                piece = distribute_tensor(parameter.detach(), self.mesh, ROWS, src_data_rank=None)
                self.held[parameter] = parameter.data, piece
                if master := owners.get(parameter):
                    master.place, made = here(piece), partial(self.made, master)
                    hooks.append(parameter.register_post_accumulate_grad_hook(made))
            self.lay_aside(tensors)
            enter = partial(self.enter, tensors)
            hooks.append(layer.register_forward_pre_hook(enter))
            hooks.append(layer.register_full_backward_pre_hook(enter))
        yield
        self.lay_aside(self.present)  # which are those of before the step
        for tensors in layers.values():
            self.fetch(tensors)
            for parameter in tensors:
                del self.held[parameter]
        for master in owners.values():
            master.place = master.parameter
        for hook in hooks:
            hook.remove()

    def enter(self, tensors: list[nn.Parameter], *_: Any) -> None:
        """A layer is about to run, forward or back: it alone is whole."""
        if tensors is not self.present:
            self.lay_aside(self.present)
            self.fetch(tensors)
            self.present = tensors

    def made(self, master: Master, _: Tensor) -> None:
        """A gradient has been made: its sum over all processes is added to those of before."""
        before, master.tensor.grad = master.tensor.grad, None
        master.collect()
        with together():
            self.add_up(master.tensor)
        if before is not None:
            here(master.tensor.grad).add_(here(before))

    def lay_aside(self, tensors: list[nn.Parameter]) -> None:
        """Give up what is not of this process; autograd's graph goes on knowing the tensors."""
        for parameter in tensors:
            self.held[parameter][0].untyped_storage().resize_(0)

    @torch.no_grad()
    def fetch(self, tensors: list[nn.Parameter]) -> None:
        """Make tensors whole from the pieces of all processes."""
        for place, piece in map(self.held.__getitem__, tensors):
            whole = self.joint(piece)
            place.untyped_storage().resize_(whole.nbytes)
            place.copy_(whole)
