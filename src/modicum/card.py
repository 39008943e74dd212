"""The model card of an export: `README.md`, from what its run has written (report/card.md)."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from modicum.config import TrainConfig, to_toml
from modicum.evaluate import held_out
from modicum.parts import began, past_task
from modicum.report.page import fenced
from modicum.report.words import environment
from modicum.results import RunResult, fill
from modicum.runs import read_object
from modicum.settings import settings, tables
from modicum.tasks.handed import PROBES, handed
from modicum.tasks.prompts import encode, stops
from modicum.types import Problem, UserError

NAME = "README.md"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LICENCE = re.compile(r"\A---\n(?:.*\n)*?license:[ '\"]*([\w.-]+)", re.MULTILINE)


def hand(run: Path, config: TrainConfig, tokenizer: Any) -> dict[str, Any]:
    """Put the prompt of a run into the chat template, and what the card says of the run."""
    sampling = replace(config.sampling, max_prompt_tokens=10**9)
    past, question = began(run), ""
    examples = tuple((one, answer) for one, answer in past.get("examples", ()))
    if len(examples) != sampling.examples:
        raise UserError(f"{run} has lost the worked examples of its environment.json")
    with suppress(UserError):  # its problems may be no more
        task = past_task(run, config.task)
        question = held_out(task, config.evaluation.eval_split, 1)[0].question
    problem = Problem("", question or PROBES[0], "")
    ids = encode(problem, tokenizer, sampling, examples)
    stop, template = stops(tokenizer, sampling), handed(tokenizer, sampling, examples, [question])
    tokenizer.chat_template = template or tokenizer.chat_template
    result = read_object(run / "result.json", optional=True)
    return {
        "prompt": tokenizer.decode(ids, clean_up_tokenization_spaces=False),
        **{"question": problem.question, "held": bool(question), "handed": bool(template)},
        **{
            "stop": stop,
            "sampling": sampling,
            "config": config,
            "dtype": DTYPES[config.compute.dtype],
        },
        "result": fill(RunResult, result, str(run / "result.json")) if result else None,
        **{"versions": past.get("versions", {}), "device": past.get("device")},
    }


def write(folder: Path, base: str, local: str, told: Mapping[str, Any], repo: str = "") -> None:
    """Write the card beside the weights; `local` is the folder of the base, "" for one of the hub."""
    from huggingface_hub import ModelCardData

    config, adapter = told["config"], read_object(folder / "adapter_config.json", optional=True)
    licence = "apache-2.0" if base == "tiny" else _licence(base, local)
    head = ModelCardData(
        base_model=base if "/" in base else None,
        library_name="peft" if adapter else "transformers",
        license=licence or None,
        pipeline_tag="text-generation",
        tags=["modicum", "grpo", "reinforcement-learning"],
    )
    init = Path(config.init_adapter).name
    mine = replace(config, model=base, base="", out="", init_adapter=init)
    both = zip(settings(TrainConfig()), settings(mine), strict=True)
    other = {n.rpartition(".")[2]: now for (n, _, usual), (_, _, now) in both if now != usual}
    simple = adapter.get("peft_type") == "LORA" and not adapter.get("use_dora")
    text = environment(fenced=fenced, literal=repr).get_template("card.md")
    found = text.render(
        **{**told, "head": head.to_yaml(), "base": base, "local": local, "license": licence},
        **{"repo": repo, "lora": simple and adapter["r"], "init_adapter": init},
        settings=to_toml(tables(TrainConfig, {"model": base, **other}, "the run")),
    )
    (folder / NAME).write_text(re.sub(r"\n{3,}", "\n\n", found).rstrip() + "\n", encoding="utf-8")


def _licence(base: str, local: str) -> str:
    """What the card of a base says of its licence, where it is here."""
    from huggingface_hub import try_to_load_from_cache

    card = f"{local}/{NAME}" if local else try_to_load_from_cache(base, NAME)
    with suppress(OSError, UnicodeDecodeError):
        found = (
            LICENCE.search(Path(card).read_text(encoding="utf-8"))
            if isinstance(card, str)
            else None
        )
        return found[1] if found else ""
    return ""
