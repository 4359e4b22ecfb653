"""APT's embedding and tokenizer: golden arrays, cell by cell, zero-init, positions, training."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import adaptok
from adaptok import create_tokenizer
from adaptok.patches import _bounded_rows
from adaptok.tokenizers.embeddings import LearnedPositions, ResizeZeroEmbedding, resample_positions
from adaptok.tokenizers.embeddings.learned_table import pooled_positions
from adaptok.tree import Tree, cells_from_splits
from benchmarks.entropy import images, loop, one_pass
from benchmarks.resize_zero import each_cell

SHAPES = {1: (40,), 2: (24, 32), 3: (8, 16, 8)}
CLIPPED = {1: (45,), 2: (21, 19), 3: (9, 10, 8)}


def tokenizer_for(ndim: int, *, trained: bool = True, **knobs):
    """Cells 8, 4, 2 (whole field values between) with a branch that is not zero any more."""
    make = {"min_size": 2, "thresholds": (2.5, 3.0), "ndim": ndim, "in_channels": 2, "dim": 6}
    tokenizer = create_tokenizer("apt", **(make | knobs))
    zero = tokenizer.embedding.zero
    if trained and zero is not None:
        torch.nn.init.normal_(zero.weight)
        torch.nn.init.normal_(zero.bias)
    return tokenizer


def draw(shape, t: int = 1) -> torch.Tensor:
    """Rough in one half, a few values in the other."""
    x = torch.randn(2, t, 2, *shape)
    first = torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1))
    return torch.where(first < shape[0] // 2, (x * 0.4).round(), x)


def mixed_cells(shape, frames: int = 1):
    """Cells of 8, 4 and 2 at random, all of them present."""
    tree = Tree(tuple(shape), tuple((s,) * len(shape) for s in (8, 4, 2)))
    split = torch.rand(2, 1, tree.inner) < 0.6
    split[:, 0, 0] = torch.tensor([False, True])  # the first root is whole in every domain here
    split = split | tree.nodes(split.device).forced
    cells = cells_from_splits(split, tree, frames=frames).validate()
    assert cells.level.unique().tolist() == [0, 1, 2]
    return cells


# ---- the embedding against the definition


def embed_cell(embedding: ResizeZeroEmbedding, patch: torch.Tensor, factor: int) -> torch.Tensor:
    """One whole patch (c, *space) by PyTorch's own resize and convolution."""
    ndim, p = patch.ndim - 1, patch.shape[1] // factor
    if embedding.resize == "central":
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[ndim]
        small = F.interpolate(patch[None], size=(p,) * ndim, mode=mode, align_corners=False)
    else:
        small = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[ndim](patch[None], factor)
    token = embedding.patch(small.flatten())
    if factor == 1 or embedding.merge is None:
        return token
    children = torch.stack(
        [
            embedding.patch(
                patch[(slice(None), *(slice(i * p, i * p + p) for i in place))].flatten()
            )
            for place in itertools.product(range(factor), repeat=ndim)
        ]
    )
    x = children.T.unflatten(1, (factor,) * ndim)[None]
    kernel = embedding.merge.weight.unflatten(1, (*[2] * ndim, x.shape[1])).movedim(-1, 1)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[ndim]
    while x.shape[-1] > 1:
        x = convolve(x, kernel, embedding.merge.bias, stride=2)
    return token + embedding.zero(x.flatten())


