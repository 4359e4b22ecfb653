"""timm models on cells: equal to timm where nothing merges, to the authors' where it does."""

from __future__ import annotations

import copy
import re
import sys

import numpy as np
import pytest
import torch
from sampled import sampled
from torch.nn.functional import mse_loss

import adaptok

timm = pytest.importorskip("timm")

from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from adaptok.vision import (  # noqa: E402
    FeaturePyramid,
    VisionTower,
    apply_apt,
    freeze_all_but_new,
    supported,
)

SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
EVA = {"use_rot_pos_emb": True, "mlp_ratio": 2.0}


def small_vit(**options) -> VisionTransformer:
    model = VisionTransformer(**{**SMALL, "num_classes": 5, **options})
    return shaken(model)


def shaken(model):
    """Random everywhere: initial zeros and ones would hide what is left out."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def images(*shape: int) -> torch.Tensor:
    """Smooth on the left, noise on the right, normalised."""
    x = torch.linspace(0, 0.2, shape[-1]).expand(shape).clone()
    x[..., shape[-1] // 2 :] = torch.rand(*shape[:-1], shape[-1] - shape[-1] // 2)
    return (x - 0.5) / 0.5


def assert_equals_timm(model, x: torch.Tensor, **options) -> None:
    fast = apply_apt(model, (-1.0, -1.0), **options).eval()
    with torch.no_grad():
        expected, features = model(x), model.forward_features(x)
        got = fast.forward_features(x)
        torch.testing.assert_close(fast.forward_head(got), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.padded()[0], features, rtol=1e-4, atol=1e-4)
    assert len(fast.last_cells) == x.shape[0] * model.patch_embed.num_patches


BY_NAME = {
    "vit_tiny_patch16_224": {"img_size": 96},
    "vit_small_patch14_reg4_dinov2": {"img_size": 84, "depth": 3},
    "deit3_small_patch16_224": {"img_size": 96, "depth": 3},
    "vit_base_patch16_clip_quickgelu_224": {"img_size": 96, "depth": 3},
    "vit_base_patch16_siglip_224": {"img_size": 96, "depth": 3},
    "eva02_tiny_patch14_224": {"img_size": 84},
    "vit_small_patch16_dinov3": {"img_size": 96, "depth": 3},
}


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


def rows_of(cells) -> dict[tuple[int, ...], int]:
    """Row number by image, side in pixels, and first pixel."""
    sides = torch.tensor([size[1] for size in cells.sizes])[cells.level.long()]
    columns = torch.stack([cells.sample, sides, cells.origin[:, 1], cells.origin[:, 2]], 1)
    return {tuple(key): row for row, key in enumerate(columns.tolist())}


GOLDEN_IMAGES = [2, 4, 5, 0]  # those of the seven that the authors' models were given
GOLDEN_MASKS = {  # of their maps, and the thresholds in the name of the masks
    "apt_model_224_p14_s3_prenorm_avg": ("apt_maps_224_p14", "mask_6p0_6p0_{}"),
    "apt_model_224_p16_s2": ("apt_maps_224_p16", "mask2_5p5_{}"),
}


def golden_rows(cfg, masks, mask_name: str) -> list[tuple[int, ...] | None]:
    """The same keys in the authors' order (class token, fine to coarse), None for class tokens."""
    keys: list[tuple[int, ...] | None] = []
    for i, image in enumerate(GOLDEN_IMAGES):
        keys.append(None)
        for level in range(cfg[2]):
            size = int(cfg[1]) << level
            for row, column in np.argwhere(masks[mask_name.format(size)][image]).tolist():
                keys.append((i, size, row * size, column * size))
    return keys


def golden_model(data, zero_init: bool = False):
    side, patch, _, dim, depth, heads, classes, pre_norm, average = map(int, data["cfg"])
    model = VisionTransformer(
        img_size=side,
        patch_size=patch,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        num_classes=classes,
        pre_norm=bool(pre_norm),
        global_pool="avg" if average else "token",
    )
    weights = {k[2:]: torch.from_numpy(v) for k, v in data.items() if k.startswith("w.")}
    own = {k: v for k, v in weights.items() if not k.startswith("mixed_patch.")}
    model.load_state_dict(own)
    thresholds = tuple(data["thresholds"].tolist())
    fast = apply_apt(model, thresholds, **NORM, pooling="plain").eval()
    merge = weights["mixed_patch.patch_attn.weight"].permute(0, 2, 3, 1).flatten(1)
    branch = {
        "merge.weight": merge,
        "merge.bias": weights["mixed_patch.patch_attn.bias"],
        "zero.weight": weights["mixed_patch.zero_conv.weight"],
        "zero.bias": weights["mixed_patch.zero_conv.bias"],
    }
    if not zero_init:
        fast.cell_embed.load_state_dict(branch)
    return fast


