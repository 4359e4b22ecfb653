"""Dense features of timm models on cells: maps, intermediates, pyramids, windows, towers."""

from __future__ import annotations

import copy

import pytest
import torch
from small_vits import EVA, NORM, SMALL, images, shaken, small_vit

import adaptok
from adaptok.vision import FeaturePyramid, VisionTower, apply_apt

timm = pytest.importorskip("timm")


def test_dense_features_replicate_each_token_over_its_cell():
    model = small_vit(dynamic_img_size=True, dynamic_img_pad=True)
    fast = apply_apt(model, (6.0, 6.0), **NORM).eval()
    x = images(2, 3, 64, 93)
    out = fast.forward_features(x)
    dense = fast.dense_features(x)
    assert dense.shape == (2, 24, 8, 12)
    owner = out.cells.owner_map()[:, 0, ::8, ::8]
    torch.testing.assert_close(dense, out.tokens.features[owner].permute(0, 3, 1, 2))
    dense.sum().backward()
    assert fast.head.weight.grad is None
    assert fast.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


INTERMEDIATES = [
    {},
    {"indices": 1},
    {"indices": [0, -1], "norm": True},
    {"indices": (1, 0, 1), "output_fmt": "NLC"},
    {"indices": [0], "stop_early": True, "return_prefix_tokens": True},
    {"indices": 2, "output_dict": True, "return_prefix_tokens": True},
    {"indices": [1], "output_dict": True, "intermediates_only": True, "norm": True},
    {"indices": 2, "return_prefix_tokens": True, "intermediates_only": True, "output_fmt": "NLC"},
]


def padded(features):
    """Nested features, with those of cells in timm's layout."""
    if hasattr(features, "padded"):
        return features.padded()[0]
    if isinstance(features, dict):
        return {key: padded(value) for key, value in features.items()}
    many = isinstance(features, (list, tuple))
    return type(features)(map(padded, features)) if many else features


@pytest.mark.parametrize("options", INTERMEDIATES, ids=str)
@pytest.mark.parametrize(
    "kind", ["class token", "no prefix", pytest.param("Eva", marks=pytest.mark.slow)]
)
def test_intermediates_equal_timm_where_nothing_merges(options, kind):
    """Every option of timm's, of models on cells and with a reducer that merges nothing."""
    from timm.models.eva import Eva

    if kind == "Eva":
        if "output_dict" in options:
            pytest.skip("timm's Eva has no dictionaries")
        model = shaken(Eva(**SMALL, **EVA, num_classes=5, num_reg_tokens=1))
    else:
        bare = {"class_token": False, "global_pool": "avg"}
        model = small_vit(**(bare if kind == "no prefix" else {"reg_tokens": 2}))
    x = torch.randn(2, 3, 64, 64)
    fast = apply_apt(model, (-1.0,), **NORM).eval()
    reduced = adaptok.vision.apply_reducer(model, "tome", r=0).eval()
    with torch.no_grad():
        expected = model.forward_intermediates(x, **options)
        for adapted in (fast, reduced):
            got = padded(adapted.forward_intermediates(x, **options))
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_timms_positions_of_arguments_and_its_wrappers_work():
    from timm.models._features import FeatureGetterNet

    model, x = small_vit(depth=3), torch.randn(2, 3, 64, 64)
    fast = apply_apt(model, (-1.0,), **NORM).eval()
    with torch.no_grad():
        for args in (([1], True), ([1], True, True), ([1], False, True, True, "NLC", True)):
            expected = model.forward_intermediates(x, *args)
            got = padded(fast.forward_intermediates(x, *args))
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        for knobs in ({}, {"n": [0, 2], "reshape": True, "return_prefix_tokens": True}):
            expected = model.get_intermediate_layers(x, norm=True, **knobs)
            got = fast.get_intermediate_layers(x, norm=True, **knobs)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        wrapped = (FeatureGetterNet(copy.deepcopy(m), [0, -2]) for m in (model, fast))
        expected, got = (net(x) for net in wrapped)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_maps_between_are_those_of_the_tokens():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM).eval()
    x = images(1, 3, 64, 96)
    ((rows, prefix),) = fast.forward_intermediates(
        [x[0]], [0], True, output_fmt="NLC", intermediates_only=True
    )
    tokens = fast.tokens_after(x, -2)
    dense = fast.forward_features(x)._replace(tokens=tokens).dense()
    assert torch.equal(rows[0], dense[0].flatten(1).T)
    assert prefix.shape == (1, 1, 24)


