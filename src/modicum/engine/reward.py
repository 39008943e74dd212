"""A reward model in memory: its LoRA beside the layers of the base that the policy trains, or a classifier.

    score = w . h      h: the state after the final norm at the last token, in fp32; R row, H hidden

The LoRA is in no model: while a score is made, the base's own linear layers add it to what they give,
with the policy's adapter off or its first weights in place (`Prepared.reference`). So nothing is merged,
and no two adapters act at once. A report has the scores of a few completions, its witnesses."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modicum import machine
from modicum.engine.base import Scorer
from modicum.engine.policy import Policy
from modicum.models.adapters import CONFIG, FAULTS, WEIGHTS
from modicum.models.identity import Identity
from modicum.models.linear import replaced
from modicum.models.load import inner, read_tokenizer
from modicum.rewards import Learned
from modicum.runs import read_object
from modicum.types import Completion, Problem, Row, RunStopped, UserError
from modicum.updates.base import Prepared

PREFIX, HEAD = "base_model.model.", "base_model.model.score.weight"  # PEFT's names in its files
MORE = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "target_parameters")
EVERY = 50  # calls between looks at the witnesses
CLOSE = {torch.float32: 0.01, torch.bfloat16: 0.2, torch.float16: 0.05}  # to a witness
Tokens = tuple[int, ...]
Score = Callable[[Tokens, Sequence[Tokens]], Tensor]
Encode = Callable[[Problem], Tokens]


def last_states(scorer: Scorer, prompt: Tokens, answers: Sequence[Tokens]) -> Tensor:
    """The states [R, H] at the last token of every answer, in fp32; the prompt is run once."""
    # What stands after it is predicted from there, and never read.
    rows = [Row(prompt, (*tokens, 0), (), 0.0) for tokens in answers]
    pack = scorer.pack(rows)
    states = scorer.hidden(pack, scorer.trunk(pack)).split([len(row.tokens) for row in rows])
    return torch.stack([states_TH[-1] for states_TH in states]).float()


def scores(model: Any, sequences: Sequence[Tokens]) -> Tensor:
    """What a classifier of one label says [R] of whole sequences.

    It reads the last token that differs from that which it pads with, so that is one that none has."""
    fill = next(n for n in itertools.count() if all(n not in tokens for tokens in sequences))
    rows = [torch.tensor(tokens, device=model.device) for tokens in sequences]
    ids_RT = pad_sequence(rows, batch_first=True, padding_value=fill)
    model.config.get_text_config().pad_token_id = fill
    return model(input_ids=ids_RT, attention_mask=(ids_RT != fill).long()).logits[:, 0].float()


def in_parts(score: Score, prompt: Tokens, answers: Sequence[Tokens]) -> Tensor:
    """The scores [R] of answers, so many at a time as memory holds."""
    try:
        return score(prompt, answers)
    except (RuntimeError, MemoryError) as error:
        machine.require_out_of_memory(error)
        if len(answers) == 1:
            raise UserError("memory ran out while the reward model scored one completion") from None
    machine.drop_caches()
    half = len(answers) // 2
    return torch.cat([in_parts(score, prompt, part) for part in (answers[:half], answers[half:])])


def classifier(place: str, device: torch.device, dtype: torch.dtype, **fresh: int) -> Any:
    """transformers' classifier in a folder; with `num_labels` a fresh head on what lies there."""
    from transformers import AutoModelForSequenceClassification as Classifier

    flags: Any = dict.fromkeys(("local_files_only", "use_safetensors", "output_loading_info"), True)
    try:
        model, info = Classifier.from_pretrained(place, dtype=dtype, **flags, **fresh)
    except FAULTS as error:
        raise UserError.of("no_classifier", at=place, why=" ".join(str(error).split())) from None
    if model.config.num_labels != 1 or (info["missing_keys"] and not fresh):
        raise UserError.of("labels", at=place, config=model.config, no=sorted(info["missing_keys"]))
    return model.eval().to(device)


