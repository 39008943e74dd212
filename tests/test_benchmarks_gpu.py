"""benchmarks/gpu.py: its parts run on a CPU at small shapes, and whatever one does the others run."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Iterator
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import Tensor

from modicum import rewards

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "tests"
sys.path.append(str(ROOT / "benchmarks"))

gpu, gpu_attention, gpu_smoke, gpu_store, gpu_syncs = map(
    importlib.import_module, ("gpu", "gpu_attention", "gpu_smoke", "gpu_store", "gpu_syncs")
)

CPU = gpu.Asked("cpu", small=True)
NAMES = [part.name for part in gpu.PARTS]
QUICK = ("smoke", "decode", "attention", "head", "store")


@pytest.fixture(autouse=True)
def parts_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes find tests/gpu_parts.py, and rewards that parts add are gone afterwards."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    before = dict(rewards.REWARDS)
    yield
    rewards.REWARDS.clear()
    rewards.REWARDS.update(before)


def part(name: str, limit: float = 60.0) -> gpu.Part:
    return gpu.Part(name, f"gpu_parts:{name}", limit)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["parts"]


def gone(pid: int) -> bool:
    """Whether a process ends soon; one that nobody waits for any more may stay as a zombie."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def found_by(name: str) -> dict[str, Any]:
    """What a part finds on the CPU, in this process."""
    module, _, function = next(p.function for p in gpu.PARTS if p.name == name).partition(":")
    found: dict[str, Any] = {}
    getattr(importlib.import_module(module), function)(CPU, found.__setitem__)
    return gpu.plain(found)


# The program -----------------------------------------------------------------------------


def test_no_part_stops_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [part("failing"), part("dying"), part("endless", 1.5), part("cannot"), part("good")]
    path = tmp_path / "gpu.json"
    gpu.run_parts(parts, CPU, path, 100.0)
    results = read(path)
    states = {name: result["state"] for name, result in results.items()}
    assert states == {
        "failing": "failed",
        "dying": "failed",
        "endless": "cut",
        "cannot": "cannot",
        "good": "done",
    }
    assert results["failing"]["error"] == "RuntimeError: the card is on fire"
    assert "Traceback" in results["failing"]["said"]
    assert results["failing"]["found"] == results["dying"]["found"] == {"before": 1}
    assert results["cannot"]["error"] == "needs another machine"
    assert results["good"]["found"] == {
        "asked": ["cpu", True],
        "odd": {"1": "nan", "deep": ["inf", None]},
        "line": "all well",
    }
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[n, states[n]] for n in states]
    assert lines[-1].endswith("all well")


def test_a_part_over_its_limit_is_ended_with_all_it_started(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    gpu.run_parts([part("endless", 1.5)], CPU, path, 100.0)
    result = read(path)["endless"]
    assert (result["state"], result["error"]) == ("cut", "not done after 1.5 s")
    assert 1.4 < result["seconds"] < 10
    assert all(map(gone, result["found"]["pids"]))


def test_results_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    run = (
        "import gpu, sys; from pathlib import Path;"
        "parts = [gpu.Part(n, f'gpu_parts:{n}', 60.0) for n in ('good', 'endless')];"
        "gpu.run_parts(parts, gpu.Asked('cpu', True), Path(sys.argv[1]), 100.0)"
    )
    places = os.pathsep.join([str(ROOT / "benchmarks"), str(HERE)])
    process = subprocess.Popen(
        [sys.executable, "-c", run, str(path)], env={**os.environ, "PYTHONPATH": places}
    )
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if path.exists() and read(path).get("endless", {}).get("found", {}).get("pids"):
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    results = read(path)
    assert results["good"]["state"] == "done"
    assert results["endless"]["state"] == "running"
    assert all(map(gone, results["endless"]["found"]["pids"]))


def test_what_has_no_time_is_said_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    gpu.run_parts([part("good")], CPU, path, 100.0)
    gpu.run_parts([part("cannot")], CPU, path, 0.0)
    results = read(path)
    assert results["good"]["state"] == "done"
    assert results["cannot"] == {"state": "no time", "error": "0 s were over", "found": {}}


def test_a_wrong_option_is_one_line(tmp_path: Path) -> None:
    for options, word in (
        (["--only", "stor"], "store"),
        (["--out", "no/where/g.json"], "no folder"),
    ):
        command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), *options]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr and word in ended.stderr.splitlines()[-1]


