"""Images of different size in one packed batch, and which of them go together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import adaptok

pytest.importorskip("timm")

from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from adaptok.vision import FeaturePyramid, VisionTower, apply_apt, pack, pad_maps

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SIZES = [(32, 48), (16, 20), (16, 20), (40, 16)]


def photos(sizes=tuple(SIZES)) -> list[torch.Tensor]:
    """Smooth on the left, noise on the right, normalised."""
    out = []
    for size in sizes:
        x = torch.linspace(0, 0.2, size[1]).expand(3, *size).clone()
        x[..., size[1] // 2 :] = torch.rand(3, size[0], size[1] - size[1] // 2)
        out.append((x - 0.5) / 0.5)
    return out


def wrapped(kind=VisionTransformer, thresholds=(6.0, 5.0), **options):
    torch.manual_seed(0)
    own = ("window", "global_blocks", "marking", "pooling")
    apt = {name: options.pop(name) for name in own if name in options}
    model = kind(**{**SMALL, "num_classes": 5, **options})
    fast = apply_apt(model, thresholds, **NORM, **apt).eval()
    with torch.no_grad():
        for parameter in fast.parameters():  # initial zeros would hide what is left out
            parameter.add_(0.05 * torch.randn_like(parameter))
    return fast


ROPE = {"kind": Eva, "use_rot_pos_emb": True, "use_abs_pos_emb": False}
MODELS = {
    "class token": {},
    "mean": {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
    "attention pooling": {"class_token": False, "global_pool": "map"},
    "windows": {"window": 16, "global_blocks": (1,)},
    "budget": {"marking": {"name": "budget", "budget": 20}},
    "nothing merges": {"thresholds": (-1.0, -1.0)},
    "eva": {"kind": Eva, "use_rot_pos_emb": True, "ref_feat_shape": 5},
    "pixel rope": {**ROPE, "rope_type": "cat", "rope_grid_offset": 0.5},
    "dinov3": {**ROPE, "rope_type": "dinov3", "rope_rotate_half": True},
    "mixed rope": {**ROPE, "rope_type": "mixed", "attn_type": "rope"},
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_a_list_of_images_equals_each_alone(options):
    fast, images = wrapped(**options), photos()
    together, alone = fast(images), [fast(x[None])[0] for x in images]
    assert together.shape == (4, 5)
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-5)
    weights = [p for p in fast.parameters() if p.requires_grad]
    grads = [
        torch.autograd.grad(sum(y.square().sum() for y in out) / 4, weights, allow_unused=True)
        for out in (together, alone)
    ]
    for one, other in zip(*grads, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", ["separate", "min", "max"])
def test_centered_positions_are_those_of_each_image(normalize):
    fast = wrapped(**MODELS["dinov3"])
    fast.rope.normalize_coords = normalize
    images = photos()
    for one, x in zip(fast(images), images, strict=True):
        torch.testing.assert_close(one, fast(x[None])[0], rtol=0, atol=1e-5)


def test_images_of_one_size_keep_the_fast_path_bit_for_bit():
    fast, batch = wrapped(), torch.stack(photos([(32, 48)] * 3))
    assert torch.equal(fast(list(batch)), fast(batch))
    assert fast.last_cells.shape == (1, 32, 48)
    listed, stacked = fast.dense_features(list(batch)), fast.dense_features(batch)
    assert isinstance(listed, list)
    assert torch.equal(torch.stack(listed), stacked)


def test_features_of_a_list_are_lists():
    fast, images = wrapped(num_classes=0), photos()
    features = fast.forward_features(images)
    maps = fast.dense_features(images)
    between = fast.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
    pyramid = FeaturePyramid(24, 8, scales=(2, 1))
    scales = pyramid(maps)
    tower = VisionTower(fast)
    padded, mask, boxes = tower(images)
    for i, x in enumerate(images):
        own = fast.forward_features(x[None])
        alone = own.padded()[0][0]
        torch.testing.assert_close(features.split()[i], alone, rtol=0, atol=1e-5)
        dense = own.dense()[0]
        assert maps[i].shape == dense.shape == (24, x.shape[1] // 4, x.shape[2] // 4)
        torch.testing.assert_close(maps[i], dense, rtol=0, atol=1e-5)
        for level, one in enumerate(fast.forward_intermediates(x[None])[1]):
            torch.testing.assert_close(between[level][i], one[0], rtol=0, atol=1e-5)
        for level, one in enumerate(pyramid(dense[None])):
            torch.testing.assert_close(scales[level][i], one[0], rtol=1e-4, atol=1e-4)
        expected, real, own_boxes = tower(x[None])
        count = int(mask[i].sum())
        assert count == int(real.sum())
        torch.testing.assert_close(padded[i, :count], expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes[i, :count], own_boxes[0])


def test_cells_and_budgets_go_with_their_images():
    fast, images = wrapped(marking={"name": "budget", "budget": 20}), photos()
    budgets = [24, 10, 16, 25]
    expected = fast(images, budget=budgets)
    cells = fast.last_cells
    assert cells.lengths == fast.tiling(images, budget=budgets).lengths
    torch.testing.assert_close(fast(images, cells=cells), expected)
    for x, budget, one in zip(images, budgets, expected, strict=True):
        torch.testing.assert_close(fast(x[None], budget=budget)[0], one, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="cells of 4 images for a list of 3"):
        fast(images[:3], cells=cells)


def test_position_tables_of_a_few_sizes_are_kept():
    fast, images = wrapped(), photos([(16, 16 + 4 * i) for i in range(20)])
    with torch.no_grad():
        first = fast(images)
        assert len(fast.cell_positions.kept) == 16
        assert torch.equal(fast(images), first)
        fast.pos_embed.add_(1)
        assert not torch.allclose(fast(images), first)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "empty"),
        (iter(()), "batch|list"),
        ("photo.png", "list of"),
        ([torch.rand(3, 32, 32), torch.rand(1, 32, 32)], "image 1 of the list: built for 3"),
        ([torch.rand(3, 32, 32), torch.rand(3, 32, 15)], "image 1 .* smaller than the coarsest"),
        ([torch.rand(1, 3, 32, 32)], r"number 0 is \(1, 3, 32, 32\)"),
        ([torch.rand(3, 32, 32), None], "number 1 is a NoneType"),
        ([torch.rand(3, 32, 32), torch.rand(3, 16, 16).double()], "image 1 of the list is"),
        ([torch.zeros(3, 32, 32, dtype=torch.uint8)], "floating point"),
    ],
)
def test_bad_lists_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        wrapped()(images)


def test_random_patches_of_a_list():
    from adaptok.vision import IMAGE_TOKENIZERS

    torch.manual_seed(0)
    model = VisionTransformer(**SMALL, num_classes=5)
    fast = IMAGE_TOKENIZERS.create("random", model=model, **NORM, thresholds=(6.0, 5.0)).eval()
    images = photos()
    assert fast(images).shape == (4, 5)
    assert fast.last_cells.lengths == apply_apt(model, (6.0, 5.0), **NORM).tiling(images).lengths


# ---- padded batches


def test_padding_of_a_batch_gets_no_tokens():
    """Each image of a padded batch is as it would be alone, and costs as much."""
    fast = wrapped()
    sizes = [(32, 48), (50, 30), (9, 64), (64, 64)]
    batch, whole = torch.zeros(4, 3, 64, 64), torch.rand(4, 3, 64, 64)
    for one, real, (h, w) in zip(batch, whole, sizes, strict=True):
        one[:, :h, :w] = real[:, :h, :w]
    parts = fast.unpad(batch, sizes)
    assert [tuple(part.shape[1:]) for part in parts] == [(32, 48), (52, 32), (16, 64), (64, 64)]
    maps = pad_maps(fast.dense_features(parts), (16, 16))
    lengths = fast.last_cells.lengths
    for i, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        assert torch.equal(part[:, : size[0], : size[1]], batch[i, :, : size[0], : size[1]])
        alone = fast.dense_features(part[None])[0]
        assert fast.last_cells.lengths == lengths[i : i + 1]
        height, width = alone.shape[1:]
        torch.testing.assert_close(maps[i, :, :height, :width], alone, rtol=1e-4, atol=1e-5)
        assert maps[i].count_nonzero() == alone.count_nonzero()
    fast(batch)
    assert len(fast.last_cells) > sum(lengths)
    assert pad_maps(fast.dense_features(parts)).shape == maps.shape


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(32, 32)], "2 images need as many sizes, got 1"),
        ([(32, 32), (32, 65)], "image 1 of a batch of"),
        ([(32, 32), (0, 32)], "image 1 of a batch of"),
        ([(32, 32), (32,)], "image 1 of a batch of"),
    ],
)
def test_sizes_that_a_padded_batch_cannot_hold_are_refused(sizes, message):
    fast = wrapped()
    with pytest.raises(ValueError, match=message):
        fast.unpad(torch.rand(2, 3, 64, 64), sizes)
    with pytest.raises(ValueError, match="a padded batch is"):
        fast.unpad(torch.rand(3, 64, 64), sizes)
    with pytest.raises(ValueError, match="do not fit a grid"):
        pad_maps([torch.rand(2, 4, 4)], (4, 3))
    with pytest.raises(ValueError, match="no maps"):
        pad_maps([])


# ---- batches


@given(
    counts=st.lists(st.integers(1, 40), max_size=40),
    budget=st.integers(40, 90),
)
@example([], 40)
def test_packing_holds_every_index_once_and_no_group_above_the_budget(counts, budget):
    groups = pack(counts, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(counts)))
    loads = [sum(counts[i] for i in group) for group in groups]
    assert all(0 < load <= budget for load in loads)
    assert groups == pack(counts, budget)
    # First fit leaves no two groups that fit into one.
    assert all(a + b > budget for k, a in enumerate(loads) for b in loads[:k])


def test_packing_puts_the_largest_first():
    assert pack([3, 8, 2, 5, 2], 10) == [[1, 2], [0, 3, 4]]
    assert pack(photos(), 96, patch=4) == [[0], [1, 2, 3]]
    assert pack(photos(), 136, patch=(4, 4)) == [[0, 3], [1, 2]]


@pytest.mark.parametrize(
    ("images", "budget", "message"),
    [
        ([4, 50, 60], 40, "image 2 has 60 tokens, above the budget of 40"),
        ([4], 0, "budget is a positive"),
        ([4], 3.5, "budget is a positive"),
        ([4, 0], 8, "number 1 is neither"),
        ([4, 2.5], 8, "number 1 is neither"),
        ([torch.rand(3, 8, 8)], 8, "need patch="),
        ([torch.rand(8, 8)], 8, "number 0 is neither"),
    ],
)
def test_packing_refuses_by_name(images, budget, message):
    with pytest.raises(ValueError, match=message):
        pack(images, budget)


def test_a_loader_keeps_images_of_different_size_as_a_list():
    samples = [(x, i) for i, x in enumerate(photos())]
    for images, labels in DataLoader(
        samples, batch_sampler=[[0, 1], [1, 2]], collate_fn=adaptok.collate
    ):
        assert isinstance(images, list) == (labels.tolist() == [0, 1])
        assert wrapped()(images).shape == (2, 5)
