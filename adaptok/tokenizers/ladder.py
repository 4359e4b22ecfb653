"""One ladder of cell sizes for all tokenizers at a budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from adaptok.cells import product
from adaptok.registry import TOKENIZERS, Part, is_factory

SIZES = ("sizes", "min_size", "max_size")  # knobs of tokenizers
THRESHOLDS = (5.5, 4.0)  # APT's, of the two smallest merged sizes


def ladder(space: Sequence[int], budget: float) -> list[int]:
    """Lists cell sizes from fine to coarse, by powers of two, between which a budget has a choice.

    Of the finest there are at least four times, of the coarsest at most a quarter of the budget, as
    far as the domain has as many points and cells no larger than its shortest side.

    Args:
        space: grid points per axis.
        budget: cells per frame.
    """
    shortest = min(space)
    powers = [1 << i for i in range(shortest.bit_length())]
    count = {size: product([-(-n // size) for n in space]) for size in powers}
    finest = max((size for size in powers if count[size] >= 4 * budget), default=1)
    coarsest = min((size for size in powers if count[size] <= budget / 4), default=powers[-1])
    return [size for size in powers if finest <= size <= max(coarsest, finest)]


def with_ladder(part: Part, space: Sequence[int], budget: float) -> Part:
    """Gives a tokenizer the sizes of `ladder`, unless some are set already, also by a list of
    thresholds in its marking.

    Args:
        part: name, or mapping of "name" and knobs; sizes that are None are not set.
        budget: cells per frame.
    """
    source, knobs = TOKENIZERS.split(part)
    if not isinstance(source, str) and not is_factory(source):
        return part
    known = TOKENIZERS.knobs(source)
    # where a size alone decides the number of tokens, it is found for the number, no power of two
    names = (*SIZES, "size") if "budget" in known and "patch_sizes" not in known else SIZES
    own = {name: knobs.get(name, known[name]) for name in names if name in known}
    marking = knobs.get("marking")
    typed = isinstance(marking, Mapping) and isinstance(marking.get("thresholds"), (list, tuple))
    if not own or typed or any(value is not None for value in own.values()):
        return part
    sizes = ladder(space, budget)
    chosen = sizes_of(own, sizes, knobs)
    thresholds = knobs.get("thresholds", known.get("thresholds"))
    levels = len(sizes) - 1
    if isinstance(thresholds, (list, tuple)) and len(thresholds) != levels:
        if tuple(thresholds) != THRESHOLDS:
            chosen.pop("max_size", None)  # one size per threshold
        else:
            ratio = THRESHOLDS[1] / THRESHOLDS[0]
            chosen["thresholds"] = [THRESHOLDS[0] * ratio**level for level in range(levels)]
    return {"name": source, **knobs, **chosen}


def sizes_of(
    names: Collection[str], sizes: Sequence[int], knobs: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns cell sizes, from fine to coarse, as the knobs of a tokenizer that has `names`; of one
    size the middle one, whose number of cells is about the budget.
    """
    if "size" in names:
        return {"size": sizes[(len(sizes) - 1) // 2]}
    ends = [sizes[0], sizes[-1]]
    if "sizes" in names:  # MATEY's misplaced positions are those of two sizes
        return {"sizes": ends if knobs.get("legacy_positions") else list(sizes)}
    named = zip(("min_size", "max_size"), ends, strict=True)
    return {name: size for name, size in named if name in names}
