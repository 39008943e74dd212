"""What only a GPU can say about modicum, in one run of under eight minutes (docs/gpu.md).

    python benchmarks/gpu.py --out gpu.json [--only PART] [--device cpu --small]

Every part runs in a process of its own and is ended at its limit, with all that it has started;
what it found until then stays. The results are written anew after every finding, so that nothing
is lost when the machine goes. A part that fails does not stop the next. On a CPU, and with
`--small`, the same code runs on small shapes, which tests it and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SECONDS = 465.0  # of all parts together
LAST_WORDS = 2000  # characters of what a failed part has said


@dataclass(frozen=True)
class Asked:
    """What a part is asked for."""

    device: str
    small: bool


class Cannot(Exception):
    """Why a part can say nothing here; no fault of it."""


Put = Callable[[str, Any], None]
"""Takes a finding: its name and what JSON can hold. `line` is the one for the terminal."""


@dataclass(frozen=True)
class Part:
    """One question: a function `module:name` that takes what is asked and where findings go."""

    name: str
    function: str
    limit: float
    """Seconds."""


PARTS = (
    Part("smoke", "gpu_smoke:smoke", 60),
    Part("tests", "gpu_smoke:tests", 70),
    Part("updates", "gpu_updates:updates", 110),
    Part("syncs", "gpu_syncs:syncs", 40),
    Part("decode", "gpu_decode:decode", 60),
    Part("steps", "gpu_steps:ours", 90),
    Part("trl", "gpu_steps:trl", 110),
    Part("attention", "gpu_attention:attention", 60),
    Part("head", "gpu_head:head", 40),
    Part("store", "gpu_store:store", 40),
    Part("plan", "gpu_plan:plan", 70),
)
"""In the order of what would be missed most: what time is left over for is at the end."""


# One part, in its own process ------------------------------------------------------------


def run_here(function: str, asked: Asked) -> None:
    """Run a part; its findings are lines of JSON on standard output, all else goes to the other."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=end_with_parent, daemon=True).start()

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(plain(what)), file=out, flush=True)

    module, _, name = function.partition(":")
    try:
        getattr(importlib.import_module(module), name)(asked, lambda k, v: say({"put": [k, v]}))
    except Cannot as error:
        say({"cannot": str(error)})


def end_with_parent() -> None:
    """End this process, and what it has started, when the one that waits for it is gone."""
    while os.read(0, 4096):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


def plain(value: Any) -> Any:
    """The value with what JSON has no word for as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | str | bool | None) else str(value)


# All parts -------------------------------------------------------------------------------


def run_part(
    part: Part, asked: Asked, limit: float, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """What became of a part: `state`, `seconds`, `found`; `tell` hears of it while it goes."""
    result: dict[str, Any] = {"state": "running", "limit": round(limit, 1), "found": {}}
    tell(result)
    began, cut = time.monotonic(), threading.Event()
    command = [sys.executable, str(HERE / "gpu.py"), "--run", part.function]
    command += ["--device", asked.device, *(["--small"] if asked.small else [])]
    given: dict[str, Any] = {"text": True, "env": environment(), "start_new_session": True}
    given |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stderr=said, **given) as process,
    ):

        def end() -> None:
            cut.set()
            kill(process)

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            for line in process.stdout or ():
                hear(result, line)
                tell(result)
            process.wait()
        finally:
            timer.cancel()
            kill(process)
        result["seconds"] = round(time.monotonic() - began, 2)
        said.seek(0)
        words = said.read()[-LAST_WORDS:].strip()
    if result["state"] == "running":
        result["state"] = "cut" if cut.is_set() else "failed" if process.returncode else "done"
    if result["state"] == "cut":
        result["error"] = f"not done after {limit:g} s"
    if result["state"] == "failed":
        result["error"] = words.splitlines()[-1] if words else f"exit code {process.returncode}"
    if result["state"] in ("cut", "failed"):
        result["said"] = words
    tell(result)
    return result


def hear(result: dict[str, Any], line: str) -> None:
    """Take in a line of a part; half a line, of one that was killed, is nothing."""
    with contextlib.suppress(json.JSONDecodeError):
        message = json.loads(line)
        if "cannot" in message:
            result |= {"state": "cannot", "error": message["cannot"]}
        elif "put" in message:
            key, value = message["put"]
            result["found"][key] = value


def kill(process: subprocess.Popen[str]) -> None:
    """End a part and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """That of a part: one card, this checkout is what it imports, and nothing is fetched."""
    paths = [str(ROOT / "src"), str(HERE), os.environ.get("PYTHONPATH", "")]
    return {
        "CUDA_VISIBLE_DEVICES": "0",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "MODICUM_CACHE": "",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def machine() -> dict[str, Any]:
    """The cards and the driver as the driver's own program has them; nothing where there is none."""
    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    query = "--query-gpu=name,driver_version,memory.total"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.check_output(
            ["nvidia-smi", query, "--format=csv,noheader"], text=True, timeout=20
        )
        names = ("card", "driver", "memory")
        found["cards"] = [
            dict(zip(names, map(str.strip, line.split(",")), strict=False))
            for line in lines.splitlines()
        ]
    return found


def write(path: Path, results: dict[str, Any]) -> None:
    """The results as a whole: a reader, or what is left after a kill, never sees half of them."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def run_parts(parts: Sequence[Part], asked: Asked, path: Path, seconds: float) -> dict[str, Any]:
    """Run the parts one after the other, as long as there is time, and write what they find.

    What the file holds of other parts stays.
    """
    results: dict[str, Any] = {"parts": {}}
    with contextlib.suppress(OSError, json.JSONDecodeError):
        results["parts"] = json.loads(path.read_text())["parts"]
    results |= {"began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine()}
    results |= {"device": asked.device, "small": asked.small}
    until = time.monotonic() + seconds
    for part in parts:
        left = until - time.monotonic()

        def tell(result: dict[str, Any], name: str = part.name) -> None:
            results["parts"][name] = result
            if name == "smoke" and "torch" in result["found"]:
                results["machine"] |= result["found"]["torch"]
            write(path, results)

        if left < min(5.0, part.limit):
            result = {"state": "no time", "error": f"{seconds:g} s were over", "found": {}}
            tell(result)
        else:
            result = run_part(part, asked, min(part.limit, left), tell)
        text = result.get("error") or result["found"].get("line", "")
        print(f"{part.name:<10}{result['state']:<8}{result.get('seconds', 0):6.1f} s  {text}")
        sys.stdout.flush()
    return results


def main() -> int:
    """Run what was asked for; 1 where a part failed, was cut or had no time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="gpu.json", help="the results")
    parser.add_argument(
        "--only", action="append", metavar="PART", help="this part (again for more)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small shapes: a test of this program")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all parts together")
    parser.add_argument("--run", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    asked = Asked(options.device, options.small)
    if options.run:
        run_here(options.run, asked)
        return 0
    names = [part.name for part in PARTS]
    for name in options.only or []:
        if name not in names:
            parser.error(f"there is no part {name!r}; there are {', '.join(names)}")
    chosen = [part for part in PARTS if not options.only or part.name in options.only]
    path = Path(options.out)
    if not path.parent.is_dir():
        parser.error(f"there is no folder {path.parent}")
    results = run_parts(chosen, asked, path, options.seconds)
    states = {part.name: results["parts"][part.name]["state"] for part in chosen}
    print(f"results: {path}")
    return int(any(state not in ("done", "cannot") for state in states.values()))


if __name__ == "__main__":
    # The parts import this module by its name: what they raise must be what is caught here.
    sys.modules["gpu"] = sys.modules["__main__"]
    sys.exit(main())
