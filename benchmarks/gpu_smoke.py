"""Parts `smoke` and `tests`: what this torch offers on this card, and tests/test_gpu.py."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from gpu import ROOT, Asked, Put
from gpu_base import apart, attempt, device_of, dtype_of, need_gpu
from torch import Tensor

TESTED = re.compile(r"^\S*::(.+) (PASSED|FAILED|ERROR|SKIPPED)\b", re.M)


def varlen(
    q_NHD: Tensor,
    k_MKD: Tensor,
    v_MKD: Tensor,
    ends_q: Tensor,
    ends_k: Tensor,
    longest: tuple[int, int],
    grouped: bool = False,
) -> Tensor:
    """torch's `varlen_attn`, causal from the end; `ends_*` begin with 0.

    Without `grouped` keys and values are repeated for the queries that share them. Its arguments
    were others from release to release: 2.11 has no `enable_gqa`, and may do so unasked.
    """
    from torch.nn.attention.varlen import varlen_attn

    takes = inspect.signature(varlen_attn).parameters
    given: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in takes else {}
    given |= {} if given else {"is_causal": True}
    if grouped:
        given |= {"enable_gqa": True} if "enable_gqa" in takes else {}
    else:
        repeat = q_NHD.shape[1] // k_MKD.shape[1]
        k_MKD, v_MKD = (x.repeat_interleave(repeat, 1) for x in (k_MKD, v_MKD))
    found = varlen_attn(q_NHD, k_MKD, v_MKD, ends_q, ends_k, *longest, **given)
    assert isinstance(found, Tensor)
    return found


def _takes() -> list[str]:
    """The arguments of this torch's `varlen_attn`."""
    from torch.nn.attention.varlen import varlen_attn

    return list(inspect.signature(varlen_attn).parameters)


def _varlen(device: torch.device, dtype: torch.dtype, grouped: bool, keys: int) -> dict[str, Any]:
    """Two sequences of 5 queries, whose keys are 5 or more: off by how much, gradients too?"""
    draw = torch.Generator(device).manual_seed(0)
    shapes = ((10, 4, 64), (2 * keys, 2, 64), (2 * keys, 2, 64))
    made = [torch.randn(s, device=device, dtype=dtype, generator=draw) for s in shapes]
    q, k, v = (x.requires_grad_() for x in made)
    ends_q, ends_k = (
        torch.tensor([0, n, 2 * n], device=device, dtype=torch.int32) for n in (5, keys)
    )
    found = varlen(q, k, v, ends_q, ends_k, (5, keys), grouped)
    found.float().square().sum().backward()
    q32, k32, v32 = (x.detach().float().requires_grad_() for x in made)
    mask = torch.ones(5, keys, dtype=torch.bool, device=device).tril(keys - 5)
    tables = [x.unflatten(0, (2, -1)).transpose(1, 2) for x in (q32, k32, v32)]
    tables[1:] = [x.repeat_interleave(2, 1) for x in tables[1:]]
    right = F.scaled_dot_product_attention(*tables, attn_mask=mask).transpose(1, 2).flatten(0, 1)
    right.square().sum().backward()
    pairs = {"out": (found, right), "q": (q.grad, q32.grad), "k": (k.grad, k32.grad)}
    return {name: apart(*pair) for name, pair in pairs.items()}  # type: ignore[arg-type]


