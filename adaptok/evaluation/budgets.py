"""Resolves "budget" for the tokenizer of a model, on the training split."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from adaptok.cells import Cells
from adaptok.data import WellData
from adaptok.models.conserving import channel_numbers
from adaptok.models.one_step import OneStepModel
from adaptok.models.surrogate import Surrogate
from adaptok.registry import Part
from adaptok.tokenizers import at_budget, part_at_budget
from adaptok.tokenizers.ladder import with_ladder
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.utils.arguments import Positive, check_value

SAMPLES = 64  # calibration uses this many evenly spaced training samples


def resolve_tokenizer(part: Part, model: Surrogate, data: WellData, budget: int) -> dict[str, Any]:
    """Returns the description of a model's tokenizer with about `budget` tokens per sample.

    Args:
        part: name and knobs that the tokenizer was built from.
        data: set up; thresholds and the like are calibrated on its training split.

    Raises:
        ValueError: a budget that the tokenizer cannot reach.
    """
    fields, boundary = list(scored_fields(model, data)), data.info.boundary
    return part_at_budget(part, model.tokenizer, budget, fields, boundary=boundary)


def part_with_budget(
    part: Part,
    build: Callable[[Part], Surrogate],
    data: WellData,
    budget: int,
    frames: float = 1,
) -> tuple[dict[str, Any], str | None]:
    """Returns `resolve_tokenizer` of a part with the cell sizes of `adaptok.tokenizers.ladder`, if
    it sets none, and what `reached` says of it.

    Args:
        part: name, or name and knobs.
        build: makes a model with a tokenizer.
        frames: frames of cells per sample.
    """
    part = with_ladder(part, data.info.shape, budget / max(frames, 1))
    with torch.random.fork_rng():  # the weights of a run are those of a run without a budget
        resolved = resolve_tokenizer(part, build(part), data, budget)
        return resolved, reached(build(resolved), data, budget)


def reached(model: Surrogate, data: WellData, budget: int) -> str | None:
    """Says if a model misses a budget by more than 5 %, or if its cells all have one size.

    Args:
        data: set up; the mean is that of the samples that tokenizers are calibrated on.
    """
    tokens = samples = 0
    sizes: set[str] = set()
    for field in scored_fields(model, data):
        cells = model.tokenizer.cells(field, boundary=data.info.boundary)
        tokens, samples = tokens + len(cells), samples + cells.batch_size
        sizes |= {name for name, count in cells_by_size(cells).items() if count}
    mean, told = tokens / samples, []
    if abs(mean - budget) > 0.05 * budget:
        told.append(f"became {mean:.4g} tokens per sample")
    if len(sizes) == 1 and isinstance(model.tokenizer, TreeTokenizer):
        told.append(f"gives cells of one size only: this is uniform {sizes.pop()}")
    return f"budget={budget} {' and '.join(told)}" if told else None


def cells_by_size(cells: Cells) -> dict[str, int]:
    """Counts cells by their size in space, coarse to fine: "8", or "8x4" if axes differ."""
    numbers = cells.level.long().bincount(minlength=len(cells.sizes)).tolist()
    counts: dict[str, int] = {}
    for size, number in zip(cells.sizes, numbers, strict=True):  # levels may differ in time alone
        counts[_size_name(size)] = counts.get(_size_name(size), 0) + number
    return counts


def _size_name(size: Sequence[int]) -> str:
    space = [str(n) for n in size[1:]]
    return space[0] if len({*space}) == 1 else "x".join(space)


def resolve_settings(
    model: OneStepModel,
    data: WellData,
    settings: Sequence[Mapping[str, Any]],
    further: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Replaces ``{"budget": n}`` by the controls that give n tokens per sample with the tokenizer.

    Settings with other controls of the tokenizer, and those of models without cells, stay as they
    are. The settings inside a schedule, ``{"name": "cyclic", "settings": [...]}``, are replaced
    too. The channels of a goal may be fields by name.

    Args:
        model: whose tokenizer is asked.
        data: set up.
        settings: controls.
        further: names of settings, beside those in `model.over_time`, that may stand beside a
            budget, such as those of training.
    """

    @functools.cache
    def fields(surrogate: Surrogate) -> list[Tensor]:
        return list(scored_fields(surrogate, data))

    @functools.cache
    def found(surrogate: Surrogate, budget: int) -> dict[str, Any]:
        boundary = data.info.boundary
        return at_budget(surrogate.tokenizer, budget, fields(surrogate), boundary=boundary)

    def resolved(setting: Mapping[str, Any]) -> dict[str, Any]:
        if "settings" in setting:
            return {**setting, "settings": [resolved(one) for one in setting["settings"]]}
        goal = setting.get("goal")
        if isinstance(goal, Mapping) and goal.get("channels") is not None:
            named = channel_numbers(goal["channels"], data.info.fields, "goal.channels")
            setting = {**setting, "goal": {**goal, "channels": named}}
        other = {k: v for k, v in setting.items() if k in (*model.over_time, *further)}
        if setting.keys() - other.keys() != {"budget"} or not isinstance(model, Surrogate):
            return dict(setting)
        check_value(setting["budget"], Positive, "budget")
        return found(model, setting["budget"]) | other

    return [resolved(setting) for setting in settings]


def scored_fields(model: Surrogate, data: WellData) -> Iterator[Tensor]:
    """Yields what the indicator sees of the training split, batch by batch."""
    windows: Any = data.loader("train", 1).dataset
    count = min(SAMPLES, len(windows))
    places = [i * len(windows) // count for i in range(count)]
    device = model.mean.device
    for batch in data.make_loader(Subset(windows, places)):
        yield model.scored(batch["input"].to(device), inputs_of(batch, device)["constants"])


def inputs_of(batch: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Any]:
    """Returns what a model takes from a batch, beside the field."""
    constants = batch.get("constants")
    return {
        "constants": None if constants is None else constants.to(device),
        "boundary": batch["boundary"].to(device),
    }
