"""Decoders against implementations written out cell by cell and latent by latent."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from references import rope, softmax_attention

import adaptok
from adaptok import DECODERS, create_decoder
from adaptok.tokens import TokenizerSpec, TokenSet


def tokens_on(shape, budgets, *, dim=24, frames=1, frame_size=1, uniform=None) -> tuple:
    """(spec, random tokens) on a ragged adaptive tiling, float64."""
    make = {"ndim": len(shape), "in_channels": 1, "dim": dim, "frame_size": frame_size}
    field = torch.rand(len(budgets), frames, 1, *shape)
    if uniform is not None:
        tokenizer = adaptok.create_tokenizer("uniform", **make, size=uniform)
        cells = tokenizer.cells(field)
    else:
        make |= {"min_size": 2, "max_size": 8, "border": "split"}
        tokenizer = adaptok.create_tokenizer("iap", **make)
        cells = tokenizer.cells(field, budget=list(budgets))
    features = torch.randn(len(cells), dim, dtype=torch.float64)
    return tokenizer.spec, TokenSet(features, cells)


def paint(field: torch.Tensor, sample: int, origin, size, patch: torch.Tensor) -> None:
    """Adds a patch (c, *size of its level) to a field (b, t, c, *space), clipped at the border."""
    time, *space = (slice(o, o + s) for o, s in zip(origin, size, strict=True))
    region = field[(sample, time, slice(None), *space)]
    region += patch[(slice(None), *(slice(s) for s in size))].movedim(0, 1)


# ---- linear


@pytest.mark.parametrize(
    ("shape", "budgets", "frames", "frame_size"),
    [
        ((16, 24), (20, 60), 1, 1),
        ((13, 19), (56, 70), 1, 1),
        ((50,), (14, 20), 1, 1),
        ((8, 10, 9), (99, 100), 1, 1),
        ((16, 24), (60, 120), 2, 1),
        ((16, 24), (60, 120), 4, 2),
    ],
)
def test_linear_paints_cell_by_cell(shape, budgets, frames, frame_size):
    spec, tokens = tokens_on(shape, budgets, frames=frames, frame_size=frame_size)
    decoder = create_decoder("linear", spec, 3).double()
    cells = tokens.cells
    expected = torch.zeros(len(budgets), frames, 3, *shape, dtype=torch.float64)
    for row in range(len(cells)):
        level = int(cells.level[row])
        head = decoder.levels[level]
        patch = (head.weight @ tokens.features[row] + head.bias).view(3, *cells.sizes[level])
        origin, size = cells.origin[row].tolist(), cells.size[row].tolist()
        paint(expected, int(cells.sample[row]), origin, size, patch.detach())
    torch.testing.assert_close(decoder(tokens), expected)


def test_linear_adds_up_where_cells_overlap():
    """Additive tokens: a coarse and a fine cell over the same points."""
    spec = TokenizerSpec(1, 1, 4, ((1, 4), (1, 2)), tiling=False)
    cells = adaptok.Cells(
        origin=torch.tensor([[0, 0], [0, 2]], dtype=torch.int32),
        size=torch.tensor([[1, 4], [1, 2]], dtype=torch.int32),
        level=torch.tensor([0, 1], dtype=torch.int8),
        cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
        max_seqlen=2,
        lengths=(2,),
        shape=(1, 8),
        sizes=spec.sizes,
        tiling=False,
    )
    decoder = create_decoder("linear", spec, 1)
    tokens = TokenSet(torch.randn(2, 4), cells)
    coarse, fine = (head(x) for head, x in zip(decoder.levels, tokens.features, strict=True))
    expected = torch.zeros(8)
    expected[:4] += coarse
    expected[2:4] += fine
    torch.testing.assert_close(decoder(tokens)[0, 0, 0], expected)


# ---- cross attention


def norm(module, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(x.var(-1, keepdims=True) + module.eps)
    return scaled * module.weight.detach().numpy() + module.bias.detach().numpy()


def linear(module, x: np.ndarray) -> np.ndarray:
    return x @ module.weight.detach().numpy().T + module.bias.detach().numpy()


def covering_row(cells, sample: int, point) -> int:
    """The finest cell of the sample over a grid point."""
    found = [
        (int(cells.level[row]), row)
        for row in (cells.sample == sample).nonzero().flatten().tolist()
        if all(
            o <= p < o + s
            for o, p, s in zip(
                cells.origin[row].tolist(), point, cells.size[row].tolist(), strict=True
            )
        )
    ]
    return max(found)[1]


def windows(window, shape, centers) -> list[list[int]]:
    """Rows by the window that holds their centre; one window where there are none."""
    if window is None:
        return [list(range(len(centers)))]
    counts = [math.ceil(n / w) for n, w in zip(shape[1:], window, strict=True)]
    found = [[] for _ in range(math.prod(counts))]
    for row, (_, *center) in enumerate(centers):
        index = [int(c // w) for c, w in zip(center, window, strict=True)]
        found[np.ravel_multi_index(index, counts)].append(row)
    return found


def iap_decoder(decoder, tokens: TokenSet, latent: bool, out_channels: int) -> torch.Tensor:
    """IAP App. C, one sample and one latent at a time."""
    cells, size = tokens.cells, decoder.latent_size
    features = tokens.features.numpy()
    heads, width = decoder.attention.heads, features.shape[1]
    moving = [axis for axis, n in enumerate(cells.shape) if n > 1]
    shape = cells.shape[0], out_channels, *cells.shape[1:]
    out = torch.zeros(cells.batch_size, *shape, dtype=torch.float64)
    tables = np.cumsum([0, *(int(np.prod(counts)) for counts in decoder.offsets)])
    gate, shift = decoder.gate.detach().numpy(), decoder.shift.detach().numpy()
    for sample in range(cells.batch_size):
        own = (cells.sample == sample).nonzero().flatten().tolist()
        latents, boxes = [], []
        starts = [range(0, n, p) for n, p in zip(cells.shape, size, strict=True)]
        for origin in itertools.product(*starts):
            extent = [min(p, n - o) for o, p, n in zip(origin, size, cells.shape, strict=True)]
            middle = [o + e // 2 for o, e in zip(origin, extent, strict=True)]
            row = covering_row(cells, sample, middle)
            value = features[row]
            if latent:
                level = int(cells.level[row])
                counts = decoder.offsets[level]
                corner = cells.origin[row].tolist()
                offset = [(m - c) // p for m, c, p in zip(middle, corner, size, strict=True)]
                entry = tables[level] + np.ravel_multi_index(offset, counts)
                value = value / (1 + np.exp(-gate[entry])) + shift[entry]
            latents.append(value)
            boxes.append((origin, extent))
        x = np.stack(latents)
        context = norm(decoder.norm_tokens, features[own])
        attention = decoder.attention
        q = linear(attention.q, norm(decoder.norm_latent, x)).reshape(len(x), heads, -1)
        k, v = np.split(linear(attention.kv, context), 2, axis=1)
        k, v = (part.reshape(len(own), heads, -1) for part in (k, v))
        centers = np.array([[o + e / 2 for o, e in zip(*box, strict=True)] for box in boxes])
        q = rope(q, centers[:, moving])
        k = rope(k, cells.center[own].double().numpy()[:, moving])
        by_window = windows(decoder.window, cells.shape, centers)
        keys = windows(decoder.window, cells.shape, cells.center[own].numpy())
        mixed = softmax_attention(q, k, v, by_window, keys)
        x = x + linear(attention.out, mixed.reshape(len(x), width))
        hidden = F.gelu(torch.from_numpy(linear(decoder.mlp.up, norm(decoder.norm_mlp, x))))
        x = x + linear(decoder.mlp.down, hidden.numpy())
        patches = linear(decoder.head, norm(decoder.norm_out, x))
        for patch, (origin, extent) in zip(patches, boxes, strict=True):
            patch = torch.from_numpy(patch).view(out_channels, *size)
            paint(out, sample, origin, extent, patch)
    return out


@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize(
    ("shape", "budgets", "options"),
    [
        ((16, 24), (20, 60), {}),
        ((13, 19), (56, 70), {}),
        ((13, 19), (56, 70), {"latent_size": 1}),
        ((16, 16), (10, 40), {"latent_size": 4}),
        ((13, 19), (56, 70), {"latent_size": (4, 8)}),
        ((12, 18), (30, 50), {"latent_size": 3}),
        ((50,), (14, 20), {"latent_size": 5}),
        ((8, 6, 9), (53, 60), {"latent_size": 4}),
        ((16, 24), (20, 60), {"window": 8}),
        ((13, 19), (56, 70), {"window": (8, 16), "latent_size": 4}),
        ((13, 19), (56, 70), {"window": 8, "latent_size": 3}),
        ((50,), (14, 20), {"window": 16}),
        ((8, 6, 9), (53, 60), {"latent_size": 4, "window": 8}),
    ],
)
def test_cross_attention_equals_app_c_written_out(latent, shape, budgets, options):
    spec, tokens = tokens_on(shape, budgets)
    decoder = create_decoder("cross_attention", spec, 2, latent=latent, heads=2, **options).double()
    for parameter in decoder.parameters():  # gates, shifts and norms away from where they start
        torch.nn.init.normal_(parameter, std=0.3)
    expected = iap_decoder(decoder, tokens, latent, 2)
    assert expected.shape == (2, 1, 2, *shape)
    torch.testing.assert_close(decoder(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frame_size", [1, 2])
def test_cross_attention_decodes_all_frames(frame_size):
    spec, tokens = tokens_on((8, 8), (16, 14), frames=2, frame_size=frame_size)
    decoder = create_decoder("cross_attention", spec, 1, heads=2).double()
    torch.nn.init.normal_(decoder.gate)
    out = decoder(tokens)
    assert out.shape == (2, 2, 1, 8, 8)
    torch.testing.assert_close(out, iap_decoder(decoder, tokens, True, 1), atol=1e-5, rtol=1e-5)


def test_the_latent_of_an_overlap_is_the_finest_cell():
    spec = TokenizerSpec(1, 1, 8, ((1, 4), (1, 2)), tiling=False)
    cells = adaptok.Cells(
        origin=torch.tensor([[0, 0], [0, 4], [0, 2]], dtype=torch.int32),
        size=torch.tensor([[1, 4], [1, 4], [1, 2]], dtype=torch.int32),
        level=torch.tensor([0, 0, 1], dtype=torch.int8),
        cu_seqlens=torch.tensor([0, 3], dtype=torch.int32),
        max_seqlen=3,
        lengths=(3,),
        shape=(1, 8),
        sizes=spec.sizes,
        tiling=False,
    )
    tokens = TokenSet(torch.randn(3, 8, dtype=torch.float64), cells)
    decoder = create_decoder("cross_attention", spec, 1, heads=2).double()
    expected = iap_decoder(decoder, tokens, True, 1)
    torch.testing.assert_close(decoder(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 2])
def test_windows_hold_all_frames(frames):
    spec, tokens = tokens_on((8, 16), (32, 30), frames=frames)
    decoder = create_decoder("cross_attention", spec, 1, heads=2, window=8).double()
    expected = iap_decoder(decoder, tokens, True, 1)
    torch.testing.assert_close(decoder(tokens), expected, atol=1e-5, rtol=1e-5)


def test_local_is_the_sum_of_its_parts():
    spec, tokens = tokens_on((16, 24), (20, 60))
    decoder = create_decoder("local", spec, 2, heads=2).double()
    assert decoder.smooth.latent_size == (1, 8, 8)
    assert decoder.smooth.window == (16, 16)
    expected = decoder.paint(tokens) + iap_decoder(decoder.smooth, tokens, True, 2)
    torch.testing.assert_close(decoder(tokens), expected, atol=1e-5, rtol=1e-5)


def test_the_tables_are_absent_without_latent():
    spec, _ = tokens_on((16, 16), (16,))
    without = create_decoder("cross_attention", spec, 1, latent=False, heads=2)
    assert without.gate.numel() == without.shift.numel() == 0
    with_tables = create_decoder("cross_attention", spec, 1, heads=2)
    # 8/2, 4/2 and 2/2 latents per axis
    assert with_tables.gate.shape == (16 + 4 + 1, 24)


@pytest.mark.parametrize("name", ["linear", "cross_attention", "local"])
def test_decoding_is_per_sample(name):
    spec, tokens = tokens_on((16, 24), (20, 60, 33))
    decoder = create_decoder(name, spec, 2).double()
    before = decoder(tokens)
    rows = (tokens.cells.sample == 1)[:, None]
    after = decoder(tokens.replace(features=torch.where(rows, 99.0, tokens.features)))
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[2], before[2])
    assert not torch.equal(after[1], before[1])


# ---- bad input


class Strides:
    """A layout, as tokenizers with overlapping supports have."""


@pytest.mark.parametrize("name", ["linear", "cross_attention", "local"])
def test_tokens_with_a_layout_of_their_own_are_refused(name):
    spec = TokenizerSpec(2, 1, 12, ((1, 4, 4),), tiling=False, layout=Strides)
    with pytest.raises(ValueError, match=r"Strides.*use the decoder paired with it"):
        create_decoder(name, spec, 1)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"latent_size": 0}, "latent_size must be a whole number .*, got 0"),
        ({"latent_size": (2, 2, 2)}, "latent_size is a positive whole number or 2 of them"),
        ({"window": 12}, r"a multiple of the coarsest cell \(8, 8\), got 12"),
        ({"window": 0}, "window must be a whole number .*, got 0"),
        ({"heads": 5}, "dim 24 is not divisible by 5 heads"),
        ({"heads": 0}, "heads must be a whole number"),
        ({"heads": 12}, "rotary positions on 2 axes need head_dim >= 4, got 2"),
    ],
)
def test_knobs_of_cross_attention_that_make_no_sense(knobs, message):
    spec, _ = tokens_on((16, 16), (16,))
    with pytest.raises(ValueError, match=message):
        create_decoder("cross_attention", spec, 1, **knobs)


@pytest.mark.parametrize("name", DECODERS.names())
def test_an_unknown_knob_lists_the_valid_ones(name):
    spec, _ = tokens_on((16, 16), (16,))
    with pytest.raises(ValueError, match=f"decoder '{name}' has no knob 'colour'") as error:
        create_decoder(name, spec, 1, colour="red")
    for knob in DECODERS.knobs(name):
        assert knob in str(error.value)


def test_an_unknown_decoder():
    spec, _ = tokens_on((16, 16), (16,))
    with pytest.raises(ValueError, match=r"unknown decoder 'liner'.*did you mean 'linear'"):
        create_decoder("liner", spec, 1)
