"""Every architecture of `AutoModelForCausalLM`: does a small one train, evaluate and export?

    python scripts/sweep_models.py                    all that are not in the file yet
    python scripts/sweep_models.py --only lfm2 rwkv   these, anew
    python scripts/sweep_models.py --failed           those with a fault, anew
    python scripts/sweep_models.py --engines          which engine each gets, anew, nothing trained
    python scripts/sweep_models.py --table            the table of docs/models.md from the file

A small random model (`small_models.py`) lies beside the tokenizer of the tiny base. `full`,
`last(1)` and `lora(rank=2)` train two steps with the agreement proof in each, 4 problems are
evaluated, the run of `full` is exported (which loads it again and compares the logits) and the
exported model is evaluated. Each architecture has a process of its own with a limit of time and
of memory. A refusal is one line of modicum's own; anything else is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import small_models  # noqa: E402

FILE = HERE.parent / "benchmarks" / "models.json"
DOCS = HERE.parent / "docs" / "models.md"
BEGIN, END = "<!-- sweep -->", "<!-- end of sweep -->"
SECONDS, MEMORY = 240, 8 * 2**30
SHORT = (
    *("--steps", "2", "--prompts-per-step", "2", "--group-size", "4", "--max-tokens", "12"),
    *("--eval-problems", "0", "--no-anatomy", "--reward", "random", "--overwrite"),
    *("--agreement-every", "1", "--device", "cpu"),
)
UPDATES = ("full", "last(1)", "lora(rank=2)")
COLUMNS = (*UPDATES, "evaluate", "export")
CACHES = {"padded": "", "equal": "a length at a time", "none": "no cache"}
HEADS = {False: "", True: "whole logits"}
Outcome = dict[str, str]


def one(name: str, folder: Path) -> Outcome:
    """What becomes of the architecture `name`: by column `ok`, `refused: ...` or `fault: ...`."""
    try:
        small_models.save(name, folder / "model")
    except ImportError as error:
        return {"made": f"no: {line(error)}"}
    except Exception as error:  # noqa: BLE001  # of others' code, any
        return {"made": f"no: {type(error).__name__}: {line(error)}"}
    found: Outcome = {"made": "ok", "engine": told(lambda: engine_of(folder / "model"))}
    model = ["--model", str(folder / "model")]
    for update in UPDATES:
        run = ["--out", str(folder / f"run-{UPDATES.index(update)}"), "--update", update]
        found[update] = told(lambda run=run: command("train", *model, *run, *SHORT))
    short = ("--problems", "4", "--samples", "2", "--max-tokens", "8", "--device", "cpu")
    found["evaluate"] = told(lambda: command("evaluate", *model, *short))
    if found["full"] == "ok":
        found["export"] = told(lambda: exported(folder, short))
    else:
        out = ("--out", str(folder / "again"))
        found["export"] = told(lambda: command("export", *model, *out))
    return found


def engine_alone(name: str, folder: Path) -> Outcome:
    """Which engine runs the architecture `name`."""
    small_models.save(name, folder / "model")
    return {"engine": told(lambda: engine_of(folder / "model"))}


def exported(folder: Path, short: tuple[str, ...]) -> str:
    """Export the trained model and evaluate what was written."""
    command("export", str(folder / "run-0"), "--out", str(folder / "out"))
    return command("evaluate", "--model", str(folder / "out"), *short)


def command(*args: str) -> str:
    """Run a command of modicum without its output."""
    from modicum import cli

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.run(list(args))
    assert code == 0, f"exit code {code}: {said.getvalue().strip()[-200:]}"
    return "ok"


def engine_of(folder: Path) -> str:
    """Which engine runs a model, and how it samples and makes logits."""
    from modicum.engine.policy import make
    from modicum.models.load import load

    loaded = load(str(folder), "cpu")
    engine: Any = make(loaded.model, loaded.device)
    if engine.splits:
        return "split"
    said = ("library", CACHES[engine.can.cache], HEADS[engine.can.whole])
    return ", ".join(filter(None, said))


def told(work: Callable[[], str]) -> str:
    """What `work` gives, or in one line why not."""
    from modicum.types import UserError

    try:
        return work()
    except UserError as error:
        return f"refused: {line(error)}"
    except Exception as error:  # this is what is looked for
        if os.environ.get("SWEEP_RAISE"):
            raise
        return f"fault: {type(error).__name__}: {line(error)}"


def line(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def child(work: Callable[[str, Path], Outcome], name: str, out: Path) -> None:
    """Write the outcome of one architecture."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        found = work(name, Path(folder))
        out.write_text(json.dumps({k: v.replace(folder, "") for k, v in found.items()}))


