"""Settings per step: which controls (budget, patch size) a training, evaluation or rollout step
uses.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any

import torch
from annotated_types import Interval

from adaptok.registry import Registry
from adaptok.utils.arguments import (
    LARGEST,
    NonNegativeFloat,
    Positive,
    Seed,
    Settings,
    accepts,
    check_value,
    checked,
    shown,
)

AS_MAPPING = '{"name": "cyclic", "settings": [{"budget": 64}, {"budget": 256}]}'
Schedule = Annotated[Callable[[int], dict[str, Any]], f"a schedule such as {AS_MAPPING}"]
SCHEDULES = Registry("schedule")
Several = Annotated[int, Interval(ge=2, le=LARGEST)]
# Settings of a training step that are not the model's: predictions in a row, in place of
# `optim.unroll`, and noise on what the model reads, in units of each field's std.
OF_TRAINING: dict[str, Any] = {"unroll": Positive, "noise": NonNegativeFloat}


@SCHEDULES.register("fixed")
@checked
def fixed(*, settings: Settings = ({},), seed: Seed = 0) -> Schedule:
    """Uses one setting at every step.

    Args:
        settings: a list of one mapping from control to value, such as ``[{"budget": 256}]``.
        seed: unused; accepted so that schedules can be exchanged.
    """
    choices = _checked(settings)
    if len(choices) > 1:
        raise ValueError(f"a fixed schedule takes one setting, got {len(choices)}: {settings!r}")
    return lambda step: dict(choices[0])


@SCHEDULES.register("random")
@checked
def uniform_random(*, settings: Settings = ({},), seed: Seed = 0, compat: bool = False) -> Schedule:
    """Draws a setting per step, uniformly, from (seed, step) alone: the same on all ranks.

    Args:
        settings: mappings from control to value, such as ``[{"budget": 64}, {"budget": 256}]``.
        seed: another seed, another sequence.
        compat: draw as the code of CKM and CSM does, where another seed only shifts the sequence.
    """
    choices = _checked(settings)
    if compat:
        return lambda step: dict(choices[_drawn_by_torch(seed + step, len(choices))])
    return lambda step: dict(random.Random(f"{seed}/{step}").choice(choices))


def _drawn_by_torch(seed: int, count: int) -> int:
    generator = torch.Generator().manual_seed(seed)
    return int(torch.multinomial(torch.ones(count), 1, generator=generator))


@SCHEDULES.register("cyclic")
@checked
def cyclic(*, settings: Settings = ({},), seed: Seed = 0) -> Schedule:
    """Uses the settings in turn; step 0 uses number ``seed % len(settings)``.

    Args:
        settings: mappings from control to value, such as ``[{"budget": 64}, {"budget": 256}]``.
        seed: number of the setting that comes first.
    """
    choices = _checked(settings)
    return lambda step: dict(choices[(seed + step) % len(choices)])


@SCHEDULES.register("seeds")
@checked
def seeds(*, settings: Settings = ({},), seed: Seed = 0) -> Schedule:
    """Uses one setting with another `seed` at every step, for tokenizers that draw by chance.

    Args:
        settings: a list of one mapping from control to value, beside the seed.
        seed: another seed, another sequence; what a step draws follows from it and the step.
    """
    rest = fixed(settings=settings)
    return lambda step: {**rest(step), "seed": random.Random(f"{seed}/{step}").getrandbits(62)}


@SCHEDULES.register("stages")
@checked
def stages(
    *, settings: Settings = ({},), seed: Seed = 0, steps: Positive | Sequence[Positive] = 1000
) -> Schedule:
    """Uses one setting after another, the last one to the end: a curriculum.

    Args:
        settings: mappings from control to value, such as ``[{"unroll": 1}, {"unroll": 4}]``.
        seed: unused; accepted so that schedules can be exchanged.
        steps: of each setting but the last, one number or one per setting.

    Raises:
        ValueError: another number of steps than of settings but the last.
    """
    choices = _checked(settings)
    listed = [*steps] if isinstance(steps, Sequence) else [steps] * (len(choices) - 1)
    if len(listed) != len(choices) - 1:
        raise ValueError(
            f"stages: {len(choices)} settings have {len(choices) - 1} numbers of steps between "
            f"them, got {listed}"
        )
    ends = list(itertools.accumulate(listed))
    return lambda step: dict(choices[bisect_right(ends, step)])


@SCHEDULES.register("ramp")
@checked
def ramp(
    *, settings: Settings = ({},), seed: Seed = 0, steps: Several = 1000, unit: Positive = 1
) -> Schedule:
    """Changes numbers evenly from the first of two settings to the second, and stays there.

    Their mean over `steps` steps is the mean of both settings; of whole numbers, which stay whole,
    to the next multiple of `unit` in all: a rollout as long has as many tokens in total as with
    the mean budget in every step.

    Args:
        settings: two mappings with the same names, such as ``[{"budget": 384}, {"budget": 128}]``,
            of numbers or lists of them; what is equal in both may be anything. One is constant.
        seed: unused; accepted so that schedules can be exchanged.
        steps: from the first setting to the second, both included.
        unit: whole numbers differ from the first setting by multiples of it. With that of a split,
            2^ndim - 1 tokens, trees have exactly as many tokens as the budget says.

    Raises:
        ValueError: more than two settings, or some that cannot be interpolated.
    """
    choices = _checked(settings)
    if len(choices) > 2:
        raise ValueError(f"a ramp goes from one setting to another, got {len(choices)}")
    first, last = choices[0], choices[-1]
    if first.keys() != last.keys():
        raise ValueError(f"a ramp needs the same names in both settings, got {first} and {last}")
    for name, value in first.items():
        _between(value, last[name], name, 0, steps, unit)  # raises here, not at some step

    def at(step: int) -> dict[str, Any]:
        if step >= steps:
            return dict(last)
        return {k: _between(v, last[k], k, step, steps, unit) for k, v in first.items()}

    return at


def _between(a: Any, b: Any, name: str, step: int, steps: int, unit: int) -> Any:
    """Interpolates two values of a ramp."""
    if type(a) is type(b) and a == b:
        return a
    if accepts(int, a) and accepts(int, b):
        # The sum over the steps so far, rounded once, tells what is left for this one.
        before, after = (
            math.floor(Fraction((b - a) * k * (k - 1), 2 * (steps - 1) * unit) + Fraction(1, 2))
            for k in (step, step + 1)
        )
        return a + unit * (after - before)
    if accepts(float, a) and accepts(float, b):
        return a + (b - a) * step / (steps - 1)
    if accepts(Sequence, a) and accepts(Sequence, b) and len(a) == len(b):
        return [_between(*pair, name, step, steps, unit) for pair in zip(a, b, strict=True)]
    raise ValueError(f"a ramp cannot go from {name}={shown(a)} to {shown(b)}")


@checked
def create_schedule(part: str | Mapping[str, Any]) -> Schedule:
    """Builds ``{"name": "fixed", "settings": [{"budget": 512}, ...], "seed": 0}``; the names are
    "fixed", "random", "cyclic", "seeds", "stages" and "ramp".

    A schedule maps the global step to a dict of controls and is a pure function of (seed, step).

    Raises:
        ValueError: unknown name or knob, or settings that are not a non-empty list of mappings.
    """
    if isinstance(part, Mapping) and "name" not in part:
        raise ValueError(
            f"a schedule is a mapping such as {AS_MAPPING}, got {shown(part)}; a setting of every "
            "step has no name: give it as budget=64"
        )
    return SCHEDULES.build(part)


def training_settings(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Picks the settings that are those of a training step.

    Raises:
        ValueError: a value that is not accepted.
    """
    own = {name: value for name, value in setting.items() if name in OF_TRAINING}
    for name, value in own.items():
        check_value(value, OF_TRAINING[name], name)
    return own


def longest_unroll(settings: Sequence[Mapping[str, Any]], unroll: int) -> int:
    """Finds the most predictions in a row that a training asks for.

    Args:
        settings: of its schedule.
        unroll: of steps whose setting does not say.
    """
    return max(unroll, *(training_settings(one).get("unroll", 1) for one in settings))


def settings_at(schedule: Schedule, step: int) -> Mapping[str, Any]:
    """Asks a schedule for the controls of a step.

    Raises:
        ValueError: it fails, or gives no mapping.
    """
    try:
        chosen = schedule(step)
    except Exception as error:
        raise ValueError(f"the settings of step {step} fail: {error}") from error
    check_value(chosen, Mapping, f"settings of step {step}")
    return chosen


def _checked(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in setting.items()} for setting in settings]
