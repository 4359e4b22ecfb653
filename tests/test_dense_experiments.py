"""The scripts of APT's Tables 4 and 5: what they make is what they say, and they run."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchvision")

from apt_table4 import run as detection
from apt_table5 import run as segmentation


@pytest.mark.slow
def test_boxes_of_scenes_are_exact():
    scenes = detection.Scenes(3)
    for _ in range(3):
        for label in (1, 2, 3):
            inside = scenes._shape(label)
            left, top, right, bottom = detection._box(inside).int().tolist()
            assert inside.sum() == inside[top:bottom, left:right].sum() > 60
            assert all(line.any() for line in (inside[top], inside[bottom - 1]))
            assert all(line.any() for line in (inside[:, left], inside[:, right - 1]))
    batches = []
    for _ in range(2):
        scenes.generator.manual_seed(3)
        batches.append(scenes.batch(3))
    for (image, target), (again, other) in zip(*batches, strict=True):
        assert torch.equal(image, again)
        assert torch.equal(target["boxes"], other["boxes"])
        assert torch.equal((image * 255).round() / 255, image)
        pairs = [(a, b) for i, a in enumerate(target["boxes"]) for b in target["boxes"][:i]]
        assert not any(detection._touch(a, b) for a, b in pairs)
    test, train = detection.Scenes(0, test=True).photos, scenes.photos
    assert len(test) + len(train) == detection.PHOTOS
    assert not any(torch.equal(a, b) for a in test for b in train)


@pytest.mark.slow
def test_detectors_have_the_tokens_they_are_compared_at(monkeypatch):
    monkeypatch.setattr(detection, "TEST", 4)
    for name, tokens in (("fixed", (256, 256)), ("resize", (169, 169)), ("apt", (60, 230))):
        first, last = detection.run(name, 0, 2)
        assert first["after"] == "1 steps"
        assert {*last} == {"tokens", "map", "ap50"}
        assert tokens[0] <= last["tokens"] <= tokens[1]


@pytest.mark.parametrize("head", segmentation.HEADS)
def test_segmenters_predict_every_pixel(head):
    images, labels = segmentation.scenes(2, torch.Generator().manual_seed(0))
    model = segmentation.build("apt", head)
    assert model((images - 0.5) / 0.5).shape == (2, segmentation.CLASSES, *labels.shape[1:])
    assert 0 <= segmentation.mean_iou(model, images, labels) <= 1
