"""Token merging in a timm ViT-B/16 at 384 pixels: seconds beside operations.

Run ``python -m benchmarks.reducers [folder]``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from adaptok.evaluation.bench.timing import (
    CLOCK,
    clock_of,
    digits,
    exact_convolutions,
    flops_of,
    median_ratio,
    paired,
    saved,
    target_of,
    write_results,
)
from adaptok.vision import apply_reducer

MODEL, SIDE, REPEATS = "vit_base_patch16_384", 384, 5
REMOVED = (16, 32)
CUDA = torch.cuda.is_available()
BATCH = 64 if CUDA else 2  # two images leave most of a GPU idle
KIND = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
NOTE = (
    f"Forward pass of timm's `{MODEL}` with random weights ({str(KIND[1])[6:]}, {BATCH} images, "
    f"one warm-up, medians of {REPEATS} paired runs), alone and with the reducer `tome` (weighted "
    "attention) "
    "taking away r tokens per block. `FLOP ratio` is counted by torch.utils.flop_counter, the "
    "matching included; `speed-up` is the median of the ratios of paired runs, with its lowest and "
    "highest, and the last column how much of the FLOP ratio arrives. A reducer with r = 0 is what "
    "our way through the blocks costs. Before the measurement r = 0 is checked to equal timm."
)


@torch.inference_mode()
def measure(repeats: int = REPEATS) -> Iterator[dict[str, object]]:
    """One row per number of tokens that a block takes away."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(MODEL, pretrained=False).eval().to(KIND[0])
    x = torch.randn(BATCH, 3, SIDE, SIDE, device=KIND[0])
    models = {r: apply_reducer(model, "tome", r=r).eval().to(KIND[0]) for r in (0, *REMOVED)}
    with exact_convolutions():
        torch.testing.assert_close(models[0](x[:2]), model(x[:2]), atol=1e-4, rtol=1e-4)
    for each in models.values():  # they share the parameters
        each.to(*KIND)
    x = x.to(*KIND)
    calls = {"timm": lambda: model(x), **{r: (lambda m=m: m(x)) for r, m in models.items()}}
    seconds = paired(calls, repeats=repeats, clock=clock_of(x.device))
    plain = flops_of(calls["timm"])
    for r in models:
        ratios = [a / b for a, b in zip(seconds["timm"], seconds[r], strict=True)]
        work, gain = plain / flops_of(calls[r]), median_ratio(seconds["timm"], seconds[r])
        yield {
            "r": r,
            "tokens at the end": models[r].forward_features(x).shape[1],
            "timm s/image": digits(statistics.median(seconds["timm"]) / BATCH),
            "reduced s/image": digits(statistics.median(seconds[r]) / BATCH),
            "FLOP ratio": round(work, 3),
            "speed-up": round(gain, 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
            "speed-up / FLOP ratio": round(gain / work, 3),
        }


if __name__ == "__main__":
    target = target_of(__doc__)
    torch.set_num_threads(1)
    rows = saved(target, "reducers", measure())
    print(write_results(target, "reducers", rows, NOTE + CLOCK).read_text())