@pytest.mark.parametrize("name", GOLDEN_MASKS)
def test_features_and_logits_of_the_authors_models(name, golden):
    data, (maps, mask_name) = golden(name), GOLDEN_MASKS[name]
    images = golden("apt_images_224")["images_u8"][GOLDEN_IMAGES]
    x = (torch.from_numpy(images) / 255 - 0.5) / 0.5
    fast = golden_model(data)
    with torch.no_grad():
        out = fast.forward_features(x)
        logits = fast.forward_head(out)
        plain = golden_model(data, zero_init=True)(x)
    ours, theirs = rows_of(out.cells), golden_rows(data["cfg"], golden(maps), mask_name)
    assert set(ours) == {key for key in theirs if key is not None}  # the same cells
    special = torch.from_numpy(np.flatnonzero(data["output_mask"] == -1))
    features = torch.from_numpy(data["features"])
    order = [ours[key] for key in theirs if key is not None]
    cell_rows = [row for row, key in enumerate(theirs) if key is not None]
    close = {"rtol": 1e-4, "atol": 2e-5}
    torch.testing.assert_close(out.tokens.features[order], features[cell_rows], **close)
    torch.testing.assert_close(out.prefix[:, 0], features[special], **close)
    torch.testing.assert_close(logits, torch.from_numpy(data["logits"]), **close)
    torch.testing.assert_close(plain, torch.from_numpy(data["logits_zeroinit"]), **close)


def test_flat_images_take_the_coarsest_cells_only():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM).eval()
    fast(torch.zeros(2, 3, 64, 64))
    assert fast.last_cells.lengths == (4, 4)
    assert fast.last_cells.size[:, 1:].unique().tolist() == [32]


def test_at_the_start_the_branch_adds_exactly_nothing_and_then_learns():
    model = small_vit()
    x = images(2, 3, 64, 64)
    fast = apply_apt(model, (6.0, 6.0), **NORM).train()
    resized = apply_apt(model, (6.0, 6.0), **NORM, branch=False).train()
    torch.testing.assert_close(fast(x), resized(x), rtol=1e-6, atol=1e-6)
    branch = fast.new_parameters()
    optimiser = torch.optim.SGD(branch, lr=0.1)
    grads = []
    for _ in range(2):
        optimiser.zero_grad()
        fast(x).square().sum().backward()
        grads.append(fast.cell_embed.merge.weight.grad.abs().sum().item())
        optimiser.step()
    assert grads[0] == 0
    assert grads[1] > 0


def test_resized_cells_take_positions_between_those_of_their_patches():
    """Linear in the position, so the mean over the patches is the exact answer for RoPE."""
    from timm.models.eva import Eva

    from adaptok.vision.models import patch_index
    from adaptok.vision.rope import rotations

    model = Eva(**SMALL, use_rot_pos_emb=True, num_classes=0)
    fast = apply_apt(model, (6.0, 6.0), **NORM).eval()
    fast(images(1, 3, 64, 64))
    cells = fast.last_cells
    assert len(cells.level.unique()) > 1
    index = patch_index(cells)
    owner = cells.owner_map()[0, 0]
    for row in range(len(cells)):
        points = (owner == row).nonzero().double() + 0.5
        expected = points.mean(0) / 8 - 0.5
        torch.testing.assert_close(index[row].double(), expected)
    real = torch.ones(len(cells), 1, dtype=torch.bool)
    turned = rotations(model.rope, index, real, (8, 8), 2)[0]
    finest = rotations(model.rope, index.round(), real, (8, 8), 2)[0]
    own = cells.level == 2
    table = model.rope.get_embed().view(8, 8, 2, -1)
    row, column = index[own].long().unbind(1)
    torch.testing.assert_close(turned.sin[own, 0], table[row, column, 0])
    torch.testing.assert_close(turned.cos[own, 0], table[row, column, 1])
    assert not torch.allclose(turned.sin[~own], finest.sin[~own])


@pytest.mark.parametrize("kind", ["dinov3", "mixed"])
def test_coordinates_are_augmented_in_training_only(kind):
    """The same seed gives the rescaling that timm draws."""
    from timm.models.eva import Eva

    model = shaken(
        Eva(**SMALL, use_rot_pos_emb=True, num_classes=5, rope_type=kind, rope_rescale_coords=2.0)
    )
    fast = apply_apt(model, (-1.0,), **NORM).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(fast(x), fast(x))
    fast.rope.train()
    draws = torch.stack([fast(x) for _ in range(3)])
    assert len(draws.flatten(1).unique(dim=0)) == 3
    torch.manual_seed(1)
    got = fast(x)
    model.rope.train()
    torch.manual_seed(1)
    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-4)


def test_mean_pooling_weighs_by_area():
    model = small_vit(class_token=False, global_pool="avg")
    x = images(2, 3, 64, 64)
    area, plain = (
        apply_apt(model, (6.0, 6.0), **NORM, pooling=p).eval() for p in ("area", "plain")
    )
    with torch.no_grad():
        out = area.forward_features(x)
        expected = out.dense().mean((2, 3))
        torch.testing.assert_close(
            area.forward_head(out), model.head(model.fc_norm(expected)), rtol=1e-5, atol=1e-5
        )
        mean = torch.stack([rows.mean(0) for rows in out.tokens.split()])
        torch.testing.assert_close(
            plain.forward_head(out), model.head(model.fc_norm(mean)), rtol=1e-5, atol=1e-5
        )
    assert (out.cells.level != 2).any()


