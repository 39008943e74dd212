"""What a study found, in words, from its numbers: a sentence an arm, a conclusion, notes.

All functions take the mappings of analysis.json. Words keep to what was tested: "not worse
by more than the margin", never "the same"; an arm that is not worse and yet clearly below
the control is said to be both; nothing that was not shown is said to be absent.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modicum.study.inference import ALPHA

Values = Mapping[str, Any]
MATCHES = ("better", "equivalent", "not worse")


def sentence(arm: Values, study: Values) -> str:
    """What one arm showed, with what it cost."""
    return _capital(f"{_words(arm, study)}{_missing(arm, study)}")


def conclusion(study: Values) -> str:
    """One to three sentences over all arms: which match, which lose, what stays open."""
    if not _control(study)["by_seed"]:
        return f"No run of {_control_name(study)} finished, so there is nothing to compare with."
    if not _clear(study):
        better = [arm for arm in study["arms"] if arm["verdict"] == "better"]
        found = f" Better than it: {names(better)}." if better else ""
        return f"Nothing to match: {_control_gain(study)}.{found}"
    arms = [a for a in study["arms"] if a["verdict"] != "control" and not a["placebo"]]
    said = [_matching(arms, study), _losing(arms), _open(arms), _placebos(study)]
    if _single(study):
        said.append("One seed: this speaks of these trained models, not of the methods.")
    return " ".join(filter(None, said))


def notes(study: Values) -> list[str]:
    """What a reader must know before believing the verdicts."""
    found = []
    gain, control = study["control_gain"], _control_name(study)
    if _clear(study) and gain["low"] <= study["margin"]:
        found.append(
            f"The margin ({_size(study['margin'])}) is not smaller than the lower limit of "
            f"{control}'s own gain ({_signed(gain['low'])}): an arm that learned nothing could "
            "pass as not worse."
        )
    if _single(study):
        found.append(
            "Each arm has one seed: intervals are over problems only. They speak of these "
            "trained models, not of the methods."
        )
    stopped = [
        arm for arm in study["arms"] if arm["by_seed"] and len(study["seeds"]) > len(arm["by_seed"])
    ]
    if stopped:
        found.append(
            f"Seeds that stopped are in no number: {names(stopped)}. Where stopping is a "
            "failure of the method, its accuracy is overstated."
        )
    return found


def _words(arm: Values, study: Values) -> str:
    name, verdict = f"`{arm['name']}`", arm["verdict"]
    if verdict == "failed":
        return f"{name} failed: no seed finished ({'; '.join(arm['failed']) or 'no reason kept'})."
    if verdict == "control":
        return f"{name} trains {_costs(arm, with_ratios=False)} and {_gains(arm['gain'])}: the control."
    if arm["placebo"]:
        return f"placebo: {name} {_gains(arm['gain'])}: {_placebo(arm, study)}."
    if arm["difference"] is None:
        return f"{name} trains {_costs(arm)} and is undecided: no seed finished both here and in {_control_name(study)}."
    start = f"{name} trains {_costs(arm)}"
    if not _clear(study) and verdict != "better" and verdict != "worse":
        return (
            f"{start}; there is nothing to match, as {_control_gain(study)} {_found(arm, study)}."
        )
    return f"{start} and {CLAIMS[verdict](arm, study)}."


def _within(arm: Values, study: Values, claim: str, by: str) -> str:
    margin = f"{_size(study['margin'])}{_though(arm)}"
    return f"is {claim} {_control_name(study)} {by} {margin} {_found(arm, study)}"


def _worse(arm: Values, study: Values) -> str:
    far = arm["difference"]["high95"] < -study["margin"]
    by = f" by more than {_size(study['margin'])}" if far else ""
    return f"is worse than {_control_name(study)}{by} {_found(arm, study, 95)}"


def _undecided(arm: Values, study: Values) -> str:
    start = f"is undecided against {_control_name(study)} {_found(arm, study)}"
    if alone := _alone(arm):
        start += f": {alone} alone, but not after Holm's adjustment for all arms"
    needed = arm["seeds_needed"]
    if needed:
        return f"{start}; would need about {needed} seeds"
    if len(_paired(arm, study)) < 2:
        return f"{start}; one seed cannot say how many would settle it"
    return f"{start}; more seeds alone are not expected to settle it, more problems might"


CLAIMS: dict[str, Callable[[Values, Values], str]] = {
    "better": lambda arm, study: f"is better than {_control_name(study)} {_found(arm, study, 95)}",
    "equivalent": lambda arm, study: _within(arm, study, "equivalent to", "within"),
    "not worse": lambda arm, study: _within(arm, study, "not worse than", "by more than"),
    "worse": _worse,
    "undecided": _undecided,
}


def _though(arm: Values) -> str:
    """For an arm within the margin whose 95 % interval lies wholly on one side of 0."""
    found = arm["difference"]
    if found["high95"] < 0:
        return f", though below it by {_size(-found['mean'])}"
    return f", and above it by {_size(found['mean'])}" if found["low95"] > 0 else ""


def _alone(arm: Values) -> str:
    """The first claim that only Holm's adjustment took from an arm."""
    claims = {"superior": "better", "noninferior": "not worse", "inferior": "worse"}
    for test, claim in claims.items():
        if arm["tests"] and arm["tests"][test]["p"] <= ALPHA < arm["tests"][test]["holm"]:
            return claim
    return ""


