"""Memory that tokenizers take beside their input.

Run ``python -m benchmarks.memory [folder]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import adaptok
from adaptok.evaluation.bench.timing import FULL, saved, target_of, unless_full, write_results

SHAPE = (16, 1, 4, 256, 256)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENIZERS: dict[str, dict[str, Any]] = {
    "iap": {"budget": 1024},
    "apt": {"thresholds": (5.5, 4.0)},
    "matey": {"sizes": (8, 32)},
    "uniform": {"size": 16},
    "ckm": {},
    "csm": {},
}
WHY = {
    ("apt", "cells"): "512 counts per finest node that can merge, an index of 8 bytes per point",
    ("apt", "embed"): "all finest patches are embedded: each is a token or the child of one",
    ("matey", "cells"): "patches, and their deviations from a point inside: nothing cancels",
    ("ckm", "embed"): "the padded field, and its copies in the layout of torch's convolution",
    ("csm", "embed"): "the padded field, and its copies in the layout of torch's convolution",
}
NOTE = (
    "Peak of the memory that a call allocates, as a multiple of its input (16 fields of 4 channels "
    "on 256², float32, width 96, no gradients), on the CPU by torch's profiler, on CUDA by its "
    "allocator. `cells` scores and refines, `embed` makes the features. What takes more than three "
    "times the input on a CPU says why."
)


def peak(call: Callable[[], Any]) -> int:
    """Bytes above the start at the worst moment of a call."""
    call()  # what is cached is not part of it
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    now = most = 0
    for event in record.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@torch.no_grad()
def measure() -> Iterator[dict[str, object]]:
    """One row per tokenizer and stage."""
    fields = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    fields = torch.nn.functional.avg_pool2d(fields.flatten(0, 2), 9, 1, 4).view(SHAPE).to(DEVICE)
    for name, knobs in TOKENIZERS.items():
        tokenizer = adaptok.create_tokenizer(name, ndim=2, in_channels=4, dim=96, **knobs)
        tokenizer.to(DEVICE)
        cells = tokenizer.cells(fields)
        stages = {
            "cells": lambda t=tokenizer: t.cells(fields),
            "embed": lambda t=tokenizer, c=cells: t.embed(fields, c),
        }
        for stage, call in stages.items():
            row: dict[str, object] = {"tokenizer": name, "stage": stage}
            most = unless_full(lambda call=call: peak(call))
            if most is None:
                yield row | FULL
                continue
            times = most / (fields.numel() * fields.element_size())
            why = WHY.get((name, stage), "") if times > 3 else ""
            yield row | {"peak / input": round(times, 2), "why": why}


if __name__ == "__main__":
    target = target_of(__doc__)
    torch.set_num_threads(1)
    rows = saved(target, "memory", measure())
    print(write_results(target, "memory", rows, NOTE).read_text())