@pytest.mark.parametrize("indices", [[2], [-3], 0, 3, -1, [], True])
def test_blocks_that_do_not_exist_are_refused(indices):
    model, x = small_vit(), torch.randn(1, 3, 64, 64)
    fast = apply_apt(model, (6.0,), **NORM)
    for adapted in (fast, adaptok.vision.apply_reducer(model, "tome", r=0)):
        with pytest.raises(ValueError, match="the model has 2 blocks"):
            adapted.forward_intermediates(x, indices)
        for wrong in ({"output_fmt": "NHWC"}, {"is_causal": True}, {"attn_mask": x}):
            with pytest.raises(ValueError, match=r"output_fmt|is_causal"):
                adapted.forward_intermediates(x, **wrong)
    with pytest.raises(ValueError, match="the model has 2 blocks"):
        fast.tokens_after(x, 2)
    tower = VisionTower(fast, -1)
    fast.prune_intermediate_layers([0])
    with pytest.raises(ValueError, match="the model has 1 blocks"):
        tower(x)
    with pytest.raises(ValueError, match="a tower is made of what apply_apt returned"):
        VisionTower(model)


def test_pyramid_scales():
    maps = FeaturePyramid(24, 16)(torch.randn(1, 24, 8, 6))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 32, 24),
        (16, 16, 12),
        (16, 8, 6),
        (16, 4, 3),
    ]
    with pytest.raises(ValueError, match="powers of two"):
        FeaturePyramid(24, 16, scales=(3,))


def test_window_attention_equals_attention_inside_each_window():
    """Without a class token, an image in windows is a batch of windows."""
    model = small_vit(class_token=False, global_pool="avg", pos_embed="none")
    fast = apply_apt(model, (6.0, 6.0), **NORM, window=32).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        out = fast.dense_features(x)
        whole = apply_apt(model, (6.0, 6.0), **NORM).eval()
        for row in (0, 1):
            for column in (0, 1):
                part = x[:, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
                expected = whole.dense_features(part)
                got = out[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_global_blocks_see_beyond_their_window():
    model = small_vit(global_pool="avg")
    x = images(1, 3, 64, 64)
    windows, mixed, free = (
        apply_apt(model, (6.0, 6.0), **NORM, window=w, global_blocks=g).eval()
        for w, g in ((32, ()), (32, (-1,)), (None, ()))
    )
    far = x.clone()
    far[..., 40:, 40:] += 0.1  # other values, the same cells in the first window

    def first_window_moves(fast) -> bool:
        with torch.no_grad():
            cells = fast.tiling(x)
            a, b = (fast.dense_features(y, cells=cells)[..., :4, :4] for y in (x, far))
        return not torch.equal(a, b)

    assert not first_window_moves(windows)
    assert first_window_moves(mixed)
    assert first_window_moves(free)
    with pytest.raises(ValueError, match="multiple of the coarsest cell"):
        apply_apt(model, (6.0, 6.0), **NORM, window=48)


@pytest.mark.parametrize("pool", ["token", "avg", "map", ""])
def test_windows_that_cut_the_class_token_off_are_refused(pool):
    """What is not refused depends on the image, in every pooling."""
    model = small_vit(global_pool=pool)
    if pool == "token":
        with pytest.raises(ValueError, match="cuts the class token off"):
            apply_apt(model, (6.0, 6.0), **NORM, window=32)
    blocks = (0,) if pool == "token" else ()
    fast = apply_apt(model, (6.0, 6.0), **NORM, window=32, global_blocks=blocks).eval()
    out = [fast(images(1, 3, 64, 64)) for _ in range(2)]
    a, b = (y.tokens.features if pool == "" else y for y in out)
    assert a.shape != b.shape or not torch.allclose(a, b)
    if pool == "avg":
        with pytest.raises(ValueError, match="cuts the class token off"):
            fast.reset_classifier(3, "token")
        fast.reset_classifier(3)
        assert fast(images(1, 3, 64, 64)).shape == (1, 3)


def test_distilled_models_need_a_global_block_too():
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, depth=1)
    with pytest.raises(ValueError, match="cuts the class token off"):
        apply_apt(model, (6.0,), window=32)


def test_window_attention_at_1536():
    model = small_vit(patch_size=16, img_size=1536, depth=2)
    fast = apply_apt(model, (5.5, 4.0), **NORM, window=256, global_blocks=(1,)).eval()
    with torch.no_grad():
        dense = fast.dense_features(images(1, 3, 1536, 1536))
    assert dense.shape == (1, 24, 96, 96)


def test_tower_hands_over_tokens_and_boxes():
    fast = apply_apt(small_vit(depth=3), (6.0, 6.0), **NORM).eval()
    x = torch.cat([images(1, 3, 64, 96), torch.zeros(1, 3, 64, 96)])
    out = VisionTower(fast)(x)
    lengths = list(fast.last_cells.lengths)
    assert out.mask.sum(1).tolist() == lengths
    assert out.features.shape == (2, max(lengths), 24)
    area = (out.boxes[..., 2] * out.boxes[..., 3]).sum(1)
    torch.testing.assert_close(area, torch.ones(2))
    maps = fast.forward_intermediates(x, [-2], intermediates_only=True)[0]
    where = (out.boxes[0, :, :2] * torch.tensor([8, 12])).long()[: lengths[0]]
    torch.testing.assert_close(
        out.features[0, : lengths[0]], maps[0, :, where[:, 0], where[:, 1]].T
    )
