"""Entropy and marking of APT against a loop of histograms over cells.

Run ``python -m benchmarks.entropy [folder]``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from adaptok.evaluation.bench.timing import median_ratio, paired, target_of, write_results
from adaptok.tokenizers.indicators import EntropyIndicator
from adaptok.tokenizers.marking import ThresholdMarking
from adaptok.tree import Tree, leaves

BATCH = 8
CASES = ((224, 16, (5.5,)), (224, 14, (5.5, 4.0)), (336, 14, (5.5, 4.0)), (448, 14, (5.5, 4.0)))
NOTE = (
    "From images (0 to 255, batch of 8) to the masks of the cells of each size: entropy of 512 "
    "gray bins and one threshold per merged size; medians of paired runs in milliseconds per "
    "image, one thread. `histc loop` calls `torch.histc` for each cell of each merged size; "
    "`histc loop, all sizes` also for the finest cells, whose entropy decides nothing, as the "
    "authors' data loader does. `adaptok` counts once, in the finest cells that can split. Masks "
    "are checked to be equal. The last columns are medians of the ratios of paired runs."
)


def images(size: int, count: int = BATCH, seed: int = 0) -> Tensor:
    """Makes byte images with flat, smooth and noisy regions, as floats (b, 1, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 200
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    sigma = torch.rand(count, 1, 7, 7, generator=generator).pow(3) * 40
    sigma = torch.nn.functional.interpolate(sigma, size=(size, size))
    noise = torch.randn(count, 3, size, size, generator=generator)
    flat = torch.nn.functional.interpolate(sigma[:, :, ::3, ::3], size=(size, size)) < 2
    return (torch.where(flat, 90.0, smooth) + sigma * noise).clamp(0, 255).floor()[:, None]


def loop(fields: Tensor, sizes: Sequence[int], thresholds: Sequence[float], scored: int) -> list:
    """Computes masks of each size (fine to coarse) cell by cell; scores the `scored` coarsest
    sizes.
    """
    masks = []
    for image in fields[:, 0]:
        gray = image[0] * 0.2989 + image[1] * 0.5870 + image[2] * 0.1140
        maps = [_histc_map(gray, size) for size in sizes[len(sizes) - scored :]]
        maps = maps[-len(thresholds) :]
        taken = torch.zeros_like(maps[-1], dtype=torch.bool)
        own = []
        for entropy, bar in zip(reversed(maps), reversed(thresholds), strict=True):
            taken = taken if not own else _twice(taken)
            taken = taken[: entropy.shape[0], : entropy.shape[1]]
            own.append((entropy < bar) & ~taken)
            taken = taken | own[-1]
        masks.append([~_twice(taken), *reversed(own)])
    return [torch.stack(level) for level in zip(*masks, strict=True)]


def _histc_map(gray: Tensor, size: int) -> Tensor:
    rows, columns = gray.shape[0] // size, gray.shape[1] // size
    out = torch.empty(rows, columns)
    for y in range(rows):
        for x in range(columns):
            cell = gray[y * size : (y + 1) * size, x * size : (x + 1) * size]
            p = torch.histc(cell, bins=512, min=0, max=255) / size**2
            out[y, x] = -(p * torch.log2(p + 1e-10)).sum()
    return out


def _twice(mask: Tensor) -> Tensor:
    return mask.repeat_interleave(2, 0).repeat_interleave(2, 1)


def one_pass(fields: Tensor, sizes: Sequence[int], thresholds: Sequence[float]) -> list[Tensor]:
    """Computes masks of each size as `apt` does before it packs the cells."""
    tree = Tree(tuple(fields.shape[3:]), tuple((s, s) for s in reversed(sizes)))
    scores = EntropyIndicator()(fields, tree)
    split = ThresholdMarking(thresholds=thresholds)(scores[:, None], tree).split
    levels = tree.per_level(leaves(split, tree)[:, 0])
    return [m.unflatten(1, g) for m, g in zip(levels, tree.grids, strict=True)][::-1]


def measure(repeats: int = 5) -> list[dict[str, object]]:
    """One row per image size, patch size and thresholds."""
    rows = []
    for side, patch, thresholds in CASES:
        sizes = [patch << i for i in range(len(thresholds) + 1)]
        fields, merged = images(side), len(thresholds)
        seconds = paired(
            {
                "histc loop": lambda f=fields, s=sizes, t=thresholds, m=merged: loop(f, s, t, m),
                "histc loop, all sizes": lambda f=fields, s=sizes, t=thresholds, m=merged: loop(
                    f, s, t, m + 1
                ),
                "adaptok": lambda f=fields, s=sizes, t=thresholds: one_pass(f, s, t),
            },
            repeats=repeats,
        )
        ours, theirs = one_pass(fields, sizes, thresholds), loop(fields, sizes, thresholds, merged)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        kept = sum(int(m.sum()) for m in ours) / BATCH
        row: dict[str, object] = {"image": side, "cells": "/".join(map(str, sizes))}
        row |= {"tokens per image": round(kept), "of": (side // patch) ** 2}
        row |= {f"{k} ms": round(1e3 * statistics.median(v) / BATCH, 2) for k, v in seconds.items()}
        for slow in ("histc loop", "histc loop, all sizes"):
            row[f"{slow} / adaptok"] = round(median_ratio(seconds[slow], seconds["adaptok"]), 1)
        rows.append(row)
    return rows


if __name__ == "__main__":
    target = target_of(__doc__)
    torch.set_num_threads(1)
    print(write_results(target, "entropy", measure(), NOTE).read_text())
