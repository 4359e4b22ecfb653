"""Precision of detectors, without further packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import annotated_types as at
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adaptok.utils.arguments import PositiveShare, checked

Boxes = Mapping[str, Tensor]
COCO = tuple(0.5 + 0.05 * i for i in range(10))


@checked
def average_precision(
    found: Sequence[Boxes],
    wanted: Sequence[Boxes],
    overlaps: Annotated[Sequence[PositiveShare], at.Len(1)] = COCO,
    most: int = 100,
) -> float:
    """Returns the mean over classes and overlaps of COCO's average precision (Lin et al. 2014).

    In each image the detections of a class, those with the highest score first, take the box that
    they overlap most among those left. Precision, made monotone, is averaged over 101 recalls.
    The same number as ``map`` of torchmetrics' ``MeanAveragePrecision``, which needs pycocotools.

    Args:
        found: per image ``boxes`` (n, 4) by left, top, right and bottom edge, ``scores`` (n,) and
            ``labels`` (n,), as torchvision's detectors return them.
        wanted: per image ``boxes`` and ``labels``.
        overlaps: intersection over union from which a box is found, one or several.
        most: detections that count per image and class.

    Returns:
        Precision in 0..1; NaN without any wanted box.

    Raises:
        ValueError: another number of images, or a value out of range.
    """
    if len(found) != len(wanted):
        raise ValueError(f"{len(wanted)} images need as many detections, got {len(found)}")
    labels = torch.cat([one["labels"] for one in wanted]).unique().tolist() if wanted else []
    bars = torch.tensor(tuple(overlaps), dtype=torch.float64)
    scores = [_of_class(found, wanted, label, bars, most) for label in labels]
    return torch.stack(scores).mean().item() if scores else float("nan")


def _of_class(
    found: Sequence[Boxes], wanted: Sequence[Boxes], label: int, bars: Tensor, most: int
) -> Float[Tensor, " t"]:
    """Average precision of one class per overlap."""
    hits, scores, count = [], [], 0
    for one, real in zip(found, wanted, strict=True):
        own, boxes = one["labels"] == label, real["boxes"][real["labels"] == label]
        order = one["scores"][own].sort(descending=True, stable=True).indices[:most]
        hits.append(_matched(one["boxes"][own][order], boxes, bars))
        scores.append(one["scores"][own][order])
        count += len(boxes)
    order = torch.cat(scores).sort(descending=True, stable=True).indices
    hit = torch.cat(hits, 1)[:, order].double().cumsum(1)
    recall = hit / count
    precision = hit / torch.arange(1, hit.shape[1] + 1)
    precision = precision.flip(1).cummax(1).values.flip(1)
    asked = torch.linspace(0, 1, 101, dtype=torch.float64).expand(len(bars), -1).contiguous()
    place = torch.searchsorted(recall, asked)
    padded = torch.cat([precision, precision.new_zeros(len(bars), 1)], 1)  # recalls not reached
    return padded.gather(1, place).mean(1)


def _matched(
    found: Float[Tensor, "n 4"], wanted: Float[Tensor, "m 4"], bars: Float[Tensor, " t"]
) -> Bool[Tensor, "t n"]:
    """Says which detections of an image, the best first, find a box, per overlap."""
    hit = torch.zeros(len(bars), len(found), dtype=torch.bool)
    if not len(wanted) or not len(found):
        return hit
    free = torch.ones(len(bars), len(wanted), dtype=torch.bool)
    rows = torch.arange(len(bars))
    for i, overlap in enumerate(_overlap(found, wanted)):
        best, which = torch.where(free, overlap, -1.0).max(1)
        hit[:, i] = best >= bars
        free[rows, which] &= ~hit[:, i]
    return hit


def _overlap(a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Returns the intersection over union of each pair of boxes."""
    a, b = a.detach().cpu().double()[:, None], b.cpu().double()[None]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    common = sides.clamp_min(0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    return common / (areas[0] + areas[1] - common)
