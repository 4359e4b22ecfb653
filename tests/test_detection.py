"""Adapted models as backbones of torchvision's detectors, and the precision of detectors."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
from torch.nn.functional import max_pool2d

from adaptok.evaluation.average_precision import average_precision

pytest.importorskip("timm")
pytest.importorskip("torchvision")

from timm.models.vision_transformer import VisionTransformer
from torchvision.models.detection import FasterRCNN, MaskRCNN

from adaptok.vision import (
    DetectionBackbone,
    Tokenize,
    apply_apt,
    freeze_all_but_new,
    skip_padding,
)

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
VIT = tuple(f"backbone.model.{n}." for n in ("patch_embed", "blocks", "norm"))
VIT += ("backbone.model.cls_token", "backbone.model.pos_embed")
NORM = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.5, 0.25)}


def backbone(thresholds=(6.0, 5.0), patch=8, size=64, window=32, **options) -> DetectionBackbone:
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=size, **{**SMALL, "patch_size": patch})
    fast = apply_apt(vit, thresholds, **NORM, window=window, global_blocks=(1,))
    return DetectionBackbone(fast, out_channels=8, **options)


def photo(height: int, width: int) -> torch.Tensor:
    """Smooth on the left, noise on the right, in 0..1."""
    x = torch.linspace(0, 0.2, width).expand(3, height, width).clone()
    x[..., width // 2 :] = torch.rand(3, height, width - width // 2)
    return x


def detector(kind=FasterRCNN, **options):
    own = backbone()
    sizes = {"min_size": 64, "max_size": 96, "size_divisible": own.divisor}
    norm = {"image_mean": own.mean, "image_std": own.std}
    few = {"rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20}
    few |= {"box_batch_size_per_image": 8, "box_detections_per_img": 5}
    return kind(own, num_classes=3, **{**sizes, **norm, **few, **options})


def targets(*sizes: tuple[int, int], masks: bool = False) -> list[dict[str, torch.Tensor]]:
    out = []
    for height, width in sizes:
        one = {"boxes": torch.tensor([[4.0, 6.0, 40.0, 30.0]]), "labels": torch.tensor([1])}
        out.append(one | ({"masks": torch.ones(1, height, width).byte()} if masks else {}))
    return out


@pytest.mark.parametrize("kind", [FasterRCNN, pytest.param(MaskRCNN, marks=pytest.mark.slow)])
def test_detectors_train_and_detect(kind):
    model = skip_padding(detector(kind))
    photos, masks = [photo(64, 80), photo(70, 50)], kind is MaskRCNN
    losses = model(photos, targets((64, 80), (70, 50), masks=masks))
    sum(losses.values()).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    assert ("loss_mask" in losses) == masks
    freeze_all_but_new(model, also=("backbone.pyramid", "rpn", "roi_heads"))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n in dict(model.named_parameters()) if n.startswith(VIT)}
    with torch.no_grad():
        found = model.eval()(photos)
    for one, (height, width) in zip(found, ((64, 80), (70, 50)), strict=True):
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert not masks or one["masks"].shape[-2:] == (height, width)


def test_maps_of_a_padded_batch_are_those_of_its_images():
    own, norm = backbone().eval(), [torch.tensor(v)[:, None, None] for v in NORM.values()]
    sizes = [(64, 64), (32, 32), (40, 56), (23, 64)]
    batch = torch.zeros(4, 3, 64, 64)
    for image, (height, width) in zip(batch, sizes, strict=True):
        image[:, :height, :width] = (photo(height, width) - norm[0]) / norm[1]
    maps = own(batch, sizes)
    assert [*maps] == ["0", "1", "2", "3", "pool"]
    assert [m.shape[2] for m in maps.values()] == [32, 16, 8, 4, 2]
    spent = own.model.last_cells.lengths
    own(batch)
    assert spent[1] + 3 == own.model.last_cells.lengths[1]  # three coarsest cells of padding
    for i, (height, width) in enumerate(sizes):
        grid = [max(-(-n // 8), 4) * 8 for n in (height, width)]  # no smaller than a cell
        alone = own.model.dense_features(batch[i : i + 1, :, : grid[0], : grid[1]])
        assert own.model.last_cells.lengths == spent[i : i + 1]
        for got, expected in zip(maps.values(), own.pyramid(alone), strict=False):
            gh, gw = expected.shape[2:]
            torch.testing.assert_close(got[i, :, :gh, :gw], expected[0], rtol=1e-4, atol=1e-5)
            assert not got[i, :, gh:].any()
            assert not got[i, :, :, gw:].any()
    torch.testing.assert_close(maps["pool"], max_pool2d(maps["3"], 1, 2))
    full = own(batch, [(64, 64)] * 4)
    torch.testing.assert_close(full["0"], own(batch)["0"], rtol=0, atol=0)


def test_a_detector_tells_its_backbone_the_real_sizes():
    photos, plain = [photo(64, 96), photo(64, 64)], detector().eval()
    told = skip_padding(copy.deepcopy(plain))
    told = copy.deepcopy(told)  # a copy does so too
    tokens = []
    for model in (plain, told):
        model(photos)
        tokens.append(list(model.backbone.model.last_cells.lengths))
    assert tokens[0][0] == tokens[1][0]
    assert tokens[0][1] > tokens[1][1]
    model(photos[1:])
    assert model.backbone.model.last_cells.lengths == (tokens[1][1],)


NOTHING_MERGES = pytest.param(None, marks=pytest.mark.slow)


@pytest.mark.parametrize("marking", [{"name": "budget", "budget": 4095}, NOTHING_MERGES])
def test_shapes_at_1536(marking):
    """No value is read."""
    with torch.device("meta"):
        vit = VisionTransformer(img_size=1536, **{**SMALL, "patch_size": 16})
        fast = apply_apt(vit, (-1.0, -1.0), **NORM, marking=marking, window=256, global_blocks=(1,))
        maps = DetectionBackbone(fast)(torch.empty(2, 3, 1536, 1536))
    assert {m.device.type for m in maps.values()} == {"meta"}
    assert [tuple(m.shape) for m in maps.values()] == [
        (2, 256, n, n) for n in (384, 192, 96, 48, 24)
    ]
    assert len(fast.last_cells) == 2 * (9216 if marking is None else 4095)


def test_what_a_detector_cannot_use_is_refused():
    own = backbone()
    with pytest.raises(ValueError, match="size_divisible=16"):
        own(torch.rand(1, 3, 64, 72))
    with pytest.raises(ValueError, match="2 images need as many sizes"):
        own(torch.rand(2, 3, 64, 64), [(64, 64)])
    with pytest.raises(ValueError, match="a timm model that apply_apt returned"):
        DetectionBackbone(VisionTransformer(img_size=64, **SMALL))
    with pytest.raises(ValueError, match="build the timm model with patch_size=16"):
        backbone(patch=14, size=56, window=56)
    for scales in ((1, 2), (4, 1), ()):
        with pytest.raises(ValueError, match="scales halve"):
            backbone(scales=scales)
    with pytest.raises(ValueError, match=r"finer than pixels: .* at most 8, got 16"):
        backbone(scales=(16, 8))
    cut = Tokenize(own.model)(torch.rand(3, 64, 64))
    with pytest.raises(ValueError, match=r"takes a batch .* got a CutImages"):
        own(cut)
    with pytest.raises(ValueError, match="out_channels must be"):
        DetectionBackbone(own.model, out_channels=0)
    with pytest.raises(ValueError, match="image_mean=backbone"):
        skip_padding(detector(image_mean=[0.485, 0.456, 0.406]))
    with pytest.raises(ValueError, match="around a DetectionBackbone"):
        skip_padding(own)


# ---- precision


def boxes(n: int, generator: torch.Generator, score: bool) -> dict[str, torch.Tensor]:
    corner = 20 * torch.rand(n, 2, generator=generator)
    side = 5 + 20 * torch.rand(n, 2, generator=generator)
    labels = torch.randint(1, 4, (n,), generator=generator)
    out = {"boxes": torch.cat([corner, corner + side], 1), "labels": labels}
    # few different scores, so that some are equal
    return out | ({"scores": torch.randint(9, (n,), generator=generator) / 8} if score else {})


def test_precision_by_hand():
    wanted = [
        {
            "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]),
            "labels": torch.tensor([1] * 2),
        }
    ]
    found = [
        {
            "boxes": torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 10], [20, 0, 30, 6]]),
            "scores": torch.tensor([0.9, 0.8, 0.7]),
            "labels": torch.tensor([1] * 3),
        }
    ]
    # recall 1/2 at precision 1 and, up to an overlap of 0.6, recall 1 at precision 2/3
    assert average_precision(found, wanted, [0.5]) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(found, wanted, [0.7]) == pytest.approx(51 / 101)
    assert average_precision(found, wanted, [0.5], most=1) == pytest.approx(51 / 101)
    assert average_precision(wanted_as_found(wanted), wanted) == 1
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
    assert average_precision([empty], wanted) == 0
    assert average_precision([empty], [empty]) != average_precision([empty], [empty])  # NaN
    with pytest.raises(ValueError, match="1 images need as many"):
        average_precision([], wanted)
    with pytest.raises(ValueError, match="overlaps must be"):
        average_precision(found, wanted, [1.5])


def wanted_as_found(wanted):
    return [one | {"scores": torch.ones(len(one["labels"]))} for one in wanted]


@pytest.mark.slow
def test_precision_equals_that_of_torchmetrics(monkeypatch):
    """Its version in torch, which asks for pycocotools although boxes do not need it."""
    legacy = pytest.importorskip("torchmetrics.detection._mean_ap")
    if "pycocotools" not in sys.modules:
        package = types.ModuleType("pycocotools")
        package.mask = types.ModuleType("pycocotools.mask")
        monkeypatch.setitem(sys.modules, "pycocotools", package)
        monkeypatch.setitem(sys.modules, "pycocotools.mask", package.mask)
        monkeypatch.setattr(legacy, "_PYCOCOTOOLS_AVAILABLE", True)
    generator = torch.Generator().manual_seed(0)
    wanted = [boxes(n, generator, False) for n in (3, 5, 0, 4)]
    found = [boxes(n, generator, True) for n in (20, 9, 5, 0)]
    for one, real in zip(found, wanted, strict=True):  # some that are right, or nearly
        near = real["boxes"] + torch.randn(real["boxes"].shape, generator=generator)
        one["boxes"] = torch.cat([one["boxes"], near])
        one["labels"] = torch.cat([one["labels"], real["labels"]])
        one["scores"] = torch.cat([one["scores"], torch.full((len(near),), 0.6)])
    metric = legacy.MeanAveragePrecision()
    metric.update(found, wanted)
    expected = metric.compute()
    assert 0.1 < expected["map"] < 0.9
    assert average_precision(found, wanted) == pytest.approx(expected["map"].item(), abs=1e-6)
    at_50 = average_precision(found, wanted, [0.5])
    assert at_50 == pytest.approx(expected["map_50"].item(), abs=1e-6)
