"""What each update sends to vLLM, and how far vLLM's log-probs are from the trainer's then.

    MODICUM_VLLM_PYTHON=... python benchmarks/serving.py [--untied] [--dtype bf16] [--only lora dora]

One server, in fp32 unless told, of the tiny base, or with --untied of a random llama whose head is a tensor of its own; of
every update the usual form. Three policies each: the start, and two optimizer steps at a large rate on rows made
by hand. Bytes and seconds are those of the last one, so of what a step sends; nats are the mean |difference| over
the tokens of twelve completions of each policy. Keeps the rows in benchmarks/serving.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from modicum import updates
from modicum.config import Compute, Optimizer, Sampling, TrainConfig
from modicum.models.load import TINY, load, locate
from modicum.serving.child import ServerProcess
from modicum.serving.client import Server
from modicum.serving.publish import Publication, Publisher
from modicum.training import session, step

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from conftest import random_model  # noqa: E402
from rows import apart, batch_of  # noqa: E402

PROMPTS = [(40, 41, 42, 43), (50,), (60, 61, 62)]
KEYS: list[tuple[object, ...]] = [("test", 0), ("test", 1), ("test", 2)]
SHORT = Sampling(max_tokens=12)
STEPS = 3


def untied(folder: Path) -> str:
    """A random llama with the tiny base's tokenizer, in a folder that is made."""
    from transformers import AutoTokenizer

    # With heads of 16 numbers vLLM's CPU build has died.
    random_model("llama", hidden_size=128, intermediate_size=128, head_dim=32).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return str(folder)


def put_back(server: Server, model: str, dtype: str = "fp32") -> None:
    """Give the server all weights of the base, whatever it had."""
    publisher = Publisher(load(model, "cpu", dtype).model)
    with tempfile.TemporaryDirectory() as place:
        whole = Publication(publisher.tensors(publisher.modules))
        folder, _, _ = whole.write(Path(place) / "base")
        assert folder is not None
        Server(server.url).load_tensors(folder, "base")


def measure(server: Server, model: str, text: str, dtype: str = "fp32") -> dict[str, Any]:
    """One update: what is sent after a step, and the differences in nats, policy by policy."""
    put_back(server, model, dtype)
    config = TrainConfig(
        model=model,
        update=text,
        steps=6,
        compute=Compute("cpu", dtype, sampler=f"server('{server.url}')"),
        optimizer=Optimizer(learning_rate=3e-3),
    )
    made = session.prepare(config)
    policy, nats, told = made.policy, [], {}
    for _ in range(STEPS):
        step.switch(made)
        groups = policy.sample(PROMPTS, KEYS, 4, SHORT)
        told = policy.sampler.metrics()  # type: ignore[attr-defined]
        nats.append(float(apart(policy, PROMPTS, groups, SHORT).mean()))
        step.optimizer_step(made, step.backward(made, batch_of(made), {})["loss"])
        policy.follow(made.prepared)
    publisher = policy.sampler.publisher  # type: ignore[attr-defined]
    policy.sampler.close()
    kind = "adapter" if publisher.rank else "merged" if publisher.layers else "tensors"
    embedding = policy.model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    ties = policy.model.config.tie_word_embeddings  # type: ignore[union-attr]
    tied = ties and any(p is embedding for p in made.prepared.trainable.values())
    return {
        **{"model": Path(model).name, "dtype": dtype, "update": text, "sent": kind},
        **{"bytes": told["sync/bytes"]},
        **{"seconds": told["time/sync_seconds"], "nats": nats, "tied": bool(tied)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--only", nargs="*", default=[*updates.UPDATES])
    options = parser.parse_args()
    given = {"dtype": {"fp32": "float32", "bf16": "bfloat16"}[options.dtype], "lora_rank": 64}
    model = untied(Path(tempfile.mkdtemp(), "untied")) if options.untied else "tiny"
    child = ServerProcess(locate(model).place, max_length=128, **given)
    path, made = HERE / "serving.json", []
    print("| update | sent as | bytes | s | mean nats |\n| --- | --- | --- | --- | --- |")
    with closing(child):
        for name in options.only:
            row = measure(child.server, model, updates.UPDATES[name].examples[0], options.dtype)
            made.append(row)
            shown = f"{max(row['nats']):.1e}" + " (tied head)" * row["tied"]
            cells = f"{row['bytes']:,.0f} | {row['seconds']:.2f} | {shown}"
            print(f"| `{row['update']}` | {row['sent']} | {cells} |", flush=True)
    old = json.loads(path.read_text()) if path.exists() else []
    of = {(row["model"], row["dtype"], row["update"]): row for row in [*old, *made]}
    made = [*of.values()]
    path.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
