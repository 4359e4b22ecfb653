"""Images per second of timm models on cells, beside the unmodified models in the same run.

Run ``adaptok bench vision [--help]``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptok.evaluation.bench.timing import (
    FULL,
    clock_of,
    exact_convolutions,
    flops_of,
    median_ratio,
    paired,
    saved,
    unless_full,
    write_results,
)
from adaptok.utils.arguments import Positive, PositiveShare, check_value, checked
from adaptok.vision import apply_apt

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina")
PHOTOS += ("immunohistochemistry", "camera", "brick", "grass", "gravel", "coins", "moon", "clock")
CHECKED = 2  # images: to compare the logits of
NOTE = (
    "A timm model beside the same model wrapped by `apply_apt`, weights shared and random, on "
    "{what}. `end to end` starts from the normalised batch and includes indicator, marking and "
    "packing; `model only` is given the cells. Images per second come from the median of {repeats} "
    "paired runs after one warm-up, measured in {clock}; speed-ups are medians of the ratios of "
    "paired runs. `kept` is the share of the model's own patches, `merged` the share of patches "
    "inside a coarser cell. FLOPs are counted by torch.utils.flop_counter. Thresholds -1 merge "
    "nothing: there the logits of the first images were checked to agree to 1e-4 in float32 before "
    "timing. Thresholds other than -1 and the paper's (5.5, 4) were calibrated to a share of "
    "tokens. `floor` is timm's model on as many dense tokens (the mean of the images, in one strip "
    "of patches): `of floor` "
    "is its time over that of the run end to end. With thresholds -1 it is one minus the overhead."
)


@checked
def photographs(count: Positive, size: Positive) -> tuple[Tensor, str]:
    """Loads photographs of scikit-image, or makes synthetic images if it is not installed.

    Returns:
        images: (count, 3, size, size), 8-bit values over 255, so 0..1.
        what: what they are.

    Raises:
        ValueError: a number below 1.
    """
    try:
        from skimage import data  # pyright: ignore[reportMissingImports]
    except ImportError:
        noise = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
        blocks = torch.nn.functional.interpolate(noise[..., ::64, ::64], size=size, mode="bicubic")
        mixed = torch.where(blocks > 0.7, noise, blocks).clamp(0, 1)
        return (mixed * 255).round() / 255, "synthetic images (smooth with patches of noise)"
    names = (PHOTOS * (count // len(PHOTOS) + 1))[:count]
    images = [_square(torch.from_numpy(getattr(data, name)().copy()), size) for name in names]
    return torch.stack(images), "photographs that scikit-image ships"


def _square(image: Tensor, size: int) -> Tensor:
    image = image[..., :3] if image.ndim == 3 else image[..., None].expand(-1, -1, 3)
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    x = image[top : top + side, left : left + side].permute(2, 0, 1)[None].float()
    x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
    return x[0].round().clamp(0, 255) / 255


def rules(fast: Any, x: Tensor, shares: Sequence[float]) -> list[tuple[float, ...]]:
    """Returns thresholds to measure: no merging, the paper's, and one per share of tokens."""
    return [(-1.0, -1.0), (5.5, 4.0), *(fast.calibrate(x, share=share) for share in shares)]


