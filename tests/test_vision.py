"""timm models on cells equal timm where nothing merges, at any size of image."""

from __future__ import annotations

import re

import pytest
import torch
from sampled import sampled
from small_vits import BY_NAME, EVA, NORM, SMALL, images, shaken, small_vit
from timm.models.vision_transformer import VisionTransformer

from adaptok.vision import apply_apt, supported

timm = pytest.importorskip("timm")


def assert_equals_timm(model, x: torch.Tensor, **options) -> None:
    fast = apply_apt(model, (-1.0, -1.0), **options).eval()
    with torch.no_grad():
        expected, features = model(x), model.forward_features(x)
        got = fast.forward_features(x)
        torch.testing.assert_close(fast.forward_head(got), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.padded()[0], features, rtol=1e-4, atol=1e-4)
    assert len(fast.last_cells) == x.shape[0] * model.patch_embed.num_patches


@pytest.mark.parametrize("name", sampled(BY_NAME, 3))
def test_named_models_equal_timm_where_nothing_merges(name):
    model = shaken(timm.create_model(name, num_classes=10, **BY_NAME[name]))
    assert_equals_timm(model, torch.randn(2, 3, *model.patch_embed.img_size))


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_named_models_equal_timm_at_their_own_size(name):
    model = shaken(timm.create_model(name, num_classes=10))
    assert_equals_timm(model, torch.randn(1, 3, *model.patch_embed.img_size))


# Sizes of far more than 30M parameters, which would take minutes to build.
BIG = re.compile(r"base|betwixt|large|huge|gigantic|giant|enormous|so\d+m|\d+b_|300m")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in supported() if not BIG.search(name)])
def test_every_supported_model_of_a_small_width_equals_timm(name):
    model = shaken(timm.create_model(name, depth=2))  # more blocks are more of the same
    size = model.patch_embed.patch_size[0] * 6
    model.set_input_size((size, size))
    assert_equals_timm(model, torch.randn(1, 3, size, size))


@pytest.mark.slow
def test_supported_lists_exactly_what_can_be_wrapped():
    """Built on the meta device: structure alone decides."""
    from adaptok.vision.support import unsupported_reason

    refused = {}
    for name in supported():
        depth = {} if "sapiens2" in name else {"depth": 1}  # heads listed per block
        with torch.device("meta"):
            refused[name] = unsupported_reason(timm.create_model(name, **depth))
    assert not {name: why for name, why in refused.items() if why}


FAMILIES = {
    "cls": {},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "average with prefix": {"reg_tokens": 2, "global_pool": "avg", "pool_include_prefix": True},
    "pre norm": {"pre_norm": True},
    "layer scale": {"init_values": 0.3},
    "qk norm": {"qk_norm": True},
    "scale norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "attention pooling": {"class_token": False, "global_pool": "map"},
    "attention pooling past the prefix": {"reg_tokens": 2, "global_pool": "map"},
    "refining pooling": {"global_pool": "prr"},
    "maximum": {"global_pool": "max"},
    "mean and maximum": {"global_pool": "avgmax"},
    "no positions": {"pos_embed": "none"},
    "differential": {"attn_layer": "diff", "num_heads": 3},
    "fc norm": {"global_pool": "token", "fc_norm": True},
}


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES.keys())
def test_families_equal_timm_where_nothing_merges(options):
    assert_equals_timm(small_vit(**options), torch.randn(2, 3, 64, 64), **NORM)


@pytest.mark.parametrize(
    "block", ["ResPostBlock", "ParallelScalingBlock", "DiffParallelScalingBlock"]
)
def test_other_blocks_equal_timm(block):
    import timm.models.vision_transformer as module

    model = small_vit(block_fn=getattr(module, block), init_values=0.2, qk_norm=True)
    assert_equals_timm(model, torch.randn(2, 3, 64, 64), **NORM)


def test_parallel_things_equal_timm():
    from timm.models.vision_transformer import ParallelThingsBlock

    model = small_vit(block_fn=ParallelThingsBlock, init_values=0.2)
    assert_equals_timm(model, torch.randn(2, 3, 64, 64), **NORM)


