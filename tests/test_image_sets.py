"""Published layouts of images: small folders made in them are read, what does not fit is named."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

pytest.importorskip("torchvision")
pytest.importorskip("lightning")

from adaptok.data.images import (
    ADE20K,
    COCO,
    Conversations,
    DetectionData,
    SegmentationData,
)
from adaptok.data.images.coco import polygons_mask
from adaptok.tasks.classify import ImageData
from adaptok.tasks.classify.sets import find_images


def pixels(height: int, width: int, seed: int = 0) -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(drawn)


# ADE20K


@pytest.fixture(scope="module")
def ade(tmp_path_factory):
    root = tmp_path_factory.mktemp("ade") / "ADEChallengeData2016"
    for split, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            name = f"ADE_{'train' if count == 4 else 'val'}_{i:08d}"
            pixels(40, 60, i).save(root / "images" / split / f"{name}.jpg")
            labels = np.zeros((40, 60), dtype=np.uint8)
            labels[:, 20:], labels[:, 40:] = 1, 150
            Image.fromarray(labels).save(root / "annotations" / split / f"{name}.png")
    return root


def test_classes_of_ade20k_count_from_zero(ade):
    assert [len(ADE20K(ade, split)) for split in ("train", "valid")] == [4, 2]
    image, mask = ADE20K(ade, "valid")[1]
    assert image.shape == (3, 40, 60)
    assert image.dtype == torch.uint8
    assert mask[0, ::20].tolist() == [255, 0, 149]
    with pytest.raises(ValueError, match="split must be one of train, valid, got 'test'"):
        ADE20K(ade, "test")


def test_segmentation_batches(ade):
    data = SegmentationData(ade, crop=32, batch_size=2, seed=1)
    images, masks = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 32, 32)
    assert images.dtype == torch.float32
    assert masks.dtype == torch.int64
    assert {*masks.unique().tolist()} <= {0, 149, 255}
    again, _ = next(iter(SegmentationData(ade, crop=32, batch_size=2, seed=1).train_dataloader()))
    other, _ = next(iter(SegmentationData(ade, crop=32, batch_size=2, seed=2).train_dataloader()))
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    image, mask = next(iter(data.val_dataloader()))
    assert image.shape == (1, 3, 32, 48)
    assert image.abs().max() <= 1
    assert mask.shape == (1, 32, 48)


def test_mask_and_image_are_cut_alike(tmp_path):
    """Images that show their own mask show it after augmentation, but for colours and borders."""
    for kind in ("images", "annotations"):
        for split in ("training", "validation"):
            (tmp_path / kind / split).mkdir(parents=True)
    labels = np.ones((64, 96), dtype=np.uint8)
    labels[20:50, 30:70] = 2
    shown = Image.fromarray((labels - 1) * 255).convert("RGB")
    for split in ("training", "validation"):
        Image.fromarray(labels).save(tmp_path / "annotations" / split / "a.png")
        shown.save(tmp_path / "images" / split / "a.jpg", quality=95)
    loader = SegmentationData(tmp_path, crop=48, batch_size=1).train_dataloader()
    compared = 0
    for epoch in range(8):
        loader.sampler.set_epoch(epoch)
        image, mask = next(iter(loader))
        bright = image.mean(1) > image.mean(1).min() + image.mean(1).std()
        known = mask != 255
        if 0.2 < (mask == 1).float().mean() < 0.8:
            assert (bright == (mask == 1))[known].float().mean() > 0.85
            compared += 1
    assert compared > 1


def test_what_is_not_ade20k(ade, tmp_path):
    with pytest.raises(ValueError, match="there are no images in"):
        ADE20K(tmp_path)
    for kind in ("images", "annotations"):
        (tmp_path / kind / "training").mkdir(parents=True)
    pixels(8, 8).save(tmp_path / "images" / "training" / "a.jpg")
    with pytest.raises(ValueError, match=r"no masks for 1 images, such as a\.jpg"):
        ADE20K(tmp_path)
    Image.fromarray(np.full((8, 8), 200, dtype=np.uint8)).save(
        tmp_path / "annotations" / "training" / "a.png"
    )
    with pytest.raises(ValueError, match="values up to 200"):
        ADE20K(tmp_path)[0]
    with pytest.raises(ValueError, match="crop must be"):
        SegmentationData(ade, crop=0)


# COCO


def annotation(image: int, category: int, box: list[float], **more) -> dict:
    x, y, w, h = box
    corners = [[x, y, x + w - 1, y, x + w - 1, y + h - 1, x, y + h - 1]]
    own = {"image_id": image, "category_id": category, "bbox": box, "segmentation": corners}
    return {**own, "iscrowd": 0, **more}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        names = {i: f"{i:012d}.jpg" for i in (7, 9, 11)}
        for i, name in names.items():
            pixels(48, 64, i).save(root / f"{split}2017" / name)
        found = [
            annotation(7, 1, [10, 5, 20, 30]),
            annotation(7, 90, [40, 10, 10, 8]),
            annotation(7, 3, [0, 0, 64, 48], iscrowd=1, segmentation={"counts": [1], "size": [1]}),
            annotation(9, 3, [2, 2, 0, 5]),
            annotation(11, 3, [5, 6, 7, 8]),
        ]
        about = {
            "images": [{"id": i, "file_name": n} for i, n in names.items()],
            "annotations": found,
            "categories": [{"id": i, "name": f"c{i}"} for i in (1, 3, 90)],
        }
        file = root / "annotations" / f"instances_{split}2017.json"
        file.write_text(json.dumps(about))
    return root


def test_boxes_of_coco(coco):
    train, valid = COCO(coco), COCO(coco, "valid", masks=True)
    assert (len(train), len(valid)) == (2, 3)  # one image has no box of any size
    assert train.names == {1: "c1", 3: "c3", 90: "c90"}
    image, target = valid[0]
    assert image.shape == (3, 48, 64)
    assert target["boxes"].tolist() == [[10, 5, 30, 35], [40, 10, 50, 18]]
    assert target["labels"].tolist() == [1, 90]
    for mask, (x0, y0, x1, y1) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
        assert mask.sum() == mask[y0:y1, x0:x1].sum() == (y1 - y0) * (x1 - x0)
    assert valid[1][1]["boxes"].shape == (0, 4)
    assert valid[1][1]["masks"].shape == (0, 48, 64)


def test_polygons_are_filled():
    corners = [[2.0, 2, 9, 2, 9, 9, 2, 9], [12.0, 1, 14, 1, 14, 3, 12, 3]]
    reference = Image.new("L", (20, 12))
    for one in corners:
        ImageDraw.Draw(reference).polygon(one, fill=1)
    mask = polygons_mask(corners, (12, 20))
    assert torch.equal(mask, torch.from_numpy(np.array(reference)))
    assert mask.sum() == 8 * 8 + 3 * 3
    with pytest.raises(ValueError, match="the runs of a crowd"):
        polygons_mask({"counts": [3], "size": [1, 3]}, (1, 3))


def test_detection_batches(coco):
    data = DetectionData(coco, side=40, masks=True, batch_size=2)
    images, targets = next(iter(data.train_dataloader()))
    assert [tuple(image.shape) for image in images] == [(3, 40, 40)] * 2
    for image, target in zip(images, targets, strict=True):
        assert 0 <= image.min() <= image.max() <= 1
        count = len(target["labels"])
        assert target["boxes"].shape == (count, 4)
        assert target["masks"].shape == (count, 40, 40)
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"] <= 40).all()
    images, targets = next(iter(data.val_dataloader()))
    assert images[0].shape == (3, 48, 64)
    assert targets[0]["image_id"] == 7


def test_what_is_not_coco(coco, tmp_path):
    with pytest.raises(ValueError, match="must hold COCO 2017"):
        COCO(tmp_path)
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="no list of COCO's instances"):
        COCO(tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, valid"):
        COCO(coco, "test")


@pytest.mark.slow
def test_both_train_adapted_models(ade, coco):
    """A step of `Segmenter` and of a detector on the batches as they come."""
    pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer
    from torchvision.models.detection import MaskRCNN

    from adaptok.vision import DetectionBackbone, Segmenter, apply_apt

    size = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    norm = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def adapted():
        vit = VisionTransformer(**size, num_classes=0, class_token=False, global_pool="avg")
        return apply_apt(vit, (6.0, 5.0), **norm)

    torch.manual_seed(0)
    segmenter = Segmenter(adapted(), 150, channels=16)
    images, masks = next(iter(SegmentationData(ade, crop=64, batch_size=2).train_dataloader()))
    loss = nn.functional.cross_entropy(segmenter(images), masks, ignore_index=255)
    loss.backward()
    assert loss.isfinite()
    backbone = DetectionBackbone(adapted(), out_channels=16)
    stats = {"image_mean": backbone.mean, "image_std": backbone.std}
    detector = MaskRCNN(backbone, 91, min_size=64, max_size=64, **stats)
    images, targets = next(
        iter(DetectionData(coco, side=64, masks=True, batch_size=2).train_dataloader())
    )
    losses = detector(images, targets)
    assert "loss_mask" in losses
    assert sum(losses.values()).isfinite()


# ImageNet


def test_imagenet_as_kaggle_hands_it_out(tmp_path):
    names = ("n01440764", "n01443537")
    images = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    (images / "val").mkdir(parents=True)
    for i, name in enumerate(names):
        (images / "train" / name).mkdir(parents=True)
        for k in range(2):
            pixels(20, 30, k).save(images / "train" / name / f"{name}_{k}.JPEG")
        pixels(20, 30, 9 + i).save(images / "val" / f"ILSVRC2012_val_0000000{i}.JPEG")
    with pytest.raises(ValueError, match=r"without its table LOC_val_solution\.csv"):
        find_images("imagenet", tmp_path)
    rows = [["ImageId", "PredictionString"]]
    rows += [["ILSVRC2012_val_00000000", f"{names[1]} 1 2 3 4 {names[1]} 5 6 7 8"]]
    rows += [["ILSVRC2012_val_00000001", f"{names[0]} 1 2 3 4"]]
    with (tmp_path / "LOC_val_solution.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    found = find_images("imagenet", tmp_path)
    assert found.classes == names
    assert [label for _, label in found.splits["valid"]] == [1, 0]
    data = ImageData("imagenet", tmp_path, image_size=(16, 16), batch_size=2)
    assert next(iter(data.train_dataloader()))[0].shape == (2, 3, 16, 16)
    assert next(iter(data.loader("test")))[1].tolist() == [1, 0]
    with (tmp_path / "LOC_val_solution.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["ILSVRC2012_val_00000001", "n9 1 2 3 4"])
    with pytest.raises(ValueError, match="without training images: n9"):
        find_images("imagenet", tmp_path)


# LLaVA


def said(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_conversations_of_llava(tmp_path):
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    pixels(9, 12).save(tmp_path / "coco" / "train2017" / "1.jpg")
    entries = [
        {"id": "1", "image": "coco/train2017/1.jpg"},
        {"id": "2", "conversations": said("How are you?", "Well.")},
    ]
    entries[0]["conversations"] = said("<image>\nWhat is it?", "A cat.", "Sure?", "Yes.")
    file = tmp_path / "mix.json"
    file.write_text(json.dumps(entries))
    found = Conversations(file)
    assert (len(found), found.without_image) == (1, 1)
    image, turns = found[0]
    assert image.size == (12, 9)
    assert turns == (("<image>\nWhat is it?", "A cat."), ("Sure?", "Yes."))
    assert len(Conversations(file, tmp_path / "elsewhere")) == 1  # images are opened when read


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (said("<image>\nWhat?"), "speak by turns"),
        ([], "speak by turns"),
        (said("What?", "That."), "must name <image> once"),
        (said("<image><image>", "That."), "must name <image> once"),
        (said("What?", "That.", "<image>", "It."), "must name <image> once"),
    ],
)
def test_what_is_no_conversation(tmp_path, conversation, message):
    file = tmp_path / "mix.json"
    file.write_text(json.dumps([{"image": "1.jpg", "conversations": conversation}]))
    with pytest.raises(ValueError, match=f"entry 0: .*{message}"):
        Conversations(file)


def test_what_is_no_list_of_conversations(tmp_path):
    with pytest.raises(ValueError, match="no list of conversations at"):
        Conversations(tmp_path / "mix.json")
    (tmp_path / "mix.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a list"):
        Conversations(tmp_path / "mix.json")
    (tmp_path / "mix.json").write_text("[")
    with pytest.raises(ValueError, match="holds no JSON"):
        Conversations(tmp_path / "mix.json")
