"""Time and memory of a training step against tokens, batch and resolution.

Run ``python -m benchmarks.scaling [folder] [--device cuda --precision bf16 ...]``. A sweep
multiplies its number until a step would not fit into the memory or takes longer than ``--seconds``.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptok.evaluation.bench.timing import (
    CLOCK,
    FULL,
    clock_of,
    digits,
    paired,
    saved,
    unless_full,
    write_results,
)
from adaptok.evaluation.cost import cost_of
from adaptok.models.surrogate import create_surrogate
from benchmarks.drawing import curves
from benchmarks.step import PlainViT, make_step

NOTE = (
    "Forward and backward of one step, medians of paired runs. `plain ViT`: fixed patches, "
    "nn.Linear and scaled_dot_product_attention, no adaptok. `tokens`: at a fixed resolution, "
    "batch 1. `batch`: at fixed tokens and resolution. `resolution`: points per side at fixed "
    "tokens, batch 1 (the plain ViT's patches grow with it). `slope`: exponent of the time between "
    "this row and the one before, 1 is linear; its fit over the last half of each sweep stands "
    "below. MiB: most bytes of tensors that live at once in a step, weights left out. A sweep ends "
    "where the next step would not fit into the memory, or would take longer than the limit."
)
MODELS = ("plain ViT", "iap, linear", "iap, cross_attention")
START = {"tokens": 256, "batch": 1, "resolution": 64}
FACTOR = {"tokens": 4, "batch": 2, "resolution": 2}
GROWTH = {"tokens": 8, "batch": 2, "resolution": 4}  # of the time, at most about
FIXED = {"tokens": 1024, "batch": 1, "resolution": 256}


def build(name: str, point: dict[str, int], options: argparse.Namespace) -> nn.Module:
    """Builds a model for the tokens and the side of a square field in `point`."""
    side, tokens = point["resolution"], point["tokens"]
    if name == "plain ViT":
        patch = max(1, side // math.isqrt(tokens))
        return PlainViT(
            options.channels, (side, side), patch, options.dim, options.depth, options.heads
        )
    # The coarsest cells are a sixteenth of the tokens in number.
    coarsest = max(2, side // math.isqrt(tokens // 16))
    return create_surrogate(
        ndim=2,
        in_channels=options.channels,
        dim=options.dim,
        depth=options.depth,
        heads=options.heads,
        tokenizer={
            "name": "iap",
            "budget": tokens,
            "min_size": max(1, coarsest // 16),
            "max_size": coarsest,
        },
        decoder=name.partition(", ")[2],
    )


def sweep(axis: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures along one axis from its start until a step would take too much time or memory."""
    before: dict[str, float] = {}
    alive, value = list(MODELS), START[axis]
    while alive:
        point = FIXED | {axis: value}
        if axis == "tokens" and value > point["resolution"] ** 2:
            break
        steps: dict[str, Callable[[], None]] = {}
        memory: dict[str, float] = {}
        for name in alive:
            tried = unless_full(lambda name=name, point=point: _step(name, point, options))
            if tried is None:
                yield {"sweep": axis, "value": value, "model": name} | FULL
            else:
                steps[name], memory[name] = tried
        seconds = paired(steps, repeats=options.repeats, clock=clock_of(options.device))
        for name, times in seconds.items():
            took, rise = statistics.median(times), ""
            if name in before:
                rise = round(math.log(took / before[name]) / math.log(FACTOR[axis]), 2)
            before[name] = took
            own = {"sweep": axis, "value": value, "model": name, "s": digits(took), "slope": rise}
            yield {**own, "MiB": round(memory[name])}
        limit = options.memory * 2**10
        alive = [
            name
            for name in seconds
            if statistics.median(seconds[name]) * GROWTH[axis] < options.seconds
            and memory[name] * GROWTH[axis] < limit
        ]
        value *= FACTOR[axis]


def _step(
    name: str, point: dict[str, int], options: argparse.Namespace
) -> tuple[Callable[[], None], float]:
    """A step that has run once, and its MiB."""
    model, side = build(name, point, options).to(options.device), point["resolution"]
    shape = (point["batch"], 1, options.channels, side, side)
    field = torch.randn(shape, device=options.device).cumsum(-1)
    step = make_step(model, field, options.precision)
    cost = cost_of(model, step, [field])
    assert cost is not None
    return step, cost.memory["total"] / 2**20


def slope(rows: Sequence[dict[str, Any]]) -> float:
    """Fits the exponent of time against value by least squares to the last half of the points."""
    last = rows[len(rows) // 2 :] if len(rows) > 3 else rows
    x = torch.tensor([math.log(r["value"]) for r in last])
    y = torch.tensor([math.log(r["s"]) for r in last])
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Describes the fitted slopes."""
    parts = []
    for axis in START:
        for name in MODELS:
            own = [r for r in rows if (r["sweep"], r["model"]) == (axis, name) and "s" in r]
            if len(own) > 1:
                parts.append(f"{name} against {axis}: {slope(own):.2f} (to {own[-1]['value']})")
    return " Slopes: " + "; ".join(parts) + "."


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("folder", nargs="?", default="docs/benchmarks", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--sweeps", nargs="+", choices=list(START), default=list(START))
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="longest step")
    parser.add_argument("--memory", type=float, default=usable_memory(), help="GiB")
    parser.add_argument("--name", default="scaling", help="of the result files")
    return parser.parse_args(given)


def usable_memory() -> float:
    """Returns half of the GiB of the CUDA device or of the machine, since others use it too."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 2**30 / 2
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 / 2


def main(given: Sequence[str] | None = None) -> None:
    """Measures and writes the results."""
    options = arguments(given)
    found = (row for axis in options.sweeps for row in sweep(axis, options))
    rows = saved(options.folder, options.name, found)
    settings = (
        f" Width {options.dim}, depth {options.depth}, {options.precision}, {options.repeats} "
        f"repetitions; limits {options.memory:.0f} GiB and {options.seconds:g} s a step."
    )
    note = NOTE + settings + CLOCK + summary(rows)
    draw = curves("sweep", "value", "model", "s")
    print(write_results(options.folder, options.name, rows, note, draw).read_text())


if __name__ == "__main__":
    main()
