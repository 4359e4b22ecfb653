"""MeshTok: refined cells of its own code; scores, layers and positions beside slow ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, gelu

import adaptok
from adaptok.registry import INDICATORS
from adaptok.tree import Tree

MAKE = {"ndim": 2, "in_channels": 3, "dim": 12}


def meshtok(**knobs):
    return adaptok.create_tokenizer("meshtok", **MAKE | knobs)


def test_golden_cells(golden):
    arrays = {k: torch.from_numpy(v) for k, v in golden("meshtok_select_p8").items()}
    tokenizer = meshtok(sizes=(4, 8), ratio=0.25, compat=True)
    scores, _ = tokenizer.scores(arrays["image"])
    assert torch.equal(scores[:, 0].topk(16).indices, arrays["ids_p8_k16"])
    cells = tokenizer.cells(arrays["image"]).validate()
    assert cells.lengths == (112, 112)
    assert torch.equal(cells.level.view(2, -1).long(), arrays["depth_p8_k16"])
    place = (cells.center[:, [2, 1]] / 64).view(2, -1, 2)
    torch.testing.assert_close(place, arrays["grid_p8_k16"], atol=1e-6, rtol=0)
    coarse, fine = arrays["a_p8_k16"], arrays["b_p8_k16"]  # given tokens, merged upstream
    for sample, wanted in enumerate(arrays["merged_p8_k16"]):
        number = {int(i): n for n, i in enumerate(arrays["child_ids_p8_k16"][sample])}
        rows = cells.samples(sample, sample + 1)
        for level, (_, y, x), token in zip(rows.level, rows.origin.tolist(), wanted, strict=True):
            own = coarse[sample, y // 8 * 8 + x // 8]
            if level:
                own = fine[sample, number[y // 4 * 16 + x // 4]]
            assert torch.equal(own, token)


# ---- the score


def activity_by_hand(x, tree, compat, periodic):
    """Of one frame (c, *space), point by point and node by node."""
    space = x.shape[1:]

    def value(index):
        index = list(index)
        for axis, (i, n) in enumerate(zip(index, space, strict=True)):
            if compat and not 0 <= i < n:
                return torch.zeros_like(x[(slice(None), *[0] * len(space))])
            index[axis] = i % n if periodic and not compat else min(max(i, 0), n - 1)
        return x[(slice(None), *index)]

    slope, curve = torch.zeros(space, dtype=x.dtype), torch.zeros(space, dtype=x.dtype)
    for point in itertools.product(*map(range, space)):
        squares, laplacian = 0, 0
        for axis in range(len(space)):
            part = 0
            for step in itertools.product((-1, 0, 1), repeat=len(space)):
                near = value([p + s for p, s in zip(point, step, strict=True)])
                others = [s for a, s in enumerate(step) if a != axis]
                part = part + step[axis] * 2.0 ** sum(s == 0 for s in others) * near
                if not any(others) and step[axis]:
                    laplacian = laplacian + near - value(point)
            squares = squares + part**2
        slope[point], curve[point] = squares.sqrt().mean(), laplacian.abs().mean()
    scores = []
    for size, grid in zip(tree.sizes[:-1], tree.grids[:-1], strict=True):
        terms = []
        for index in itertools.product(*map(range, grid)):
            box = tuple(slice(i * s, i * s + s) for i, s in zip(index, size, strict=True))
            if not slope[box].numel():  # beyond the border
                terms.append([torch.nan] * 3)
                continue
            away = x[(slice(None), *box)].flatten(1).mean(1) - x.flatten(1).mean(1)
            terms.append([slope[box].mean(), curve[box].mean(), away.abs().mean()])
        terms = torch.tensor(terms)
        low, high = (f(terms[~terms[:, 0].isnan()], 0) for f in (torch.amin, torch.amax))
        scores.append(((terms - low) / (high + 1e-6 if compat else high - low)).sum(1).nan_to_num())
    return torch.cat(scores)


@pytest.mark.parametrize("shape", [(22,), (6, 8), (3, 4, 4)])
@pytest.mark.parametrize("mode", ["", "compat", "periodic"])
def test_activity_node_by_node(shape, mode):
    sizes = tuple((size,) * len(shape) for size in (4, 2, 1))
    tree, field = Tree(shape, sizes), torch.randn(1, 2, 2, *shape).double().cumsum(-1)
    boundary = torch.full((len(shape), 2), 2 if mode == "periodic" else 0)
    scores = INDICATORS.create("activity", compat=mode == "compat")(field, tree, boundary=boundary)
    flags = mode == "compat", mode == "periodic"
    wanted = torch.stack([activity_by_hand(x, tree, *flags) for x in field[0]]).mean(0)
    torch.testing.assert_close(scores[0], wanted.to(scores.dtype), atol=1e-6, rtol=1e-6)


def test_rounding_is_no_activity():
    tree = Tree((16, 16), ((8, 8), (4, 4)))
    constant = torch.full((1, 1, 2, 16, 16), 0.1).float() * 3
    assert not INDICATORS.create("activity")(constant, tree).any()
    assert not INDICATORS.create("activity")(torch.zeros(1, 1, 2, 16, 16), tree).any()


def test_zeros_beyond_the_border_draw_cells_to_the_corners():
    """What the authors' code does, and the default does not."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    bump = 1 + torch.exp(-(y.square() + x.square()) / 0.02)[None, None]
    corner = {
        compat: int(meshtok(in_channels=1, compat=compat).cells(bump).level[0])
        for compat in (True, False)
    }
    assert corner == {True: 1, False: 0}


