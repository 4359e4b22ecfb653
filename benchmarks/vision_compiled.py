"""A compiled timm model beside the same model on cells, compiled too.

Run ``python -m benchmarks.vision_compiled [folder]``.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import torch

from adaptok.evaluation.bench.timing import (
    CLOCK,
    clock_of,
    median_ratio,
    paired,
    target_of,
    write_results,
)
from adaptok.evaluation.bench.vision import photographs
from adaptok.vision import apply_apt

MODELS, SIDE, BATCHES, SHARES = ("vit_tiny_patch16_224",), 224, (1, 8), (0.5, 0.25)
REPEATS, STATS = 15, 0.5
NOTE = (
    f"Forward pass on photographs of {SIDE} px (float32, random weights), end to end. Both sides "
    "run as they are and compiled by torch.compile (Inductor, one graph, static shapes); the model "
    "on cells splits up to a fixed number of tokens (marking `budget`), a share of the patches. "
    f"Warmed up once, medians of {REPEATS} runs in turn; speed-ups are medians of the ratios of "
    "paired runs."
)


@torch.inference_mode()
def measure(name: str, batch: int, share: float) -> dict[str, object]:
    """One row: seconds and ratios of one model, batch and share of tokens."""
    import timm

    torch.manual_seed(0)
    torch.compiler.reset()
    model: Any = timm.create_model(name).eval()
    tokens = round(share * model.patch_embed.num_patches)
    fast: Any = apply_apt(model, marking={"name": "budget", "budget": tokens}).eval()
    images, _ = photographs(batch, SIDE)
    x = (images - STATS) / STATS
    sides: dict[str, Any] = {"timm": model, "cells": fast}
    sides |= {f"{key} compiled": torch.compile(m, fullgraph=True) for key, m in sides.items()}
    torch.testing.assert_close(sides["cells compiled"](x), fast(x), rtol=1e-3, atol=1e-4)
    calls = {key: (lambda m=m: m(x)) for key, m in sides.items()}
    seconds = paired(calls, repeats=REPEATS, clock=clock_of("cpu"))
    row: dict[str, object] = {"model": name, "batch": batch, "tokens": fast.last_cells.max_seqlen}
    row |= {f"{key}, ms": round(1e3 * statistics.median(s), 1) for key, s in seconds.items()}
    for kind in ("", " compiled"):
        ratio = median_ratio(seconds[f"timm{kind}"], seconds[f"cells{kind}"])
        row[f"speed-up{kind}"] = round(ratio, 2)
    return row


if __name__ == "__main__":
    target = target_of(__doc__)
    torch.set_num_threads(1)
    rows = [measure(*each) for each in itertools.product(MODELS, BATCHES, SHARES)]
    print(write_results(target, "vision_compiled", rows, NOTE + CLOCK).read_text())
