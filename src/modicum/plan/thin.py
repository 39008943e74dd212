"""A few layers of each kind in the place of many, and back: a plan's cost without its layers.

A model with few layers of each `Stretch` is traced, and for each stretch once more with one
repetition more: what the fullest moment of a place (before the layers, in the lowest and in the
highest of a stretch, after them) has grown by is what every further one adds. docs/plan.md
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modicum.engine import logprobs
from modicum.models.decoder import view
from modicum.models.linear import meanwhile
from modicum.plan.live import META, Live, Peaks
from modicum.updates.base import Prepared
from modicum.updates.layout import layer_of

MOST_PERIOD = 8  # layers of the longest pattern that is looked for


class Stretch(NamedTuple):
    """Layers from `start` that repeat a pattern of `period` layers `count` times."""

    start: int
    period: int
    count: int


def stretches(prepared: Prepared, layers: int) -> list[Stretch]:
    """The layers of a model in stretches, by their shapes, types, and what of them trains now."""
    kinds: list[list[Any]] = [[] for _ in range(layers)]
    for name, parameter in prepared.model.named_parameters():
        layer = layer_of(name)
        if layer is not None and layer < layers:
            rest = name.split(f".{layer}.", 1)[-1]
            size = prepared.schedule.size(name, parameter) if name in prepared.active else 0
            kinds[layer].append((rest, tuple(parameter.shape), parameter.dtype, size))
    types = getattr(prepared.model.config.get_text_config(), "layer_types", None)  # type: ignore[operator, union-attr]
    marks = [(*kind, types[at] if types else "") for at, kind in enumerate(kinds)]
    found, start = [], 0
    while start < layers:
        best = Stretch(start, 1, 1)
        for period in range(1, MOST_PERIOD + 1):
            count = 1
            while marks[start : start + period] == marks[start + count * period :][:period]:
                count += 1
            if count > 1 and period * count > best.period * best.count:
                best = Stretch(start, period, count)
        found.append(best)
        start += best.period * best.count
    return found


def fewest(found: Sequence[Stretch]) -> list[list[int]]:
    """How often each stretch is repeated in each trace: first at least, then each once more."""
    # The lowest layer's input is the embedding's output, which is held beside the others' inputs.
    base = [min(s.count, 1 + (at == 0)) for at, s in enumerate(found)]
    more = [at for at, s in enumerate(found) if s.count > base[at]]
    return [base, *([n + (at == which) for at, n in enumerate(base)] for which in more)]


@contextmanager
def thinned(
    prepared: Prepared, found: Sequence[Stretch], counts: Sequence[int], live: Live
) -> Iterator[list[int]]:
    """The model with so many repetitions of each stretch meanwhile; the layers that are left."""
    decoder = view(prepared.model)
    assert decoder is not None
    every = [
        (s.start + n, (which, n % s.period, n // s.period))
        for which, (s, count) in enumerate(zip(found, counts, strict=True))
        for n in range(s.period * count)
    ]
    kept = [number for number, _ in every]
    whole, types = decoder.decoder.layers, getattr(decoder.config, "layer_types", None)
    fewer = meanwhile(decoder.decoder, layers=nn.ModuleList(whole[n] for n in kept))
    typed = {"layer_types": [types[n] for n in kept]} if types else {}
    hooks = [h for n, (old, at) in enumerate(every) for h in _told(whole[old], n, at, live)]
    try:
        with fewer, meanwhile(decoder.config, **typed):
            yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _told(layer: nn.Module, number: int, at: tuple[int, int, int], live: Live) -> list[Any]:
    def entered(*_: Any) -> None:
        if not live.backward:
            live.passes += number <= live.layer
            live.layer = number
        live.place = (live.passes, at)

    def left(_module: Any, _given: Any, out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        if hidden.requires_grad and not live.backward:
            hidden.register_hook(lambda _: setattr(live, "place", (live.passes, at)))
        if not live.backward:
            live.place = (live.passes, ())

    return [layer.register_forward_pre_hook(entered), layer.register_forward_hook(left)]


def whole(
    traced: Sequence[Peaks], counts: Sequence[Sequence[int]], found: Sequence[Stretch]
) -> Peaks:
    """The fullest moments of the whole model, from those of its traces."""
    base, more = traced[0], [at for at, s in enumerate(found) if s.count > counts[0][at]]
    made: Peaks = {}
    for (phase, place), parts in base.items():
        passes, layer = place
        # Which ends of its stretch a layer stands for: the only one that is left for both.
        at = {"low": 0, "high": counts[0][layer[0]] - 1} if layer else {}
        for end in [end for end, of in at.items() if layer[2] == of] if layer else [""]:
            total: Counter[str] = Counter(parts)
            for peaks, which in zip(traced[1:], more, strict=True):
                now = place  # the same where the stretch has one repetition more
                if layer and layer[0] == which and end != "low":
                    now = passes, (*layer[:2], counts[0][which])
                there = peaks.get((phase, now), parts)
                times = found[which].count - counts[0][which]
                for name in parts.keys() | there.keys():
                    total[name] += times * (there.get(name, 0) - parts.get(name, 0))
            made[phase, (*place, end) if end else place] = dict(total)  # type: ignore[index]
    return made


@contextmanager
def repeated(live: Live) -> Iterator[None]:
    """From the third on, a part of the head as long as that before it is not run, but repeated."""
    real, runs = logprobs.of_part, dict[int, list[tuple[int, int]]]()

    def of_part(part: slice, scorer: Any, hidden_NH: Tensor, *rest: Any) -> Any:
        size, began = part.stop - part.start, len(live.events)
        alike = runs.setdefault(size, [])
        if len(alike) < 2:
            found = real(part, scorer, hidden_NH, *rest)
            alike.append((began, len(live.events)))
            return found
        live.again(*alike[1], here=True)
        left = [torch.empty(size, device=META) for _ in range(2)]
        return *left, torch.empty_like(hidden_NH[part]) if hidden_NH.requires_grad else None

    with meanwhile(logprobs, of_part=of_part):
        yield
