"""timm models on cells: the features of the authors' models, merged cells, pooling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_vits import NORM, SMALL, images, small_vit
from timm.models.vision_transformer import VisionTransformer

from adaptok.vision import apply_apt


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
