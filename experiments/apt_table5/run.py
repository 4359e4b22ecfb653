"""Segmentation with dense features of a ViT on fixed or adaptive patches, trained end to end.

``python experiments/apt_table5/run.py OUT SEED fixed|apt linear|upernet`` writes OUT/results.json.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adaptok.vision import Segmenter, apply_apt

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


def build(name: str, head: str) -> nn.Module:
    """Builds a small ViT, on fixed or adaptive patches, with a head; it takes normalised images."""
    vit = VisionTransformer(
        img_size=SIDE, patch_size=4, embed_dim=64, depth=3, num_heads=4, num_classes=0
    )
    fast = apply_apt(vit, THRESHOLDS[name], mean=(0.5,) * 3, std=(0.5,) * 3)
    return HEADS[head](fast)


class Linear(nn.Module):
    """Predicts the pixels of each patch from its dense feature."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.head = model, nn.Conv2d(64, CLASSES * 16, 1)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.head(self.model.dense_features(images)), 4)


def upernet(model: Any) -> nn.Module:
    """UperNet's head on ViTDet's pyramid, at 2, 4 and 8 pixels."""
    return Segmenter(model, CLASSES, channels=32, scales=(2, 1, 0.5))


HEADS = {"linear": Linear, "upernet": upernet}


def mean_iou(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the mean over classes of intersection over union."""
    with torch.no_grad():
        parts = ((images - 0.5) / 0.5).split(32)
        found = torch.cat([model(part).argmax(1) for part in parts])
    scores = []
    for label in range(CLASSES):
        a, b = found == label, labels == label
        scores.append(((a & b).sum() / (a | b).sum().clamp_min(1)).item())
    return statistics.mean(scores)


def run(name: str, head: str, seed: int, steps: int = 200) -> list[dict[str, object]]:
    """Trains; returns a row per 50 steps on the same 128 scenes, the last one without words."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model: Any = build(name, head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    images, labels = scenes(128, torch.Generator().manual_seed(10_000))
    rows = []
    for step in range(1, steps + 1):
        x, y = scenes(16, generator)
        loss = cross_entropy(model((x - 0.5) / 0.5), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            model.eval()
            with torch.no_grad():
                tokens = len(model.model.tiling((images - 0.5) / 0.5)) / len(images)
            about = {"after": f"{step} steps"} if step < steps else {}
            rows.append({**about, "tokens": tokens, "miou": mean_iou(model, images, labels)})
            model.train()
    return rows


def main(folder: Path, seed: int, name: str, head: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"rows": run(name, head, seed)}, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