def test_all_parts_are_there_and_explained() -> None:
    page = (ROOT / "docs/gpu.md").read_text()
    for each in gpu.PARTS:
        module, _, function = each.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert re.search(rf"^\| `{each.name}` \|", page, re.M), each.name
    assert gpu.SECONDS < 480


# The parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_a_part_runs_on_a_cpu(name: str) -> None:
    found = found_by(name)
    assert found["line"]
    if name == "smoke":
        assert found["torch"]["torch"] == torch.__version__
        assert all(value is True for value in found["deterministic mode"].values())
        assert "error" in found["varlen"]
    if name == "decode":
        for now in found["full, 4 rows"].values():
            assert now["tokens_per_second"] > 0 and now["same_tokens"] == 1 and "drawn" not in now
            assert now["kernels_per_token"]["waits"] == 1 / 16
    if name == "attention":
        assert found["4 rows, mask"]["seconds"] > 0
        assert max(found["2 rows, mask"]["off"].values()) == 0
        assert "CPU" in found["2 rows, varlen"]["error"]
    if name == "head":
        off = [v["mean_nats_off"] for k, v in found.items() if k.startswith("plain")]
        assert len(off) == 4 and max(off) < 1e-5
    if name == "store":
        assert found["sha256"]["finds"] and found["sums"]["finds"]
        assert found["load"]["bytes_per_second"] > 0


@pytest.mark.parametrize("name", ["tests", "syncs"])
def test_what_a_cpu_cannot_is_said(name: str) -> None:
    with pytest.raises(gpu.Cannot, match="needs a GPU"):
        found_by(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is of machines without a GPU")
def test_without_a_gpu_every_part_says_so(tmp_path: Path) -> None:
    asked = gpu.Asked("cuda", small=False)
    for each in gpu.PARTS:
        module, _, function = each.function.partition(":")
        with pytest.raises(gpu.Cannot, match="sees no GPU"):
            getattr(importlib.import_module(module), function)(asked, lambda *_: None)


def lengthwise(
    q_NHD: Tensor,
    k_MKD: Tensor,
    v_MKD: Tensor,
    ends_q: Tensor,
    ends_k: Tensor,
    longest: Any,
    _: bool,
) -> Tensor:
    """What torch says of `varlen_attn`: sequence by sequence, causal from the end."""
    repeat, out = q_NHD.shape[1] // k_MKD.shape[1], []
    assert longest == (int(ends_q.diff().max()), int(ends_k.diff().max()))
    spans = (list(pairwise(ends.tolist())) for ends in (ends_q, ends_k))
    for (a, b), (c, d) in zip(*spans, strict=True):
        k, v = (x[c:d].repeat_interleave(repeat, 1).transpose(0, 1) for x in (k_MKD, v_MKD))
        mask = torch.ones(b - a, d - c, dtype=torch.bool).tril((d - c) - (b - a))
        q = q_NHD[a:b].transpose(0, 1)
        out.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1))
    return torch.cat(out)


