"""Old values of tensors, kept aside and put back for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


class Swap:
    """Old values of some tensors, to be put in their place for a while."""

    def __init__(self, tensors: Mapping[str, nn.Parameter]) -> None:
        self.tensors = tensors
        self.originals: dict[str, Tensor] = {}

    def keep(self) -> None:
        """Copy the values of these tensors, and of nothing else."""
        self.originals = {name: p.detach().clone() for name, p in self.tensors.items()}

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The copies are in the model, and the present values afterwards."""
        assert self.originals, "keep_reference was not called"
        present = {name: p.data for name, p in self.tensors.items()}
        for name, parameter in self.tensors.items():
            parameter.data = self.originals[name]
        try:
            yield
        finally:
            for name, parameter in self.tensors.items():
                parameter.data = present[name]
