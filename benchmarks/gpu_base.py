"""What the parts of gpu.py share: clocks, peaks, and models of real shapes with random weights."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu import Asked, Cannot

MIB = 2**20
FAULTS = (
    *(RuntimeError, TypeError, ValueError, ImportError, AttributeError),
    *(LookupError, AssertionError, OSError),
)
"""What is recorded of a variant that does not work, beside those that do."""
SMALL = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}


def device_of(asked: Asked) -> torch.device:
    """The device; Cannot where there is no GPU and one was asked for."""
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise Cannot("torch sees no GPU here")
    return torch.device(asked.device)


def need_gpu(asked: Asked, why: str) -> torch.device:
    """The GPU; Cannot, and why, on a CPU."""
    if asked.device != "cuda":
        raise Cannot(f"needs a GPU: {why}")
    return device_of(asked)


def dtype_of(asked: Asked) -> torch.dtype:
    """What is measured on a GPU, and what a CPU is quick in."""
    return torch.bfloat16 if asked.device == "cuda" else torch.float32


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device, repeat: int = 5, warm: int = 2) -> float:
    """The median time of a call after a few that do not count."""
    for _ in range(warm):
        call()
    found = []
    for _ in range(repeat):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def peak(call: Callable[[], Any], device: torch.device) -> int | None:
    """The most bytes that live during a call beyond those that lived before; None on a CPU."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def attempt(call: Callable[..., Any], *given: Any) -> Any:
    """What a call gives, or {"error": the first line of what stopped it}."""
    try:
        return call(*given)
    except FAULTS as error:
        return {"error": f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"[:300]}


def apart(found: torch.Tensor, right: torch.Tensor) -> float:
    """The norm of the difference over that of what is right."""
    found, right = found.double(), right.double()
    return float((found - right).norm() / right.norm().clamp(min=1e-30))


def shape(asked: Asked, name: str = "Qwen/Qwen2.5-1.5B") -> Any:
    """The Hugging Face config of a model that `plan` knows, or of a small one like it."""
    from transformers import CONFIG_MAPPING

    from modicum.plan.hardware import KNOWN

    sizes = dict(SMALL if asked.small else KNOWN["models"][name])
    made = CONFIG_MAPPING[sizes.pop("model_type")]
    return made(**sizes, bos_token_id=None, eos_token_id=0, pad_token_id=1)


def random_model(config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A model of such a config, its weights drawn where it lies."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@contextmanager
def model_folder(
    asked: Asked, device: torch.device, name: str = "Qwen/Qwen2.5-1.5B"
) -> Iterator[Path]:
    """A folder with such a model, a tokenizer of its size and word problems, for as long as it is used.

    In memory, where there is room for it there.
    """
    from inputs import write_problems, write_tokenizer

    config, memory = shape(asked, name), Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 20e9
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as made:
        folder = Path(made)
        write_problems(folder / "problems.jsonl")
        write_tokenizer(folder / "model", config.vocab_size)
        random_model(config, device, dtype_of(asked)).save_pretrained(folder / "model")
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield folder
