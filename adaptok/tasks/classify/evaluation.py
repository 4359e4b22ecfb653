"""Accuracy, tokens and speed of a classifier."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adaptok.evaluation.evaluate import device_of, label_of
from adaptok.evaluation.results import Tokens, tokens_cell
from adaptok.tasks.classify.data import ImageData
from adaptok.tasks.classify.module import tokens_per_image
from adaptok.utils.tables import table


def evaluate_classifier(
    model: Any,
    data: ImageData,
    *,
    split: str = "test",
    settings: Sequence[Mapping[str, Any]] = ({},),
    device: str = "auto",
) -> dict[str, Any]:
    """Tests a classifier.

    Args:
        data: images normalised as the model wants them.
        split: "train", "valid" or "test".
        settings: controls, one row of results each: ``[{"thresholds": [5.5, 4.0]}, ...]``.
        device: "auto" (CUDA where there is one, in bf16), "cpu" or "cuda".

    Returns:
        Plain values that JSON can hold; per setting accuracy, loss, tokens per image and images per
        second, of the whole forward pass (cells included, loading and transfers not, nor the first
        batch where there are more).

    Raises:
        ValueError: no settings, or one that the model does not take.
    """
    if not settings:
        raise ValueError("settings is a list of controls, at least [{}], got an empty one")
    place = device_of(device)
    model = model.to(place).eval()
    fixed = [dict(setting) for setting in settings if setting and not hasattr(model, "tiling")]
    if fixed:
        raise ValueError(f"a model on fixed patches has no controls, got settings {fixed}")
    rows = []
    for setting in settings:
        row = {"label": label_of(setting), "setting": dict(setting)}
        rows.append(row | _test(model, data, split, setting, place))
    return {"data": data.name, "split": split, "classes": list(data.classes), "settings": rows}


@torch.no_grad()
def _test(
    model: Any, data: ImageData, split: str, setting: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    right, losses, counts, seconds = [], [], [], []
    for images, labels in data.loader(split):
        x = images.to(device)
        _wait(device)
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(x, **setting)
        _wait(device)
        seconds.append((time.perf_counter() - start, len(labels)))
        logits = logits.float().cpu()
        right.append(logits.argmax(1) == labels)
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
        counts.append(_counts(model, len(labels)))
    warm = seconds[1:] or seconds
    tokens = torch.cat(counts).double()
    return {
        "accuracy": torch.cat(right).double().mean().item(),
        "loss": torch.cat(losses).double().mean().item(),
        "tokens": {k: getattr(tokens, k)().item() for k in ("mean", "min", "max")},
        "images_per_second": sum(n for _, n in warm) / sum(s for s, _ in warm),
    }


def _counts(model: Any, images: int) -> Tensor:
    cells = getattr(model, "last_cells", None)
    if cells is None:
        return torch.full((images,), tokens_per_image(model))
    return cells.cu_seqlens.diff().cpu()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def classifier_markdown(results: Mapping[str, Any]) -> str:
    """The results as a table."""
    header = ["setting", "tokens", "accuracy", "loss", "images/s"]
    rows = [
        [
            row["label"],
            tokens_cell(Tokens(**row["tokens"])),
            f"{row['accuracy']:.4f}",
            f"{row['loss']:.4f}",
            f"{row['images_per_second']:.4g}",
        ]
        for row in results["settings"]
    ]
    return f"# {results['data']}, {results['split']} split\n\n" + table(header, rows)
