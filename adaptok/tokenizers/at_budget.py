"""One currency for all tokenizers, tokens per sample, translated to the controls of a call
(`at_budget`) or to the knobs of a tokenizer (`part_at_budget`).

`adaptok.evaluation.budgets` does so for a surrogate, with the training split as the fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from adaptok.cells import product
from adaptok.layers.boundary import Boundary
from adaptok.registry import TOKENIZERS, Part, split_part
from adaptok.tokenizers.base import frames_of_cells
from adaptok.tokenizers.calibration import Fields, as_batches, calibrate
from adaptok.tokenizers.given import GivenTokenizer
from adaptok.tokenizers.ladder import SIZES, ladder, sizes_of
from adaptok.tokenizers.marking import (
    FractionMarking,
    MaximumMarking,
    OutOfReachError,
    PriceMarking,
    ThresholdMarking,
)
from adaptok.tokenizers.marking.fraction import cells_of_fraction
from adaptok.tokenizers.rlt import RltTokenizer
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.tokenizers.uniform import UniformTokenizer
from adaptok.tokens import Tokenizer, as_field


@runtime_checkable
class HasPatchSizes(Protocol):
    """A tokenizer with one patch size at a time, which decides the number of tokens."""

    size: tuple[int, ...]

    def sizes_for(self, space: Sequence[int]) -> list[int]:
        """Lists the patch sizes to choose from when such a tokenizer is built."""
        ...

    def tokens_at(self, size: int | Sequence[int], shape: Sequence[int]) -> int:
        """Counts the tokens per sample of a field of shape (t, *space)."""
        ...


def at_budget(
    tokenizer: Tokenizer, budget: int, fields: Fields, *, boundary: Boundary = None
) -> dict[str, Any]:
    """Finds controls of a call that give about `budget` tokens per sample, over all its frames.

    A tokenizer with a budget gets it (beside a tolerance it is a cap); thresholds, gamma and the
    like are calibrated so that the mean over the fields is the closest from below; of patch sizes,
    the one with the nearest number of tokens is chosen (in logarithms; the fewer of two); if there
    is but one, it must be the nearest of all that fit the field. Cells that are given stay.

    Args:
        fields: what the indicator will see (see `Surrogate.scored`), a batch or several; only their
            shape matters unless something is calibrated.
        boundary: codes, as in a call of the tokenizer.

    Raises:
        ValueError: a budget that these cell sizes cannot reach, or a tokenizer without any of these
            controls.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"budget is a positive whole number of tokens per sample, got {budget!r}")
    batches = as_batches(fields)
    shape = _shape(batches[0], tokenizer)
    try:
        return _controls(tokenizer, budget, batches, shape, boundary)
    except OutOfReachError as error:
        raise OutOfReachError(f"{error}{_sizes_that_fit(tokenizer, budget, shape)}") from None


def _controls(
    tokenizer: Tokenizer,
    budget: int,
    batches: list[Tensor],
    shape: tuple[int, ...],
    boundary: Boundary,
) -> dict[str, Any]:
    if isinstance(tokenizer, TreeTokenizer):
        marking = tokenizer.marking
        if isinstance(marking, FractionMarking):
            return {"ratio": _ratio(tokenizer, budget, shape)}
        if isinstance(marking, (MaximumMarking, PriceMarking)) or _scalable(marking):
            control = marking.controls[0]
            return {control: calibrate(tokenizer, batches, budget, boundary=boundary)}
    if isinstance(tokenizer, RltTokenizer):
        if frames_of_cells(shape[0], tokenizer.spec.sizes[-1][0]) == 1:  # nothing is before it
            sizes = [
                (size,) * len(tokenizer.size) for size in UniformTokenizer.sizes_for(shape[1:])
            ]
            counts = {s: tokenizer.tokens_between(shape, s)[1] for s in (tokenizer.size, *sizes)}
            _check_only_size(tokenizer.size, counts, budget, shape)
            return {}
        return {"threshold": calibrate(tokenizer, batches, budget)}
    if "budget" in tokenizer.controls:
        tokenizer.cells(batches[0], boundary=boundary, budget=budget)  # raises if it is too low
        return {"budget": budget}
    if isinstance(tokenizer, HasPatchSizes):
        if "patch_size" not in tokenizer.controls:
            sizes = [tokenizer.size, *tokenizer.sizes_for(shape[1:])]
            counts = {size: tokenizer.tokens_at(size, shape) for size in sizes}
            way = ", or patch_sizes= with both sizes lets each call choose"
            _check_only_size(tokenizer.size, counts, budget, shape, way)
            return {}
        sizes = [size[1:] for size in tokenizer.spec.sizes]
        return {"patch_size": nearest_size(tokenizer, sizes, budget, shape)}
    if isinstance(tokenizer, GivenTokenizer):
        return {}  # the simulation decides
    accepted = ", ".join(tokenizer.controls) or "none"
    raise ValueError(
        "a budget needs a control budget, thresholds, gamma, price, ratio or patch_size; this "
        f"tokenizer's controls: {accepted}"
    )