@contextmanager
def deterministic() -> Iterator[None]:
    """torch refuses what may give other last bits the next time."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _operations(device: torch.device) -> dict[str, Any]:
    """Which of the operations that the engine uses the deterministic mode refuses."""
    x = torch.rand(64, 32, device=device, requires_grad=True)
    at = torch.arange(64, device=device) % 7
    token = torch.arange(64, device=device)[:, None] % 32
    table = torch.rand(2, 4, 16, 8, device=device, requires_grad=True)
    mask = torch.ones(16, 16, dtype=torch.bool, device=device).tril()

    def attention() -> Tensor:
        return F.scaled_dot_product_attention(table, table, table, attn_mask=mask)

    calls: dict[str, Callable[[], Any]] = {
        "cumsum": lambda: x.detach().cumsum(-1),
        "searchsorted": lambda: torch.searchsorted(x.detach().cumsum(-1), x.detach()),
        "index_select, backward": lambda: x.index_select(0, at).sum().backward(),
        "index, backward": lambda: x[at].sum().backward(),
        "index_copy": lambda: x.detach().clone().index_copy_(0, at[:7], x.detach()[:7]),
        "gather, backward": lambda: x.gather(-1, token).sum().backward(),
        "scatter_add": lambda: torch.zeros_like(x).scatter_add_(-1, token, x.detach()[:, :1]),
        "embedding, backward": lambda: F.embedding(at, x).sum().backward(),
        "attention with a mask, backward": lambda: attention().sum().backward(),
        "bincount": lambda: torch.bincount(at, minlength=9),
        "sort": lambda: torch.sort(x.detach(), stable=True, dim=-1),
    }
    with deterministic():
        made = {name: attempt(call) for name, call in calls.items()}
    return {name: value if isinstance(value, dict) else True for name, value in made.items()}


def _mm(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Logits in fp32 straight from a product in bf16: off by how much, and without it?"""
    a, b = (torch.randn(64, 256, device=device).to(dtype) for _ in range(2))
    right = a.double() @ b.double().T
    return {
        "out_dtype": apart(torch.mm(a, b.T, out_dtype=torch.float32), right),
        "rounded": apart(a @ b.T, right),
    }


def _graph(device: torch.device) -> bool:
    """Whether a call is captured and gives the same when it is replayed."""
    x = torch.rand(8, device=device)
    graph = torch.cuda.CUDAGraph()
    (x * 2).sum()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        y = x * 2
    x.fill_(3.0)
    graph.replay()
    return bool((y == 6).all())


def smoke(asked: Asked, put: Put) -> None:
    """The names of all that was used, and what works."""
    from modicum.machine import environment

    device, dtype = device_of(asked), dtype_of(asked)
    about: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cuda":
        of = torch.cuda.get_device_properties(device)
        about |= {
            "gpu": of.name,
            "gpu_bytes": of.total_memory,
            "processors": of.multi_processor_count,
        }
        about |= {"capability": f"{of.major}.{of.minor}", "cudnn": torch.backends.cudnn.version()}
    put("torch", about)
    put("environment", environment())
    found: dict[str, Any] = {
        "varlen": attempt(_varlen, device, dtype, False, 5),
        "varlen, two queries a key": attempt(_varlen, device, dtype, True, 5),
        "varlen, more keys than queries": attempt(_varlen, device, dtype, False, 9),
        "mm(out_dtype=)": attempt(_mm, device, dtype),
        "graph": attempt(_graph, device) if device.type == "cuda" else {"error": "needs a GPU"},
    }
    for name, value in found.items():
        put(name, value)
    put("varlen takes", attempt(_takes))
    refused = _operations(device)
    put("deterministic mode", refused)
    bad = [name for name, value in refused.items() if value is not True]
    works = [name for name, value in found.items() if "error" not in str(value)]
    put(
        "line",
        f"torch {torch.__version__}, {about.get('gpu', 'CPU')}; works: {', '.join(works) or 'none'};"
        f" deterministic mode refuses: {', '.join(bad) or 'nothing'}",
    )


def tests(asked: Asked, put: Put) -> None:
    """tests/test_gpu.py; another library's warning is no failure here, as its version may be another."""
    need_gpu(asked, "tests/test_gpu.py is skipped without one")
    options = ["-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider", "-v"]
    command = [sys.executable, "-m", "pytest", *options, "tests/test_gpu.py"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        said = ""
        for line in process.stdout or ():
            said += line
            if TESTED.match(line):
                put("tests", outcomes(said))
    put("said", said[-4000:])
    put("line", said.strip().splitlines()[-1].strip("= "))
    if process.returncode:
        raise SystemExit("some tests failed, or none ran")


def outcomes(said: str) -> dict[str, str]:
    """What became of each test, from what pytest says with -v."""
    return {name: state.lower() for name, state in TESTED.findall(said)}