def apart(name: str, work: Callable[[str, Path], Outcome] = one) -> Outcome:
    """The outcome of one architecture, in a forked process: what it imports is there already."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    import transformers

    import modicum.export
    import modicum.training.loop  # noqa: F401

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "outcome.json"
        process = multiprocessing.get_context("fork").Process(target=child, args=(work, name, out))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            return {"made": "ok", "full": f"fault: not done in {SECONDS} s"}
        if not out.exists():
            return {"made": "ok", "full": f"fault: exit code {process.exitcode}"}
        return json.loads(out.read_text())


def faulty(found: Outcome) -> bool:
    """Whether something went wrong that is no refusal in one line."""
    return any(value.startswith("fault") for value in found.values())


def read(path: Path) -> dict[str, Outcome]:
    """The outcomes so far."""
    return json.loads(path.read_text()) if path.exists() else {}


def sums(found: Mapping[str, Outcome]) -> list[str]:
    """How many of what."""
    made = {name: o for name, o in found.items() if o["made"] == "ok"}
    lines = [f"{len(found)} architectures are mapped, a small model of {len(made)} can be made."]
    for column in COLUMNS:
        got = Counter(outcome.get(column, "-").split(":")[0] for outcome in made.values())
        lines.append(f"{column}: " + ", ".join(f"{n} {what}" for what, n in got.most_common()))
    return lines


def table(found: Mapping[str, Outcome]) -> str:
    """The outcomes as Markdown: a row an architecture, reasons by number below."""
    reasons: dict[str, int] = {}

    def cell(said: str) -> str:
        if said in ("ok", "-"):
            return said
        reason = re.sub(r"^.*cannot be run: |^/model ", "", said.split(": ", 1)[1])
        return f"[{reasons.setdefault(reason, len(reasons) + 1)}]"

    rows = ["| Architecture | Engine | " + " | ".join(f"`{c}`" for c in UPDATES)]
    rows[0] += " | evaluate | export |"
    rows.append("|---|---|" + "---|" * len(COLUMNS))
    for name, outcome in found.items():
        engine = outcome.get("engine", outcome["made"])
        cells = [outcome.get(column, "-") for column in COLUMNS]
        engine = cell(engine) if ": " in engine else engine
        rows.append(f"| {name} | {engine} | " + " | ".join(map(cell, cells)) + " |")
    rows += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(["- " + s for s in sums(found)] + ["", *rows])


def write_table(found: Mapping[str, Outcome]) -> None:
    """Put the table between its marks in the docs."""
    before, rest = DOCS.read_text().split(BEGIN)
    after = rest.split(END)[1]
    DOCS.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")


def main() -> None:
    """Read the options and do what they ask."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--failed", action="store_true")
    parser.add_argument("--engines", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    found = read(given.out)
    if given.table:
        return write_table(found)
    names = list(small_models.architectures())
    todo = given.only or [name for name in names if name not in found]
    if given.failed:
        todo = [name for name in found if faulty(found[name])]
    if given.engines:
        todo = [name for name in found if found[name]["made"] == "ok"]
    for number, name in enumerate(todo):
        outcome = {**found[name], **apart(name, engine_alone)} if given.engines else apart(name)
        # Others may write it meanwhile.
        found = {**read(given.out), name: outcome}
        ordered = {known: found[known] for known in names if known in found}
        given.out.write_text(json.dumps(ordered, indent=1) + "\n")
        odd = {k: v for k, v in outcome.items() if v != "ok"}
        print(f"{number + 1}/{len(todo)} {name}: {odd}", flush=True)
    print("\n".join(sums(read(given.out))))


if __name__ == "__main__":
    main()