def _check_only_size(
    own: tuple[int, ...],
    counts: Mapping[Any, int],
    budget: int,
    shape: tuple[int, ...],
    way_out: str = "",
) -> None:
    """Checks that no other size that fits the field is nearer to a budget than the one there is.

    Args:
        counts: tokens per sample by size, also of the own one.
    """
    size = _nearest(counts, budget)
    if abs(math.log(counts[size] / budget)) < abs(math.log(counts[own] / budget)):
        raise OutOfReachError(
            f"all cells are of {'x'.join(map(str, own))} points, {counts[own]} tokens per sample "
            f"of {shape}, not about {budget}; size={_short(size)} gives {counts[size]}{way_out}"
        )


def _short(size: int | tuple[int, ...]) -> int | list[int]:
    """A size as the user types it."""
    each = (size,) if isinstance(size, int) else size
    return each[0] if len({*each}) == 1 else [*each]


def _sizes_that_fit(tokenizer: Tokenizer, budget: int, shape: tuple[int, ...]) -> str:
    """Names the knobs and values of cell sizes that reach a budget, if there are any."""
    config = getattr(tokenizer, "config", None) or {}
    frames = frames_of_cells(shape[0], tokenizer.spec.sizes[-1][0])
    if budget < frames:
        return f"; {frames} frames of cells need at least {frames}"
    if budget > frames * product(shape[1:]):
        return f"; the fields have {frames * product(shape[1:])} points"
    if config.get("name") not in TOKENIZERS.names():
        return ""
    names = [name for name in SIZES if name in TOKENIZERS.knobs(config["name"])]
    if not names:
        return ""
    sizes = ladder(shape[1:], budget / frames)
    while frames * product([-(-n // sizes[-1]) for n in shape[1:]]) > budget:
        sizes.append(2 * sizes[-1])
    chosen = sizes_of(names, sizes, config)
    words = [f"tokenizer.{name}={str(value).replace(' ', '')}" for name, value in chosen.items()]
    return f"; {' '.join(words)} would fit"


def part_at_budget(
    part: Part, tokenizer: Tokenizer, budget: int, fields: Fields, *, boundary: Boundary = None
) -> dict[str, Any]:
    """Describes a tokenizer that has about `budget` tokens per sample by default.

    As `at_budget`, but a fixed patch size may be any that fits the field, unless the part names
    its ``patch_sizes``.

    Args:
        part: name, or mapping of "name" and knobs.
        tokenizer: built from `part`.

    Returns:
        "name" and knobs.
    """
    name, knobs = split_part(part, "tokenizer")
    batches = as_batches(fields)
    if isinstance(tokenizer, HasPatchSizes):
        shape = _shape(batches[0], tokenizer)
        fixed = "patch_size" not in tokenizer.controls or "patch_sizes" not in knobs
        built = [size[1:] for size in tokenizer.spec.sizes]
        sizes: list[Any] = tokenizer.sizes_for(shape[1:]) if fixed else built
        return {"name": name, **knobs, "size": nearest_size(tokenizer, sizes, budget, shape)}
    if isinstance(tokenizer, RltTokenizer) and knobs.get("size") is None:
        found = _runs_at_budget(tokenizer, budget, batches)
    else:
        found = at_budget(tokenizer, budget, batches, boundary=boundary)
    chosen = {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}  # as YAML has it
    known = TOKENIZERS.knobs(name)
    if "ratio" in chosen and "ratio" not in known and "fraction" in known:
        chosen = {"fraction": chosen["ratio"]}  # MATEY's name of the knob
    if all(control in known for control in chosen):
        return {"name": name, **knobs, **chosen}
    kind, settings = split_part(knobs.get("marking", known.get("marking", "")), "marking")
    return {"name": name, **knobs, "marking": {"name": kind, **settings, **chosen}}


def _runs_at_budget(tokenizer: RltTokenizer, budget: int, batches: list[Tensor]) -> dict[str, Any]:
    """Chooses a size that can reach the budget, if possible with about half of what can be dropped,
    and then the threshold.
    """
    shape = _shape(batches[0], tokenizer)
    sizes = {k: (k,) * len(shape[1:]) for k in UniformTokenizer.sizes_for(shape[1:])}
    between = {k: tokenizer.tokens_between(shape, size) for k, size in sizes.items()}
    single = between[1][1] == product(shape[1:])  # of one frame of cells nothing can be dropped
    fits = {k: sum(ends) / 2 for k, ends in between.items()}
    if not single:
        able = [k for k, (least, _) in between.items() if least <= budget]
        within = [k for k in able if between[k][1] >= budget]
        fits = {k: fits[k] for k in within or able}
    if not fits:
        least = min(least for least, _ in between.values())
        raise OutOfReachError(f"run-length tokens of {shape} are at least {least}, not {budget}")
    size = min(fits, key=lambda k: (abs(math.log(fits[k] / budget)), fits[k]))
    if single:
        return {"size": size}
    wanted = min(budget, between[size][1])
    return {"size": size, "threshold": tokenizer.threshold_for(batches, wanted, sizes[size])}


def _scalable(marking: Any) -> bool:
    """Whether a factor on its thresholds changes the number of tokens.

    Thresholds of 0 and below ask for the finest cells everywhere: the budget caps those.
    """
    if not isinstance(marking, ThresholdMarking):
        return False
    bars = marking.thresholds
    return all(0 < bar < math.inf for bar in (bars if isinstance(bars, tuple) else (bars,)))


def nearest_size(
    tokenizer: HasPatchSizes, sizes: Sequence[Any], budget: int, shape: Sequence[int]
) -> Any:
    """Picks the size whose number of tokens is nearest to the budget, the fewer of two."""
    return _nearest({size: tokenizer.tokens_at(size, shape) for size in sizes}, budget)


def _nearest(counts: Mapping[Any, int], budget: int) -> Any:
    return min(counts, key=lambda size: (abs(math.log(counts[size] / budget)), counts[size]))


def _shape(field: Tensor, tokenizer: Tokenizer) -> tuple[int, ...]:
    field = as_field(field, tokenizer.spec.ndim)
    return (field.shape[1], *field.shape[3:])


def _ratio(tokenizer: TreeTokenizer, budget: int, shape: Sequence[int]) -> float:
    """Finds the largest share of cells to split, to 2^-20, that stays within the budget."""
    frames = frames_of_cells(shape[0], tokenizer.spec.sizes[0][0])
    together = tokenizer.per_frame and not getattr(tokenizer.marking, "each_frame", False)
    own, shared = (frames, 1) if together else (1, frames)
    tree = tokenizer.tree(shape[1:])

    def count(ratio: float) -> int:
        return shared * cells_of_fraction(ratio, tree, own, kept=not tokenizer.spec.tiling)

    least, most = count(0.0), count(1.0)
    if not least <= budget <= most:
        raise OutOfReachError(
            f"a field of {tuple(shape)} gives {least} to {most} tokens per sample, {budget} are "
            "asked for; other cell sizes reach more or fewer"
        )
    low, high = 0.0, 1.0
    if most <= budget:
        return high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) <= budget else (low, middle)
    return low
