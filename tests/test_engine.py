"""The sampling distribution, its noise, log-probs of completions, and prompts."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from cases import load
from conftest import FAMILIES, random_model
from helpers import engine_of
from modicum.config import Sampling
from modicum.engine import sampling as drawing
from modicum.engine.logprobs import logprobs
from modicum.engine.sampling import choose, distribution, noise, token_logprobs
from modicum.types import Problem, Row

CUTS = [Sampling(temperature=0.7), Sampling(temperature=0.7, top_k=20, top_p=0.9)]
PROBLEM = Problem("add-7", "one plus two", "3")


@cache
def model_of(family: str) -> Any:
    return random_model(family)


@cache
def gemma2() -> Any:
    """A gemma2 whose caps on attention scores and logits both bite."""
    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "sliding_window": 8,
        "final_logit_softcapping": 1.5,
        "attn_logit_softcapping": 2.0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **sizes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.5)
    return model.eval()


def cut(logits: list[float], sampling: Sampling) -> list[float]:
    """Log-probs of one row, by the definition and in plain Python."""
    scaled = [value / sampling.temperature for value in logits]
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    order = order[: sampling.top_k or None]
    mass = sum(math.exp(scaled[token]) for token in order)
    kept, seen = [], 0.0
    for token in order:
        if sampling.top_p == 1 or seen < sampling.top_p - 1e-6:
            kept.append(token)
        seen += math.exp(scaled[token]) / mass
    mass = sum(math.exp(scaled[token]) for token in kept)
    return [s - math.log(mass) if t in kept else -math.inf for t, s in enumerate(scaled)]


def plain(model: Any, row: Row, sampling: Sampling) -> Tensor:
    """Log-probs [T, V] of a row's completion from the library's whole forward, uncut."""
    logits = model(input_ids=torch.tensor([row.prompt + row.tokens])).logits[0].float()
    start = len(row.prompt) - 1
    return (logits[start : start + len(row.tokens)] / sampling.temperature).log_softmax(-1)


def rows_of(*lengths: tuple[int, int], vocabulary: int = 282) -> list[Row]:
    """Rows of random tokens, with (prompt, completion) as long as given."""
    draw = np.random.default_rng(0)
    made = [[tuple(map(int, draw.integers(2, vocabulary, n))) for n in sizes] for sizes in lengths]
    return [Row(p, t, (-1.0,) * len(t), 1.0) for p, t in made]


ROWS = rows_of((5, 4), (2, 9), (7, 1))

# Distribution ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", load("logprob"))
def test_temperature_cases(case: dict[str, Any]) -> None:
    given = case["input"]
    logits = torch.tensor([given["logits"]], dtype=torch.float)
    found = distribution(logits, Sampling(temperature=given["temperature"]))[0, given["token"]]
    assert found.item() == pytest.approx(case["expected"], abs=case["tol"])


def test_top_p_case() -> None:
    (case,) = load("topp_logprob")
    given = case["input"]
    found = distribution(torch.tensor([given["probs"]]).log(), Sampling(top_p=given["top_p"]))[0]
    assert found[given["token"]].item() == pytest.approx(case["expected"], abs=case["tol"])
    assert found[2] == -math.inf


@pytest.mark.parametrize(
    "sampling",
    [Sampling(top_k=3), Sampling(top_p=0.6), Sampling(top_k=4, top_p=0.5, temperature=1.7), *CUTS],
)
def test_distribution_follows_its_definition(sampling: Sampling) -> None:
    logits = 2 * torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    wanted = torch.tensor([cut(row, sampling) for row in logits.tolist()])
    found = distribution(logits, sampling)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(5))


def test_low_and_zero_temperature_give_no_nan() -> None:
    """OFF-02: at 0 the caller takes the maximum, of the distribution at 1."""
    logits = torch.tensor([[3.0, 1.0, -2.0]])
    assert torch.equal(distribution(logits, Sampling(temperature=0.0)), logits.log_softmax(-1))
    assert distribution(logits, Sampling(temperature=0.001)).exp().tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("top_p", [1e-5, 1e-6, 1e-7, 1e-30, 5e-324])
def test_the_most_probable_token_stays_whatever_top_p_is(top_p: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 0.5], [0.0, 0.0, 0.0]])
    for top_k in (0, 1, 2, 99):
        found = distribution(logits, Sampling(top_p=top_p, top_k=top_k))
        assert found.exp().tolist() == [[0, 1, 0], [1, 0, 0]]
    # Under the trainer's cut, the sampled token stays beside it: 1 / (1 + e^2) = 0.1192.
    found, _ = token_logprobs(logits[:1], torch.tensor([0]), Sampling(top_p=top_p))
    assert found.exp().item() == pytest.approx(0.119203, abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-30, 1e-37, 1e-45, 5e-324])
def test_a_temperature_near_0_is_greedy(temperature: float) -> None:
    """Logits over it overflow fp32; a tie stays one; a token without a chance keeps none."""
    logits = torch.tensor([[300.0, 1.0, -2.0], [-9.0, -8.0, -8.0], [-math.inf, 0.0, -math.inf]])
    for cuts in ({}, {"top_k": 2}, {"top_p": 0.99999994}, {"top_p": 1e-9, "top_k": 7}):
        found = distribution(logits, Sampling(temperature=temperature, **cuts)).exp().tolist()
        assert found[0] == [1, 0, 0] and found[2] == [0, 1, 0]
        assert found[1] == pytest.approx([0, 1, 0] if cuts.get("top_p") == 1e-9 else [0, 0.5, 0.5])
        tokens = torch.tensor([0, 1, 1])
        held, entropy = token_logprobs(
            logits.requires_grad_(), tokens, Sampling(temperature=temperature, **cuts)
        )
        assert held.exp().tolist() == pytest.approx([1, found[1][1], 1])
        assert entropy.isfinite().all()
        (slope,) = torch.autograd.grad(held.sum(), logits)
        assert not slope.isnan().any()


@pytest.mark.parametrize("cuts", [{"top_k": 1}, {"top_k": 10**9}, {"top_p": 1e-7}])
def test_a_vocabulary_of_one_token(cuts: dict[str, Any]) -> None:
    assert distribution(torch.tensor([[-7.0]]), Sampling(**cuts)).tolist() == [[0.0]]


def test_a_token_without_a_chance_leaves_the_entropy_a_number() -> None:
    found, entropy = token_logprobs(
        torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([1]), Sampling()
    )
    assert [found.item(), entropy.item()] == pytest.approx([-math.log(2), math.log(2)])


def test_a_kept_token_stays_in_the_cut() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]] * 2).log()
    found = distribution(logits, Sampling(top_k=1), keep_B=torch.tensor([0, 2])).exp()
    torch.testing.assert_close(found, torch.tensor([[1.0, 0, 0], [0.5 / 0.7, 0, 0.2 / 0.7]]))


# Noise and choice ------------------------------------------------------------------------


def test_noise_depends_on_every_part_of_its_key() -> None:
    keys: list[tuple[object, ...]] = [("train", 1, 23, 4, 5), ("test", 1, 23, 4, 5)]
    keys += [("train", 2, 23, 4, 5), ("train", 12, 3, 4, 5), ("train", 1, 23, 4, 6)]
    keys += [("train", 1, 23, 0, 5), ("train", 1, 23, 45)]
    tables = [noise(key, 16) for key in keys]
    assert len({table.tobytes() for table in tables}) == len(keys)
    for key, table in zip(keys, tables, strict=True):
        assert np.array_equal(noise(key, 16), table)
        assert np.array_equal(noise(key, 9), table[:9]), "a longer table begins like a shorter"
        assert table.dtype == np.float32 and (table >= 0).all() and (table < 1).all()


def test_noise_is_the_same_everywhere() -> None:
    """The first uniforms of one key, written down: no process or version changes them."""
    found = noise(("train", 0, 0, 0, 0), 1000)
    assert found[:3].tolist() == pytest.approx([0.66545194, 0.82413054, 0.41954362])
    assert abs(found.mean() - 0.5) < 4 * math.sqrt(1 / 12 / 1000)


def test_choice_follows_the_probabilities() -> None:
    probs = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    uniforms = torch.from_numpy(noise(("choose",), 4000))
    tokens = choose(probs.log().expand(4000, -1), uniforms, greedy=False)
    share = torch.bincount(tokens, minlength=7) / 4000
    assert not share[probs == 0].any()
    assert ((share - probs).abs() <= 4 * (probs * (1 - probs) / 4000).sqrt()).all()


def test_choice_never_takes_a_token_of_probability_0() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.75, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    for uniform, wanted in (
        (0.0, [1, 0, 3]),
        (0.25, [2, 0, 3]),
        (0.99999994, [2, 0, 3]),
        (1.0, [2, 0, 3]),
    ):
        found = choose(probs.log(), torch.full((3,), uniform), greedy=False)
        assert found.tolist() == wanted, uniform


@pytest.mark.parametrize("seed", range(3))
def test_choice_at_the_ends_of_a_large_vocabulary(seed: int) -> None:
    """Cumulative sums over many tokens end beside 1; the ends still fall on kept tokens."""
    logits = 3 * torch.randn(4, 50_000, generator=torch.Generator().manual_seed(seed))
    found = distribution(logits, Sampling(top_k=50))
    for uniform in (0.0, 0.5, 0.99999994):
        tokens = choose(found, torch.full((4,), uniform), greedy=False)
        assert found.gather(1, tokens[:, None]).isfinite().all()


def test_choice_in_blocks_is_the_same_choice() -> None:
    """But for the last bits of running sums, and never a token of probability 0."""
    draw = torch.Generator().manual_seed(0)
    found = distribution(3 * torch.randn(500, 5000, generator=draw), Sampling(top_k=300))
    uniforms = torch.from_numpy(noise(("blocks",), 500))
    uniforms[:3] = torch.tensor([0.0, 0.99999994, 1.0])
    tokens = drawing.choose_in_blocks(found.exp(), uniforms)
    assert (tokens == choose(found, uniforms, greedy=False)).float().mean() > 0.99
    assert found.gather(1, tokens[:, None]).isfinite().all()
    sure = torch.zeros(3, 2000)
    for row, place in enumerate((0, 511, 1999)):
        sure[row, place] = 1.0
    for uniform in (0.0, 0.5, 1.0):
        places = drawing.choose_in_blocks(sure, torch.full((3,), uniform))
        assert places.tolist() == [0, 511, 1999]
    # As `cumulative` has it where there is a GPU.
    x_BV = found.exp()
    x_BKS = drawing.blocks_of(x_BV)
    sums_BK = x_BKS.sum(-1)
    whole = drawing.running(x_BKS) + (drawing.running(sums_BK) - sums_BK)[..., None]
    torch.testing.assert_close(whole.flatten(-2)[:, :5000], x_BV.cumsum(-1))


def test_greedy_choice_takes_the_most_probable() -> None:
    logprobs_BV = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]).log()
    assert choose(logprobs_BV, torch.tensor([0.99, 0.99]), greedy=True).tolist() == [1, 0]


@pytest.fixture(params=["split", "library"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# Log-probs -------------------------------------------------------------------------------


def gradient(model: Any, values: Tensor) -> dict[str, Tensor]:
    """Gradients of a sum of log-probs in which each has a weight of its own."""
    model.zero_grad(set_to_none=True)
    (values * torch.linspace(-1, 2, len(values))).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_the_plain_forward(family: str, kind: str) -> None:
    model, sampling = random_model(family), Sampling(temperature=0.7)
    wanted = torch.cat(
        [
            plain(model, row, sampling).gather(1, torch.tensor(row.tokens)[:, None])[:, 0]
            for row in ROWS
        ]
    )
    found, _ = logprobs(engine_of(model, kind), ROWS, sampling)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    expected, actual = gradient(model, wanted), gradient(model, found)
    assert actual.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, wanted in expected.items():
        assert (actual[name] - wanted).norm() < 1e-5 * wanted.norm(), name


@pytest.mark.parametrize("sampling", CUTS)
def test_chunks_change_neither_values_nor_gradients(
    sampling: Sampling, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("qwen2")
    whole, entropy = logprobs(engine_of(model, kind), ROWS, sampling)
    expected = gradient(model, whole)
    monkeypatch.setattr("modicum.engine.logprobs.CHUNK_BYTES", 3 * 4 * 282)
    parts, entropy_parts = logprobs(engine_of(model, kind), ROWS, sampling)
    torch.testing.assert_close((parts, entropy_parts), (whole, entropy), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient(model, parts), expected, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr("modicum.engine.logprobs.CHUNK_BYTES", 1)
    with torch.no_grad():
        single = logprobs(engine_of(model, kind), ROWS, sampling)[0]
    torch.testing.assert_close(single, whole.detach(), atol=1e-6, rtol=1e-6)


def test_padding_changes_nothing(kind: str) -> None:
    model, sampling = model_of("llama"), Sampling()
    with torch.no_grad():
        alone = torch.cat([logprobs(engine_of(model, kind), [row], sampling)[0] for row in ROWS])
        longer = logprobs(engine_of(model, kind), [*ROWS, *rows_of((20, 19))], sampling)[0][
            : len(alone)
        ]
    torch.testing.assert_close(longer, alone, atol=1e-5, rtol=1e-5)


class Body(nn.Embedding):
    """States that are the tokens themselves."""

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:  # type: ignore[override]
        return SimpleNamespace(last_hidden_state=super().forward(input_ids))


class Bigram(nn.Module):
    """A model with a known table of next-token probabilities."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.device = table.device
        self.body = Body.from_pretrained(torch.eye(len(table)))
        self.head = nn.Linear(len(table), len(table), bias=False)
        self.head.weight.data = table.log().T.contiguous()
        config = SimpleNamespace(vocab_size=len(table))
        self.config = SimpleNamespace(get_text_config=lambda: config)

    def get_decoder(self) -> nn.Module:
        return self.body

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        states = self.body(input_ids=input_ids, use_cache=use_cache).last_hidden_state
        return SimpleNamespace(logits=self.head(states))

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_every_token_is_scored_by_the_state_before_it() -> None:
    """MASK-04: prompt [1], completion [2, 3] gives log P(2|1), log P(3|2), nothing else."""
    table = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    rows = [Row((1,), (2, 3), (0.0, 0.0), 1.0), Row((4, 0, 2), (1,), (0.0,), 1.0)]
    found, entropy = logprobs(engine_of(Bigram(table), "library"), rows, Sampling())
    wanted = torch.stack([table[1, 2], table[2, 3], table[2, 1]]).log()
    torch.testing.assert_close(found.detach(), wanted)
    by_hand = -(table * table.log()).sum(-1)[[1, 2, 2]]
    torch.testing.assert_close(entropy, by_hand)