@pytest.mark.parametrize("pool", ["max", "avgmax", "map", "prr", "token"])
def test_pooling_of_ragged_batches_equals_image_by_image(pool):
    model = small_vit(global_pool=pool)
    fast = apply_apt(model, (6.0, 6.0), **NORM).eval()
    x = torch.cat([images(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 64, 64)])
    with torch.no_grad():
        together = fast(x)
        assert len(set(fast.last_cells.lengths)) == 3
        alone = torch.cat([fast(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


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


def test_calibration_takes_normalised_images_of_any_kind():
    """The mean is the closest from below: the reference calibrates the restored values by hand."""
    fast = apply_apt(small_vit(), (6.0, 5.0), **NORM).eval()
    x = torch.cat([images(3, 3, 64, 64), torch.zeros(1, 3, 64, 64)])
    expected = adaptok.calibrate(fast.tiling.trees, fast.tiling.restore(x), 30)
    assert fast.calibrate(x, 30) == expected
    assert fast.calibrate(x, share=30 / 64) == expected
    assert adaptok.calibrate(fast, x, 30) == expected
    assert fast.calibrate(list(x), 30) == expected
    assert fast.calibrate([x[:3], x[3:]], 30) == expected
    labelled = torch.utils.data.TensorDataset(x, torch.arange(4))
    assert fast.calibrate(torch.utils.data.DataLoader(labelled, batch_size=3), 30) == expected
    fast(x, thresholds=expected)
    assert 20 < len(fast.last_cells) / 4 <= 30
    mixed = [*x[:2], images(3, 64, 99)]  # 64, 64 and 96 patches
    fast(mixed, thresholds=fast.calibrate(mixed, share=0.5))
    assert 0.3 < len(fast.last_cells) / 224 <= 0.5


def test_another_normalisation_than_the_models_is_named_once(recwarn):
    values = ((images(2, 3, 64, 64) * 0.5 + 0.5) * 255).round()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229,) * 3))
    wrong = {"0..1": values / 255, "bytes": values, "ImageNet": (values / 255 - mean) / std}
    right = {"right": values / 127.5 - 1, "flat": torch.zeros(2, 3, 64, 64)}
    for name, x in (right | wrong).items():
        fast = apply_apt(small_vit(depth=1), (6.0, 5.0), **NORM).eval()
        fast(x, thresholds=(-1.0, -1.0))  # nothing is scored, nothing is read
        assert not recwarn.list, name
        fast(x)
        fast(x)
        said = [str(recwarn.pop().message) for _ in list(recwarn.list)]
        assert len(said) == (name in wrong), name
        assert all("do not look normalised by the mean (0.5, 0.5, 0.5)" in one for one in said)
    narrow = apply_apt(small_vit(), (6.0, 5.0), mean=(0.485, 0.456, 0.406), std=(0.229,) * 3).eval()
    with pytest.warns(UserWarning, match="span"):
        narrow(right["right"])


def test_tokens_are_counted_by_level():
    fast = apply_apt(small_vit(), (6.0, 4.0), **NORM).eval()
    with pytest.raises(ValueError, match="there was none"):
        fast.tokens_per_level()
    x = torch.cat([images(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 64, 64)])
    fast(x)
    counts = fast.tokens_per_level()
    assert list(counts) == [(8, 8), (16, 16), (32, 32)]
    cells = fast.last_cells
    for (side, _), own in counts.items():  # one image and one size at a time
        rows = [(cells.sample == i) & (cells.size[:, 1] == side) for i in range(3)]
        assert own.tolist() == [int(row.sum()) for row in rows]
    assert [int(own[1]) for own in counts.values()] == [0, 0, 4]
    assert sum(counts.values()).tolist() == list(cells.lengths)
    fast(x, thresholds=(-1.0, -1.0))
    every = [own.tolist() for own in fast.tokens_per_level().values()]
    assert every == [[64] * 3, [0] * 3, [0] * 3]


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (72, 96), (70, 45)])
def test_the_range_of_the_number_of_tokens(size, pad):
    """All that a flat image can merge, and all patches."""
    fast = apply_apt(small_vit(dynamic_img_pad=pad, dynamic_img_size=pad), (6.0, 6.0), **NORM)
    least, most = fast.token_range(*size)
    flat = torch.zeros(1, 3, *size)
    assert fast.tiling(flat).lengths == (least,)
    assert fast.tiling(flat, thresholds=(-1.0, -1.0)).lengths == (most,)


def test_calibrations_that_make_no_sense_are_refused():
    fast, x = apply_apt(small_vit(), (6.0, 5.0), **NORM), images(2, 3, 64, 64)
    for wrong in ({}, {"tokens": 30, "share": 0.5}, {"share": 0.0}, {"share": 50}, {"tokens": 500}):
        with pytest.raises(ValueError, match=r"tokens|share"):
            fast.calibrate(x, **wrong)
    with pytest.raises(ValueError, match="at least one field"):
        fast.calibrate([], 30)
    with pytest.raises(ValueError, match=r"marks by thresholds.* BudgetMarking"):
        apply_apt(small_vit(), marking={"name": "budget", "budget": 22}, **NORM).calibrate(x, 30)
    with pytest.raises(ValueError, match="got VisionTransformer"):
        adaptok.calibrate(small_vit(), x, 30)


