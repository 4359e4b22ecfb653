"""Draws the cells of APT over photographs: thresholds, scorers and augmentations (the paper's
Figs. 5, 8, 9 and 10).

    python experiments/vision_pictures.py [PHOTO ...] [--out FOLDER] [--patch 16] [--side 384]

Without files, photographs that scikit-image ships. Writes thresholds.png, scorers.png and
augmentations.png, by default into docs/images/vision.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchvision.transforms import v2

from adaptok import plots
from adaptok.cells import Cells
from adaptok.evaluation.bench.vision import photographs
from adaptok.plots.drawing import draw_cells
from adaptok.plots.fields import tokens_of
from adaptok.plots.style import style, subplots
from adaptok.vision import apply_apt

OUT = Path(__file__).parents[1] / "docs" / "images" / "vision"
SHIPPED = (0, 2, 1, 3)  # of those of scikit-image: a face, a cat, a cup, a rocket
BITS = (4.5, 5.5, 6.25, 7.0)  # of cells of twice the patch, with 4 bits for those of four times
SCORERS: dict[str, Any] = {
    "entropy": "entropy",
    "Laplacian": "laplacian",
    "resampling": "resampling",
    "variance by area": {"name": "variance", "by_area": True},
}
AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "crop and flip": lambda x: v2.RandomResizedCrop(x.shape[-1], (0.3, 0.6))(x.flip(2)),
    "RandAugment": v2.RandAugment(2, 9),
    "random erasing": lambda x: v2.RandomErasing(1.0, (0.2, 0.35), value=128)(x),
}
Panel = tuple[str, Tensor, Cells]


def adapted(patch: int, side: int, indicator: Any = "entropy") -> Any:
    """A small model that says cells; its weights play no part."""
    vit = VisionTransformer(img_size=side, patch_size=patch, embed_dim=12, depth=1, num_heads=1)
    norm = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    bits = indicator == "entropy"
    return apply_apt(vit, (5.5, 4.0) if bits else (1.0, 1.0), indicator=indicator, **norm)


def normalised(image: Tensor) -> Tensor:
    """A batch of one from 8-bit values."""
    return (image[None].float() / 255 - 0.5) / 0.5


def thresholds(image: Tensor, patch: int) -> list[Panel]:
    """More bits, larger cells."""
    model = adapted(patch, image.shape[-1])
    tiled = [model.tiling(normalised(image), thresholds=(bits, 4.0)) for bits in BITS]
    return [(f"{bits} bits", image, cells) for bits, cells in zip(BITS, tiled, strict=True)]


def scorers(image: Tensor, patch: int) -> list[Panel]:
    """Each at thresholds that keep half of the tokens of this photograph."""
    out = []
    for name, indicator in SCORERS.items():
        model, x = adapted(patch, image.shape[-1], indicator), normalised(image)
        out.append((name, image, model.tiling(x, thresholds=model.calibrate(x, share=0.5))))
    return out


def augmentations(image: Tensor, patch: int) -> list[Panel]:
    """At the paper's thresholds, (5.5, 4.0) bits."""
    torch.manual_seed(1)
    model, out = adapted(patch, image.shape[-1]), []
    for name, change in AUGMENTATIONS.items():
        changed = change(image)
        out.append((name, changed, model.tiling(normalised(changed))))
    return out


PICTURES = {"thresholds": thresholds, "scorers": scorers, "augmentations": augmentations}


def draw(name: str, images: Sequence[Tensor], patch: int, out: Path) -> Path:
    """Draws a row per photograph and a column per setting."""
    rows = [PICTURES[name](image, patch) for image in images]
    with style():
        columns = len(rows[0])
        figure, axes = subplots(len(rows), columns, (1.75 * columns, 1.9 * len(rows)))
        for row, panels in zip(axes, rows, strict=True):
            for ax, (title, image, cells) in zip(row, panels, strict=True):
                height, width = image.shape[1:]
                ax.imshow(image.permute(1, 2, 0).numpy(), extent=(0, width, height, 0))
                draw_cells(ax, cells, color="#ffd43b", linewidth=0.4, image=True)
                ax.set_axis_off()
                ax.set_title(f"{title}: {tokens_of(cells)}", fontsize=6, pad=2)
        return plots.save(figure, out / f"{name}.png", dpi=110, small=True)


def load(path: Path, side: int) -> Tensor:
    """Reads the square in the middle of a photograph, as 8-bit values (3, side, side)."""
    with Image.open(path) as image:
        whole = v2.functional.pil_to_tensor(image.convert("RGB"))
    square = v2.functional.center_crop(whole, [min(whole.shape[1:])] * 2)
    return v2.functional.resize(square, [side, side], antialias=True)


def main(given: Sequence[str] | None = None) -> None:
    """Draws all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="*", type=Path, metavar="PHOTO")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--side", type=int, default=384)
    options = parser.parse_args(given)
    if options.photos:
        images = [load(path, options.side) for path in options.photos]
    else:
        shipped, _ = photographs(max(SHIPPED) + 1, options.side)
        images = [(255 * shipped[i]).round().to(torch.uint8) for i in SHIPPED]
    for name in PICTURES:
        print(draw(name, images, options.patch, options.out))


if __name__ == "__main__":
    main()
