"""Which sample pictures show, what it is called, and where in it the tokenizer looks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adaptok.cells import Cells
from adaptok.data import FieldInfo, WellData
from adaptok.evaluation.evaluate import inputs_of, precision
from adaptok.models.multiphysics import FieldSystem
from adaptok.models.one_step import OneStepModel
from adaptok.models.over_time import OverTime
from adaptok.models.schedules import Schedule, create_schedule, settings_at
from adaptok.models.surrogate import Surrogate
from adaptok.plots.drawing import Cut, cuts_of, deviation
from adaptok.tokenizers.tree import TreeTokenizer

Batch = dict[str, Tensor]


class Sample(NamedTuple):
    """A sample as a batch of one.

    Attributes:
        caption: set, split, number, trajectory and time, on two lines.
        next: time of the first target frame.
    """

    batch: Batch
    caption: str
    next: float


def middle_of(data: WellData, split: str) -> int:
    """Number of the sample in the middle of the first trajectory, as first frames show little."""
    dataset: Any = data.loader(split).dataset
    ends = [*dataset.starts[1:], len(dataset)]
    return ends[0] // 2


def sample_of(data: WellData, split: str, number: int) -> Sample:
    """Takes one sample of a split.

    Raises:
        ValueError: the split has fewer samples.
    """
    dataset: Any = data.loader(split).dataset
    if not 0 <= number < len(dataset):
        raise ValueError(
            f"the {split} split has samples 0 to {len(dataset) - 1}, there is no number {number}"
        )
    batch = {k: v.unsqueeze(0) for k, v in dataset[number].items()}
    trajectory = bisect_right(dataset.starts, number) - 1
    frame = number - dataset.starts[trajectory] + dataset.stride * (dataset.history - 1)
    time = dataset.time(trajectory, frame)
    caption = f"{data.info.name}, {split} sample {number}\n"
    caption += f"trajectory {trajectory}, frame {frame}, t = {time:.4g}"
    return Sample(batch, caption, time + float(batch["time_step"]))


def tilings_of(
    model: Surrogate | FieldSystem, batch: Batch, settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Cells]:
    """Cells of a sample by setting, see `controls_of`."""
    device = model.mean.device
    known = inputs_of(batch, device)
    return {
        label: model.cells(batch["input"].to(device), **known, **controls_of(setting))
        for label, setting in settings.items()
    }


def controls_of(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Controls of a setting, of a schedule those of its first step. Jitter is left out, so that
    cells lie where the field does.
    """
    if "name" in setting:
        return controls_of(settings_at(create_schedule(setting), 0))
    return {k: v for k, v in setting.items() if k != "jitter"}


def cells_of_rollout(
    model: OneStepModel, batch: Batch, prediction: Tensor, schedule: Schedule
) -> list[Cells]:
    """Cells of each step of a sample's rollout; none of a baseline, or if jitter moves the domain
    under them.

    Args:
        batch: of one sample.
        prediction: (1, steps, c, *space).
        schedule: controls of each step.
    """
    steps = range(prediction.shape[1])
    chosen = [schedule(step) for step in steps]
    jitters = any("jitter" in one for one in chosen)
    if jitters or not isinstance(model, (Surrogate, FieldSystem)):
        return []
    device, history = model.mean.device, batch["input"].shape[1]
    frames = torch.cat([batch["input"], prediction.to(batch["input"])], 1)
    known, drawn = inputs_of(batch, device), []
    past = OverTime(model, known["boundary"])
    with precision(device):
        for step in steps:
            field = frames[:, step : step + history].to(device)
            call = past.settings_at(step, chosen[step], field, known["constants"])
            drawn.append(call.get("cells") or model.cells(field, **known, **call))
    return drawn


def followed(
    model: Surrogate | FieldSystem, info: FieldInfo, batch: Batch
) -> tuple[str, np.ndarray]:
    """Finds the field whose score decides most where cells are, as name and newest values.

    Each channel is scored alone, with the others at 0; without an indicator it is the first field.
    """
    values = dict(zip(info.fields, batch["input"][0, -1].numpy(), strict=True))
    if "constants" in batch:
        values |= dict(zip(info.constants, batch["constants"][0].numpy(), strict=True))
    tokenizer = model.core.tokenizer if isinstance(model, FieldSystem) else model.tokenizer
    best = info.fields[0]
    if isinstance(tokenizer, TreeTokenizer):
        known = inputs_of(batch, model.mean.device)
        field = _scored(model, batch)
        names = [*info.fields] * ((field.shape[2] - len(info.constants)) // len(info.fields))
        names += info.constants
        totals = dict.fromkeys(names, 0.0)
        for channel in _seen(model, tokenizer, field):
            alone = torch.zeros_like(field)
            alone[:, :, channel] = field[:, :, channel]
            scores, _ = tokenizer.scores(alone, boundary=known["boundary"])
            totals[names[channel]] += float(scores.sum())
        best = max(totals, key=lambda name: totals[name])
    return best, values[best]


def _scored(model: Surrogate | FieldSystem, batch: Batch) -> Tensor:
    """What the indicator sees of a sample."""
    known, field = inputs_of(batch, model.mean.device), batch["input"].to(model.mean.device)
    if isinstance(model, Surrogate):
        return model.scored_ahead(field, **known)
    return model.scored(field, known["constants"])


def _seen(model: Surrogate | FieldSystem, tokenizer: TreeTokenizer, field: Tensor) -> list[int]:
    """Channels that the indicator sees; those of a system are counted without its constants."""
    if isinstance(model, FieldSystem) and tokenizer.ignore == "constants":
        return list(range(len(model.fields)))
    return tokenizer.seen(field.shape[2])


def earlier(info: FieldInfo, batch: Batch, name: str) -> np.ndarray:
    """Frames of a field, or of a constant, before the newest one, (t - 1, *space)."""
    if name in info.fields:
        return batch["input"][0, :-1, info.fields.index(name)].numpy()
    constant = batch["constants"][0, info.constants.index(name)].numpy()
    return np.repeat(constant[None], batch["input"].shape[1] - 1, 0)


def planes_of(model: OneStepModel, batch: Batch) -> Sequence[Cut] | None:
    """Planes of the largest score in 3D, the largest of all first; None in 1D and 2D.

    Without an indicator the score is how far the fields deviate from their medians.
    """
    newest = batch["input"][0, -1].numpy()
    if newest.ndim != 4:
        return None
    if isinstance(model, Surrogate) and isinstance(model.tokenizer, TreeTokenizer):
        boundary = inputs_of(batch, model.mean.device)["boundary"]
        score = model.tokenizer.score_map(_scored(model, batch), boundary=boundary)
        return cuts_of(score[0].detach().float().cpu().numpy())
    return cuts_of(deviation(newest))
