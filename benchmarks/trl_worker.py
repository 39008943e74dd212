"""TRL's GRPOTrainer, one step at a time, for the comparison in run.py.

It runs in an environment of its own (benchmarks/requirements.txt) and speaks JSON lines:
the job on standard input first, then `{"go": true}` for every step; a line of times for
every step on standard output. What TRL itself prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer


def reward(completions: list[str], **_: Any) -> list[float]:
    """A number in [0, 1) made from the text: every group has a signal."""
    return [zlib.crc32(text.encode()) % 1000 / 1000 for text in completions]


def peak_bytes() -> int:
    """Peak memory of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class Gate(TrainerCallback):
    """Waits for the word before every step and tells how long the step took."""

    def __init__(self, out: Any) -> None:
        self.out = out
        self.sampling = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not sys.stdin.readline():
            os._exit(0)
        self.sampling = 0.0
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.began
        line = {"seconds": seconds, "sampling": self.sampling, "peak_bytes": peak_bytes()}
        print(json.dumps(line), file=self.out, flush=True)


def build(job: dict[str, Any], gate: Gate) -> Any:
    """A GRPOTrainer for the job, with TRL's fastest settings for it."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[job["dtype"]]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    if job["train_layers"]:
        count = model.config.num_hidden_layers
        kept = tuple(f"model.layers.{i}." for i in range(count - job["train_layers"], count))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(kept))
    adapter = None
    if job["lora_rank"]:
        adapter = LoraConfig(
            r=job["lora_rank"], lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    rows = len(job["prompts"][0]) * job["group_size"]
    settings = GRPOConfig(
        output_dir=job["out"],
        per_device_train_batch_size=rows,
        num_generations=job["group_size"],
        max_completion_length=job["max_tokens"],
        # Never ends early: every completion has the full length.
        generation_kwargs={"eos_token_id": None},
        beta=job["kl"],
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_steps=len(job["prompts"]),
        loss_type="grpo",
        temperature=1.0,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        shuffle_dataset=False,
        disable_tqdm=True,
        optim="adamw_torch_fused",
        use_cpu=not torch.cuda.is_available(),
        bf16=dtype == torch.bfloat16,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    texts = [prompt for step in job["prompts"] for prompt in step]
    trainer = GRPOTrainer(
        model=model,
        args=settings,
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=adapter,
        callbacks=[gate],
    )
    generate = trainer._generate

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return generate(*args, **kwargs)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            gate.sampling += time.perf_counter() - began

    trainer._generate = timed
    return trainer


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed below goes to standard error
    logging.set_verbosity_error()
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    gate = Gate(out)
    trainer = build(job, gate)
    packages = ("trl", "torch", "transformers", "peft", "accelerate")
    versions = {name: metadata.version(name) for name in packages}
    print(json.dumps({"ready": True, "versions": versions}), file=out, flush=True)
    trainer.train()


if __name__ == "__main__":
    main()