def test_freezing_leaves_only_what_is_new():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM)
    trainable = freeze_all_but_new(fast, also=("head",))
    names = {n for n, p in fast.named_parameters() if p.requires_grad}
    assert len(trainable) == len(names)
    assert {name.split(".")[0] for name in names} == {"cell_embed", "head"}
    with pytest.raises(ValueError, match="'heed'"):
        freeze_all_but_new(fast, also=("heed",))


@pytest.mark.parametrize("frozen", [False, True])
def test_freezing_leaves_the_given_model_as_it_was(frozen):
    """Its flags stay, whichever they are; the values are the same ones before and after a step."""
    model = small_vit().requires_grad_(not frozen)
    fast = apply_apt(model, (6.0, 6.0), **NORM).train()
    trainable = freeze_all_but_new(fast, also=("head",))
    assert all(parameter.requires_grad is not frozen for parameter in model.parameters())
    assert [id(p) for p in fast.parameters() if p.requires_grad] == [id(p) for p in trainable]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast(images(2, 3, 64, 64)).square().sum().backward()
    torch.optim.SGD(trainable, 0.1).step()
    after = {name: p.data_ptr() for name, p in fast.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == after[name]
        assert torch.equal(parameter, before[name]) is not name.startswith("head")
    freeze_all_but_new(fast, also=("blocks.1",))
    moving = {n.partition(".")[0] for n, p in fast.named_parameters() if p.requires_grad}
    assert moving == {"blocks", "cell_embed"}
    assert not fast.blocks[0].attn.qkv.weight.requires_grad


def test_tied_parameters_stay_tied_when_they_freeze():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM)
    fast.blocks[1].attn.proj = fast.blocks[0].attn.proj
    fast.blocks[1].mlp.fc1.weight = fast.blocks[0].mlp.fc1.weight
    freeze_all_but_new(fast)
    assert fast.blocks[1].mlp.fc1.weight is fast.blocks[0].mlp.fc1.weight
    assert {n.partition(".")[0] for n, p in fast.named_parameters() if p.requires_grad} == {
        "cell_embed"
    }


def test_parameters_are_shared_and_the_model_stays_as_it_was():
    model = small_vit()
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    fast = apply_apt(model, (6.0, 6.0), **NORM)
    fast.train()
    assert not model.training
    fast.reset_classifier(7)
    assert fast(images(1, 3, 64, 64)).shape == (1, 7)
    assert fast.get_classifier().out_features == 7
    assert torch.equal(model(x), before)
    assert fast.blocks[0].attn.qkv.weight is model.blocks[0].attn.qkv.weight


@pytest.mark.parametrize("kind", sampled(["ViT", "Eva"], 2))
def test_setters_of_timm_keep_cells_and_model_together(kind):
    """What a setter leaves is what the same setter, called before, would give."""
    from timm.models.eva import Eva

    options = {**SMALL, **EVA, "num_reg_tokens": 1}
    model = small_vit() if kind == "ViT" else shaken(Eva(**options, num_classes=5))
    fast = apply_apt(copy.deepcopy(model), (6.0, 6.0), **NORM).eval()
    for knobs in ({"patch_size": 4}, {"img_size": 32, "patch_size": (8, 4)}):
        with pytest.raises(ValueError, match="apply_apt to it again"):
            fast.set_input_size(**knobs)
    x = images(2, 3, 96, 72)
    for knobs in ({"img_size": (96, 72)}, {"img_size": (96, 72), "patch_size": 8}):
        fast.set_input_size(**knobs)
        model.set_input_size(**knobs)
        with torch.no_grad():
            expected = apply_apt(model, (6.0, 6.0), **NORM).eval()(x)
            torch.testing.assert_close(fast(x), expected)
            torch.testing.assert_close(fast(x, thresholds=(-1.0, -1.0)), model(x))
    assert fast.patch_embed.img_size == (96, 72)
    model.set_input_size(patch_size=4)
    other = apply_apt(model, (6.0, 6.0), **NORM).eval()
    assert other.tiling.spec.sizes == ((1, 16, 16), (1, 8, 8), (1, 4, 4))
    fast.prune_intermediate_layers([0])
    assert len(fast.blocks) == 1
    assert len(fast.forward_intermediates(x, intermediates_only=True)) == 1