ROPES = {
    "eva02": {"swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False, "ref_feat_shape": 5},
    "post norm": {"use_post_norm": True, "use_rot_pos_emb": False},
    "dinov3": {"rope_type": "dinov3", "rope_rotate_half": True, "num_reg_tokens": 2},
    "mixed": {"rope_type": "mixed", "rope_grid_indexing": "xy", "attn_type": "rope"},
    "mrope": {"rope_type": "mrope", "attn_type": "rope", "rope_mrope_section": (2, 1, 1)},
    "xy with offset": {"rope_grid_indexing": "xy", "rope_grid_offset": 1.0},
    "grouped queries": {"attn_type": "rope", "num_kv_heads": 1, "qkv_fused": False},
    "gamma": {"init_values": 0.3},
    "map": {"global_pool": "map", "num_reg_tokens": 1},
}


@pytest.mark.parametrize("options", ROPES.values(), ids=ROPES.keys())
def test_eva_equals_timm_where_nothing_merges(options):
    from timm.models.eva import Eva

    options = {**SMALL, **EVA, "img_size": (64, 48), "no_embed_class": True, **options}
    model = shaken(Eva(**options, num_classes=5))
    assert_equals_timm(model, torch.randn(2, 3, 64, 48), **NORM)


@pytest.mark.parametrize("size", [(64, 96), (72, 40), (70, 53)])
def test_other_sizes_equal_timm_with_dynamic_images(size):
    model = small_vit(dynamic_img_size=True, dynamic_img_pad=True, global_pool="avg")
    x = torch.randn(2, 3, *size)
    fast = apply_apt(model, (-1.0, -1.0), **NORM).eval()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (70, 53), (33, 64)])
def test_any_size_is_tiled_completely(size, pad):
    """Up to the last whole patch, or beyond the border, as timm's embedding does."""
    model = small_vit(dynamic_img_size=True, dynamic_img_pad=pad)
    fast = apply_apt(model, (6.0, 6.0), **NORM).eval()
    out = fast(images(2, 3, *size))
    assert out.shape == (2, 5)
    cells = fast.last_cells.validate()
    assert cells.shape[1:] == (size if pad else tuple(n // 8 * 8 for n in size))
    grid = tuple(model.patch_embed.dynamic_feat_size(size))
    assert fast.dense_features(images(2, 3, *size)).shape[2:] == grid


@pytest.mark.parametrize("kind", ["ViT", "Eva"])
@pytest.mark.parametrize("size", [(70, 70), (64, 79), (71, 64)])
def test_models_whose_size_patches_do_not_divide_equal_timm(size, kind):
    from timm.models.eva import Eva

    options = {**SMALL, "img_size": size, "num_classes": 5}
    model = VisionTransformer(**options) if kind == "ViT" else Eva(**options, **EVA)
    assert_equals_timm(shaken(model), torch.randn(2, 3, *size), **NORM)


def test_pixels_beyond_the_last_whole_patch_change_nothing():
    """Neither cells nor logits, of a batch, a list, cells that are given, and random patches."""
    from adaptok.vision import IMAGE_TOKENIZERS

    model = small_vit(img_size=70)
    whole = images(2, 3, 64, 64)
    x = torch.nn.functional.pad(whole, (0, 6, 0, 6), value=1.0)
    x[..., 64:, :] = torch.rand(2, 3, 6, 70)
    given = {"thresholds": (6.0, 6.0), **NORM}
    drawn = IMAGE_TOKENIZERS.create("random", model=model, **given)
    for fast in (apply_apt(model, **given).eval(), drawn.eval()):
        expected = fast(whole)
        cells = fast.last_cells
        assert torch.equal(fast(x), expected)
        assert torch.equal(fast(x, cells=cells), expected)
        assert torch.equal(fast.tiling.restore(x), fast.tiling.restore(whole))
    fast = apply_apt(model, **given).eval()
    torch.testing.assert_close(fast(list(x)), fast(whole), rtol=1e-5, atol=1e-5)
