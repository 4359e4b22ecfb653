"""Detection of shapes on photographs by Faster R-CNN on a ViT with windows, trained end to end.

``python experiments/apt_table4/run.py OUT SEED fixed|resize|apt [STEPS]`` writes OUT/results.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from adaptok.evaluation.average_precision import average_precision
from adaptok.evaluation.bench.vision import photographs
from adaptok.vision import DetectionBackbone, apply_apt, skip_padding

PHOTOS = 7  # those in colour
SIDE, CLASSES = 128, 4  # background, ellipse, rectangle, triangle
SMALL = 104  # side of the images of "resize": 169 patches of 8 pixels in place of 256
BATCH, TEST = 8, 64
NORM = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
Scene = tuple[Tensor, dict[str, Tensor]]


class Scenes:
    """Makes photographs with one to four shapes, and the boxes of the shapes.

    Args:
        test: take the photographs of the test, which training does not see.
    """

    def __init__(self, seed: int, test: bool = False):
        photos, _ = photographs(PHOTOS, 256)
        self.photos = photos[::3] if test else photos[[i for i in range(len(photos)) if i % 3]]
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, count: int) -> list[Scene]:
        """Returns 8-bit images over 255, each with its boxes and labels."""
        return [self.scene() for _ in range(count)]

    def scene(self) -> Scene:
        """Returns one image: shapes of one colour with a little noise, which do not overlap."""
        top, left = (self._whole(256 - SIDE + 1) for _ in range(2))
        image = self.photos[self._whole(len(self.photos))][:, top : top + SIDE, left : left + SIDE]
        if self._whole(2):
            image = image.flip(2)
        image, boxes, labels = image.clone(), [], []
        for _ in range(1 + self._whole(4)):
            label, inside = 1 + self._whole(3), torch.zeros(SIDE, SIDE, dtype=torch.bool)
            for _ in range(20):
                inside = self._shape(label)
                box = _box(inside)
                if not any(_touch(box, other) for other in boxes):
                    break
            else:
                continue
            noise = 0.04 * torch.randn(3, SIDE, SIDE, generator=self.generator)
            image = torch.where(inside, self._uniform(3)[:, None, None] + noise, image)
            boxes.append(box)
            labels.append(label)
        image = (image.clamp(0, 1) * 255).round() / 255
        return image, {"boxes": torch.stack(boxes), "labels": torch.tensor(labels)}

    def _shape(self, label: int) -> Tensor:
        """Returns the pixels of a shape of 14 to 48 pixels, inside the image."""
        ry, rx = 7 + 17 * self._uniform(2)
        cy, cx = ((r + (SIDE - 2 * r) * self._uniform(1)) for r in (ry, rx))
        axis = torch.arange(SIDE) + 0.5
        y, x = (axis[:, None] - cy) / ry, (axis[None, :] - cx) / rx
        return {
            1: y**2 + x**2 < 1,
            2: torch.maximum(y.abs(), x.abs()) < 1,
            3: (y.abs() < 1) & (2 * x.abs() < 1 + y),
        }[label]

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator)

    def _whole(self, below: int) -> int:
        return int(torch.randint(below, (1,), generator=self.generator))


def _box(inside: Tensor) -> Tensor:
    """Left, top, right and bottom edge of the pixels of a shape."""
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return torch.stack(ends).float()


def _touch(a: Tensor, b: Tensor) -> bool:
    """Whether boxes are closer than two pixels."""
    return bool((torch.maximum(a[:2], b[:2]) < torch.minimum(a[2:], b[2:]) + 2).all())


def detector(name: str) -> FasterRCNN:
    """Builds Faster R-CNN with ViTDet's pyramid on a small ViT: windows of 64, two global blocks.

    The thresholds of "apt" leave as many tokens as "resize" has, on average over such scenes.
    """
    side = SMALL if name == "resize" else SIDE
    vit = VisionTransformer(
        img_size=side,
        patch_size=8,
        embed_dim=96,
        depth=4,
        num_heads=4,
        num_classes=0,
        class_token=False,
        global_pool="avg",
    )
    thresholds: Any = (-1.0, -1.0)
    if name == "apt":
        images = torch.stack([image for image, _ in Scenes(20_000).batch(64)])
        fast = apply_apt(vit, (5.5, 4.0), **NORM)
        thresholds = fast.calibrate((images - 0.5) / 0.5, tokens=(SMALL // 8) ** 2)
    fast = apply_apt(vit, thresholds, **NORM, window=64, global_blocks=(1, 3))
    backbone = DetectionBackbone(fast, out_channels=64, scales=(2, 1, 0.5))  # strides 4, 8, 16
    model = FasterRCNN(
        backbone,
        min_size=side,
        max_size=side,
        size_divisible=backbone.divisor,
        image_mean=backbone.mean,
        image_std=backbone.std,
        rpn_anchor_generator=AnchorGenerator(((12,), (24,), (48,), (96,)), ((0.6, 1.0, 1.6),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=1),
        box_head=TwoMLPHead(64 * 7**2, 128),
        box_predictor=FastRCNNPredictor(128, CLASSES),
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=100,
        box_batch_size_per_image=32,
        box_detections_per_img=20,
    )
    skip_padding(model)
    return model


@torch.no_grad()
def measure(model: FasterRCNN, scenes: list[Scene]) -> dict[str, float]:
    """Returns tokens per image and the precision, COCO's mean and that at an overlap of 0.5."""
    model.eval()
    found, tokens = [], 0
    for start in range(0, len(scenes), 16):
        found += model([image for image, _ in scenes[start : start + 16]])
        tokens += len(model.backbone.model.last_cells)
    wanted = [target for _, target in scenes]
    model.train()
    return {
        "tokens": tokens / len(scenes),
        "map": average_precision(found, wanted),
        "ap50": average_precision(found, wanted, [0.5]),
    }


def run(name: str, seed: int, steps: int) -> list[dict[str, object]]:
    """Trains; returns a row at half and at the end, on the same scenes; the last has no words."""
    torch.manual_seed(seed)
    model, scenes = detector(name), Scenes(seed)
    test = Scenes(10_000, test=True).batch(TEST)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    rows: list[dict[str, object]] = []
    for step in range(1, steps + 1):
        images, targets = zip(*scenes.batch(BATCH), strict=True)
        loss = torch.stack([*model(list(images), list(targets)).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % (steps // 2) == 0:
            about = {"after": f"{step} steps"} if step < steps else {}
            rows.append({**about, **measure(model, test)})
            print(rows[-1], f"loss {loss.item():.3f}", flush=True)
    return rows


def main(folder: Path, seed: int, name: str, steps: int = 200) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"rows": run(name, seed, steps)}, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
