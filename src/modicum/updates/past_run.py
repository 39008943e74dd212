"""What the dense tensors of a model became in a run that is over."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from modicum import runs
from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.models.identity import weights_hash
from modicum.types import UserError

VALUE = "value/"


def past_values(
    folder: Path, model: nn.Module, wanted: Mapping[str, nn.Parameter]
) -> Callable[[str], Tensor]:
    """A function from a name to the value that the tensor has in the newest checkpoint.

    It is the fp32 master where the run had one at its end, without the noise of rounding.
    Raises UserError when the folder holds no finished run, when the run trained an adapter
    or entries, another model than `model` as it is now, or not all of `wanted`.
    """
    runs.open_run(folder)
    saved = runs.checkpoints(folder)
    if not saved or not (folder / "result.json").is_file():
        raise UserError(f"{folder} holds no finished run with a checkpoint; it must end first")
    path, state = runs.read_checkpoint(saved[-1])
    source = str(folder / "config.toml")
    config = from_mapping(TrainConfig, read_toml(folder / "config.toml"), source)
    with safe_open(path, "pt") as file:
        shapes = {
            key.removeprefix(VALUE): tuple(file.get_slice(key).get_shape())
            for key in file.keys()  # noqa: SIM118
            if key.startswith(VALUE)
        }
    _check(folder, config, shapes, state, model, wanted)

    def value(name: str) -> Tensor:
        with safe_open(path, "pt", device=str(wanted[name].device)) as file:
            return file.get_tensor(f"{VALUE}{name}")

    return value


def _check(
    folder: Path,
    config: TrainConfig,
    shapes: Mapping[str, tuple[int, ...]],
    state: Mapping[str, Any],
    model: nn.Module,
    wanted: Mapping[str, nn.Parameter],
) -> None:
    """UserError when the run is not one of dense training of this very model."""
    own = dict(model.named_parameters())
    if any("base_model." in name for name in shapes):
        raise UserError(
            f"{folder} trained {config.update}, an adapter; a run of dense training fits"
        )
    if not shapes.keys() <= own.keys():
        odd = min(shapes.keys() - own.keys())
        raise UserError(f"{folder} is a run of another model: it has {odd}, this one has not")
    for name, shape in shapes.items():
        if shape != tuple(own[name].shape):
            raise UserError(
                f"{folder} is a run of another model, or trained only some entries: {name} is"
                f" {shape} there and {tuple(own[name].shape)} here"
            )
    missing = sorted(wanted.keys() - shapes.keys())
    if missing:
        raise UserError(
            f"{folder} trained {config.update}, and {len(missing)} tensors of this selection not"
            f" (first: {missing[0]}); select what it trained"
        )
    if next(iter(own.values())).is_meta:
        return
    if weights_hash(model) != state.get("base_hash"):
        raise UserError(
            f"{folder} was trained on another base model: its hash differs; that was"
            f" {config.model} in {config.compute.dtype}"
        )