def by_hand(embedding: ResizeZeroEmbedding, x: torch.Tensor, cells) -> torch.Tensor:
    rows = []
    for row in range(len(cells)):
        size = cells.sizes[int(cells.level[row])][1:]
        time, *space = (
            slice(o, o + s)
            for o, s in zip(cells.origin[row].tolist(), cells.size[row].tolist(), strict=True)
        )
        part = x[(int(cells.sample[row]), time.start, slice(None), *space)]
        patch = x.new_zeros(x.shape[2], *size)
        patch[(slice(None), *(slice(n) for n in part.shape[1:]))] = part
        rows.append(embed_cell(embedding, patch, size[0] // cells.sizes[-1][1]))
    return torch.stack(rows)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("resize", ["central", "area"])
@pytest.mark.parametrize("branch", [True, False])
def test_features_equal_an_embedding_cell_by_cell(ndim, resize, branch):
    for shape in (SHAPES[ndim], CLIPPED[ndim]):
        tokenizer = tokenizer_for(ndim, resize=resize, branch=branch).double()
        field = draw(shape, 2).double()
        tokens = tokenizer.embed(field, mixed_cells(shape, 2))
        expected = by_hand(tokenizer.embedding, field, tokens.cells)
        torch.testing.assert_close(tokens.features, expected)


def test_odd_factors_take_the_central_point():
    embedding = ResizeZeroEmbedding(1, 4, ((1, 6, 9), (1, 2, 3)), branch=False)
    x = torch.randn(1, 1, 1, 6, 9)
    tree = Tree((6, 9), ((6, 9), (2, 3)))
    cells = cells_from_splits(torch.zeros(1, 1, 1, dtype=torch.bool), tree, frames=1)
    expected = embedding.patch(x[..., 1::3, 1::3].flatten())
    torch.testing.assert_close(embedding(x, cells)[0], expected)


@pytest.mark.parametrize("name", ["apt_model_224_p14_s3_prenorm_avg", "apt_model_224_p16_s2"])
def test_golden_embeddings(golden, name):
    """Positions included; rows sorted as in the authors' packing: fine to coarse, raster."""
    arrays = {k: torch.from_numpy(v) for k, v in golden(name).items()}
    images_u8 = golden("apt_images_224")["images_u8"][[2, 4, 5, 0]]
    pixels = torch.from_numpy(images_u8).float()
    patch, thresholds = int(arrays["cfg"][1]), tuple(arrays["thresholds"].tolist())
    tokenizer = create_tokenizer(
        "apt",
        ndim=2,
        in_channels=3,
        dim=32,
        min_size=patch,
        thresholds=thresholds,
        value_range=(0, 255),
        positions=224 // patch,
    )
    load(tokenizer.embedding, arrays)
    cells = tokenizer.cells(pixels)
    with torch.no_grad():
        features = tokenizer.embed((pixels / 255 - 0.5) / 0.5, cells).features
    fine_first = len(cells.sizes) - 1 - cells.level.long()
    place = torch.stack([cells.sample, fine_first, *cells.origin.long().unbind(1)])
    order = np.lexsort(place.flip(0).numpy())
    packed = arrays["output_mask"][arrays["output_mask"] > 0]  # without the class tokens
    assert (fine_first[order] + 1).tolist() == packed.tolist()
    expected = arrays["embed"][arrays["output_mask"] > 0]
    torch.testing.assert_close(features[order], expected, atol=2e-5, rtol=1e-4)

    torch.nn.init.zeros_(tokenizer.embedding.zero.weight)
    torch.nn.init.zeros_(tokenizer.embedding.zero.bias)
    fresh = tokenizer.embed((pixels / 255 - 0.5) / 0.5, cells).features
    expected = arrays["embed_zeroinit"][arrays["output_mask"] > 0]
    torch.testing.assert_close(fresh[order], expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def load(embedding: ResizeZeroEmbedding, arrays: dict) -> None:
    kernel = arrays["w.patch_embed.proj.weight"]
    embedding.patch.weight.copy_(kernel.flatten(1))
    embedding.patch.bias.copy_(arrays.get("w.patch_embed.proj.bias", torch.zeros(len(kernel))))
    merge = arrays["w.mixed_patch.patch_attn.weight"]  # (out, in, 2, 2)
    embedding.merge.weight.copy_(merge.permute(0, 2, 3, 1).flatten(1))
    embedding.merge.bias.copy_(arrays["w.mixed_patch.patch_attn.bias"])
    embedding.zero.weight.copy_(arrays["w.mixed_patch.zero_conv.weight"])
    embedding.zero.bias.copy_(arrays["w.mixed_patch.zero_conv.bias"])
    table = arrays["w.pos_embed"][0, 1:]
    embedding.positions.table.copy_(table.view_as(embedding.positions.table))


# ---- two ways to compute it, static shapes


@pytest.mark.parametrize("thresholds", [(-1, -1), (9, 9)])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_all_finest_patches_at_once_equal_each_cell_alone(ndim, thresholds):
    tokenizer = tokenizer_for(ndim)
    field = draw(SHAPES[ndim])
    for cells in (tokenizer.cells(field, thresholds=thresholds), mixed_cells(SHAPES[ndim])):
        expected = each_cell(tokenizer.embedding, field, cells)
        torch.testing.assert_close(tokenizer.embedding(field, cells), expected)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("branch", [True, False])
def test_the_static_path_equals_the_exact_one(ndim, branch, monkeypatch):
    tokenizer = tokenizer_for(ndim, branch=branch, positions=3)
    for shape in (SHAPES[ndim], CLIPPED[ndim]):
        field = draw(shape)
        coarse, fine = (tokenizer.cells(field, thresholds=(bar, bar)) for bar in (99, -1))
        for cells in (coarse, mixed_cells(shape), fine):
            expected = tokenizer.embed(field, cells).features
            with monkeypatch.context() as patched:
                patched.setattr(
                    "adaptok.tokenizers.embeddings.resize_zero.rows_of_levels",
                    lambda cells: [_bounded_rows(cells, i) for i in range(len(cells.sizes))],
                )
                static = tokenizer.embed(field, cells).features
            torch.testing.assert_close(static, expected)


@pytest.mark.slow
def test_the_embedding_compiles_as_one_graph():
    tokenizer = tokenizer_for(2, positions=5)
    field = draw(CLIPPED[2])
    cells = tokenizer.cells(field)
    compiled = torch.compile(tokenizer.embedding, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(field, cells), tokenizer.embedding(field, cells))


# ---- zero-initialised


def test_before_training_tokens_are_those_of_resized_cells_exactly():
    field = draw(SHAPES[2])
    with_branch = tokenizer_for(2, trained=False)
    without = tokenizer_for(2, trained=False, branch=False)
    without.load_state_dict(with_branch.state_dict(), strict=False)
    assert torch.equal(with_branch(field).features, without(field).features)


def test_the_branch_learns_from_the_second_step_on():
    tokenizer = tokenizer_for(2, trained=False)
    embedding = tokenizer.embedding
    field = draw(SHAPES[2])
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        tokenizer(field).features.square().mean().backward()
        assert embedding.zero.weight.grad.any()
        assert bool(embedding.merge.weight.grad.any()) == (step > 0)
        optimizer.step()


def test_gradients_exist_where_a_batch_has_no_coarse_cells():
    """Data-parallel ranks must all use all parameters, whatever cells they see."""
    tokenizer = tokenizer_for(2, thresholds=(-1, -1))
    tokenizer(draw(SHAPES[2])).features.sum().backward()
    assert all(p.grad is not None for p in tokenizer.parameters())
    assert not tokenizer.embedding.merge.weight.grad.any()


# ---- positions


@pytest.mark.parametrize("grid", [(6, 8), (3, 5), (12, 16), (7, 4)])
def test_positions_are_resampled_like_an_image(grid):
    table = torch.randn(*grid, 5)
    sizes = ((1, 8, 8), (1, 4, 4), (1, 2, 2))
    tables = resample_positions(table, (24, 32), sizes)
    start = 0
    for _, height, width in sizes:
        wanted = (24 // height, 32 // width)
        expected = F.interpolate(
            table.movedim(-1, 0)[None], size=wanted, mode="bicubic", antialias=True
        )
        own = tables[start : start + wanted[0] * wanted[1]]
        torch.testing.assert_close(own, expected[0].flatten(1).T, atol=2e-6, rtol=1e-5)
        start += wanted[0] * wanted[1]
    assert start == len(tables)


def test_positions_of_double_tables_are_not_rounded_and_autocast_makes_none_coarser():
    table, sizes = torch.randn(5, 3, 4, dtype=torch.float64), ((1, 4, 4), (1, 2, 2))
    expected = F.interpolate(
        table.movedim(-1, 0)[None], size=(12, 16), mode="bicubic", antialias=True
    )
    own = resample_positions(table, (24, 32), sizes)
    assert own.dtype == torch.float64
    torch.testing.assert_close(own[-12 * 16 :], expected[0].flatten(1).T)
    for resample in (resample_positions, pooled_positions):
        plain = resample(table.float(), (24, 32), sizes)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(resample(table.float(), (24, 32), sizes), plain)


def test_positions_of_the_tables_own_grid_are_the_table():
    table = torch.randn(12, 16, 5)
    tables = resample_positions(table, (24, 32), ((1, 4, 4), (1, 2, 2)))
    assert torch.equal(tables[-12 * 16 :], table.flatten(0, 1))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_positions_follow_the_centres_where_the_domain_does_not_divide(ndim):
    """A table that rises linearly is read at the centre of each cell, away from its ends."""
    space, grid = (30, 38, 34)[:ndim], (15, 19, 17)[:ndim]
    axes = [torch.arange(g) + 0.5 for g in grid]
    table = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) * 2  # in grid points
    cells, positions = mixed_cells(space), LearnedPositions(ndim, grid)
    positions.table.data = table
    centre = cells.center[:, 1:]
    # The filter of a cell of 4 looks at 8 points to each side.
    middle = ((cells.level > 0)[:, None] & (centre > 8) & (centre < 22)).all(1)
    torch.testing.assert_close(positions(cells)[middle], centre[middle], atol=1e-4, rtol=1e-5)
    assert len(cells.level[middle].unique()) == 2


def test_resampled_positions_are_kept_until_the_table_changes():
    tokenizer = tokenizer_for(2, positions=(4, 4)).eval()
    positions, cells = tokenizer.embedding.positions, tokenizer.cells(draw(SHAPES[2]))
    with torch.inference_mode():
        first = positions.tables(cells)
        assert positions.tables(cells) is first
    with torch.no_grad():
        assert positions.tables(cells) is first
        positions.table.mul_(2)
        torch.testing.assert_close(positions.tables(cells), first * 2)
        positions.table.data = positions.table.data / 2
        torch.testing.assert_close(positions.tables(cells), first)
        other = tokenizer.cells(draw((16, 16)))
        assert len(positions.tables(other)) != len(first)
    assert positions.tables(cells).requires_grad
    positions.requires_grad_(False)
    kept = positions.tables(cells)
    assert positions.tables(cells) is kept
    (tokenizer(draw(SHAPES[2])).features.sum()).backward()  # what is kept may serve autograd


# ---- the tokenizer


def test_public_call_of_the_paper():
    tokenizer = create_tokenizer(
        "apt",
        ndim=2,
        in_channels=3,
        dim=8,
        min_size=14,
        thresholds=(5.5, 4.0),
        value_range=(0, 255),
    )
    assert tokenizer.spec.sizes == ((1, 56, 56), (1, 28, 28), (1, 14, 14))
    fields = images(224, 3)
    cells = tokenizer.cells(fields)
    assert cells.validate().level.unique().tolist() == [0, 1, 2]
    expected = loop(fields, (14, 28, 56), (5.5, 4.0), 2)
    for size, mask in zip((14, 28, 56), expected, strict=True):
        own = cells.sizes[0][1] // size
        assert int((cells.level == {1: 0, 2: 1, 4: 2}[own]).sum()) == int(mask.sum())
    flat = torch.full((2, 3, 224, 224), 77.0)
    assert tokenizer.cells(flat, thresholds=(6, 6)).lengths == (16, 16)
    assert tokenizer.cells(fields, thresholds=(-1, -1)).lengths == (256,) * 3


def test_the_two_sides_of_the_benchmark_agree():
    fields = images(112, 2, seed=3)
    for sizes, thresholds in (((14, 28), (5.0,)), ((14, 28, 56), (5.5, 5.0))):
        fast = one_pass(fields, sizes, thresholds)
        for scored in (len(thresholds), len(sizes)):
            for a, b in zip(fast, loop(fields, sizes, thresholds, scored), strict=True):
                assert torch.equal(a, b)


def test_sizes_follow_the_thresholds():
    make = {"ndim": 3, "in_channels": 1, "dim": 4, "min_size": (1, 2, 2)}
    sizes = create_tokenizer("apt", **make, thresholds=(3.0, 2.0)).spec.sizes
    assert sizes == ((1, 4, 8, 8), (1, 2, 4, 4), (1, 1, 2, 2))
    assert len(create_tokenizer("apt", **make, thresholds=3).spec.sizes) == 2
    assert len(create_tokenizer("apt", **make, thresholds=3, max_size=(4, 8, 8)).spec.sizes) == 3


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_surrogate_learns_on_cells_of_entropy(ndim):
    model = adaptok.create_surrogate(
        ndim=ndim,
        in_channels=2,
        tokenizer={"name": "apt", "min_size": 2, "thresholds": (2.5, 3.0), "positions": 4},
        decoder="cross_attention",
        dim=24,
        depth=1,
        heads=2,
    )
    field = draw(SHAPES[ndim])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = (model(field) - field.roll(1, -1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_apt_trains_from_the_command_line(tmp_path):
    import small_runs

    from adaptok.cli import main

    tokenizer = ["tokenizer=apt", "tokenizer.min_size=2", "tokenizer.thresholds=[2.0,2.5]"]
    rows = "test.settings=[{}, {thresholds: [-1, -1]}, {budget: 22}]"
    common = [*small_runs.data(), *small_runs.SIZE, *tokenizer, *small_runs.RUN, rows]
    assert main(["train", *common, f"hydra.run.dir={tmp_path}"]) == 0
    assert (tmp_path / "metrics.json").is_file()


# ---- bad input


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"resize": "nearest"}, "central, area, got 'nearest'"),
        ({"positions": 0}, "positions.* got 0"),
        ({"positions": (4, 4, 4)}, r"positions.* got \(4, 4, 4\)"),
        ({"color": "red"}, "color must be one of"),
        ({"max_size": 6}, "min_size times one power of two"),
        ({"min_size": (2, 2, 2)}, "min_size is a positive whole number or 2"),
    ],
)
def test_knobs_that_make_no_sense(knobs, message):
    with pytest.raises(ValueError, match=message):
        create_tokenizer("apt", ndim=2, in_channels=1, dim=4, **knobs)


def test_the_branch_needs_one_ratio():
    sizes = ((1, 16), (1, 4), (1, 2))
    with pytest.raises(ValueError, match="need one ratio, got"):
        ResizeZeroEmbedding(1, 4, sizes)
    ResizeZeroEmbedding(1, 4, sizes, branch=False)


def test_fields_of_the_wrong_rank_and_gray_of_two_channels():
    tokenizer = create_tokenizer("apt", ndim=2, in_channels=2, dim=4, color="gray")
    with pytest.raises(ValueError, match=r"\(b, t, c, \*space\)"):
        tokenizer(torch.rand(32, 32))
    with pytest.raises(ValueError, match="'gray' needs 1 or 3 channels"):
        tokenizer(torch.rand(1, 2, 32, 32))
