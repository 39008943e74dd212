"""Pretraining of the tiny base model: a plain language-model loss on `tiny_corpus` text.

    python scripts/pretrain_tiny.py --out models/my-tiny                the shipped one
    python scripts/pretrain_tiny.py --out models/quick --steps 100

One document per row, documents of similar length together, so that every document starts
at position 0 as a prompt does and little is padded. AdamW, warm-up and cosine decay. The
recipe is written beside the weights; the same recipe gives the same text in the same
order, and a run that was cut goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tiny_tokenizer
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_corpus import PretrainConfig, documents
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from modicum import disk
from modicum.display import clock, console
from modicum.options import HELP, Parser, add_options, config_of
from modicum.runs import make_folder
from modicum.types import UserError

IGNORED = -100  # label of padding
CHECKPOINT = "pretrain.safetensors"
REPORT_EVERY = 20  # steps
ABOUT = "Make a tiny base model; without options, the shipped one."


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A fresh Qwen2 model with tied embeddings, fp32."""
    torch.manual_seed(config.seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def rate_at(step: int, config: PretrainConfig) -> float:
    """The learning rate of `step`: linear warm-up, then cosine to a twentieth."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.decay_steps - config.warmup_steps)
    return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def micro_batches(
    step: int, config: PretrainConfig, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The step's documents as (ids_BT, labels_BT), sorted by length into parts."""
    texts = documents(config.seed, step, config.documents_per_step, config.mixture)
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    rows.sort(key=len)
    size = -(-len(rows) // config.micro_batches)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids_BT = torch.full((len(part), len(part[-1])), tokenizer.pad_token_id)
        labels_BT = torch.full_like(ids_BT, IGNORED)
        for index, row in enumerate(part):
            ids_BT[index, : len(row)] = torch.tensor(row)
            labels_BT[index, : len(row)] = torch.tensor(row)
        yield ids_BT, labels_BT


def train_step(
    model: Qwen2ForCausalLM,
    optimizer: torch.optim.Optimizer,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
) -> float:
    """One optimizer step over all parts; returns the mean loss per token in nats."""
    count = sum(int((labels_BT[:, 1:] != IGNORED).sum()) for _, labels_BT in batches)
    total = 0.0
    for ids_BT, labels_BT in batches:
        logits_BTV = model(input_ids=ids_BT[:, :-1]).logits
        loss = F.cross_entropy(
            logits_BTV.flatten(0, 1),
            labels_BT[:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        (loss / count).backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total / count


def pretrain(
    config: PretrainConfig,
    out: Path,
    report: Callable[[int, float, float, float], None],
    checkpoint_every: int = 100,
) -> Path:
    """Train the base of `config` into the model folder `out`.

    `report(step, loss, tokens_per_second, seconds_left)` is called after every step. Goes
    on from the checkpoint in `out` if the same recipe was cut there.
    """
    tokenizer = tiny_tokenizer.build(documents(config.seed, 0, 2000, config.mixture))
    model = build_model(config, tokenizer)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    make_folder(out)
    first = _resume(out, config, model, optimizer)
    began = time.perf_counter()
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, config)
        started = time.perf_counter()
        batches = list(micro_batches(step, config, tokenizer))
        loss = train_step(model, optimizer, batches)
        tokens = sum(int((labels_BT != IGNORED).sum()) for _, labels_BT in batches)
        now, done = time.perf_counter(), step + 1
        left = (now - began) / (done - first) * (config.steps - done)
        report(step, loss, tokens / (now - started), left)
        if done % checkpoint_every == 0:
            _checkpoint(out, config, done, model, optimizer)
    save_base(model, tokenizer, config, out)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return out


def save_base(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, config: PretrainConfig, out: Path
) -> None:
    """Write the model folder: fp16 safetensors, tokenizer, and the recipe."""
    half = Qwen2ForCausalLM(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "recipe.json").write_text(json.dumps(asdict(config), indent=2) + "\n")


def _checkpoint(
    out: Path,
    config: PretrainConfig,
    step: int,
    model: Qwen2ForCausalLM,
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    state: dict[str, Any] = optimizer.state_dict()["state"]
    for index, entry in state.items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in entry.items()}
    recipe = json.dumps(asdict(config), sort_keys=True)
    save_file(tensors, out / f".{CHECKPOINT}", metadata={"step": str(step), "recipe": recipe})
    os.replace(out / f".{CHECKPOINT}", out / CHECKPOINT)


def _resume(
    out: Path, config: PretrainConfig, model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer
) -> int:
    path = out / CHECKPOINT
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        if meta["recipe"] != json.dumps(asdict(config), sort_keys=True):
            return 0
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            index, _, name = rest.partition(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return int(meta["step"])


def main(args: list[str]) -> None:
    """Pretrain a tiny base model; a run that was cut goes on."""
    HELP["commands"]["pretrain"] = {"about": ABOUT, "examples": ""}
    parser = Parser("pretrain")
    parser.prog, parser.epilog = "pretrain_tiny.py", None
    parser.add_argument("--out", metavar="FOLDER", required=True, help="the model folder to write")
    add_options(parser, PretrainConfig, "pretraining")
    found = parser.read(args)
    config = config_of(PretrainConfig, found)
    out = Path(found.out)
    if (out / "model.safetensors").exists():
        raise UserError(f"{out} holds a finished model; --out takes another folder")
    screen = console()
    losses: list[float] = []

    def report(step: int, loss: float, pace: float, left: float) -> None:
        losses.append(loss)
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == config.steps:
            recent = losses[-REPORT_EVERY:]
            mean = sum(recent) / len(recent)
            screen.print(
                f"step {step + 1}/{config.steps}  loss {mean:.3f} nats/token"
                f"  {pace:,.0f} tok/s  left {clock(left)}"
            )

    make_folder(out)
    with disk.held(out):
        pretrain(config, out, report)
    values = {"out": str(out), "loss": losses[-1], "steps": config.steps}
    print(json.dumps(values) if found.json else f"wrote {out}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