# ---- one share for each frame


@pytest.mark.parametrize("border", ["clip", "split"])
def test_every_frame_has_its_own_best_cells(border):
    field = torch.randn(2, 3, 3, 20, 16).cumsum(-1)
    field[:, 1] *= 0.01  # a quiet frame has as many
    tokenizer = meshtok(sizes=(4, 8), border=border)
    cells = tokenizer.cells(field).validate()
    alone = [tokenizer.cells(field[:, t : t + 1]) for t in range(3)]
    for t, frame in enumerate(alone):
        now = cells.origin[:, 0] == t
        assert torch.equal(cells.origin[now, 1:], frame.origin[:, 1:])
    assert cells.lengths == (3 * alone[0].lengths[0],) * 2
    shared = meshtok(sizes=(4, 8), border=border, per_frame=False).cells(field)
    assert shared.lengths == cells.lengths


def test_a_budget_counts_the_share_of_each_frame():
    field, tokenizer = torch.randn(1, 3, 3, 32, 32), meshtok(sizes=(4, 8))
    controls = adaptok.at_budget(tokenizer, 100, field)
    assert tokenizer.cells(field, **controls).lengths == (93,)  # 3 (16 + 3 * 5); 6 would be 102


# ---- embedding and decoder, as the dense convolutions of the paper


def regions(cells):
    """Masks (b, 1, y, x) of what each level covers."""
    level = cells.level[cells.owner_map()[:, 0]]
    return [(level == number)[:, None] for number in range(len(cells.sizes))]


