"""timm models with weights of cells: merging equal patches changes nothing."""

from __future__ import annotations

import pytest
import torch

import adaptok

pytest.importorskip("timm")

from timm.models.eva import Eva
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    VisionTransformer,
)

from adaptok.vision import IMAGE_TOKENIZERS, apply_apt

SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def model_of(kind: type = VisionTransformer, **options):
    """Random weights without positions, so that equal patches are equal tokens."""
    model = kind(**{**SMALL, "num_classes": 5, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if model.pos_embed is not None:
            model.pos_embed.zero_()
    return model.eval()


def blocks_and_noise() -> torch.Tensor:
    """Two images: constant in 16 x 16 and 32 x 32 pixels, but for noise on the right and below."""
    x = torch.rand(2, 3, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    x[:, :, :32, :32] = x[:, :, :1, :1]
    x[..., 48:], x[:, :, 48:] = torch.rand(2, 3, 64, 16), torch.rand(2, 3, 16, 64)
    return (x - 0.5) / 0.5


MODELS = {
    "class token": (VisionTransformer, {}),
    "mean": (VisionTransformer, {"global_pool": "avg", "reg_tokens": 2}),
    "attention pooling": (VisionTransformer, {"class_token": False, "global_pool": "map"}),
    "refining pooling": (VisionTransformer, {"global_pool": "prr"}),
    "differential": (VisionTransformer, {"attn_layer": "diff"}),
    "parallel": (VisionTransformer, {"block_fn": DiffParallelScalingBlock}),
    "eva": (Eva, {"use_rot_pos_emb": False}),
}


@pytest.mark.parametrize(("name", "window"), [*((name, None) for name in MODELS), ("mean", 32)])
def test_merging_equal_patches_changes_nothing(name, window):
    kind, options = MODELS[name]
    model, x = model_of(kind, **options), blocks_and_noise()
    with torch.no_grad():
        given = {**NORM, "window": window, "global_blocks": (1,)}
        fast, plain = (apply_apt(model, (0.5, 0.5), weighted=w, **given) for w in (True, False))
        merged = fast(x)
        assert max(fast.last_cells.lengths) < 64
        expected = fast(x, thresholds=(-1.0, -1.0))
        torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)
        assert (plain(x) - expected).abs().max() > 1e-3
        if window is None:
            torch.testing.assert_close(expected, model(x), atol=1e-4, rtol=1e-4)
        maps = fast.dense_features(x), fast.dense_features(x, thresholds=(-1.0, -1.0))
        torch.testing.assert_close(*maps, atol=1e-4, rtol=1e-4)


def test_a_power_is_kept_with_the_model(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", num_classes=3)
    fast = apply_apt(model, (0.5,), **NORM, weighted=0.5).eval()
    adaptok.save_pretrained(fast, tmp_path)
    again, x = adaptok.from_pretrained(tmp_path), torch.randn(1, 3, *model.patch_embed.img_size)
    assert again.weighted == 0.5
    assert torch.equal(again(x), fast(x))


def test_images_of_different_size_get_their_own_weights():
    fast = apply_apt(model_of(dynamic_img_size=True), (0.5,), **NORM, weighted=True)
    x = blocks_and_noise()
    images = [x[0], x[1, :, :32]]
    together = fast(images)
    for image, out in zip(images, together, strict=True):
        torch.testing.assert_close(fast(image[None])[0], out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["apt", "resize"])
def test_it_is_a_knob_of_ways_to_cut_images(name):
    made = IMAGE_TOKENIZERS.build({"name": name, "weighted": 0.5}, model=model_of(), **NORM)
    assert made.weighted == 0.5
    with pytest.raises(ValueError, match="weighted must be true or false or a number"):
        apply_apt(model_of(), **NORM, weighted=-1.0)


def test_an_indicator_that_learns_from_what_comes_next_is_refused():
    with pytest.raises(ValueError, match="there is no training signal"):
        apply_apt(model_of(), (1.0,), **NORM, indicator="learned")


@pytest.mark.parametrize("name", ["variance", "resampling"])
def test_scores_by_area_calibrated_to_a_number_of_tokens(name):
    indicator = {"name": name, "by_area": True}
    fast = apply_apt(model_of(), (1.0, 1.0), **NORM, indicator=indicator, weighted=True)
    x = torch.rand(2, 3, 64, 64)
    thresholds = adaptok.calibrate(fast.tiling.trees, fast.tiling.restore(x), tokens=46)
    assert thresholds[0] == thresholds[1]
    fast(x, thresholds=thresholds)
    assert 40 < len(fast.last_cells) / 2 <= 46
