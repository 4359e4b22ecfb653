"""What choosing cells costs: scores, marking and packing, beside a training step.

Run ``python -m benchmarks.tokenize [folder] [--device cuda ...]``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptok.evaluation.bench.timing import (
    CLOCK,
    FULL,
    clock_of,
    digits,
    median_ratio,
    paired,
    saved,
    unless_full,
    write_results,
)
from adaptok.models.surrogate import Surrogate, create_surrogate
from benchmarks.drawing import bars
from benchmarks.refinement import heap_refinement
from benchmarks.step import make_step

NOTE = (
    "Medians of paired runs in milliseconds. `cells`: from the field to the packed cells "
    "(indicator, marking, packing), no weights involved. `step`: forward and backward of the "
    "surrogate, in which `cells` is contained. The share is the median of the ratios of paired "
    "runs. `the obvious way`: the same cells by a heap per sample from the score map (iap), the "
    "same scores by `torch.histc` for each cell (apt); checked to agree before timing. It is timed "
    "on the samples that the last column says, and its time multiplied."
)
TOKENIZERS: dict[str, dict[str, Any]] = {
    "uniform": {"size": 8},
    "iap": {"budget": 1024},
    "apt": {"min_size": 4, "thresholds": (3.0, 3.5)},
    "matey": {"sizes": (8, 32), "gamma": 0.2},
    "ckm": {"size": 8},
}


def measure(name: str, knobs: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One tokenizer in a surrogate."""
    device = torch.device(options.device)
    model = create_surrogate(
        ndim=2,
        in_channels=options.channels,
        tokenizer={"name": name, **knobs},
        decoder="modulated" if name == "ckm" else "linear",
        dim=options.dim,
        depth=options.depth,
        heads=options.heads,
    ).to(device)
    side = options.side
    field = torch.randn(options.batch, 1, options.channels, side, side, device=device)
    for _ in range(3):  # smooth noise: content on all scales
        field = field + torch.nn.functional.avg_pool2d(field[:, 0], 9, 1, 4)[:, None]
    field = field * torch.linspace(0, 1, side, device=device)  # more of it on one side
    runs: dict[str, Callable[[], Any]] = {
        "cells": lambda: model.cells(field),
        "step": make_step(model, field, options.precision),
    }
    slow = PEERS.get(name)
    if slow is not None:
        runs["slow"] = slow(model, field[:1])  # minutes for all of a batch on a GPU
    seconds = paired(runs, repeats=options.repeats, clock=clock_of(device))
    return {
        "tokens": len(model.cells(field)) // options.batch,
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M",
        "cells ms": digits(1e3 * statistics.median(seconds["cells"])),
        "step ms": digits(1e3 * statistics.median(seconds["step"])),
        "cells / step": round(median_ratio(seconds["cells"], seconds["step"]), 4),
        "the obvious way / cells": ""
        if slow is None
        else round(options.batch * median_ratio(seconds["slow"], seconds["cells"]), 1),
        "samples of it": "" if slow is None else f"1 of {options.batch}",
    }


def heap_per_sample(model: Surrogate, field: Tensor) -> Callable[[], Any]:
    """Scores, then a heap for each sample."""
    tokenizer: Any = model.tokenizer
    coarsest, budget = tokenizer.spec.sizes[0][1], tokenizer.marking.budget

    def run() -> list[list]:
        maps = tokenizer.score_map(model.scored(field)).cpu().numpy()
        return [heap_refinement(one, budget, coarsest=coarsest) for one in maps]

    sizes = [sorted(size for *_, size in cells) for cells in run()]
    cells = model.cells(field).size[:, 1]
    assert sizes == [sorted(own.tolist()) for own in cells.view(len(sizes), -1)]
    return run


def histogram_per_cell(model: Surrogate, field: Tensor) -> Callable[[], Any]:
    """Entropy of one cell after the other, channels apart, as the indicator defines it."""
    tokenizer: Any = model.tokenizer
    sizes = [size[1] for size in tokenizer.spec.sizes[:-1]]
    bins = tokenizer.indicator.bins

    def run() -> Tensor:
        samples = []
        for maps in model.scored(field)[:, 0]:
            levels = []
            for size in sizes:
                tiles = maps.unfold(1, size, size).unfold(2, size, size).flatten(1, 2)
                entropy = maps.new_zeros(tiles.shape[1])
                for channel, whole in zip(tiles, maps, strict=True):
                    low, high = float(whole.min()), float(whole.max())
                    for i, tile in enumerate(channel):
                        p = torch.histc(tile, bins, low, high) / size**2
                        entropy[i] -= (p * p.clamp_min(1e-12).log2()).sum() / len(maps)
                levels.append(entropy)
            samples.append(torch.cat(levels))
        return torch.stack(samples)

    scores, _ = tokenizer.scores(model.scored(field))
    # A value on the edge of a bin may fall on either side.
    torch.testing.assert_close(run(), scores[:, 0], atol=2e-2, rtol=0)
    return run


PEERS = {"iap": heap_per_sample, "apt": histogram_per_cell}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenize", description=__doc__)
    parser.add_argument("folder", nargs="?", default="docs/benchmarks", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measures and writes the results."""
    options = arguments(given)
    found = (
        {"tokenizer": name}
        | (unless_full(lambda name=name: measure(name, TOKENIZERS[name], options)) or FULL)
        for name in TOKENIZERS
    )
    rows = saved(options.folder, "tokenize", found)
    settings = (
        f" Fields of {options.channels} x {options.side}², batch {options.batch}, "
        f"{options.precision}, width {options.dim}, depth {options.depth}."
    )
    note = NOTE + settings + CLOCK
    draw = bars(None, "tokenizer", "cells / step", None)
    print(write_results(options.folder, "tokenize", rows, note, draw).read_text())


if __name__ == "__main__":
    main()
