"""UperNet's head on the pyramid of an adapted model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

pytest.importorskip("timm")

from timm.models.vision_transformer import VisionTransformer

import adaptok
from adaptok.vision import Segmenter, Tokenize, UperHead, apply_apt

NORM = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def segmenter(pad: bool = False, **options) -> Segmenter:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=64,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=0,
        dynamic_img_size=pad,
        dynamic_img_pad=pad,
    )
    fast = apply_apt(vit, (6.0, 5.0), **NORM)
    return Segmenter(fast, 5, channels=8, **{"scales": (2, 1, 0.5), **options}).eval()


def photo(height: int, width: int) -> torch.Tensor:
    """Smooth on the left, noise on the right, normalised."""
    x = torch.linspace(0, 0.2, width).expand(3, height, width).clone()
    x[..., width // 2 :] = torch.rand(3, height, width - width // 2)
    return 2 * x - 1


@pytest.mark.parametrize("pad", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_images_of_any_aspect_have_the_logits_they_have_alone(pad):
    model, photos = segmenter(pad), [photo(*s) for s in ((64, 64), (41, 75), (41, 75), (88, 33))]
    with torch.no_grad():
        out = model(photos)
        assert [tuple(y.shape) for y in out] == [(5, *x.shape[1:]) for x in photos]
        for x, y in zip(photos, out, strict=True):
            torch.testing.assert_close(model(x[None])[0], y, rtol=1e-4, atol=1e-5)
        both = model(torch.stack(photos[1:3]))
        torch.testing.assert_close(both, torch.stack(out[1:3]), rtol=1e-4, atol=1e-5)
    edge = out[1][:, 39] == out[1][:, 40]  # 41 = 5 patches and a row
    assert edge.all() == (not pad)


def test_images_that_are_cut_already_have_the_same_logits():
    model, photos = segmenter(), [photo(64, 64), photo(41, 75)]
    cut = [Tokenize(model.model)(image) for image in photos]
    with torch.no_grad():
        for one, other in zip(model(adaptok.collate(cut)), model(photos), strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(model(cut[0]), model(photos[0][None]))


def test_all_parameters_learn():
    model, x = segmenter().train(), photo(64, 48)[None]
    loss = cross_entropy(model(x), torch.randint(0, 5, (1, 64, 48)))
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_each_map_counts_and_the_coarsest_is_seen_everywhere():
    head = UperHead(6, 3, 4, channels=8, norm=lambda n: nn.Identity()).eval()
    maps = [torch.randn(1, 6, *size) for size in ((12, 20), (6, 10), (3, 5))]
    with torch.no_grad():
        out = head(maps)
        assert out.shape == (1, 4, 12, 20)
        for i, one in enumerate(maps):
            other = one.clone()
            other[..., -1, -1] += 100
            changed = head([*maps[:i], other, *maps[i + 1 :]]) - out
            assert changed[..., -1, -1].abs().max() > 1e-3
            assert (changed[..., 0, 0].abs().max() > 1e-6) == (i == 2)  # the mean of the coarsest
    with pytest.raises(ValueError, match="takes 3 maps, got 2"):
        head(maps[:2])


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="a timm model that apply_apt returned"):
        Segmenter(nn.Linear(2, 2), 5)
    model = segmenter().model
    refused = [{"classes": 0}, {"scales": ()}, {"scales": (1, 2)}, {"scales": (3,)}]
    for wrong in (*refused, {"dropout": 1.0}, {"pools": (0,)}, {"maps": 2}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            Segmenter(model, **{"classes": 5, **wrong})