def test_the_ways_of_attention_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the kernel; FlexAttention has no gradients on a CPU."""
    monkeypatch.setattr(gpu_attention, "varlen", lengthwise)
    case = gpu_attention.Case(2, 3, 5, 7, (4, 2, 16), torch.device("cpu"))
    tensors = case.tensors(torch.float32)
    right = gpu_attention.gradients(gpu_attention.masked(case), tensors)
    found = gpu_attention.gradients(gpu_attention.ragged(case), tensors)
    torch.testing.assert_close(found, right)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow when it is not compiled
        out = gpu_attention.flexible(case)(*tensors[:3])
    torch.testing.assert_close(out, right[0])


def test_sums_show_every_bit() -> None:
    tensors = [torch.randn(3, 5000), torch.randn(7).bfloat16(), torch.arange(9)]
    for tensor in tensors:
        marks = {gpu_store.by_sums({"": tensor})[""]}
        bits = tensor.reshape(-1).view(gpu_store.UNSIGNED[tensor.element_size()])
        for at in (0, len(bits) // 2, len(bits) - 1):
            for bit in (0, 3):
                bits[at] ^= 1 << bit
                marks.add(gpu_store.by_sums({"": tensor})[""])
                bits[at] ^= 1 << bit
        assert len(marks) == 7
        assert gpu_store.by_sums({"": tensor})[""] in marks


def test_waits_are_found_by_the_line_that_makes_them() -> None:
    with gpu_syncs.places() as found:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert sum(found.values()) == 1
    assert next(iter(found)).startswith(str(HERE).lstrip("/") + "/test_benchmarks_gpu.py:")
    frames: list[Any] = [
        type("Frame", (), {"filename": name, "lineno": 7})
        for name in ("a.py", gpu_syncs.OURS + "/engine/split.py", "torch/x.py", "warnings.py", "n")
    ]
    assert gpu_syncs.innermost(frames) == "engine/split.py:7"


def test_what_pytest_says_is_read() -> None:
    said = "x ==\ntests/test_gpu.py::test_a[fp32, 1] PASSED   [ 5%]\ntests/test_gpu.py::test_b FAILED\n"
    assert gpu_smoke.outcomes(said) == {"test_a[fp32, 1]": "passed", "test_b": "failed"}


# The wheels ------------------------------------------------------------------------------


def test_the_wheels_are_all_that_modicum_and_trl_need() -> None:
    """Of what is installed here; `presumed` is what a machine with torch has."""
    script = (ROOT / "scripts/gpu_wheels.sh").read_text()

    def names(pattern: str) -> set[str]:
        found = " ".join(re.findall(pattern, script, re.M | re.S)).split()
        return {canonicalize_name(name) for name in found}

    presumed, alone, whole = (
        names(pattern)
        for pattern in (r"^# presumed: ([^\n]*)", r"^alone=\((.*?)\)", r"^whole=\((.*?)\)")
    )
    covered = closure(whole, set()) | alone | presumed
    assert not presumed & (alone | whole)
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = {canonicalize_name(Requirement(need).name) for need in about}
    missing = closure({*wanted, "trl", "pytest"}, presumed) - covered
    assert missing == closure({"reasoning-gym"}, covered), "which the script says it leaves out"


def closure(names: set[str], known: set[str]) -> set[str]:
    """These and all that they need in turn, on Linux with Python 3.12, beyond what is known."""
    found, left = set[str](), [*names]
    there = {"python_version": "3.12", "python_full_version": "3.12.0", "extra": ""}
    while left:
        name = canonicalize_name(left.pop())
        if name in found or name in known:
            continue
        found.add(name)
        needs = map(Requirement, metadata.requires(name) or ())
        left += [n.name for n in needs if n.marker is None or n.marker.evaluate(there)]
    return found


# All of it -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_program_runs_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--out", str(path)]
    command += ["--device", "cpu", "--small"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    results = read(path)
    states = {name: result["state"] for name, result in results.items()}
    assert ended.returncode == 0, (states, ended.stdout)
    assert states == {n: "cannot" if n in ("tests", "syncs") else "done" for n in NAMES}
    assert results["updates"]["found"]["updates"]["last(1)"]["resumed"]["tensors"]
    for name in ("steps", "trl"):
        assert results[name]["found"]["lora(rank=8)"]["seconds"] > 0
    assert results["plan"]["found"]["last(5)"]["measured"]["bytes"] > 0