def test_state_travels_from_and_to_timm():
    first, second = small_vit(), small_vit()
    fast = apply_apt(second, (6.0, 6.0), **NORM)
    fast.load_state_dict(first.state_dict())
    other = small_vit()
    other.load_state_dict(fast.timm_state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(other(x), first(x))
    again = apply_apt(small_vit(), (6.0, 6.0), **NORM)
    again.load_state_dict(fast.state_dict())
    for a, b in zip(again.state_dict().values(), fast.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="Missing key"):
        fast.load_state_dict({k: v for k, v in first.state_dict().items() if k != "pos_embed"})


@pytest.mark.parametrize("kind", ["ViT", "Eva", "distilled"])
def test_layer_decay_gives_the_new_parameters_the_rate_of_the_head(kind):
    """They start at zero and learn the most; the other rates are those of timm's model."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.eva import Eva
    from timm.optim import param_groups_layer_decay

    cls = {"ViT": VisionTransformer, "Eva": Eva, "distilled": VisionTransformerDistilled}[kind]
    model = cls(**SMALL, num_classes=5)
    fast = apply_apt(model, (6.0, 6.0), **NORM)
    rates = []
    for one in (model, fast):
        groups = param_groups_layer_decay(
            one, layer_decay=0.5, no_weight_decay_list=one.no_weight_decay()
        )
        scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
        rates.append({name: scale[id(p)] for name, p in one.named_parameters()})
    new = {name: rate for name, rate in rates[1].items() if name not in rates[0]}
    assert new.keys() == {name for name in rates[1] if name.startswith("cell_embed.")}
    assert set(new.values()) == {rates[1]["head.weight"]} == {1.0}
    assert {name: rates[1][name] for name in rates[0]} == rates[0]
    assert rates[0]["patch_embed.proj.weight"] == 0.5**3


def test_gradient_checkpointing_changes_nothing():
    model = small_vit()
    x = images(2, 3, 64, 64)
    grads = []
    for enable in (False, True):
        fast = apply_apt(copy.deepcopy(model), (6.0, 6.0), **NORM).train()
        fast.set_grad_checkpointing(enable)
        fast(x).square().sum().backward()
        grads.append(fast.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*grads)


def test_stochastic_depth_is_drawn_per_image():
    fast = apply_apt(small_vit(drop_path_rate=0.9, depth=2), (6.0, 6.0), **NORM).train()
    x = images(1, 3, 64, 64).repeat(16, 1, 1, 1)
    logits = fast(x)
    assert 2 <= len(logits.unique(dim=0)) <= 4  # dropped or not in the second block, two branches


def test_gradients_reach_everything():
    fast = apply_apt(small_vit(init_values=0.1), (6.0, 6.0), **NORM).train()
    with torch.no_grad():
        fast.cell_embed.zero.weight.normal_(std=0.1)
    mse_loss(fast(images(2, 3, 64, 64)), torch.ones(2, 5)).backward()
    assert not [n for n, p in fast.named_parameters() if p.grad is None or not p.grad.any()]


def test_values_out_of_range_are_clamped():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM).eval()
    fast(torch.full((1, 3, 64, 64), 100.0))
    assert fast.last_cells.lengths == (4,)


def test_normalisation_of_the_models_configuration_is_undone():
    model = timm.create_model("test_vit", num_classes=3)
    fast = apply_apt(model, (5.5,))
    values = torch.randint(0, 256, (1, 3, 64, 64)).float()
    mean, std = (torch.tensor(model.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    assert torch.equal(fast.tiling.restore((values / 255 - mean) / std), values)


def test_thresholds_and_budget_per_call_and_a_tiling_of_ones_own():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM).eval()
    x = images(2, 3, 64, 64)
    fast(x, thresholds=(-1.0, -1.0))
    assert fast.last_cells.lengths == (64, 64)
    fast(x, budget=20)
    assert max(fast.last_cells.lengths) <= 20
    cells = adaptok.cells_from_score(x[:, 0], min_size=8, max_size=32, budget=19)
    fast(x, cells=cells)
    assert fast.last_cells is cells


def test_a_budget_gives_equal_lengths():
    fast = apply_apt(
        small_vit(), (6.0, 6.0), marking={"name": "budget", "budget": 22}, **NORM
    ).eval()
    fast(images(3, 3, 64, 64))
    assert fast.last_cells.lengths == (22, 22, 22)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    fast = apply_apt(small_vit(qk_norm=True).to(dtype), (6.0, 6.0), **NORM).eval()
    out = fast(images(2, 3, 64, 64).to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_autocast_is_near_single_precision():
    fast = apply_apt(small_vit(qk_norm=True), (6.0, 6.0), **NORM).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        exact = fast(x)
        with torch.autocast("cpu", torch.bfloat16):
            out = fast(x)
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("marking", [None, {"name": "budget", "budget": 22}])
def test_static_shapes_compile_in_one_graph(marking):
    thresholds = (-1.0, -1.0) if marking is None else (6.0, 6.0)
    fast = apply_apt(small_vit(), thresholds, marking=marking, **NORM).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        expected = fast(x)
        compiled = torch.compile(fast, fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


def test_a_copy_uses_its_own_weights():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM).eval()
    twin = copy.deepcopy(fast)
    x = images(1, 3, 64, 64)
    before = fast(x)
    with torch.no_grad():
        twin.patch_embed.proj.weight.zero_()
        twin.pos_embed.add_(1)
    assert torch.equal(fast(x), before)
    assert not torch.equal(twin(x), before)


@pytest.mark.parametrize(
    ("indicator", "bits"),
    [
        ("entropy", True),
        ({"name": "entropy", "color": "channels"}, True),
        ("laplacian", False),
        ({"name": "variance", "by_area": True}, False),
        ("resampling", False),
        ("gradient", False),
    ],
)
def test_thresholds_without_a_unit_are_asked_for(indicator, bits):
    """The default is in bits; a fixed budget compares no threshold at all."""
    from adaptok.vision import IMAGE_TOKENIZERS

    made = {name: {"indicator": indicator} for name in ("apt", "resize", "random")}
    made |= {"capped": {"indicator": indicator, "budget": 30}}
    budget = {"name": "budget", "budget": 30}
    apply_apt(small_vit(), indicator=indicator, marking=budget, **NORM)
    builders = [lambda: apply_apt(small_vit(), indicator=indicator, **NORM)]
    for name, knobs in made.items():
        own = {"name": name.replace("capped", "apt"), **knobs}
        builders.append(lambda own=own: IMAGE_TOKENIZERS.build(own, model=small_vit(), **NORM))
    for build in builders:
        if bits:
            bars = build().options["thresholds"]
            assert bars == [5.5, 4.0]
        else:
            with pytest.raises(ValueError, match="are not bits, so thresholds have no"):
                build()


@pytest.mark.parametrize("mode", sampled([torch.inference_mode, torch.no_grad], 2))
def test_writes_to_parameters_are_seen_at_once(mode):
    """Also those through `.data`, which raise no version; each against a fresh model."""
    fast, x = apply_apt(small_vit(depth=1), (6.0, 6.0), **NORM).eval(), images(1, 3, 64, 80)
    for name in ("pos_embed", "patch_embed.proj.weight", "cls_token", "cell_embed.zero.bias"):
        with mode():
            before = fast(x)
            assert torch.equal(fast(x), before)
        fast.get_parameter(name).data[..., :1] += 0.5
        with mode():
            after, fresh = fast(x), copy.deepcopy(fast)
            fresh.cell_positions = type(fresh.cell_positions)()
            assert torch.equal(after, fresh(x)), name
        assert not torch.equal(after, before), name
        assert len(fast.cell_positions.kept) == 1


@pytest.mark.parametrize("thresholds", [(), "5.5", (5.5, "4"), 5.5, (True,)])
def test_thresholds_that_are_none_are_refused(thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        apply_apt(small_vit(), thresholds, **NORM)


def test_bad_calls_are_refused():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM).eval()
    x = images(1, 3, 64, 64)
    with pytest.raises(ValueError, match="3 cell sizes need 2 threshold"):
        fast(x, thresholds=(1.0,))
    with pytest.raises(ValueError, match="3 cell sizes need 2 threshold"):
        fast(x, thresholds=(-1.0,))
    with pytest.raises(ValueError, match="height, width"):
        fast(x[0])
    with pytest.raises(ValueError, match="3 channel"):
        fast(x[:, :1])
    with pytest.raises(ValueError, match="smaller than the coarsest cell"):
        fast(x[..., :31])
    with pytest.raises(ValueError, match="unknown control"):
        fast(x, tresholds=(1.0, 1.0))
    with pytest.raises(ValueError, match="cells"):
        fast(x, cells=apply_apt(small_vit(patch_size=4), (6.0,), **NORM).tiling(x))


REFUSED = {
    "vit_relpos_small_patch16_224": "relative position bias",
    "beit_base_patch16_224": "relative position bias",
    "samvit_base_patch16_224": "windowed blocks",
    "resnet18": "not a plain vision transformer",
    "vit_tiny_r_s16_p8_224": "HybridEmbed",
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_models_say_why(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=REFUSED[name]) as error:
        apply_apt(model)
    assert "supported()" in str(error.value)
    assert name not in supported()


def test_options_that_packed_tokens_cannot_do_are_refused():
    with pytest.raises(ValueError, match="attn_drop_rate"):
        apply_apt(small_vit(attn_drop_rate=0.1), **NORM)
    with pytest.raises(ValueError, match="patch_drop_rate"):
        apply_apt(small_vit(patch_drop_rate=0.1), **NORM)
    with pytest.raises(ValueError, match="mean of the normalisation is needed"):
        apply_apt(small_vit())
    with pytest.raises(ValueError, match="pooling"):
        apply_apt(small_vit(), pooling="sum", **NORM)


def test_supported_names_match_a_pattern():
    names = supported("deit3_*")
    assert "deit3_small_patch16_224" in names
    assert all(name.startswith("deit3_") for name in names)
    assert set(BY_NAME) <= set(supported())


def test_the_host_asks_for_the_number_of_cells_only(monkeypatch):
    """One synchronisation per forward pass, whatever the device; later calls have warm caches."""
    fast, x = apply_apt(small_vit(), (4.0, 3.0), **NORM).eval(), images(2, 3, 64, 64)
    monkeypatch.setattr("adaptok.tokens._check_finite", lambda field, what: None)
    monkeypatch.setattr("adaptok.tokenizers.asked._check_finite", lambda scores, indicator: None)
    for module in [*sys.modules.values()]:  # as on an accelerator
        if module.__name__.startswith("adaptok.") and hasattr(module, "reads_are_free"):
            monkeypatch.setattr(module, "reads_are_free", lambda *_: False)
    with torch.no_grad():
        expected = fast(x)
    assert fast.last_cells.lengths != (64, 64)
    asked = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy"):
        method = getattr(torch.Tensor, name)

        def counted(self, *args, method=method, name=name):
            asked.append(name)
            return method(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    with torch.no_grad():
        got = fast(x)
    monkeypatch.undo()
    assert asked == ["tolist"]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_a_wrapped_model_is_saved_and_built_again(name, tmp_path):
    import adaptok

    model = timm.create_model(name, pretrained=False, num_classes=5, img_size=112)
    fast = adaptok.vision.apply_apt(model, thresholds=(3.0,), resize="area").eval()
    torch.nn.init.normal_(next(p for n, p in fast.named_parameters() if "cell_embed" in n))
    adaptok.save_pretrained(fast, tmp_path / "model")
    again = adaptok.from_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, 112, 112)
    assert type(again) is type(fast)
    assert torch.equal(again(images), fast(images))


@pytest.mark.parametrize("trace", ["fake", "export"])
def test_constants_of_a_trace_do_not_outlive_it(trace):
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Restored(torch.nn.Module):
        def __init__(self):
            super().__init__()
            mean = 0.25 if trace == "fake" else 0.375  # no other test has these constants
            self.tiling = apply_apt(small_vit(), mean=[mean] * 3, std=[0.5] * 3).tiling

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tiling.restore(x)

    module, x = Restored(), torch.zeros(1, 3, 64, 64)
    if trace == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            module(mode.from_tensor(x))
    else:
        program = torch.export.export(module, (x,), strict=False)
        torch.testing.assert_close(program.module()(x), module(x))
    assert module(x).unique().item() == round(255 * module.tiling.stats[0][0])


READ = [  # what the model itself shows
    {"drop_path_rate": 0.2},
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"img_size": (96, 128), "in_chans": 3, "num_classes": 7},
    {"global_pool": "avg"},
]
TOLD = [  # what has to be said
    {"num_heads": 4},
    {"act_layer": "quick_gelu"},
    {"global_pool": "avg", "pool_include_prefix": True},
    {"norm_layer": "rmsnorm"},
    {"depth": 2},
    {"patch_size": 32},
    {"reg_tokens": 4},
]
CASES = [
    pytest.param(o, r, marks=[] if (o, r) == (TOLD[0], True) else [pytest.mark.slow])
    for o in (*READ, *TOLD)
    for r in (False, True)
]


@pytest.mark.parametrize(("options", "reduced"), CASES, ids=str)
def test_arguments_of_create_model_are_saved_or_asked_for(options, reduced, tmp_path):
    """What is built again is the same model, or nothing is written."""

    def adapted(**more):
        if reduced:
            return adaptok.vision.apply_reducer(model, "tome", r=2, **more).eval()
        return apply_apt(model, (5.5,), **more).eval()

    model = shaken(timm.create_model("test_vit", **options))
    if options in TOLD:
        with pytest.raises(ValueError, match=r"timm builds another model .* model_args="):
            adaptok.save_pretrained(adapted(), tmp_path / "model")
        assert not (tmp_path / "model").exists()
        fast = adapted(model_args=options)
    else:
        fast = adapted()
    adaptok.save_pretrained(fast, tmp_path / "model")
    again = adaptok.from_pretrained(tmp_path / "model")
    x = images(2, 3, *model.patch_embed.img_size)
    assert torch.equal(again(x), fast(x))
    drops = [getattr(m.blocks[-1].drop_path1, "drop_prob", 0.0) for m in (fast, again)]
    assert drops[0] == pytest.approx(drops[1])
    assert again.dynamic_img_size == fast.dynamic_img_size
    adaptok.save_pretrained(again, tmp_path / "twice")  # what is loaded knows its arguments
    assert (tmp_path / "twice/config.json").read_text() == (
        tmp_path / "model/config.json"
    ).read_text()


@pytest.mark.parametrize("how", ["pruned", "wrapped", "pooled"])
def test_what_was_changed_afterwards_is_not_saved_as_if_it_were_not(how, tmp_path):
    fast = apply_apt(timm.create_model("test_vit"), (5.5,))
    if how == "pruned":
        fast.prune_intermediate_layers([0])
    elif how == "wrapped":
        fast.blocks[0].mlp.fc1 = torch.nn.Sequential(fast.blocks[0].mlp.fc1)
    else:
        fast.blocks[1].norm1.eps = 1e-3
    with pytest.raises(ValueError, match=r"timm builds another model .*blocks\.[01]"):
        adaptok.save_pretrained(fast, tmp_path)


def test_arguments_that_choose_files_are_refused():
    from adaptok.vision.apply import build_vision

    with pytest.raises(ValueError, match="leave out checkpoint_path"):
        apply_apt(timm.create_model("test_vit"), (5.5,), model_args={"checkpoint_path": "a.pth"})
    with pytest.raises(ValueError, match="leave out pretrained_cfg"):
        build_vision("test_vit", {"pretrained_cfg": {"file": "a.pth"}}, {"thresholds": [5.5]})


HOOKED = ("patch_embed", "patch_embed.proj", "blocks.1", "blocks.1.attn", "blocks.1.attn.qkv")
HOOKED = (*HOOKED, "blocks.1.mlp", "norm")


@pytest.mark.parametrize("merging", [False, True])
def test_hooks_fire_and_change_what_they_return(merging):
    model, x = small_vit(), images(1, 3, 64, 64)
    fast = apply_apt(model, (6.0, 6.0) if merging else (-1.0, -1.0), **NORM).eval()
    before = fast(x)
    for name in HOOKED:
        fired = []
        module = fast.get_submodule(name)
        hook = module.register_forward_hook(lambda m, i, out, fired=fired: fired.append(out.shape))
        assert torch.allclose(fast(x), before, rtol=1e-4, atol=1e-5), name
        assert fired, name
        hook.remove()
        hook = module.register_forward_hook(lambda m, i, out: out * 0)
        assert not torch.allclose(fast(x), before), name
        hook.remove()
    reference = copy.deepcopy(model)
    reference.blocks[0].register_forward_hook(lambda m, i, out: out * 2)
    fast = apply_apt(reference, (-1.0,), **NORM).eval()  # hooks of the given model come along
    torch.testing.assert_close(fast(x), reference(x), rtol=1e-4, atol=1e-5)


class Around(torch.nn.Module):
    """An adapter: what is inside, and a bit of it once more."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x, **more):
        return 1.5 * self.inside(x, **more)


WRAPPED = ["blocks.1", "blocks.1.attn", "blocks.1.attn.qkv", "blocks.0.mlp", "patch_embed.proj"]


@pytest.mark.parametrize("kind", ["ViT", "Eva"])
@pytest.mark.parametrize("name", WRAPPED)
def test_modules_around_modules_act_as_in_timm(name, kind):
    """Put around before (where the convolution or attention stays in sight) or afterwards."""
    from timm.models.eva import Eva

    options = {**SMALL, **EVA, "num_classes": 5, "scale_mlp": True}
    model, x = small_vit() if kind == "ViT" else shaken(Eva(**options)), images(2, 3, 64, 64)
    plain = copy.deepcopy(model)
    parent, _, last = name.rpartition(".")

    def put_around(one) -> None:
        setattr(one.get_submodule(parent), last, Around(one.get_submodule(name)))

    put_around(model)
    fast = apply_apt(plain, (-1.0, -1.0), **NORM).eval()
    put_around(fast)
    made = [fast]
    if name != "blocks.1":
        made.append(apply_apt(model, (-1.0, -1.0), **NORM).eval())
    for one in made:
        if kind == "Eva" and name.endswith("qkv"):  # timm's Eva reads its weight
            return
        torch.testing.assert_close(one(x), model(x), rtol=1e-4, atol=1e-5)
    if name in ("blocks.1.attn", "blocks.0.mlp"):
        reduced = adaptok.vision.apply_reducer(plain, "tome", r=0).eval()
        put_around(reduced)
        torch.testing.assert_close(reduced(x), model(x), rtol=1e-4, atol=1e-5)


def test_checkpointed_blocks_run():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    fast, x = apply_apt(small_vit(drop_path_rate=0.5), (6.0, 6.0), **NORM), images(2, 3, 64, 64)
    grads = []
    for wrap in (False, True):
        one = copy.deepcopy(fast).train()
        for i in range(2 * wrap):
            one.blocks[i] = checkpoint_wrapper(one.blocks[i])
        torch.manual_seed(0)
        one(x).square().sum().backward()
        grads.append([p.grad for p in one.parameters() if p.grad is not None])
    torch.testing.assert_close(*grads)


@pytest.mark.slow
def test_compiled_blocks_run_and_compiled_models_say_what_to_give():
    model, x = small_vit(), images(2, 3, 64, 64)
    fast, graphs = apply_apt(model, (6.0, 6.0), **NORM).eval(), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    expected = fast(x)
    for block in fast.blocks:
        block.compile(backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), expected)
    assert graphs
    with pytest.raises(ValueError, match="it is compiled"):
        apply_apt(torch.compile(model), **NORM)


