"""Segmentation with dense features of an adaptive ViT, trained end to end, against fixed patches.

``python experiments/apt_segmentation/run.py [FOLDER]`` writes results.csv and learning_curves.png;
killed and started again, it goes on.
"""

from __future__ import annotations

import csv
import itertools
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adaptok.vision import apply_apt

SIDE, CLASSES = 64, 4  # background, disc, square, ring
SETTINGS = {"fixed patches": (-1.0, -1.0), "APT": (1.0, 1.0)}


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shapes of random texture on a flat background: 8-bit images over 255, and labels."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    axis = torch.arange(SIDE) + 0.5
    y, x = axis[:, None], axis[None, :]
    images = uniform(0.2, 0.8)[:, None].expand(-1, 3, SIDE, SIDE).clone()
    labels = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    for label in range(1, CLASSES):
        dy, dx, r = y - uniform(8, SIDE - 8), x - uniform(8, SIDE - 8), uniform(5, 11)
        distance = (dy**2 + dx**2).sqrt()
        inside = {
            1: distance < r,
            2: torch.maximum(dy.abs(), dx.abs()) < r,
            3: (distance < r) & (distance > r / 2),
        }[label]
        texture = torch.rand(count, 3, SIDE, SIDE, generator=generator)
        images = torch.where(inside[:, None], texture, images)
        labels = torch.where(inside, label, labels)
    return (images * 255).round() / 255, labels


class Segmenter(nn.Module):
    """A small ViT with a linear head on its dense features."""

    def __init__(self, thresholds: tuple[float, float]):
        super().__init__()
        vit = VisionTransformer(
            img_size=SIDE, patch_size=4, embed_dim=64, depth=3, num_heads=4, num_classes=0
        )
        self.vit = apply_apt(vit, thresholds, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.head = nn.Conv2d(64, CLASSES * 16, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.vit.dense_features((images - 0.5) / 0.5))
        return nn.functional.pixel_shuffle(logits, 4)  # each patch predicts its pixels


def mean_iou(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean over classes of intersection over union."""
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in images.split(32)])
    scores = []
    for label in range(CLASSES):
        a, b = found == label, labels == label
        scores.append(((a & b).sum() / (a | b).sum().clamp_min(1)).item())
    return statistics.mean(scores)


def run(name: str, seed: int, steps: int) -> list[dict[str, object]]:
    """One row per 50 steps, each measured on the same 128 scenes."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Segmenter(SETTINGS[name])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    images, labels = scenes(128, torch.Generator().manual_seed(10_000))
    rows = []
    for step in range(1, steps + 1):
        x, y = scenes(16, generator)
        loss = cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            model.eval()
            iou = mean_iou(model, images, labels)
            with torch.no_grad():
                tokens = len(model.vit.tiling((images - 0.5) / 0.5)) / len(images)
            row = {"setting": name, "seed": seed, "step": step, "tokens": round(tokens, 2)}
            rows.append({**row, "mIoU": round(iou, 4)})
            model.train()
    return rows


def draw(rows: list[dict[str, str]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for color, name in enumerate(SETTINGS):
        for seed in dict.fromkeys(row["seed"] for row in rows):
            own = [r for r in rows if (r["setting"], r["seed"]) == (name, seed)]
            points = [(int(r["step"]), float(r["mIoU"])) for r in own]
            label = name if seed == rows[0]["seed"] else None
            axes.plot(*zip(*points, strict=True), color=f"C{color}", marker=".", label=label)
    axes.set(xlabel="training step", ylabel="mIoU")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(folder: Path, steps: int = 250, seeds: int = 3) -> None:
    file, rows = folder / "results.csv", []
    if file.exists():
        with file.open(newline="") as kept:
            rows = list(csv.DictReader(kept))
    for seed, name in itertools.product(range(seeds), SETTINGS):
        if any((row["setting"], row["seed"]) == (name, str(seed)) for row in rows):
            continue  # a script that was killed goes on here
        rows += [{k: str(v) for k, v in row.items()} for row in run(name, seed, steps)]
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(rows[-1], flush=True)
    draw(rows, folder / "learning_curves.png")
    for name in SETTINGS:
        own = [row for row in rows if row["setting"] == name and row["step"] == str(steps)]
        iou = [float(row["mIoU"]) for row in own]
        tokens = statistics.mean(float(row["tokens"]) for row in own)
        print(f"| {name} | {tokens:.1f} | {statistics.mean(iou):.4f} ± "
              f"{statistics.stdev(iou) if len(iou) > 1 else 0:.4f} |")  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