@pytest.mark.parametrize("sampling", CUTS)
def test_entropy_is_that_of_the_sampling_distribution(sampling: Sampling, kind: str) -> None:
    """Compared where the sampled token lies inside the cut, so that it changes nothing."""
    model, row = model_of("qwen3"), ROWS[1]
    with torch.no_grad():
        best = plain(model, row, sampling)[:1].argmax().item()
        row = Row(row.prompt, (int(best),), (0.0,), 1.0)
        found, entropy = logprobs(engine_of(model, kind), [row], sampling)
        wanted = cut((plain(model, row, sampling)[0] * sampling.temperature).tolist(), sampling)
    assert found.item() == pytest.approx(wanted[int(best)], abs=1e-5)
    assert entropy.item() == pytest.approx(
        -sum(math.exp(w) * w for w in wanted if w > -math.inf), abs=1e-4
    )
    assert not entropy.requires_grad


def test_softcapped_logits_are_honoured(kind: str) -> None:
    model, rows = gemma2(), rows_of((5, 9), (3, 12), vocabulary=60)
    found, _ = logprobs(engine_of(model, kind), rows, Sampling())
    wanted = torch.cat(
        [
            plain(model, row, Sampling()).gather(1, torch.tensor(row.tokens)[:, None])[:, 0]
            for row in rows
        ]
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    # With a cap of 1.5 no two logits are further apart than 3.
    assert found.min() > -math.log(60) - 3
