"""The model card of an export: `README.md`, from what its run has written (report/card.md)."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from modicum.config import TrainConfig, to_toml
from modicum.evaluate import held_out
from modicum.parts import began, past_task
from modicum.report.page import fenced
from modicum.report.words import environment
from modicum.results import RunResult, fill
from modicum.runs import read_object
from modicum.serving.client import VLLM
from modicum.tasks.handed import PROBES, handed
from modicum.tasks.prompts import encode, stops
from modicum.types import Problem, UserError

LICENCE = re.compile(r"\A---\n(?:.*\n)*?license:[ '\"]*([\w.-]+)")


def hand(run: Path, config: TrainConfig, tokenizer: Any) -> dict[str, Any]:
    """Put the prompt of a run into the chat template; what the card says of the run."""
    past, question, result = began(run), "", read_object(run / "result.json", optional=True)
    examples = tuple((one, answer) for one, answer in past.get("examples", ()))
    if len(examples) != config.sampling.examples:
        raise UserError(f"{run} has lost the worked examples of its environment.json")
    with suppress(UserError):  # its problems may be no more
        held = held_out(past_task(run, config.task), config.evaluation.eval_split, 1)
        question = held[0].question
    wide = replace(config.sampling, max_prompt_tokens=10**9)
    problem = Problem("", question or PROBES[0], "")
    ids = encode(problem, tokenizer, wide, examples)
    prompt = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    stop, template = stops(tokenizer, wide), handed(tokenizer, wide, examples, [question])
    tokenizer.chat_template = template or tokenizer.chat_template
    found = fill(RunResult, result, str(run / "result.json")) if result else None
    known = {"past": past, "config": config, "result": found, "prompt": prompt, "stop": stop}
    return known | {"question": problem.question, "held": question, "handed": template}


def write(folder: Path, told: Mapping[str, Any]) -> None:
    """Write the card beside the weights."""
    adapter = read_object(folder / "adapter_config.json", optional=True)
    local, init = told.get("base_folder", ""), Path(told["config"].init_adapter).name
    there = folder / local / "README.md"
    text = there.read_text(encoding="utf-8", errors="replace") if there.is_file() and local else ""
    mine = replace(told["config"], model=told["base"], base="", out="", init_adapter=init)
    known = {"peft": adapter, "local": local, "licence": LICENCE.findall(text), "init": init}
    known["ranks"] = VLLM["ranks"]
    made = environment(fenced=fenced, literal=repr, quoted=quote).get_template("card.md")
    card = re.sub(r"\n{3,}", "\n\n", made.render(**told, **known, toml=to_toml(mine)))
    (folder / "README.md").write_text(card.strip() + "\n", encoding="utf-8")
