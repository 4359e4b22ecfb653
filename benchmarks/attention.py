"""Attention on ragged groups: every back end that runs here, padding, and equal lengths.

Run ``python -m benchmarks.attention [folder] [--device cuda --dtype bfloat16 ...]``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptok.cells import Groups
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
from adaptok.layers.attention import BACKENDS, Request, attend, attention_backend, choose, usable
from benchmarks.drawing import bars

NOTE = (
    "Forward and backward of attention on packed rows, medians of paired runs in milliseconds. "
    "`ragged`: lengths drawn evenly between a quarter and seven quarters of the mean. `equal`: as "
    "many groups of one length with the same number of operations (the root mean square of the "
    "ragged lengths), by one dense call. `padded-and-masked` is what codes without packing do: a "
    "batch padded to its longest sequence, with a mask over the keys, the copying not timed. The "
    "ratio to `equal` is what raggedness costs; `auto` is what `attend` chooses."
)


def groups_of(lengths: Sequence[int], device: torch.device) -> Groups:
    """Groups of these lengths, in order."""
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    return Groups(None, None, ends, max(lengths), tuple(lengths))


def ragged_lengths(samples: int, mean: int) -> list[int]:
    """Lengths between a quarter and seven quarters of the mean, in a fixed order."""
    spread = torch.linspace(0.25, 1.75, samples) * mean
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    return [int(n) for n in spread[order]]


def measure(mean: int, options: argparse.Namespace, flex: bool) -> Iterator[dict[str, Any]]:
    """Rows of one mean length: of all back ends but flex, or of flex alone."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    lengths = ragged_lengths(options.samples, mean)
    rms = round((sum(n * n for n in lengths) / len(lengths)) ** 0.5)
    ragged, equal = groups_of(lengths, device), groups_of([rms] * len(lengths), device)

    def rows_of(n: int) -> list[Tensor]:
        shape = (n, options.heads, options.head_dim)
        return [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in "qkv"]

    packed, regular = rows_of(sum(lengths)), rows_of(len(lengths) * rms)
    request = Request.of(packed[0], ragged, ragged)
    runs: dict[str, Callable[[], Any]] = {
        "equal": _run(regular, equal, "auto"),
        "auto": _run(packed, ragged, "auto"),
    }
    for name, backend in BACKENDS.items():
        if usable()[name] is None and backend.can(request):
            runs[name] = _run(packed, ragged, name)
    runs["padded-and-masked"] = _masked(lengths, rows_of)
    runs = {name: run for name, run in runs.items() if name == "equal" or (name == "flex") == flex}
    fit = {name: run for name, run in runs.items() if unless_full(lambda run=run: [run()])}
    seconds = paired(fit, repeats=options.repeats, clock=clock_of(device))
    label = {"auto": f"auto ({choose(request)})"}
    for name in runs:
        row = {"rows": f"{len(lengths)} x {mean}", "back end": label.get(name, name)}
        if flex and name == "equal":
            continue
        if name not in fit:
            yield row | FULL
            continue
        times = seconds[name]
        yield row | {
            "ms": digits(1e3 * statistics.median(times)),
            "time / equal": round(median_ratio(times, seconds["equal"]), 2),
            "TFLOP/s": round(_flops(lengths, options) / statistics.median(times) / 1e12, 3),
        }


def _flops(lengths: Sequence[int], options: argparse.Namespace) -> float:
    """Useful operations: two products forward, five backward."""
    return 7 * 2 * sum(n * n for n in lengths) * options.heads * options.head_dim


def _run(rows: list[Tensor], groups: Groups, backend: str) -> Callable[[], Any]:
    def run() -> None:
        with attention_backend(backend):
            q, k, v = rows
            attend(q, k, v, groups).sum().backward()

    return run


def _masked(lengths: Sequence[int], rows_of: Callable[[int], list[Tensor]]) -> Callable[[], Any]:
    longest = max(lengths)
    q, k, v = (
        x.detach()
        .unflatten(0, (len(lengths), longest))
        .transpose(1, 2)
        .contiguous()
        .requires_grad_()
        for x in rows_of(len(lengths) * longest)
    )
    device = q.device
    real = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    mask = real[:, None, None]

    def run() -> None:
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()

    return run


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    cuda = torch.cuda.is_available()
    parser.add_argument("folder", nargs="?", default="docs/benchmarks", type=Path)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--means", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=25)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measures and writes the results."""
    options = arguments(given)
    # Flex last, since it compiles for long; on a CPU it would hold all pairs of rows.
    turns = (False, True) if options.device != "cpu" else (False,)
    cases = itertools.product(turns, options.means)
    found = (row for flex, mean in cases for row in measure(mean, options, flex))
    rows = saved(options.folder, "attention", found)
    settings = (
        f" {options.heads} heads of {options.head_dim}, {options.dtype}, "
        f"{options.repeats} repetitions."
    )
    note = NOTE + settings + CLOCK
    draw = bars("rows", "back end", "time / equal")
    print(write_results(options.folder, "attention", rows, note, draw).read_text())


if __name__ == "__main__":
    main()