def test_a_replaced_forward_is_refused_and_a_lost_packing_said():
    model, x = small_vit(), images(1, 3, 64, 64)
    fast = apply_apt(model, (6.0,), **NORM)
    old = model.blocks[0].forward
    model.blocks[0].forward = lambda x: old(x) * 1.5
    for adapt in (
        lambda: apply_apt(model, **NORM),
        lambda: adaptok.vision.apply_reducer(model, "tome", r=1),
    ):
        with pytest.raises(ValueError, match=r"the forward pass of its blocks\.0 was replaced"):
            adapt()
    fast.blocks[0] = torch.nn.Sequential(fast.blocks[0])
    with pytest.raises((ValueError, TypeError), match="attn_mask"):
        fast(x)


class _Own(VisionTransformer): ...


def test_modules_that_hide_a_model_say_what_to_give():
    from timm.models._features import FeatureGetterNet

    model = small_vit()
    hiding = {
        "it is adapted already": apply_apt(model, **NORM),
        r"give its \.module": torch.nn.DataParallel(model),
        r"give its \.model": FeatureGetterNet(small_vit(), [0]),
        "subclass": _Own(**SMALL),
        "not a plain": torch.nn.Linear(2, 2),
    }
    hiding["adapted"] = adaptok.vision.apply_reducer(model, "tome", r=1)
    for reason, hidden in hiding.items():
        with pytest.raises(ValueError, match=reason):
            apply_apt(hidden, **NORM)
        with pytest.raises(ValueError, match=reason):
            adaptok.vision.apply_reducer(hidden, "tome", r=1)