def test_the_embedding_equals_convolutions_of_masked_fields():
    field, tokenizer = torch.randn(2, 1, 3, 24, 16), meshtok(sizes=(2, 4))
    tokens = tokenizer(field)
    wanted = torch.zeros_like(tokens.features)
    for level, (layers, region) in enumerate(
        zip(tokenizer.embedding.levels, regions(tokens.cells), strict=True)
    ):
        size = tokens.cells.sizes[level][1]
        x = conv2d(field[:, 0] * region, layers[0].weight.view(12, 3, size, size), stride=size)
        x = conv2d(gelu(x), layers[2].weight[..., None, None])
        own = tokens.cells.level == level
        _, row, column = (tokens.cells.origin[own] // size).long().unbind(1)
        wanted[own] = x[tokens.cells.sample[own], :, row, column]
    torch.testing.assert_close(tokens.features, wanted)


def test_the_decoder_equals_transposed_convolutions_of_grids_with_zeros():
    tokenizer = meshtok(sizes=(2, 4))
    decoder = adaptok.create_decoder("mlp", tokenizer.spec, 5, width=8)
    tokens, total = tokenizer(torch.randn(2, 1, 3, 24, 16)), 0
    cells = tokens.cells
    for level, head in enumerate(decoder.paint.levels):
        size = cells.sizes[level][1]
        own = cells.level == level
        grid = torch.zeros(2, 12, 24 // size, 16 // size)
        _, row, column = (cells.origin[own] // size).long().unbind(1)
        grid[cells.sample[own], :, row, column] = tokens.features[own]
        kernel = head.weight.view(8, size, size, 12).permute(3, 0, 1, 2)
        total = total + conv_transpose2d(grid, kernel, stride=size)
    first, last = decoder.points[1], decoder.points[3]
    x = conv2d(gelu(total), first.weight[..., None, None], first.bias)
    x = conv2d(gelu(x), last.weight[..., None, None], last.bias)
    torch.testing.assert_close(decoder(tokens)[:, 0], x)


# ---- positions in each block


def quiet(processor):
    """Lets blocks hand on their input."""
    for block in processor.blocks:
        for layer in (block.attention.out, block.mlp.down):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    processor.norm = None
    return processor


@pytest.mark.parametrize("shape", [(24,), (24, 16), (8, 8, 4)])
def test_film_token_by_token(shape):
    tokenizer = meshtok(ndim=len(shape), sizes=(2, 4), dim=7)
    processor = quiet(
        adaptok.create_processor("vit", tokenizer.spec, depth=2, heads=1, positions="film")
    )
    tokens = tokenizer(torch.randn(2, 3, 3, *shape))
    cells, film = tokens.cells, processor.positions
    found = processor(tokens).features
    for row in range(0, len(cells), 5):
        share = [cells.center[row, a] / cells.shape[a] for a in range(len(shape), 0, -1)]
        x = tokens.features[row] + film.frames.weight[int(cells.origin[row, 0])]
        for block in film.blocks:
            level = block.level.weight[int(cells.level[row])]
            place = torch.cat([gelu(block.center(torch.stack(share))), gelu(level)])
            out = block.out(gelu(block.mix(place)))
            x = out[:7] * x + out[7:]
        torch.testing.assert_close(found[row], x)


def test_film_of_samples_of_different_size():
    tokenizer = meshtok(sizes=(2, 4))
    processor = adaptok.create_processor("vit", tokenizer.spec, depth=2, heads=2, positions="film")
    fields = [torch.randn(1, 3, 16, 24), torch.randn(1, 3, 8, 12)]
    both = processor(tokenizer(fields)).split()
    for one, field in zip(both, fields, strict=True):
        torch.testing.assert_close(one, processor(tokenizer(field[None])).features)


def test_film_acts_once_per_block_of_any_stacks():
    tokenizer = meshtok(sizes=(2, 4))
    processor = adaptok.create_processor(
        "spacetime", tokenizer.spec, depth=3, heads=2, positions="film"
    )
    numbers = []
    for number, block in enumerate(processor.positions.blocks):
        block.register_forward_hook(lambda *_, n=number: numbers.append(n))
    processor(tokenizer(torch.randn(1, 2, 3, 8, 8))).features.sum().backward()
    assert numbers == [0, 1, 2]
    assert all(p.grad is not None for p in processor.parameters())


@pytest.mark.slow
def test_the_whole_method_compiles_in_one_graph():
    make = {"ndim": 2, "in_channels": 3, "dim": 12, "depth": 2, "heads": 2, "normalise": "none"}
    parts = {"tokenizer": "meshtok", "decoder": "mlp"}
    model = adaptok.create_surrogate(
        **make, **parts, processor={"name": "vit", "positions": "film"}, history=2
    )
    field = torch.randn(2, 2, 3, 32, 24)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    for ratio in (0.25, 0.5):
        torch.testing.assert_close(
            compiled(field, ratio=ratio), model(field, ratio=ratio), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: meshtok(sizes=(3, 8)), "sizes go from fine to coarse"),
        (lambda: meshtok(ratio=1.5), "ratio must be"),
        (lambda: meshtok(compat=True, indicator="variance"), "compat is an option"),
        (
            lambda: adaptok.create_processor(
                "vit", meshtok().spec, heads=1, positions={"name": "film", "frames": 2}
            )(meshtok()(torch.randn(1, 3, 3, 16, 16))),
            "film positions have 2 frames, the tokens 3",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