@checked
def measure(
    name: str,
    size: Positive,
    batch: Positive,
    *,
    shares: Sequence[PositiveShare] = (0.5, 0.25),
    repeats: Positive = 5,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[dict[str, Any]]:
    """Makes one row per set of thresholds.

    Raises:
        ValueError: a number out of its range, no such model.
    """
    import timm

    torch.manual_seed(0)
    with torch.device(device):  # a CPU takes long to draw the weights of a huge model
        model = timm.create_model(name, img_size=size).eval()
    images, _ = photographs(batch, size)
    mean, std = (torch.tensor(v)[:, None, None] for v in apply_apt(model).tiling.stats)
    x = ((images - mean) / std).to(device)
    check(model, x[:CHECKED])
    model, x = model.to(dtype), x.to(dtype)
    fast = apply_apt(model, (5.5, 4.0)).eval()
    for thresholds in rules(fast, x, shares):
        row = {"model": name, "size": size, "batch": batch, "thresholds": _said(thresholds)}
        found = unless_full(lambda bars=thresholds: _measure_rule(model, fast, x, bars, repeats))
        yield row | (found or FULL)


@torch.no_grad()
def check(model: Any, x: Tensor) -> None:
    """Raises ``AssertionError`` if cells that merge nothing give other logits in float32."""
    fast = apply_apt(model, (-1.0, -1.0)).eval()
    with exact_convolutions():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def _said(thresholds: Sequence[float]) -> str:
    return ", ".join(f"{bar:.2f}".rstrip("0").rstrip(".") for bar in thresholds)


def _measure_rule(
    model: Any, fast: Any, x: Tensor, thresholds: tuple[float, ...], repeats: int
) -> dict[str, Any]:
    def end_to_end() -> Tensor:
        return fast(x, thresholds=thresholds)

    cells = fast.tiling(x, thresholds=thresholds)
    plain = flops_of(lambda: model(x))
    work = flops_of(end_to_end) / plain
    functions = {
        "timm": lambda: model(x),
        "end to end": end_to_end,
        "model only": lambda: fast(x, cells=cells),
    }
    functions["floor"] = _floor(model, x, round(len(cells) / len(x)))
    seconds = paired(functions, repeats=repeats, clock=clock_of(x.device))
    finest = x.shape[0] * model.patch_embed.num_patches
    whole = int((cells.level == len(cells.sizes) - 1).sum())
    row: dict[str, Any] = {
        "kept": round(len(cells) / finest, 3),
        "merged": round(1 - whole / finest, 3),
        "GFLOPs/image": round(work * plain / x.shape[0] / 1e9, 2),
    }
    row |= {f"{k} img/s": round(len(x) / statistics.median(v), 3) for k, v in seconds.items()}
    for side in ("end to end", "model only"):
        row[f"{side} speed-up"] = round(median_ratio(seconds["timm"], seconds[side]), 3)
    row["of floor"] = round(median_ratio(seconds["floor"], seconds["end to end"]), 3)
    row["FLOP ratio"] = round(1 / work, 3)
    row["end to end / FLOP ratio"] = round(row["end to end speed-up"] * work, 3)
    return row


def _floor(model: Any, x: Tensor, tokens: int) -> Callable[[], Tensor]:
    """The unmodified model on as many patches, in one strip per image."""
    if tokens == model.patch_embed.num_patches:
        return lambda: model(x)
    dense, (height, width) = copy.deepcopy(model), model.patch_embed.patch_size
    dense.set_input_size((height, width * tokens))
    strip = x.new_zeros(*x.shape[:2], height, width * tokens).normal_()
    return lambda: dense(strip)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the speed-up against kept tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, rows = figure.subplots(), [row for row in rows if "kept" in row]
    for name in dict.fromkeys((row["model"], row["size"], row["batch"]) for row in rows):
        own = [row for row in rows if (row["model"], row["size"], row["batch"]) == name]
        own.sort(key=lambda row: row["kept"])
        kept = [row["kept"] for row in own]
        label = f"{name[0]}, {name[1]} px, batch {name[2]}"
        line = axes.plot(kept, [row["end to end speed-up"] for row in own], "o-", label=label)
        color = line[0].get_color()
        axes.plot(kept, [row["model only speed-up"] for row in own], "x:", color=color)
        axes.plot(kept, [row["FLOP ratio"] for row in own], "--", color=color, alpha=0.4)
    axes.axhline(1, color="0.8", zorder=0)
    axes.set(xlabel="kept tokens", ylabel="speed-up over timm")
    axes.set_title("o end to end, x model only, dashed: FLOP ratio", fontsize="small")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures, writes JSON, Markdown and a picture, and prints the table."""
    parser = argparse.ArgumentParser(prog="adaptok bench vision")
    parser.add_argument("folder", nargs="?", default="docs/benchmarks", type=Path)
    parser.add_argument("--models", nargs="+", default=["vit_base_patch16_384"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[384])
    parser.add_argument("--batches", nargs="+", type=int, default=[2])
    parser.add_argument("--shares", nargs="*", type=float, default=[0.5, 0.25])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None if torch.cuda.is_available() else 1)
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    kind: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16} if cuda else {}
    if options.threads is not None:
        check_value(options.threads, Positive, "threads")
        torch.set_num_threads(options.threads)
    kind |= {"shares": options.shares, "repeats": options.repeats}
    cases = itertools.product(options.models, options.sizes, options.batches)
    with torch.inference_mode():
        found = (row for case in cases for row in measure(*case, **kind))
        rows = saved(options.folder, "vision", found)
    what = photographs(1, options.sizes[0])[1]
    alone = clock_of("cuda" if cuda else "cpu") is time.process_time
    lists = {"models": options.models, "sizes": options.sizes, "batches": options.batches}
    lists |= {"repeats": [options.repeats]}
    words = [f"--{k} {' '.join(map(str, v))}" for k, v in lists.items()]
    command = " ".join(["adaptok bench vision", *words])
    clock = "processor time of one thread" if alone else "wall time"
    note = NOTE.format(what=what, repeats=options.repeats, clock=clock)
    print(write_results(options.folder, "vision", rows, note, plot, command).read_text())


if __name__ == "__main__":
    main()