def beside(folder: Path, policy: Policy, prepared: Prepared) -> Score:
    """Scores by a LoRA beside the layers of a base that others use; UserError where it does not fit."""
    facts, factors = read_object(folder / CONFIG), dict[Any, tuple[Tensor, Tensor]]()
    try:
        if facts["peft_type"] != "LORA" or any(facts.get(name) for name in MORE):
            raise ValueError("only a plain LoRA can score beside a policy")
        held = {k: t.to(policy.device).float() for k, t in load_file(folder / WEIGHTS).items()}
        head_H, scale = held.pop(HEAD).flatten(), facts["lora_alpha"] / facts["r"]
        for name in [k.removesuffix(".lora_A.weight") for k in sorted(held) if "lora_A" in k]:
            layer = inner(policy.model).get_submodule(name.removeprefix(PREFIX))
            layer = getattr(layer, "base_layer", layer)
            down, up = held.pop(f"{name}.lora_A.weight"), held.pop(f"{name}.lora_B.weight")
            if (up.shape[0], down.shape[1]) != (layer.out_features, layer.in_features):
                raise ValueError(f"{name} has other sizes")
            factors[layer] = down, up
        if held:
            raise ValueError(f"there is no place for {min(held)}")
    except FAULTS as error:
        raise UserError(f"{folder} is no reward model for this base: {error}") from None

    def forward(layer: Any, x: Tensor) -> Tensor:
        (down, up), out = factors[layer], type(layer).forward(layer, x)
        low, flat = x.flatten(0, -2).float() @ down.mT, out.flatten(0, -2).float()
        return torch.addmm(flat, low, up.mT, alpha=scale).view(out.shape).to(out.dtype)

    def score(prompt: Tokens, answers: Sequence[Tokens]) -> Tensor:
        with prepared.reference(), replaced(forward, [*factors]):
            return last_states(policy.scorer, prompt, answers) @ head_H

    return score


def opened(
    term: Learned, policy: Policy, prepared: Prepared, base: Identity, encode: Encode
) -> Callable[[Problem, Sequence[Completion]], list[float]]:
    """What `term` gives in a run to all completions of a problem; `encode` makes the prompt.

    UserError where it is for another base, or broken; RunStopped where its witnesses disagree."""
    folder, report, calls = term.file.parent, term.report(), itertools.count()
    dtype = next(policy.model.parameters()).dtype
    if report:  # of tensors in fp32; in another dtype they have another hash
        same = {} if dtype == torch.float32 else {"base_hash": base.hashes["base_hash"]}
        base.require(report["base"] | same, f"{folder} was trained on", "this run")
    if on_base := (folder / CONFIG).is_file():
        score = beside(folder, policy, prepared)
    else:
        model = classifier(str(folder), policy.device, dtype)
        score = lambda prompt, answers: scores(model, [prompt + a for a in answers])  # noqa: E731
    tokenizer: Any = None if on_base or report else read_tokenizer(str(folder))
    middle = report.get("median", 0.0) if term.center is None else term.center

    def chat(question: str, text: str) -> Tokens:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        if not tokenizer.chat_template:
            return tuple(tokenizer(f"{question}\n{text}")["input_ids"])
        return tuple(tokenizer.apply_chat_template(turns, return_dict=False))

    @torch.no_grad()
    def judge(problem: Problem, group: Sequence[Completion]) -> list[float]:
        due = next(calls) % EVERY == 0
        for (_, prompt, *both, _), then in report.get("witness", ()) if due else ():
            now = score(tuple(prompt), [tuple(tokens) for tokens, _ in both])
            if not torch.allclose(now, now.new_tensor(then), CLOSE[dtype], CLOSE[dtype]):
                raise RunStopped.of("witness", folder=folder, now=now.tolist(), then=then)
        if tokenizer:
            found = in_parts(score, (), [chat(problem.question, c.text) for c in group])
        else:
            found = in_parts(score, encode(problem), [c.tokens for c in group])
        return torch.sigmoid(found.double() - middle).tolist()

    return judge