def _placebo(arm: Values, study: Values) -> str:
    gain, margin = arm["gain"], study["margin"]
    if gain["low"] > 0:
        return "a warning, since gains of the other arms need not come from their reward"
    if gain["high"] < 0:
        return "training as such lowers accuracy"
    if gain["high"] < margin:
        return f"no gain of {_size(margin)} from training as such"
    return f"no clear gain from training as such, though {_size(gain['high'])} are possible"


def _matching(arms: Sequence[Values], study: Values) -> str:
    claim = f"not worse than {_control_name(study)} by more than {_size(study['margin'])}"
    found = [arm for arm in arms if arm["verdict"] in MATCHES]
    if not arms:
        return ""
    if not found and len(arms) == 1:
        return f"{names(arms)} was not shown to be {claim}."
    if not found:
        return f"None of {len(arms)} arms was shown to be {claim}."
    better = [arm for arm in found if arm["verdict"] == "better"]
    more = f"; better than it: {names(better)}" if better else ""
    least = min(found, key=lambda arm: arm["cost"]["share"])
    trains = f"trains {_percent(least['cost']['share'])} of the parameters"
    if len(found) == 1:
        return f"{names(found)} is {claim}, and {trains}{more}."
    smallest = f"the smallest of them, `{least['name']}`, {trains}"
    return f"{len(found)} of {len(arms)} arms are {claim}: {names(found)}{more}; {smallest}."


def _losing(arms: Sequence[Values]) -> str:
    found = sorted(
        (arm for arm in arms if arm["verdict"] == "worse"),
        key=lambda arm: arm["difference"]["mean"],
    )
    listed = ", ".join(f"`{a['name']}` ({_signed(a['difference']['mean'])})" for a in found)
    return f"Clearly worse: {listed}." if found else ""


def _open(arms: Sequence[Values]) -> str:
    groups = [
        (word, [arm for arm in arms if arm["verdict"] == word]) for word in ("undecided", "failed")
    ]
    said = [f"{word}: {names(found)}" for word, found in groups if found]
    return f"{_capital('; '.join(said))}." if said else ""


def _placebos(study: Values) -> str:
    found = [arm for arm in study["arms"] if arm["verdict"] == "placebo gains"]
    return f"Warning: placebos gain too ({names(found)})." if found else ""


def _found(arm: Values, study: Values, level: int = 90) -> str:
    values, paired = arm["difference"], len(_paired(arm, study))
    seeds = f"{paired} seed{'' if paired == 1 else 's'}"
    limits = f"{level} % interval {_span(values[f'low{level}'], values[f'high{level}'])}"
    return f"(difference {_signed(values['mean'], '')}, {limits}, {seeds})"


def _costs(arm: Values, with_ratios: bool = True) -> str:
    cost = arm["cost"]
    text = f"{_percent(cost['share'])} of the parameters"
    ratios = [(cost["time_ratio"], "the time"), (cost["memory_ratio"], "the peak memory")]
    said = [f"{ratio:.2f} x {what}" for ratio, what in ratios if ratio is not None]
    return f"{text} at {' and '.join(said)}" if said and with_ratios else text


def _gains(gain: Values) -> str:
    interval = f"(95 % interval {_span(gain['low'], gain['high'])})"
    if round(100 * gain["mean"], 1) < 0:
        return f"ends {_size(-gain['mean'])} below the base {interval}"
    return f"gains {_signed(gain['mean'])} over the base {interval}"


def _control_gain(study: Values) -> str:
    gain = study["control_gain"]
    how = "which is a loss" if gain["high"] < 0 else "which is not clear"
    return f"{_control_name(study)} itself {_gains(gain)}, {how}"


def _missing(arm: Values, study: Values) -> str:
    """A sentence about seeds that did not finish, and about a single one."""
    done, planned = len(arm["by_seed"]), len(study["seeds"])
    text = ""
    if 0 < done < planned:
        text = (
            f" {planned - done} of its {planned} seeds did not finish and are not in these numbers."
        )
    if done == 1:
        text += " One seed: this speaks of this trained model, not of the method."
    return text


def _control(study: Values) -> Values:
    return next(arm for arm in study["arms"] if arm["name"] == study["control"])


def _control_name(study: Values) -> str:
    return f"`{study['control']}`"


def _clear(study: Values) -> bool:
    gain = study["control_gain"]
    return gain is not None and gain["low"] > 0


def _single(study: Values) -> bool:
    return max(len(arm["by_seed"]) for arm in study["arms"]) == 1


def _paired(arm: Values, study: Values) -> set[str]:
    return set(arm["by_seed"]) & set(_control(study)["by_seed"])


def names(arms: Sequence[Values]) -> str:
    """The arms' names as code, in a row."""
    return ", ".join(f"`{arm['name']}`" for arm in arms)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _percent(share: float) -> str:
    digits = 1 if share >= 0.001 else 3
    return f"{100 * share:.{digits}f} %"


def _signed(value: float, unit: str = " points") -> str:
    """Points with their sign; a value that rounds to 0 has none."""
    text = f"{100 * value:+.1f}"
    return f"{'0.0' if float(text) == 0 else text}{unit}"


def _span(low: float, high: float) -> str:
    return f"{_signed(low, '')} to {_signed(high, '')}"


def _size(value: float) -> str:
    """A number of points without a sign, and without a needless decimal."""
    text = f"{100 * value:.1f}".removesuffix(".0")
    return f"{text} point{'' if text == '1' else 's'}"
