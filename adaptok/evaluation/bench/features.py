"""What fewer tokens cost a pretrained model off the shelf: loss of its dense features.

Run ``adaptok bench features [--help]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from adaptok.evaluation.bench.timing import write_results
from adaptok.evaluation.bench.vision import photographs
from adaptok.utils.arguments import Positive, PositiveShare, check_value, checked
from adaptok.vision import apply_apt, apply_reducer

Features = Float[Tensor, "b d gh gw"]
BY_AREA: dict[str, dict[str, Any]] = {
    "variance by area": {"name": "variance"},
    "variance by area, normalised": {"name": "variance", "normalise": True},
    "resampling by area": {"name": "resampling"},
}
NOTE = (
    "Loss of the dense features of a model that was not fine-tuned: 1 - cosine with the features "
    "that it gives with all patches, mean over the patches of {count} images ({what}) of {size} "
    "pixels. {weights} `kept` is the mean share of the patches, for `tome` over all blocks; "
    "thresholds are calibrated to it. `weighted` lets a token count as a key for the patches that "
    "it stands for. Features of `smaller image` are resampled to the grid, bilinear."
)


def plans() -> dict[str, dict[str, Any]]:
    """Names what is compared: arguments of `apply_apt` by label."""
    entropy: dict[str, Any] = {"thresholds": (5.5, 4.0)}
    found = {"entropy": entropy, "entropy, weighted": entropy | {"weighted": True}}
    for label, indicator in BY_AREA.items():
        knobs = {"thresholds": (1.0, 1.0), "indicator": indicator | {"by_area": True}}
        found[f"{label}, weighted"] = knobs | {"weighted": True}
    return found


def dense(model: Any, x: Float[Tensor, "b c h w"], **control: Any) -> Features:
    """Returns the features after the last norm, on the grid of patches."""
    (found,) = model.forward_intermediates(x, 1, norm=True, intermediates_only=True, **control)
    return found


def loss(found: Features, wanted: Features) -> Float[Tensor, " b"]:
    """Returns 1 - cosine of each image, the mean over its patches."""
    return (1 - F.cosine_similarity(found, wanted, dim=1)).flatten(1).mean(1)


@checked
def measure(
    model: Any, x: Float[Tensor, "b c h w"], shares: Sequence[PositiveShare], batch: Positive = 6
) -> Iterator[dict[str, Any]]:
    """Yields a row for every way to have fewer tokens, and every share of them.

    Args:
        model: a ViT of timm with ``dynamic_img_size``.
        x: normalised images.
        shares: of the patches.
        batch: images at a time.

    Raises:
        ValueError: a share outside 0..1, a batch below 1.
    """
    wanted = _mapped(lambda part: dense(model, part), x, batch)
    grid = wanted.shape[-2:]

    def row(label: str, share: float, kept: float, found: Features) -> dict[str, Any]:
        each = loss(found, wanted)
        return {
            "tokens": label,
            "share": share,
            "kept": round(kept, 3),
            "loss": round(each.mean().item(), 4),
            "worst image": round(each.max().item(), 4),
        }

    for label, knobs in plans().items():
        fast = apply_apt(model, **knobs).eval()
        for share in shares:
            bars = fast.calibrate(x, share=share)
            kept = []

            def adapted(part: Tensor, fast: Any = fast, bars: Any = bars, kept: Any = kept) -> Any:
                out = dense(fast, part, thresholds=bars)
                kept.append(len(fast.last_cells))
                return out

            found = _mapped(adapted, x, batch)
            yield row(label, share, sum(kept) / (len(x) * grid.numel()), found)
    for share in shares:
        r, kept = merges(model, grid.numel(), share)
        reduced = apply_reducer(model, "tome", r=r).eval()
        yield row("tome", share, kept, _mapped(lambda p, m=reduced: dense(m, p), x, batch))
    for share in shares:
        side = round(grid[0] * share**0.5)
        small = F.interpolate(x, size=side * model.patch_embed.patch_size[0], **RESAMPLED)
        found = _mapped(lambda part: dense(model, part), small, batch)
        found = F.interpolate(found, size=tuple(grid), mode="bilinear")
        yield row("smaller image", share, side**2 / grid.numel(), found)


RESAMPLED: dict[str, Any] = {"mode": "bicubic", "antialias": True}


def merges(model: Any, patches: int, share: float) -> tuple[int, float]:
    """Returns the merges per block of ToMe that keep a share of the patches in the mean over
    blocks, and the share that they keep.
    """
    depth = len(model.blocks)

    def kept(r: int) -> float:
        left, total = patches, 0
        for _ in range(depth):
            left -= min(r, left // 2)  # more never merge in one block
            total += left
        return total / (depth * patches)

    r = min(range(1, patches // 2), key=lambda r: abs(kept(r) - share))
    return r, kept(r)


def _mapped(function: Callable[[Tensor], Features], x: Tensor, batch: int) -> Features:
    return torch.cat([function(part) for part in x.split(batch)])


def main() -> None:
    """Measures, writes JSON and Markdown, and prints the table."""
    import timm

    parser = argparse.ArgumentParser(prog="adaptok bench features", description=__doc__)
    parser.add_argument("folder", nargs="?", default="docs/benchmarks", type=Path)
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--weights", default="", help="a file; without one, timm's are downloaded")
    parser.add_argument("--size", type=int, default=336)
    parser.add_argument("--images", type=int, default=14)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.77, 0.56, 0.44])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    check_value(options.threads, Positive, "threads")
    torch.set_num_threads(options.threads)
    images, what = photographs(options.images, options.size)
    kind: dict[str, Any] = {"img_size": options.size, "dynamic_img_size": True, "num_classes": 0}
    if options.weights:  # positions are resampled to the size
        kind["pretrained_cfg_overlay"] = {"file": options.weights}
    model: Any = timm.create_model(options.model, pretrained=True, **kind).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    with torch.inference_mode():
        rows = [*measure(model, (images - mean) / std, options.shares)]
    weights = f"{options.model}, weights of {Path(options.weights).name or 'timm'}."
    note = NOTE.format(count=len(images), what=what, size=options.size, weights=weights)
    command = f"adaptok bench features --model {options.model} --size {options.size}"
    print(write_results(options.folder, "features", rows, note, None, command).read_text())


if __name__ == "__main__":
    main()
