"""What the solver of the decoder `refine` costs at some grid points, against all of them.

Run ``python -m benchmarks.refine [folder]``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from adaptok.decoders.refine import RefineDecoder
from adaptok.evaluation.bench.timing import (
    clock_of,
    digits,
    flops_of,
    median_ratio,
    paired,
    saved,
    target_of,
    write_results,
)
from adaptok.models.parts import create_decoder, create_tokenizer

SHARES = (0.25, 0.05)
DIM = 96
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Points, channels and solver width of the sets that the headline is measured on, and 64 tokens.
CASES = (
    {"space": (64, 64, 64), "channels": 6, "width": 32, "size": 16},
    {"space": (256, 256), "channels": 5, "width": 64, "size": 32},
)
NOTE = (
    "Choice of the points and solver of `refine` (block 2, stencil 1 and 3, one pointwise layer; "
    "without base and smoothing) on one sample with 64 uniform tokens of width 96, against the "
    "dense solver with the same weights. The scores of the default indicator count. The sparse one "
    "is checked to agree with the dense one at the chosen points. Medians of paired runs in "
    "milliseconds (on a CPU processor time of one thread), float32; the ratios are medians of the "
    "ratios of paired runs. Backward passes have gradients of all weights and of the tokens."
)


def measure(repeats: int = 9) -> Iterator[dict[str, Any]]:
    """One row per case, share and direction."""
    for case in CASES:
        space, channels = case["space"], case["channels"]
        knobs = {"width": case["width"]}
        make = {"ndim": len(space), "in_channels": channels, "dim": DIM, "size": case["size"]}
        tokenizer = create_tokenizer("uniform", **make).to(DEVICE)
        x = torch.randn(1, channels, *space, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        tokens = tokenizer(x).detach()
        tokens.features.requires_grad_()
        every = create_decoder("refine", tokenizer.spec, channels, share=1.0, **knobs).to(DEVICE)
        torch.nn.init.normal_(every.solver.head.weight)
        runs = {"dense": every}
        for share in SHARES:
            own = create_decoder(
                "refine", tokenizer.spec, channels, share=share, width=case["width"]
            )
            own.to(DEVICE).load_state_dict(every.state_dict())
            runs[f"{share:.0%}"] = own
        solve = {name: solving(decoder, tokens, x) for name, decoder in runs.items()}
        check(solve)
        for what, wrap in (("forward", _forward), ("forward + backward", _backward)):
            calls = {name: wrap(function) for name, function in solve.items()}
            seconds = paired(calls, repeats=repeats, clock=clock_of(DEVICE))
            for share in SHARES:
                ours, others = seconds[f"{share:.0%}"], seconds["dense"]
                ratios = sorted(a / b for a, b in zip(ours, others, strict=True))
                flops = [flops_of(calls[name]) / 1e6 for name in (f"{share:.0%}", "dense")]
                yield {
                    "points": " x ".join(map(str, space)),
                    "channels, width": f"{channels}, {case['width']}",
                    "what": what,
                    "share": f"{share:.0%}",
                    "sparse ms": digits(1e3 * statistics.median(ours)),
                    "dense ms": digits(1e3 * statistics.median(others)),
                    "ratio": round(median_ratio(ours, others), 3),
                    "lowest to highest": f"{ratios[0]:.3f} to {ratios[-1]:.3f}",
                    "MFLOP": f"{flops[0]:.0f} / {flops[1]:.0f}",
                }


def solving(decoder: RefineDecoder, tokens: Any, x: Tensor) -> Callable[[], Tensor]:
    """The part that is measured."""

    def solve() -> Tensor:
        blocks = None if decoder.choice is None else decoder.choice(x[:, None], None)
        return decoder.solver(x, tokens.features, tokens.cells, None, blocks)

    return solve


@torch.no_grad()
def check(solve: dict[str, Callable[[], Tensor]]) -> None:
    """Raises ``AssertionError`` if a sparse solver differs from the dense one where it computes."""
    dense = solve["dense"]()
    for function in solve.values():
        some = function()
        torch.testing.assert_close(some, dense * (some != 0), rtol=1e-3, atol=1e-4)


def _forward(function: Callable[[], Tensor]) -> Callable[[], Any]:
    return torch.no_grad()(function)


def _backward(function: Callable[[], Tensor]) -> Callable[[], Any]:
    slope = torch.ones_like(function())
    return lambda: function().backward(slope)


if __name__ == "__main__":
    target = target_of(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # which is no float32: the two ways would not agree
    rows = saved(target, "refine", measure())
    print(write_results(target, "refine", rows, NOTE).read_text())
