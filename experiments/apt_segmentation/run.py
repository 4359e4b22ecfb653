"""Segmentation with dense features of an adaptive ViT, trained end to end, against fixed patches.

Run ``python experiments/apt_segmentation/run.py [folder]``; writes ``results.csv``.
"""

from __future__ import annotations

import csv
import statistics
import sys
from pathlib import Path

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


def run(name: str, seed: int, steps: int) -> dict[str, object]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Segmenter(SETTINGS[name])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        images, labels = scenes(16, generator)
        loss = cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    images, labels = scenes(128, torch.Generator().manual_seed(10_000))
    iou = mean_iou(model, images, labels)
    model(images)
    tokens = len(model.vit.last_cells) / len(images)
    return {"setting": name, "seed": seed, "steps": steps, "tokens": tokens, "mIoU": round(iou, 4)}


def main(folder: Path, steps: int = 150, seeds: int = 3) -> None:
    rows = [run(name, seed, steps) for seed in range(seeds) for name in SETTINGS]
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for name in SETTINGS:
        own = [row for row in rows if row["setting"] == name]
        iou = [float(str(row["mIoU"])) for row in own]
        tokens = statistics.mean(float(str(row["tokens"])) for row in own)
        print(f"{name}: {tokens:.1f} tokens, mIoU {statistics.mean(iou):.3f} "
              f"± {statistics.stdev(iou) if len(iou) > 1 else 0:.3f}")  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
