"""modicum.study.analysis: what is said, and that it says no more than was tested."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from modicum.study import analysis
from modicum.study.analysis import compare
from modicum.study.design import Allowance, Study, Tuning

Values = dict[str, Any]


def sentence(arm: Values, study: Values) -> str:
    return "".join(analysis.said("sentence", arm, study))


def conclusion(study: Values) -> str:
    return "".join(analysis.said("conclusion", study))


def notes(study: Values) -> list[str]:
    return analysis.said("notes", study)


COST = {"parameters": 100, "share": 0.246, "time_ratio": 0.41, "memory_ratio": 0.38}


def band(low: float, mean: float, high: float) -> Values:
    return {"mean": mean, "low": low, "high": high}


def an_arm(
    name: str, verdict: str, mean: float = -0.004, half: float = 0.009, **more: Any
) -> Values:
    wide = 1.2 * half
    limits = {
        "low90": mean - half,
        "high90": mean + half,
        "low95": mean - wide,
        "high95": mean + wide,
    }
    claim = {"p": 0.5, "holm": 0.5, "holds": False}
    return {
        "name": name,
        "verdict": verdict,
        "placebo": verdict.startswith("placebo"),
        "by_seed": {str(seed): 0.8 for seed in range(5)},
        "gain": band(0.3, 0.4, 0.5),
        "difference": None if verdict in ("control", "failed") else {"mean": mean, **limits},
        "tests": dict.fromkeys(("noninferior", "superior", "equivalent", "inferior"), claim),
        "seeds_needed": None,
        "cost": COST,
        "failed": [],
        **more,
    }  # fmt: skip


def a_study(*arms: Values, **more: Any) -> Values:
    return {
        "control": "full",
        "margin": 0.02,
        "seeds": [0, 1, 2, 3, 4],
        "control_gain": band(0.5, 0.547, 0.6),
        "arms": [an_arm("full", "control", cost={**COST, "share": 1.0}), *arms],
        **more,
    }


def said(arm: Values, **more: Any) -> str:
    return sentence(arm, a_study(arm, **more))


def test_not_worse() -> None:
    arm = an_arm("last(1)", "not worse")
    assert said(arm) == (
        "`last(1)` trains 24.6 % of the parameters at 0.41 x the time and 0.38 x the peak memory "
        "and is not worse than `full` by more than 2 points "
        "(difference −0.4, 90 % interval −1.3 to +0.5, 5 seeds)."
    )


def test_not_worse_and_yet_below_says_both() -> None:
    words = said(an_arm("a", "not worse", mean=-0.011, half=0.005))
    assert "not worse than `full` by more than 2 points, though below it by 1.1 points (" in words
    words = said(an_arm("a", "equivalent", mean=0.01, half=0.005))
    assert "equivalent to `full` within 2 points, and above it by 1 point (" in words


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (
            an_arm("a", "better", mean=0.03, half=0.01),
            "is better than `full` (difference +3.0, 95 % interval +1.8 to +4.2, 5 seeds).",
        ),
        (
            an_arm("a", "worse", mean=-0.02, half=0.01),
            "is worse than `full` (difference −2.0, 95 % interval −3.2 to −0.8, 5 seeds).",
        ),
        (
            an_arm("a", "worse", mean=-0.2, half=0.01),
            "is worse than `full` by more than 2 points (difference −20.0, "
            "95 % interval −21.2 to −18.8, 5 seeds).",
        ),
        (an_arm("a", "undecided", seeds_needed=9), "5 seeds); would need about 9 seeds."),
        (an_arm("a", "undecided"), "more seeds alone are not expected to settle it"),
    ],
)
def test_other_claims(arm: Values, words: str) -> None:
    assert words in said(arm)


def test_what_only_holm_took_is_said() -> None:
    arm = an_arm("a", "undecided", seeds_needed=7)
    arm["tests"] = {**arm["tests"], "noninferior": {"p": 0.03, "holm": 0.3, "holds": False}}
    assert (
        "5 seeds): not worse alone, but not after Holm's adjustment for all arms; would need "
        "about 7 seeds." in said(arm)
    )


def test_ratios_that_do_not_exist_are_left_out() -> None:
    cost = {"parameters": 10, "share": 0.00012, "time_ratio": None, "memory_ratio": None}
    words = said(an_arm("a", "equivalent", cost=cost))
    assert words.startswith("`a` trains 0.012 % of the parameters and is equivalent")


def test_zero_has_no_sign() -> None:
    assert "(difference 0.0, " in said(an_arm("a", "equivalent", mean=-0.0001))


def test_the_control() -> None:
    arm = an_arm("full", "control", cost={**COST, "share": 1.0}, gain=band(0.5, 0.547, 0.6))
    assert said(arm) == (
        "`full` trains 100.0 % of the parameters and gains +54.7 points over the base "
        "(95 % interval +50.0 to +60.0): the control."
    )


@pytest.mark.parametrize(
    ("gain", "moved", "words"),
    [
        (
            (-0.005, 0.003, 0.011),
            "gains +0.3 points over the base",
            "no gain of 2 points from training as such",
        ),
        (
            (-0.02, 0.003, 0.04),
            "gains +0.3 points over the base",
            "no clear gain from training as such, though 4 points are possible",
        ),
        (
            (0.001, 0.01, 0.015),
            "gains +1.0 points over the base",
            "a warning, since gains of the other arms need not come from",
        ),
        (
            (-0.3, -0.2, -0.1),
            "ends 20 points below the base",
            "training as such lowers accuracy",
        ),
    ],
)
def test_placebos(gain: tuple[float, float, float], moved: str, words: str) -> None:
    arm = an_arm("random", "placebo", gain=band(*gain))
    assert words in said(arm)
    assert said(arm).startswith(f"Placebo: `random` {moved} (95 % interval ")


def test_failed_arms_and_failed_seeds() -> None:
    gone = an_arm("a", "failed", by_seed={}, failed=["seed 0: the loss was not finite"])
    assert said(gone) == "`a` failed: no seed finished (seed 0: the loss was not finite)."
    part = an_arm("a", "not worse", by_seed={"0": 0.9, "3": 0.8})
    assert said(part).endswith(
        "2 seeds). 3 of its 5 seeds did not finish and are not in these numbers."
    )
    assert any("stopped are in no number: `a`" in note for note in notes(a_study(part)))


def test_one_seed_speaks_of_the_trained_models() -> None:
    arm = an_arm("a", "undecided", by_seed={"0": 0.9})
    study = a_study(arm, seeds=[0])
    study["arms"][0]["by_seed"] = {"0": 0.9}
    assert "1 seed); one seed cannot say how many" in sentence(arm, study)
    assert sentence(arm, study).endswith("this speaks of this trained model, not of the method.")
    assert conclusion(study).endswith("this speaks of these trained models, not of the methods.")
    assert any("over problems only" in note for note in notes(study))


def test_nothing_to_match() -> None:
    unclear = band(-0.01, 0.004, 0.02)
    study = a_study(an_arm("a", "undecided"), control_gain=unclear)
    assert conclusion(study) == (
        "Nothing to match: `full` itself gains +0.4 points over the base "
        "(95 % interval −1.0 to +2.0), which is not clear."
    )
    assert "; there is nothing to match, as `full` itself gains" in sentence(
        study["arms"][1], study
    )
    study = a_study(an_arm("b", "better"), control_gain=unclear)
    assert conclusion(study).endswith("Better than it: `b`.")


def test_a_margin_as_large_as_the_gain_is_noted() -> None:
    assert notes(a_study(an_arm("a", "not worse"))) == []
    found = notes(a_study(an_arm("a", "not worse"), control_gain=band(0.01, 0.03, 0.05)))
    assert any("an arm that learned nothing could pass" in note for note in found)


def test_what_the_design_must_own_up_to() -> None:
    cost = {**COST, "generated_tokens": 94.0}
    tries = [{"failed": ""}, {"failed": "the loss was not finite"}]
    arm = an_arm("a", "not worse", cost=cost, tries=tries, rate_at_edge=True)
    study = a_study(arm)
    study["arms"][0].update(tries=[], rate_at_edge=False, cost={**cost, "generated_tokens": 96.0})
    tuning = Tuning(share=0.5)
    design = Study("?", ("full", "a"), budget=Allowance(amount=100), tuning=tuning)
    assert analysis.said("of_design", study["arms"], design, "generated_tokens") == [
        "The best rate of `a` lies at the edge of its tries: a further one may be better.",
        "Tries of `a` failed.",
        "`a` ran out of steps (1000) before the budget was spent.",
        "Tries had 0.5 of a run's budget: short ones prefer high rates.",
    ]
    two = a_study(arm, {**arm, "name": "b"})
    two["arms"][0] = study["arms"][0]
    assert "Tries of `a`, `b` failed." in analysis.said(
        "of_design", two["arms"], design, "generated_tokens"
    )


def test_the_conclusion() -> None:
    small = {**COST, "parameters": 7, "share": 0.002}
    study = a_study(
        an_arm("last(1)", "not worse"),
        an_arm("lntuning", "equivalent", cost=small),
        an_arm("lora", "better", mean=0.05),
        an_arm("sgd", "worse", mean=-0.05),
        an_arm("badam", "worse", mean=-0.2),
        an_arm("lisa", "undecided"),
        an_arm("oft", "failed", by_seed={}),
        an_arm("random", "placebo gains"),
    )
    assert conclusion(study) == (
        "`lora` (+5.0 points) is better than `full`. `last(1)` (−0.4 points) and `lntuning` "
        "(−0.4) are not worse than `full` by more than 2 points. The smallest of them, "
        "`lntuning`, trains 0.2 % of the parameters. Worse: `badam` (−20.0 points) and `sgd` (−5.0). "
        "Undecided: `lisa`; failed: `oft`. Warning: placebos gain too (`random`)."
    )


def test_many_arms_that_match_nothing_are_counted() -> None:
    worse = [an_arm(f"w{n}", "worse", mean=-0.1 * n) for n in range(1, 6)]
    study = a_study(*worse, *(an_arm(f"u{n}", "undecided") for n in range(5)))
    assert conclusion(study) == (
        "None of 10 arms was shown to be not worse than `full` by more than 2 points. "
        "5 arms are worse, most `w5` (−50.0 points). 5 arms are undecided."
    )


def test_of_arms_that_train_alike_none_is_the_smallest() -> None:
    """As where curricula or losses are compared."""
    study = a_study(an_arm("dapo", "not worse"), an_arm("rloo", "better", mean=0.05))
    assert conclusion(study) == (
        "`rloo` (+5.0 points) is better than `full`. `dapo` (−0.4 points) is not worse than "
        "`full` by more than 2 points."
    )


def test_the_conclusion_where_nothing_was_shown() -> None:
    assert conclusion(a_study(an_arm("a", "undecided"))) == (
        "`a` was not shown to be not worse than `full` by more than 2 points. Undecided: `a`."
    )
    two = a_study(an_arm("a", "undecided"), an_arm("b", "undecided"))
    assert conclusion(two).startswith("None of 2 arms was shown to be not worse than")
    one = a_study(an_arm("a", "not worse"), an_arm("b", "undecided"))
    assert conclusion(one) == (
        "`a` (−0.4 points) is not worse than `full` by more than 2 points. It trains 24.6 % of the "
        "parameters. "
        "Undecided: `b`."
    )
    study = a_study(an_arm("a", "undecided"))
    study["arms"][0].update(by_seed={}, verdict="failed")
    assert conclusion(study).startswith("No run of `full` finished")


def test_words_from_a_comparison() -> None:
    rng = np.random.default_rng(0)
    base = np.tile([0.2, 0.3], 50)
    noise = rng.normal(0, 0.02, (4, 6, 100)).clip(-0.1, 0.1)
    levels = {"full": 0.4, "level": 0.4, "low": 0.1, "random": 0.0}
    scores = {
        name: dict(enumerate(base + gain + noise[place]))
        for place, (name, gain) in enumerate(levels.items())
    }
    found = compare(scores, "full", base, 0.02, rng, placebos=["random"])
    arms = [
        {**asdict(one), "placebo": name == "random", "cost": COST, "failed": []}
        for name, one in found.items()
    ]
    study = {**a_study(), "arms": arms, "control_gain": arms[0]["gain"], "seeds": list(range(6))}
    words = [sentence(arm, study) for arm in arms]
    assert [one.count("6 seeds") for one in words] == [0, 1, 1, 0]
    assert "is equivalent to" in words[1] and "is worse than `full` by more than" in words[2]
    assert words[3].startswith("Placebo: `random` ")
    text = " ".join([*words, conclusion(study)])
    assert not re.search(r"\bsame\b|significan|nan|None", text.replace("None of", ""))
