"""CKM and CSM: stem and decoder against slow references, geometry, every length, bad input."""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sampled import sampled
from torch.utils import _pytree as pytree

import adaptok
from adaptok import create_decoder, create_surrogate, create_tokenizer
from adaptok.config.menu import compose, plain
from adaptok.layers.two_stage import KERNELS

NAMES = ("ckm", "csm")
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
SMALL = {1: (45,), 2: (33, 24), 3: (17, 16, 20)}
CODES = {"wall": 0, "open": 1, "periodic": 2}


def make(name: str, ndim: int, dim: int = 12, **knobs):
    tokenizer = create_tokenizer(name, ndim=ndim, in_channels=2, dim=dim, **knobs)
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return tokenizer


# ---- slow references


def pad_by_hand(lifted, padding, codes, tokens):
    """One sample (c, *space), lifted: zeros or copies, then the token of each end, end by end."""
    extents = [(b, n, a) for (b, a), n in zip(padding, lifted.shape[1:], strict=True)]
    out = lifted.new_zeros(lifted.shape[0], *(sum(e) for e in extents))
    for point in itertools.product(*(range(sum(e)) for e in extents)):
        source = []
        for (before, n, _), p, ends in zip(extents, point, codes, strict=True):
            inside = 0 <= p - before < n
            source.append((p - before) % n if inside or ends[0] == 2 else None)
        if None not in source:
            out[(slice(None), *point)] = lifted[(slice(None), *source)]
        for (before, n, _), p, ends in zip(extents, point, codes, strict=True):
            for end, beyond in zip(ends, (p < before, p >= before + n), strict=True):
                if beyond and end != 2:
                    out[(slice(None), *point)] += tokens[end]
    return out


def stem_by_hand(tokenizer, field, cells, codes):
    """Lift, pad, convolve, norm, GELU, convolve, norm: one frame of one sample at a time."""
    stem, layout = tokenizer.embedding, cells.layout
    ndim = len(layout.kernels)
    first, second = (tuple(pair[i] for pair in layout.kernels) for i in (0, 1))
    stride1, stride2 = (tuple(pair[i] for pair in layout.strides) for i in (0, 1))
    w1 = adaptok.pi_resize(stem.conv1.weight, first)
    w2 = adaptok.pi_resize(stem.conv2.weight, second)
    rows = []
    for sample, frame in itertools.product(range(field.shape[0]), range(field.shape[1])):
        x = field[sample, frame].movedim(0, -1) @ stem.lift.weight.T + stem.lift.bias
        x = pad_by_hand(x.movedim(-1, 0), layout.padding, codes[sample], stem.padding)
        x = F.gelu(stem.norm1(CONV[ndim](x[None], w1, stride=stride1)))
        x = stem.norm2(CONV[ndim](x, w2, stride=stride2))
        x = F.gelu(x) if isinstance(tokenizer, adaptok.tokenizers.CsmTokenizer) else x
        assert x.shape[2:] == layout.grid[1:]
        rows.append(x[0].flatten(1).T)
    return torch.cat(rows)


BATCHES = {
    1: [[[2, 2]], [[0, 1]]],
    2: [[[2, 2], [0, 1]], [[1, 0], [2, 2]]],
    3: [[[2, 2], [0, 1], [1, 1]], [[0, 0], [2, 2], [1, 0]]],
}


