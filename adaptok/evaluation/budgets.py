"""Budgets of surrogates: what "budget" means for each tokenizer, found on the training split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Subset

from adaptok.data import WellData
from adaptok.models.one_step import OneStepModel
from adaptok.models.surrogate import Surrogate
from adaptok.registry import Part
from adaptok.tokenizers import at_budget, part_at_budget

SAMPLES = 64  # of the training split, evenly spread, that calibration looks at


def resolve_tokenizer(
    part: Part, surrogate: Surrogate, data: WellData, budget: int
) -> dict[str, Any]:
    """The description of a surrogate's tokenizer with about `budget` tokens per sample.

    Args:
        part: name and knobs that the tokenizer was built from.
        data: set up; thresholds and the like are calibrated on its training split.

    Raises:
        ValueError: a budget that the tokenizer cannot reach.
    """
    fields = list(scored_fields(surrogate, data))
    boundary = data.info.boundary
    return part_at_budget(part, surrogate.tokenizer, budget, fields, boundary=boundary)


def resolve_settings(
    surrogate: OneStepModel, data: WellData, settings: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Settings in which ``{"budget": n}`` stands for n tokens per sample, whatever the tokenizer.

    Settings with other controls, and those of models without cells, are left as they are. The
    settings of a schedule, ``{"name": "cyclic", "settings": [...]}``, are looked into.
    """
    fields: list[Tensor] = []

    def resolved(setting: Mapping[str, Any]) -> dict[str, Any]:
        if "settings" in setting:
            return {**setting, "settings": [resolved(one) for one in setting["settings"]]}
        if set(setting) != {"budget"} or not isinstance(surrogate, Surrogate):
            return dict(setting)
        if not fields:
            fields.extend(scored_fields(surrogate, data))
        found = chosen.get(setting["budget"])
        if found is None:
            boundary = data.info.boundary
            found = at_budget(surrogate.tokenizer, setting["budget"], fields, boundary=boundary)
            chosen[setting["budget"]] = found
        return found

    chosen: dict[int, dict[str, Any]] = {}
    return [resolved(setting) for setting in settings]


def scored_fields(surrogate: Surrogate, data: WellData) -> Iterator[Tensor]:
    """What the indicator sees of the training split, batch by batch."""
    windows: Any = data.loader("train", 1).dataset
    count = min(SAMPLES, len(windows))
    places = [i * len(windows) // count for i in range(count)]
    device = surrogate.mean.device
    for batch in data.make_loader(Subset(windows, places)):
        constants = batch.get("constants")
        constants = None if constants is None else constants.to(device)
        yield surrogate.scored(batch["input"].to(device), constants)
