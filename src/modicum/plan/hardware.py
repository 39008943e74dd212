"""Machines to plan for: memory, rates of matrix products, bandwidth.

`known.toml` has the vendor's numbers of GPUs; a card's gigabytes are taken as GiB."""

import re
import tomllib
from pathlib import Path
from timeit import repeat

import torch

from modicum.machine import number_in
from modicum.models.load import DTYPES, choose_device
from modicum.spec import nearest
from modicum.types import Frozen, UserError

GIB = 2**30


class DeviceRates(Frozen):
    """What a device can do: FLOP/s in 16 bits and fp32, bytes read a second; and who says so."""

    bf16: float
    fp32: float
    bandwidth: float
    source: str

    def flops(self, dtype: str) -> float:
        """FLOP/s in `dtype`."""
        return self.fp32 if dtype == "fp32" else self.bf16


class Machine(Frozen):
    """One device of a machine, which is what a run gets."""

    name: str
    device: str  # cpu or cuda
    memory: int | None  # bytes that a run may take on it; None: not known
    rates: DeviceRates | None
    count: int = 1  # how many such devices there are
    bf16: bool = True  # whether it has products in bf16


KNOWN = tomllib.loads(Path(__file__).with_name("known.toml").read_text(encoding="utf-8"))
GPUS: dict[str, list[float]] = KNOWN["gpus"]
RATES = {
    gpu: DeviceRates(bf16 * 1e12, fp32 * 1e12, bandwidth * 1e9, f"data sheet of {gpu}")
    for gpu, (_, bf16, fp32, bandwidth) in GPUS.items()
}
NUMBER = r"(\d+(?:\.\d+)?)"
OWN = re.compile(rf"{NUMBER}\s*gi?b(?:[\s,]+{NUMBER}\s*tflops?(?:/s)?)?(?:[\s,]+{NUMBER}\s*gb/s)?")
SIZE = re.compile(r"-\d+gb$")
SIDE, SUMMED, CALLS = 768, 2**24, 8  # of the two measurements


def parse(text: str, device: str = "auto", dtype: str = "fp32") -> Machine:
    """The machine that `text` names: `2x48GB`, a GPU of the table, or `this`.

    Memory may be followed by rates: `24GB 100TFLOPS 600GB/s`. Of `this`, `device` says which device
    (as in a run's settings) and `dtype` what is measured. UserError for an unknown name."""
    if text.strip().lower() == "this":
        return this(device, dtype)
    counted = re.fullmatch(r"(?:(\d+)\s*x\s*)?(.+)", text.strip().lower())
    count, name = (int(counted[1] or 1), counted[2]) if counted else (1, "")
    size = OWN.fullmatch(name)
    if size and count and (memory := float(size[1])):
        same = [gpu for gpu, (gib, *_) in GPUS.items() if gib == memory]
        rates = RATES.get(min(same, key=lambda gpu: GPUS[gpu][1], default=""))
        if size[2]:
            flops = float(size[2]) * 1e12
            bandwidth = float(size[3]) * 1e9 if size[3] else rates.bandwidth if rates else 300e9
            rates = DeviceRates(flops, flops, bandwidth, "as given")
        return Machine(f"{size[1]} GB", "cuda", round(memory * GIB), rates, count)
    key = _plain(name)
    alike = [gpu for gpu in GPUS if key and key in _forms(gpu)]
    if alike and count:
        gpu = min(alike, key=lambda gpu: GPUS[gpu][0])
        has_bf16 = gpu not in KNOWN["no_bf16"]["cards"]
        return Machine(gpu, "cuda", round(GPUS[gpu][0] * GIB), RATES[gpu], count, has_bf16)
    raise UserError.of("hardware", text=text, nearest=nearest(name, GPUS))


def _forms(gpu: str) -> set[str]:
    short = SIZE.sub("", gpu)
    forms = {_plain(gpu), _plain(short), f"{_plain(short)}{GPUS[gpu][0]:g}gb"}
    return forms | {re.sub(r"^[rg]tx", "", form) for form in forms}


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|quadro|generation|gpu|[^a-z0-9]", "", name.lower())


def this(device: str = "auto", dtype: str = "fp32") -> Machine:
    """The device that a run would get here, and its free memory."""
    where = choose_device(device)
    if where.type != "cuda":
        # Its rates are those of the fastest of a few short products and sums.
        square, numbers = torch.ones(SIDE, SIDE, dtype=DTYPES[dtype]), torch.ones(SUMMED)
        flops = 2.0 * SIDE**3 / min(repeat(lambda: square @ square, number=1, repeat=CALLS))
        bandwidth = 4.0 * SUMMED / min(repeat(numbers.sum, number=1, repeat=CALLS))
        rates = DeviceRates(flops, flops, bandwidth, f"measured here in {dtype}, just now")
        return Machine("this machine's CPU", "cpu", free_memory(where), rates)
    name = torch.cuda.get_device_name(where)
    inside = [gpu for gpu in GPUS if _plain(SIZE.sub("", gpu)) in _plain(name)]
    rates = RATES.get(max(inside, key=len, default=""))
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Machine(name, "cuda", free_memory(where), rates, torch.cuda.device_count(), has_bf16)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a new run could take on the device now; None where nothing says so."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [number_in(Path("/proc/meminfo"), "MemAvailable:", 1024)]
    group = Path("/sys/fs/cgroup")
    most, now = number_in(group / "memory.max"), number_in(group / "memory.current")
    if most is not None and now is not None:
        # Pages of files are given back when memory is short.
        pages = number_in(group / "memory.stat", "inactive_file") or 0
        limits.append(most - now + pages)
    return min((limit for limit in limits if limit is not None), default=None)
