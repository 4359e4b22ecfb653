"""Accuracy, tokens and speed of a classifier."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from adaptok.evaluation.cost import Stopwatch
from adaptok.evaluation.evaluate import device_of, labels_of, plain, precision
from adaptok.evaluation.results import Number, Tokens, number_cell, tokens_cell
from adaptok.tasks.classify.data import ImageData
from adaptok.tasks.classify.module import is_right, tokens_per_image
from adaptok.utils.tables import table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierSetting:
    """Holds the test of one setting.

    Attributes:
        label: the setting in words.
        setting: controls, such as ``{"thresholds": [5.5, 4.0]}``.
        accuracy: share of right answers; one that is not finite is wrong.
        loss: mean cross-entropy; None if it is not finite.
        tokens: "mean", "min" and "max" per image, without special tokens.
        images_per_second: of the whole forward pass, cells included and loading and transfers
            excluded; the first batch does not count if there are more.
    """

    label: str
    setting: dict[str, Any]
    accuracy: float
    loss: Number
    tokens: dict[str, float]
    images_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierResults:
    """Holds the test of a classifier, as in metrics.json.

    Attributes:
        checkpoint: the tested file, in results of ``adaptok eval``.
        data: name of the images.
        split: "train", "valid" or "test".
        classes: their names.
        settings: one test each.
        parameters: number of weights, in results of ``adaptok train``.
        seconds_per_training_step: likewise.
    """

    checkpoint: str | None = None
    data: str
    split: str
    classes: list[str]
    settings: list[ClassifierSetting]
    parameters: int | None = None
    seconds_per_training_step: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; what is None is left out."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ClassifierResults:
        """Reads what `to_json` returns."""
        return cls(**{**values, "settings": [ClassifierSetting(**v) for v in values["settings"]]})


def evaluate_classifier(
    model: Any,
    data: ImageData,
    *,
    split: str = "test",
    settings: Sequence[Mapping[str, Any]] = ({},),
    device: str = "auto",
) -> ClassifierResults:
    """Tests a classifier.

    Args:
        data: images, normalised as the model expects.
        split: "train", "valid" or "test".
        settings: controls, one test each: ``[{"thresholds": [5.5, 4.0]}, ...]``.
        device: "auto" (CUDA if available, in bf16), "cpu" or "cuda".

    Raises:
        ValueError: there are no settings, the model does not take one of them, or it knows other
            classes than the images have.
    """
    if not settings:
        raise ValueError("settings is a list of controls, at least [{}], got an empty one")
    check_classes(model, data)
    place = device_of(device)
    model = model.to(place).eval()
    check_settings(model, settings)
    pairs = zip(labels_of(settings), settings, strict=True)
    tests = [_test(model, data, split, label, setting, place) for label, setting in pairs]
    return ClassifierResults(
        data=str(data.name), split=split, classes=list(data.classes), settings=tests
    )


def check_classes(model: Any, data: ImageData) -> None:
    """Checks that a class has the same number in the model, if it was loaded, and in the images.

    Raises:
        ValueError: names the first class that has not.
    """
    known = getattr(model, "classes", data.classes)
    pairs = itertools.zip_longest(known, data.classes, fillvalue="absent")
    for number, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            raise ValueError(
                f"the model was trained on other classes than {data.name} has: class {number} is "
                f"{ours} in the model, {theirs} in the images"
            )


def check_settings(model: Any, settings: Sequence[Mapping[str, Any]]) -> None:
    """Checks names and values of the settings of a test, on one blank image.

    Raises:
        ValueError: the model does not take one of them.
    """
    fixed = [dict(setting) for setting in settings if setting and not hasattr(model, "tiling")]
    if fixed:
        raise ValueError(f"a model on fixed patches has no controls, got settings {fixed}")
    device = next(model.parameters()).device
    for setting in filter(None, settings):
        model.tiling(torch.zeros(1, 3, *model.patch_embed.img_size, device=device), **setting)


@torch.no_grad()
def _test(
    model: Any,
    data: ImageData,
    split: str,
    label: str,
    setting: Mapping[str, Any],
    device: torch.device,
) -> ClassifierSetting:
    right, losses, counts, watch = [], [], [], Stopwatch(model, device)
    for images, labels in data.loader(split):
        call = functools.partial(model, images.to(device), **setting)
        with precision(device):
            logits = watch(call).float().cpu()
        right.append(is_right(logits, labels))
        losses.append(cross_entropy(logits, labels, reduction="none"))
        cells = getattr(model, "last_cells", None)
        fixed = torch.full((len(labels),), tokens_per_image(model))
        counts.append(fixed if cells is None else cells.cu_seqlens.diff().cpu())
    seconds = [sum(row) for row in watch.rows]
    warm = slice(len(seconds) > 1, None)
    return ClassifierSetting(
        label=label,
        setting=dict(setting),
        accuracy=torch.cat(right).double().mean().item(),
        loss=plain(torch.cat(losses).double().mean()),
        tokens=Tokens.of(torch.cat(counts))._asdict(),
        images_per_second=sum(map(len, right[warm])) / sum(seconds[warm]),
    )


def classifier_markdown(results: ClassifierResults) -> str:
    """Returns the results as a table."""
    header = ["setting", "tokens", "accuracy", "loss", "images/s"]
    rows = []
    for row in results.settings:
        numbers = f"{row.accuracy:.4f}", number_cell(row.loss), f"{row.images_per_second:.4g}"
        rows.append([row.label, tokens_cell(Tokens(**row.tokens)), *numbers])
    return f"# {results.data}, {results.split} split\n\n" + table(header, rows)