@pytest.mark.parametrize("norm", ["group", "layer", "rms"])
@pytest.mark.parametrize("patch", sampled([8, 4, 16], 3))
@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_features_equal_a_stem_by_hand(name, ndim, patch, norm):
    """Two samples of different boundary types, two frames, axes that no patch divides."""
    tokenizer = make(name, ndim, norm=norm)
    field = torch.randn(2, 2, 2, *SMALL[ndim])
    codes = BATCHES[ndim]
    tokens = tokenizer(field, patch_size=patch, boundary=torch.tensor(codes))
    expected = stem_by_hand(tokenizer, field, tokens.cells, codes)
    torch.testing.assert_close(tokens.features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_features_in_3d(name):
    tokenizer = make(name, 3)
    field = torch.randn(2, 1, 2, *SMALL[3])
    tokens = tokenizer(field, patch_size=(4, 16, 8), boundary=torch.tensor(BATCHES[3]))
    expected = stem_by_hand(tokenizer, field, tokens.cells, BATCHES[3])
    torch.testing.assert_close(tokens.features, expected, rtol=1e-4, atol=1e-4)


def test_without_boundary_codes_all_ends_are_open():
    tokenizer, field = make("csm", 2), torch.randn(2, 1, 2, 20, 24)
    opened = tokenizer(field, boundary=torch.ones(2, 2, dtype=torch.int64)).features
    assert torch.equal(tokenizer(field).features, opened)
    walls = tokenizer(field, boundary=torch.zeros(2, 2, dtype=torch.int64)).features
    assert not torch.allclose(walls, opened)


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_different_boundary_types_share_a_batch(name):
    tokenizer, field = make(name, 2), torch.randn(4, 2, 2, 21, 24)
    codes = torch.tensor([*BATCHES[2], [[0, 0], [1, 1]], [[2, 2], [2, 2]]])
    together = tokenizer(field, patch_size=8, boundary=codes).split()
    for i in range(4):
        alone = tokenizer(field[i : i + 1], patch_size=8, boundary=codes[i]).features
        torch.testing.assert_close(together[i], alone)


def decode_by_hand(decoder, tokens, overlap: str):
    """Transposed convolutions as sums of painted kernels, one token at a time."""
    cells, layout = tokens.cells, tokens.cells.layout
    first, second = (tuple(pair[i] for pair in layout.kernels) for i in (0, 1))
    stride1, stride2 = (tuple(pair[i] for pair in layout.strides) for i in (0, 1))
    form = {"form": "mean_preserving"}

    def paint(x, weight, kernel, stride):
        extent = [(n - 1) * s + k for n, s, k in zip(x.shape[1:], stride, kernel, strict=True)]
        out, count = x.new_zeros(weight.shape[1], *extent), x.new_zeros(extent)
        for point in itertools.product(*map(range, x.shape[1:])):
            box = tuple(
                slice(p * s, p * s + k) for p, s, k in zip(point, stride, kernel, strict=True)
            )
            out[(slice(None), *box)] += torch.tensordot(x[(slice(None), *point)], weight, 1)
            count[box] += 1
        return out / count if overlap == "mean" else out

    samples = []
    for rows in tokens.features.split(len(tokens.features) // cells.batch_size):
        x = rows.T.unflatten(1, layout.grid[1:])
        x = paint(x, adaptok.pi_resize(decoder.conv1.weight, second, **form), second, stride2)
        x = F.gelu(decoder.norm1(x[None]))[0]
        x = paint(x, adaptok.pi_resize(decoder.conv2.weight, first, **form), first, stride1)
        for axis, ((before, _), n) in enumerate(zip(layout.padding, cells.shape[1:], strict=True)):
            x = x.narrow(axis + 1, before, n)
        samples.append(x + decoder.conv2.bias.view(-1, *(1,) * (x.ndim - 1)))
    return torch.stack(samples)[:, None]


@pytest.mark.parametrize("overlap", ["sum", "mean"])
@pytest.mark.parametrize("patch", [4, 8, (16, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_equals_painting_by_hand(name, patch, overlap):
    tokenizer = make(name, 2)
    decoder = create_decoder("modulated", tokenizer.spec, 3, overlap=overlap)
    tokens = tokenizer(torch.randn(2, 1, 2, 21, 16), patch_size=patch)
    expected = decode_by_hand(decoder, tokens, overlap)
    torch.testing.assert_close(decoder(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("name", NAMES)
def test_averaged_overlaps_paint_a_constant_for_every_patch_size(name, patch):
    """Constant kernels and tokens: the same value everywhere, borders included."""
    tokenizer = make(name, 2, norm="layer")
    decoder = create_decoder("modulated", tokenizer.spec, 1, overlap="mean", norm="rms")
    for parameter in decoder.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    tokens = tokenizer(torch.randn(1, 1, 2, 21, 40), patch_size=patch)
    out = decoder(tokens.replace(features=torch.ones_like(tokens.features)))
    expected = 0.5 + 3 * 0.5 * F.gelu(torch.tensor(0.5))
    torch.testing.assert_close(out, expected.expand_as(out))


# ---- geometry


@pytest.mark.parametrize("boundary", CODES)
@pytest.mark.parametrize("patch", sampled([4, 8, 16], 2))
@pytest.mark.parametrize("name", NAMES)
def test_a_cell_is_what_its_token_sees(name, patch, boundary):
    """With a norm per point, a grid point moves exactly the tokens whose cells hold it."""
    tokenizer = make(name, 1, norm="rms").double()
    n = 37
    field = torch.randn(1, 1, 2, n).double()
    codes = torch.full((1, 2), CODES[boundary])
    tokens = tokenizer(field, patch_size=patch, boundary=codes)
    start, size = tokens.cells.origin[:, 1], tokens.cells.size[:, 1]
    clipped = tokens.cells.tiling and boundary == "periodic"
    size = torch.full_like(size, patch) if clipped else size  # its padding is seen too
    for point in range(n):
        moved = field.clone()
        moved[..., point] += 1
        changed = tokenizer(moved, patch_size=patch, boundary=codes).features != tokens.features
        offset = point - start
        wraps = (-n, 0, n) if boundary == "periodic" else (0,)
        holds = torch.stack([(offset + w >= 0) & (offset + w < size) for w in wraps]).any(0)
        assert torch.equal(changed.any(1), holds)


@pytest.mark.parametrize("name", NAMES)
def test_a_token_paints_its_cell(name):
    tokenizer = make(name, 1, norm="rms")
    decoder = create_decoder("modulated", tokenizer.spec, 1, norm="rms").double()
    for patch in (4, 8, 16):
        tokens = tokenizer(torch.randn(1, 1, 2, 37), patch_size=patch)
        rows = tokens.features.double().requires_grad_()
        out = decoder(tokens.replace(features=rows)).flatten()
        covered = torch.zeros(len(rows), 37, dtype=torch.bool)
        for i, (o, s) in enumerate(
            zip(tokens.cells.origin[:, 1].tolist(), tokens.cells.size[:, 1].tolist(), strict=True)
        ):
            covered[i, max(o, 0) : o + s] = True
        for point in range(37):
            (gradient,) = torch.autograd.grad(out[point], rows, retain_graph=True)
            assert torch.equal(gradient.ne(0).any(1), covered[:, point])


@pytest.mark.parametrize("shape", [(64,), (45, 64), (16, 20, 33)])
def test_cells_of_ckm_are_those_of_uniform(shape):
    ndim = len(shape)
    field = torch.randn(2, 3, 2, *shape)
    tokenizer = make("ckm", ndim)
    uniform = create_tokenizer("uniform", ndim=ndim, in_channels=2, dim=4, patch_sizes=(4, 8, 16))
    for patch in (4, 8, 16):
        ours = tokenizer.cells(field, patch_size=patch).validate()
        theirs = uniform.cells(field, patch_size=patch)
        for name in ("origin", "size", "level", "cu_seqlens", "sizes", "lengths", "max_seqlen"):
            value, expected = getattr(ours, name), getattr(theirs, name)
            equal = torch.equal(value, expected) if torch.is_tensor(value) else value == expected
            assert equal, name


def test_token_counts_of_csm_are_the_papers_code():
    tokenizer = make("csm", 2)
    field = torch.randn(1, 1, 2, 128, 256)
    counts = [len(tokenizer.cells(field, patch_size=p)) for p in (4, 8, 16)]
    assert counts == [31 * 63, 15 * 31, 8 * 16]
    base = make("csm", 1, patch_sizes=(4, 8, 16, 32))
    pads = [sum(base.cells(field[..., :64, 0], patch_size=p).layout.padding[0]) for p in (4, 8, 16)]
    assert pads == [2, 4, 4]


@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("name", NAMES)
def test_groups_follow_the_grid(name, patch):
    """Bands along an axis are the rows and columns of tokens, of equal and known length."""
    tokenizer = make(name, 2)
    cells = tokenizer.cells(torch.randn(2, 3, 2, 45, 64), patch_size=patch)
    rows = torch.arange(len(cells)).view(2, *cells.layout.grid)
    for fixed, order in (
        ((0,), (0, 1, 2, 3)),
        ((1,), (0, 2, 1, 3)),
        ((2,), (0, 3, 1, 2)),
        ((1, 2), (0, 2, 3, 1)),
        ((0, 1), (0, 1, 2, 3)),
    ):
        groups = cells.groups(fixed=fixed)
        expected = rows.permute(order)
        assert torch.equal(groups.order, expected.flatten())
        count = 2 * int(torch.tensor([cells.layout.grid[axis] for axis in fixed]).prod())
        assert groups.lengths == (len(cells) // count,) * count
        assert groups.cu_seqlens.diff().unique().tolist() == [groups.max_seqlen]


def test_layouts_are_static_and_travel_with_the_cells():
    tokenizer = make("csm", 2)
    field = torch.randn(1, 1, 2, 32, 32)
    first, again = (tokenizer.cells(field, patch_size=8).layout for _ in range(2))
    assert first == again
    assert hash(first) == hash(again)
    assert first != tokenizer.cells(field, patch_size=4).layout
    tokens = tokenizer(field, patch_size=8)
    leaves, spec = pytree.tree_flatten(tokens)
    assert pytree.tree_unflatten(leaves, spec).cells.layout == first
    assert tokens.to("cpu").cells.layout == first


# ---- every length, every dimension


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_length_from_16_to_80_comes_back(name):
    tokenizer = make(name, 1, patch_sizes=(4, 8, 16, 32))
    decoder = create_decoder("modulated", tokenizer.spec, 2)
    for n in range(16, 81):
        for patch in (1, 4, 8, 16, *[32] * (n >= 32)):
            field = torch.randn(1, 1, 2, n)
            tokens = tokenizer(field, patch_size=patch)
            assert decoder(tokens).shape == field.shape
            (before, after), pitch = tokens.cells.layout.padding[0], tokens.cells.layout.pitch[1]
            assert pitch == patch
            assert 0 <= after - before <= (patch if name == "ckm" else 1)
            ends = tokens.cells.origin + tokens.cells.size
            assert (int(tokens.cells.origin[0, 1]), int(ends[-1, 1])) == (
                (0, n) if name == "ckm" else (-before, n + after)
            )


@given(
    st.sampled_from(NAMES),
    st.data(),
    st.integers(2, 3),
    st.integers(1, 2),
    st.integers(1, 2),
)
def test_any_shape_and_patch_size_comes_back(name, data, ndim, b, t):
    limit = 80 if ndim == 2 else 33
    shape = data.draw(st.tuples(*[st.integers(16, limit)] * ndim))
    patch = data.draw(st.tuples(*[st.sampled_from([4, 8, 16])] * ndim))
    codes = data.draw(st.sampled_from([0, 1, 2]))
    tokenizer = create_tokenizer(name, ndim=ndim, in_channels=1, dim=4)
    decoder = create_decoder("modulated", tokenizer.spec, 2)
    field = torch.randn(b, t, 1, *shape)
    tokens = tokenizer(field, patch_size=patch, boundary=torch.full((ndim, 2), codes))
    tokens.cells.validate()
    out = decoder(tokens)
    assert out.shape == (b, t, 2, *shape)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_one_token_per_axis(name, ndim):
    tokenizer = make(name, ndim).train()
    decoder = create_decoder("modulated", tokenizer.spec, 2)
    tokens = tokenizer(torch.randn(1, 1, 2, *(16,) * ndim), patch_size=16)
    assert len(tokens.cells) == 1
    assert decoder(tokens).shape == (1, 1, 2, *(16,) * ndim)


def test_csm_on_an_axis_shorter_than_its_field_of_view():
    """Patch 4 reaches over 10 points; an axis of 5 holds a single, padded token."""
    tokenizer = make("csm", 1)
    decoder = create_decoder("modulated", tokenizer.spec, 2)
    for boundary in CODES.values():
        codes = torch.full((1, 2), boundary)
        tokens = tokenizer(torch.randn(1, 1, 2, 5), patch_size=4, boundary=codes)
        expected = stem_by_hand(tokenizer, torch.zeros(1, 1, 2, 5), tokens.cells, codes[None])
        assert tokens.features.shape == expected.shape == (1, 12)
        assert decoder(tokens).shape == (1, 1, 2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient_whatever_is_padded(name):
    """Parameters that now and then take no part would stop distributed training."""
    tokenizer = make(name, 2)
    decoder = create_decoder("modulated", tokenizer.spec, 2)
    for patch in (4, 8, 16):
        out = decoder(tokenizer(torch.randn(1, 1, 2, 32, 32), patch_size=patch))
        parameters = [*tokenizer.parameters(), *decoder.parameters()]
        assert len(torch.autograd.grad(out.square().mean(), parameters)) == len(parameters)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_close(name):
    tokenizer = make(name, 2)
    decoder = create_decoder("modulated", tokenizer.spec, 2)
    field = torch.randn(1, 1, 2, 32, 32)
    exact = decoder(tokenizer(field, patch_size=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = decoder(tokenizer(field, patch_size=4))
    assert (half - exact).abs().mean() < 0.02 * exact.abs().mean()
    cast = decoder.bfloat16()(tokenizer.bfloat16()(field.bfloat16(), patch_size=4))
    assert cast.dtype == torch.bfloat16
    assert (cast.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled_steps_of_several_patch_sizes_equal_eager(name):
    model = create_surrogate(
        ndim=2,
        in_channels=2,
        history=2,
        history_mode="frames",
        tokenizer=name,
        processor={"name": "spacetime_parallel", "layer_scale": 1.0},
        decoder="modulated",
        dim=24,
        depth=1,
        heads=2,
    )
    field, codes = torch.randn(2, 2, 2, 32, 40), torch.tensor([[2, 2], [0, 1]])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for patch in (4, 16):
        out = compiled(field, boundary=codes, patch_size=patch)
        expected = model(field, boundary=codes, patch_size=patch)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


# ---- whole models


def elastic(name: str = "csm", **changes):
    make = {"ndim": 2, "in_channels": 2, "dim": 24, "depth": 1, "heads": 2, "history": 6}
    make |= {"history_mode": "frames", "tokenizer": name, "decoder": "modulated"}
    return create_surrogate(**(make | {"processor": "spacetime_parallel"} | changes))


@pytest.mark.parametrize("history_mode", ["fold", "frames"])
@pytest.mark.parametrize("processor", ["vit", "spacetime_parallel"])
@pytest.mark.parametrize("name", NAMES)
def test_cyclic_rollouts(name, processor, history_mode):
    if history_mode == "fold" and processor != "vit":
        pytest.skip("attention over time needs frames")
    model = elastic(name, processor=processor, history_mode=history_mode)
    field, codes = torch.randn(2, 6, 2, 32, 40), torch.tensor([[2, 2], [0, 1]])
    cycle = [{"patch_size": p} for p in (4, 8, 16)]
    schedule = adaptok.create_schedule({"name": "cyclic", "settings": cycle})
    out = model.rollout(field, 4, boundary=codes, settings=schedule)
    window = field
    for step in range(4):
        following = model(window, boundary=codes, **cycle[step % 3])
        torch.testing.assert_close(out[:, step : step + 1], following)
        window = torch.cat([window[:, 1:], following], 1)


@pytest.mark.parametrize(
    ("size", "ndim", "millions"), [("ckm_7m", 3, 7.6), ("ckm_25m", 2, 26.2), ("ckm_100m", 2, 104.6)]
)
@pytest.mark.parametrize("tokenizer", [["ckm"], ["csm"], ["csm", "tokenizer.patch_sizes=[16]"]])
def test_parameter_counts_of_table_4(tokenizer, size, ndim, millions):
    """The sizes as configured; fixed patches are as large as both methods."""
    name, *knobs = tokenizer
    parts = [f"tokenizer={name}", *knobs, "processor=spacetime_parallel", "decoder=modulated"]
    config = plain(compose("train", [f"size={size}", *parts, "history=6", "history_mode=frames"]))
    chosen = {
        k: config[k] for k in ("tokenizer", "processor", "decoder", "history", "history_mode")
    }
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisation does nothing there
        model = create_surrogate(ndim=ndim, in_channels=5, dim=config["size"]["dim"], **chosen)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert abs(count / millions - 1) < 0.05


@pytest.mark.parametrize("normalise", ["context", "context_absolute"])
def test_context_statistics_are_those_of_the_history(normalise):
    """Inputs by mean and std, changes by mean and std of the changes, all of the sample at hand."""
    model = elastic(normalise=normalise)
    field = torch.randn(2, 6, 2, 16, 16).cumsum(1) * torch.tensor([1.0, 1e3])[:, None, None]
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
        model.decoder.conv2.bias.copy_(torch.tensor([1.0, 0.0]))
    step = (model(field) - field[:, -1:])[:, 0]
    changes = field.diff(dim=1)
    spread, authors = field.std((1, 3, 4), keepdim=True), normalise == "context_absolute"
    least = 1e-4 if authors else 1e-4 * spread[:, 0, :, 0, 0]
    mean, std = changes.mean((1, 3, 4)), changes.std((1, 3, 4)) + least
    expected = torch.stack([mean[:, 0] + std[:, 0], mean[:, 1]], 1)
    torch.testing.assert_close(
        step, expected[..., None, None].expand_as(step), rtol=1e-3, atol=1e-3
    )
    prepared = model.prepare(field)
    torch.testing.assert_close(
        prepared,
        (field - field.mean((1, 3, 4), True)) / (spread + 1e-4 * authors),
    )


# ---- bad input


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("ckm", {"patch_sizes": (4, 10)}, r"patch_sizes 10 .*valid: 1, 4, 8, 12, 16, 32"),
        ("csm", {"patch_sizes": (8, 12)}, "patch_sizes must divide one another"),
        ("ckm", {"patch_sizes": ()}, "patch_sizes is a list of patch sizes"),
        ("ckm", {"patch_sizes": 8}, "patch_sizes must be a list.* got 8"),
        ("ckm", {"size": 7}, "patch_size 7 .*valid: 1, 4, 8"),
        ("csm", {"size": 32}, r"patch_size 32 .*valid: 1, 4, 8, 16$"),
        ("ckm", {"norm": "grup"}, r"norm must be one of group, layer, rms.*did you mean 'group'"),
        ("ckm", {"groups": 5}, "5 groups do not divide 3 channels"),
        ("ckm", {"mode": "cubist"}, "mode must be one of"),
    ],
)
def test_knobs_that_make_no_sense(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        create_tokenizer(name, ndim=2, in_channels=2, dim=12, **knobs)


def test_dims_that_do_not_divide():
    with pytest.raises(ValueError, match="a dim divisible by 4, got 10"):
        create_tokenizer("ckm", ndim=2, in_channels=2, dim=10)


@pytest.mark.parametrize("name", NAMES)
def test_patch_sizes_that_do_not_fit(name):
    tokenizer = make(name, 2)
    field = torch.randn(1, 1, 2, 32, 12)
    valid = "1, 4, 8, 12, 16, 32" if name == "ckm" else "1, 4, 8, 16"
    with pytest.raises(ValueError, match=f"patch_size 6 is no product.*valid: {valid}$"):
        tokenizer(field, patch_size=6)
    with pytest.raises(ValueError, match="patch_size 16 is larger than an axis of 12 grid points"):
        tokenizer(field, patch_size=(8, 16))
    with pytest.raises(ValueError, match="patch_size is a positive whole number or 2 of them"):
        tokenizer(field, patch_size=(4, 4, 4))
    if name == "csm":
        with pytest.raises(ValueError, match="patch_size 32 is no product"):
            tokenizer(torch.randn(1, 1, 2, 64, 64), patch_size=32)
    else:
        tokenizer(torch.randn(1, 1, 2, 64, 64), patch_size=(32, 12))  # larger than trained: fine
    assert set(KERNELS) == {1, 4, 8, 12, 16, 32}


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[2, 2], [0, 3]], "unknown boundary code 3; wall is 0, open 1, periodic 2"),
        ([[-1, 2], [0, 7]], "unknown boundary code -1, 7"),
        ([[2, 0], [1, 1]], "an axis is periodic at both ends or at none"),
        ([[0, 0]], r"boundary codes are \(2, 2\) or \(b, 2, 2\), got shape \(1, 2\)"),
        ([[[0, 0], [1, 1]]] * 3, r"got shape \(3, 2, 2\) for b = 2"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_boundary_codes_that_make_no_sense(name, codes, message):
    with pytest.raises(ValueError, match=message):
        make(name, 2)(torch.randn(2, 1, 2, 16, 16), boundary=torch.tensor(codes))


def test_parts_that_do_not_go_together():
    uniform = create_tokenizer("uniform", ndim=2, in_channels=2, dim=12)
    with pytest.raises(ValueError, match=r"'modulated' mirrors the kernels.*'ckm' or 'csm'"):
        create_decoder("modulated", uniform.spec, 2)
    with pytest.raises(ValueError, match="'linear' paints cells"):
        create_decoder("linear", make("csm", 2).spec, 2)
    spec = make("ckm", 2).spec
    for knob, message in (
        ({"resize": "pin"}, "resize must be one of pinv, mean_preserving"),
        ({"overlap": "max"}, "overlap must be one of sum, mean, got 'max'"),
        ({"groups": 2}, "2 groups do not divide 3 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            create_decoder("modulated", spec, 2, **knob)
    with pytest.raises(ValueError, match="needs at least 2 frames, got 1"):
        elastic(normalise="context", history=1)
    assert elastic(normalise="context", history=1, predict="state") is not None


def test_tokens_that_were_dropped():
    tokenizer = make("ckm", 1)
    tokens = tokenizer(torch.randn(1, 1, 2, 32), patch_size=8)
    decoder = create_decoder("modulated", tokenizer.spec, 2)
    cells = create_tokenizer("uniform", ndim=1, in_channels=2, dim=4, size=16).cells(
        torch.randn(1, 1, 2, 32)
    )
    fewer = dataclasses.replace(cells, layout=tokens.cells.layout)
    with pytest.raises(
        ValueError, match=r"needs all 4 tokens of 1 samples of a grid \(1, 4\), .* these are 2"
    ):
        decoder(adaptok.TokenSet(tokens.features[:2], fewer))
    again = tokens.select(torch.tensor([0, 0, 1, 2]))  # as many, but not all
    with pytest.raises(ValueError, match="these are 4, or were selected"):
        decoder(again)
