"""Segmentation with dense features of a ViT on fixed or adaptive patches, trained end to end.

``python experiments/apt_table5/run.py OUT SEED fixed|apt`` writes OUT/results.json.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adaptok.vision import apply_apt

SIDE, CLASSES = 64, 4  # background, disc, square, ring
TINTS = torch.tensor([[1.0, 0.7, 0.7], [0.7, 1.0, 0.7], [0.7, 0.7, 1.0]])[..., None, None]
THRESHOLDS = {"fixed": (-1.0, -1.0), "apt": (1.0, 1.0)}


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Makes shapes of tinted random texture on a flat background: 8-bit images over 255, labels."""

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
        texture = TINTS[label - 1] * torch.rand(count, 3, SIDE, SIDE, generator=generator)
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
    """Returns the mean over classes of intersection over union."""
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in images.split(32)])
    scores = []
    for label in range(CLASSES):
        a, b = found == label, labels == label
        scores.append(((a & b).sum() / (a | b).sum().clamp_min(1)).item())
    return statistics.mean(scores)


def run(name: str, seed: int, steps: int = 200) -> list[dict[str, object]]:
    """Trains; returns a row per 50 steps on the same 128 scenes, the last one without words."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Segmenter(THRESHOLDS[name])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    images, labels = scenes(128, torch.Generator().manual_seed(10_000))
    rows = []
    for step in range(1, steps + 1):
        x, y = scenes(16, generator)
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            model.eval()
            with torch.no_grad():
                tokens = len(model.vit.tiling((images - 0.5) / 0.5)) / len(images)
            about = {"after": f"{step} steps"} if step < steps else {}
            rows.append({**about, "tokens": tokens, "miou": mean_iou(model, images, labels)})
            model.train()
    return rows


def main(folder: Path, seed: int, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"rows": run(name, seed)}, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
