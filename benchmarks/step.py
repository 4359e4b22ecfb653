"""A training step on adaptive tokens beside a plain vision transformer at equal tokens.

Run ``python -m benchmarks.step [folder] [--device cuda --precision bf16 --tokens 1024 4096 ...]``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptok.evaluation.bench.timing import (
    CLOCK,
    FULL,
    clock_of,
    digits,
    flops_of,
    matmul_peak,
    median_ratio,
    paired,
    saved,
    unless_full,
    write_results,
)
from adaptok.evaluation.cost import cost_of
from adaptok.layers.convolution import conv_class
from adaptok.models.compiling import compile_model
from adaptok.models.surrogate import create_surrogate
from adaptok.patches import unpatchify
from benchmarks.attention import ragged_lengths
from benchmarks.drawing import bars

NOTE = (
    "Forward and backward of one step (scores, refinement, embedding, processor, decoder, loss), "
    "medians of paired runs: all rows of a shape run in turn, and each ratio is the median of the "
    "ratios of paired runs. `plain ViT`: patch embedding, blocks and head written with nn.Linear, "
    "scaled_dot_product_attention and learned positions, no adaptok; the same width, depth and "
    "heads. `uniform`: the same code as `iap`, on fixed patches. `ragged`: samples with a quarter "
    "to seven quarters of the tokens in one batch; `ragged / equal` is its time per operation over "
    "that of samples with equal numbers. GFLOP are those of the matrix "
    "products, forward and backward, as torch's counter sees them; `of roof` is the share that a "
    "step reaches of the speed of one large matrix product, measured in the same run. `peak MiB`: "
    "what a step takes at most without the weights, of CUDA's allocator or of tensors on a CPU."
)
DECODERS = ("linear", "local", "cross_attention")
FINEST = 2  # smallest cell of iap
RAGGED = "iap, linear, ragged"


class PlainViT(nn.Module):
    """A ViT without this package: fixed patches, learned positions, linear head."""

    def __init__(
        self, channels: int, shape: Sequence[int], patch: int, dim: int, depth: int, heads: int
    ):
        super().__init__()
        self.patch, self.heads = patch, heads
        self.embed = conv_class(len(shape))(channels, dim, patch, patch)
        self.position = nn.Parameter(torch.zeros(math.prod(n // patch for n in shape), dim))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(dim),
                    "qkv": nn.Linear(dim, 3 * dim),
                    "out": nn.Linear(dim, dim),
                    "norm2": nn.LayerNorm(dim),
                    "up": nn.Linear(dim, 4 * dim),
                    "down": nn.Linear(4 * dim, dim),
                }
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, channels * patch ** len(shape))

    def forward(self, field: Tensor) -> Tensor:
        """(b, 1, c, *space) in and out."""
        x = self.embed(field[:, 0])
        x = x.flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            qkv = block["qkv"](block["norm1"](x)).unflatten(-1, (3, self.heads, -1))
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + block["out"](attended)
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        space = tuple(field.shape[3:])
        size = (1, *[self.patch] * len(space))
        return unpatchify(self.head(self.norm(x)), (1, *space), size)


def nearest_patch(shape: Sequence[int], tokens: int) -> int:
    """The patch that divides the domain into the number of tokens nearest to the given one."""
    fits = [p for p in range(1, min(shape) + 1) if all(n % p == 0 for n in shape)]
    return min(fits, key=lambda p: abs(math.log(math.prod(n // p for n in shape) / tokens)))


def measure(
    shape: Sequence[int], tokens: int, decoders: Sequence[str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of one shape; adaptive models get as many tokens as the fixed patches have."""
    patch = nearest_patch(shape, tokens)
    tokens = math.prod(n // patch for n in shape)
    channels, device = options.channels, torch.device(options.device)
    field = torch.randn(options.batch, 1, channels, *shape, device=device).cumsum(-1)
    common = {
        "ndim": len(shape),
        "in_channels": channels,
        "dim": options.dim,
        "depth": options.depth,
    }
    common |= {"heads": options.heads}
    iap = {"name": "iap", "budget": tokens, "min_size": FINEST, "max_size": options.max_size}
    models: dict[str, nn.Module] = {
        "plain ViT": PlainViT(channels, shape, patch, options.dim, options.depth, options.heads)
    }
    # The same latents for both: by default they follow the finest cell of the tokenizer.
    same: dict[str, dict[str, Any]] = {
        "linear": {},
        "local": {"latent_size": 4 * FINEST, "window": 2 * options.max_size},
        "cross_attention": {"latent_size": FINEST},
    }
    for decoder in decoders:
        for name, tokenizer in (("uniform", {"name": "uniform", "size": patch}), ("iap", iap)):
            models[f"{name}, {decoder}"] = create_surrogate(
                **common, tokenizer=tokenizer, decoder={"name": decoder, **same[decoder]}
            )
    control: dict[str, dict[str, Any]] = {}
    if options.batch > 1 and "iap, linear" in models and not options.compile:
        models[RAGGED] = models["iap, linear"]
        control[RAGGED] = {"budget": ragged_lengths(options.batch, tokens)}
    steps, memory = {}, {}
    for name, model in models.items():
        model.to(device)
        if options.compile and name != "plain ViT":
            compile_model(model)
        elif options.compile:
            model.compile()
        steps[name] = make_step(model, field, options.precision, **control.get(name, {}))
        memory[name] = unless_full(lambda model=model, name=name: peak(model, steps[name], field))
    fit = {name: step for name, step in steps.items() if memory[name] is not None}
    flops = {} if options.compile else {name: flops_of(step) for name, step in fit.items()}
    seconds = paired(fit, repeats=options.repeats, clock=clock_of(device))
    roof = matmul_peak(device, options.precision)
    about = {
        "field": f"{options.batch} x {channels} x {'x'.join(map(str, shape))}",
        "tokens": tokens,
    }
    rows = [
        {
            **about,
            "model": name,
            "ms": digits(1e3 * statistics.median(times)),
            "time / plain ViT": _beside(seconds, name, "plain ViT"),
            "time / uniform": _beside_uniform(name, seconds),
            "ragged / equal": _beside_equal(name, seconds, flops),
            "GFLOP": round(flops[name] / 1e9, 1) if flops else "",
            "of roof": _share(flops, name, times, roof),
            "peak MiB": memory[name],
        }
        for name, times in seconds.items()
    ]
    return rows + [{**about, "model": name} | FULL for name in steps if name not in fit]


def _beside(seconds: dict[str, list[float]], name: str, other: str) -> float | str:
    over, under = seconds.get(name), seconds.get(other)
    return "" if over is None or under is None else round(median_ratio(over, under), 3)


def _share(flops: dict[str, int], name: str, times: list[float], roof: float) -> float | str:
    return round(flops[name] / statistics.median(times) / roof, 2) if flops else ""


def _beside_uniform(name: str, seconds: dict[str, list[float]]) -> float | str:
    kind, _, decoder = name.partition(", ")
    return _beside(seconds, name, f"uniform, {decoder}") if kind == "iap" else ""


def _beside_equal(name: str, seconds: dict[str, list[float]], flops: dict[str, int]) -> float | str:
    """Time per operation over that of samples with one number of tokens."""
    if name != RAGGED or "iap, linear" not in seconds:
        return ""
    ratio = median_ratio(seconds[name], seconds["iap, linear"])
    return round(ratio * flops["iap, linear"] / flops[name], 3)


def make_step(
    model: nn.Module, field: Tensor, precision: str, **control: Any
) -> Callable[[], None]:
    """Forward and backward."""
    half = precision == "bf16"

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(field.device.type, torch.bfloat16, enabled=half):
            out = model(field, **control)
        out.float().square().mean().backward()

    return step


def peak(model: nn.Module, step: Callable[[], None], field: Tensor) -> float | str:
    """MiB that a step takes beside weights and input: of CUDA's allocator, or of its tensors."""
    if field.device.type != "cuda":
        cost = cost_of(model, step, [field])
        return "" if cost is None else round(cost.memory["total"] / 2**20)
    step()  # what is cached is not part of it
    model.zero_grad(set_to_none=True)
    before = torch.cuda.memory_allocated(field.device)
    torch.cuda.reset_peak_memory_stats(field.device)
    step()
    most = torch.cuda.max_memory_allocated(field.device)
    model.zero_grad(set_to_none=True)  # they would take the memory of the next model
    return round((most - before) / 2**20)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("folder", nargs="?", default="docs/benchmarks", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--shapes", nargs="+", default=["128x128", "256x256"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024])
    parser.add_argument("--decoders", nargs="+", default=list(DECODERS))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--depth", type=int, default=7)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--max-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="step", help="of the result files")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measures and writes the results."""
    options = arguments(given)
    found = (
        row
        for shape, tokens in itertools.product(options.shapes, options.tokens)
        for row in measure([int(n) for n in shape.split("x")], tokens, options.decoders, options)
    )
    rows = saved(options.folder, options.name, found)
    settings = (
        f" Width {options.dim}, depth {options.depth}, {options.heads} heads, {options.precision}, "
        f"cells 2 to {options.max_size}, {options.repeats} repetitions"
        f"{', compiled' if options.compile else ''}."
    )
    note = NOTE + settings + CLOCK
    draw = bars("field", "model", "time / plain ViT")
    print(write_results(options.folder, options.name, rows, note, draw).read_text())


if __name__ == "__main__":
    main()
