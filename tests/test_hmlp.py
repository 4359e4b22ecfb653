"""The convolutional stem and head of MATEY, convolved and normalised image by image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import adaptok
from adaptok.tokenizers.embeddings.hmlp import kernels
from adaptok.tokens import TokenSet

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
CASES = [
    ((16, 24), ((2, 4), (4, 8)), 1, 2),
    ((13, 19), (2, 4, 8), 1, 1),
    ((40,), (2, 6), 2, 4),
    ((8, 10, 9), (2, 4), 1, 1),
]


@pytest.mark.parametrize(
    ("size", "current", "paper"),
    [
        (4, (1, 2, 2), (4, 1, 1)),
        (8, (2, 2, 2), (2, 2, 2)),
        (16, (2, 2, 4), (4, 2, 2)),
        (32, (2, 4, 4), (8, 2, 2)),
        (64, (4, 4, 4), None),
        (1, (1, 1, 1), (1, 1, 1)),
        (6, (1, 2, 3), (6, 1, 1)),
    ],
)
def test_kernels_of_each_version(size, current, paper):
    assert kernels([size], "current") == [(k,) for k in current]
    if paper:
        assert kernels([size], "paper") == [(k,) for k in paper]


def image_norm(norm, x):
    """One image (c, *space)."""
    out = []
    for channel, values in enumerate(x):
        weight = norm.weight[channel]
        if norm.bias is None:
            std = values.std() if values.numel() > 1 else values.new_zeros(())
            out.append(values / (std + 1e-8) * weight)
        else:
            var, mean = torch.var_mean(values, correction=0)
            out.append((values - mean) / (var + 1e-5).sqrt() * weight + norm.bias[channel])
    return torch.stack(out)


def run(layers, x, convolve):
    for layer in layers:
        if isinstance(layer, torch.nn.GELU):
            x = F.gelu(x)
        elif hasattr(layer, "stride"):
            x = convolve(x[None], layer.weight, layer.bias, stride=layer.stride)[0]
        else:
            x = image_norm(layer, x)
    return x


def cropped(x, origin, size):
    """Of an image (c, *space), zero beyond the border."""
    out = x.new_zeros(len(x), *size)
    region = x[(slice(None), *(slice(o, o + s) for o, s in zip(origin, size, strict=True)))]
    out[(slice(None), *(slice(n) for n in region.shape[1:]))] = region
    return out


def whole(shape, size):
    return [-(-n // p) * p for n, p in zip(shape, size, strict=True)]


def tokens_on(shape, sizes, frame_size, frames, mode, version):
    tokenizer = adaptok.create_tokenizer(
        "matey",
        ndim=len(shape),
        in_channels=2,
        dim=8,
        sizes=sizes,
        mode=mode,
        border="split",
        fraction=0.4,
        frame_size=frame_size,
        embedding={"name": "hmlp", "version": version},
    ).double()
    for p in tokenizer.parameters():
        torch.nn.init.normal_(p)
    field = torch.randn(2, frames, 2, *shape).double()
    return tokenizer, field, tokenizer(field)


@pytest.mark.parametrize(("shape", "sizes", "frame_size", "frames"), CASES)
@pytest.mark.parametrize("mode", ["replace", "add"])
@pytest.mark.parametrize("version", ["current", "paper"])
def test_stem_image_by_image(shape, sizes, frame_size, frames, mode, version):
    tokenizer, field, tokens = tokens_on(shape, sizes, frame_size, frames, mode, version)
    cells, stem, space = tokens.cells, tokenizer.embedding, len(shape)
    assert len(set(cells.level.tolist())) == len(sizes)
    for row in range(0, len(cells), 3):
        level, sample = int(cells.level[row]), int(cells.sample[row])
        time, *origin = cells.origin[row].tolist()
        frame = field[sample, time : time + frame_size].flatten(0, 1)  # (fs * c, *space)
        image = stem.lift(frame.movedim(0, -1)).movedim(-1, 0)
        size = cells.sizes[level][1:]
        corner = [0] * space
        if version == "paper" and level:  # the refined cell around it, by itself
            coarse = cells.sizes[level - 1][1:]
            corner = [o // c * c for o, c in zip(origin, coarse, strict=True)]
            image = cropped(image, corner, coarse)
        else:
            image = cropped(image, corner, whole(shape, size))
        features = run(stem.levels[level], image, CONV[space])
        place = [(o - c) // s for o, c, s in zip(origin, corner, size, strict=True)]
        torch.testing.assert_close(tokens.features[row], features[(slice(None), *place)])


def painted(cells, level, sample, time, features, space):
    """Features (d, *grid) of a level in one frame, zero where it has no token; where it has one."""
    size = cells.sizes[level][1:]
    grid = [n // p for n, p in zip(whole(space, size), size, strict=True)]
    image = torch.zeros(features.shape[1], *grid, dtype=features.dtype)
    taken = torch.zeros(grid, dtype=torch.bool)
    for row in range(len(cells)):
        if (int(cells.sample[row]), int(cells.origin[row, 0])) != (sample, time):
            continue
        if int(cells.level[row]) != level:
            continue
        pairs = zip(cells.origin[row, 1:].tolist(), cells.sizes[level][1:], strict=True)
        place = tuple(o // p for o, p in pairs)
        image[(slice(None), *place)] = features[row]
        taken[place] = True
    return image, taken


def ratio_of(cells, coarser, finer):
    pairs = zip(cells.sizes[coarser][1:], cells.sizes[finer][1:], strict=True)
    return [c // f for c, f in pairs]


def stand_in(cells, level, place, own):
    """The covering coarser token, else the mean, level by level, of the finer ones."""
    for coarser in range(level - 1, -1, -1):
        ratio = ratio_of(cells, coarser, level)
        above = tuple(p // r for p, r in zip(place, ratio, strict=True))
        image, taken = own[coarser]
        if taken[above]:
            return image[(slice(None), *above)]
    return mean_below(cells, level, place, own)


def mean_below(cells, level, place, own):
    """None where the place lies outside the domain."""
    image, taken = own[level]
    if any(p >= n for p, n in zip(place, taken.shape, strict=True)):
        return None
    if taken[place]:
        return image[(slice(None), *place)]
    if level + 1 == len(own):
        return None
    ratio = ratio_of(cells, level, level + 1)
    children = torch.cartesian_prod(*(torch.arange(r) for r in ratio)).reshape(-1, len(ratio))
    values = [
        mean_below(
            cells,
            level + 1,
            tuple(p * r + int(c) for p, r, c in zip(place, ratio, child, strict=True)),
            own,
        )
        for child in children
    ]
    values = [v for v in values if v is not None]
    return torch.stack(values).mean(0) if values else None


@pytest.mark.parametrize(("shape", "sizes", "frame_size", "frames"), CASES)
@pytest.mark.parametrize("version", ["current", "paper"])
def test_head_splices_a_tiling(shape, sizes, frame_size, frames, version):
    tokenizer, _, tokens = tokens_on(shape, sizes, frame_size, frames, "replace", "current")
    cells, space = tokens.cells, len(shape)
    decoder = adaptok.create_decoder("hmlp", tokenizer.spec, 3, version=version).double()
    out = decoder(tokens)
    assert out.shape == (2, frames, 3, *shape)
    owner = cells.owner_map()
    for sample, time in ((0, 0), (1, frames - frame_size)):
        own = [
            painted(cells, level, sample, time, tokens.features, shape)
            for level in range(len(sizes))
        ]
        level_at = cells.level.long()[owner[sample, time]]
        for level, (image, taken) in enumerate(own):
            full = image.clone()
            for place in (~taken).nonzero().tolist():
                full[(slice(None), *place)] = stand_in(cells, level, tuple(place), own)
            field = run(decoder.levels[level], full, TRANSPOSED[space])
            field = field[(slice(None), *(slice(n) for n in shape))]
            field = field.unflatten(0, (frame_size, 3))
            here = level_at == level
            torch.testing.assert_close(
                out[sample, time : time + frame_size][..., here], field[..., here]
            )


@pytest.mark.parametrize(("shape", "sizes", "frame_size", "frames"), CASES)
@pytest.mark.parametrize("version", ["current", "paper"])
def test_head_adds_where_coarse_tokens_stay(shape, sizes, frame_size, frames, version):
    tokenizer, _, tokens = tokens_on(shape, sizes, frame_size, frames, "add", "paper")
    cells, space = tokens.cells, len(shape)
    decoder = adaptok.create_decoder("hmlp", tokenizer.spec, 3, version=version).double()
    out = decoder(tokens)
    for sample, time in ((0, 0), (1, frames - frame_size)):
        images = [
            painted(cells, level, sample, time, tokens.features, shape)
            for level in range(len(sizes))
        ]
        total = run(decoder.levels[0], images[0][0], TRANSPOSED[space])
        ends = [max(w, n) for w, n in zip(total.shape[1:], shape, strict=True)]
        total = cropped(total, [0] * space, ends)
        for level, (image, taken) in list(enumerate(images))[1:]:
            coarse, fine = cells.sizes[level - 1][1:], cells.sizes[level][1:]
            ratio = [c // f for c, f in zip(coarse, fine, strict=True)]
            parents = {
                tuple(p // r for p, r in zip(place, ratio, strict=True))
                for place in taken.nonzero().tolist()
            }
            for parent in parents:
                part = cropped(image, [p * r for p, r in zip(parent, ratio, strict=True)], ratio)
                added = run(decoder.levels[level], part, TRANSPOSED[space])
                starts = [p * c for p, c in zip(parent, coarse, strict=True)]
                box = (slice(s, s + c) for s, c in zip(starts, coarse, strict=True))
                region = total[(slice(None), *box)]
                region += added[(slice(None), *(slice(n) for n in region.shape[1:]))]
        total = total[(slice(None), *(slice(n) for n in shape))].unflatten(0, (frame_size, 3))
        torch.testing.assert_close(out[sample, time : time + frame_size], total)


def test_a_token_depends_on_the_whole_image():
    """MATEY's norms look beyond the cell; the linear embedding does not."""
    field = torch.randn(1, 1, 2, 16, 16)
    other = field.clone()
    other[..., 12:, 12:] += 1
    for embedding, far in (("hmlp", True), ("linear", False)):
        tokenizer = adaptok.create_tokenizer(
            "matey", ndim=2, in_channels=2, dim=8, sizes=(2, 4), gamma=1.0, embedding=embedding
        )
        cells = tokenizer.cells(field)
        first = [tokenizer.embed(x, cells).features[0] for x in (field, other)]
        assert torch.equal(*first) != far


def test_the_head_refuses_what_it_cannot_decode():
    spec = adaptok.TokenizerSpec(2, 1, 8, ((1, 4, 4),), layout=TokenSet)
    with pytest.raises(ValueError, match="which a TokenSet lacks"):
        adaptok.create_decoder("hmlp", spec, 1)
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        adaptok.create_decoder(
            "hmlp", adaptok.TokenizerSpec(2, 1, 8, ((1, 4, 4),)), 1, version="papers"
        )
