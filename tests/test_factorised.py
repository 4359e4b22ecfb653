"""`spacetime`, `axial`, local attention and norms: dense attention on uniform tilings, brute-force
groups on refined ones."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import adaptok
from adaptok import create_processor, create_tokenizer
from adaptok.layers.norms import Segments, create_norm
from adaptok.processors import axis_groups, frame_groups, time_groups
from adaptok.tokens import TokenSet, cell_center

DIM, HEADS = 24, 2
PROCESSORS = ("vit", "spacetime", "axial")
NORMS = ("layer", "rms", "instance")
GEOMETRY = ("origin", "size", "level", "cu_seqlens")


def refined(ndim=2, *, frames=2, per_frame=False, mode="replace", gamma=0.3, batch=2) -> TokenSet:
    """Random features on a refined tiling whose samples have different lengths."""
    size = {1: 64, 2: 32, 3: 16}[ndim]
    knobs = {"sizes": (2, 4, 8), "gamma": gamma, "per_frame": per_frame, "mode": mode}
    tokenizer = create_tokenizer("matey", ndim=ndim, in_channels=1, dim=DIM, **knobs)
    generator = torch.Generator().manual_seed(ndim)
    field = torch.randn(batch, frames, 1, *(size,) * ndim, generator=generator)
    for axis in range(ndim):  # louder towards one end, differently in each sample
        ramp = torch.linspace(-3, 3, size).view(-1, *[1] * (ndim - 1 - axis))
        rates = torch.arange(1, batch + 1).view(-1, *[1] * (ndim + 2))
        field = field * (ramp * rates).exp()
    cells = tokenizer.cells(field)
    return TokenSet(torch.randn(len(cells), DIM, generator=generator).double(), cells)


def spec_of(tokens: TokenSet):
    cells = tokens.cells
    return adaptok.TokenizerSpec(cells.ndim, 1, DIM, cells.sizes, cells.tiling)


def build(name, tokens, **knobs):
    processor = create_processor(name, spec_of(tokens), depth=2, heads=HEADS, **knobs).double()
    for p in processor.parameters():  # norms and scales too, which start at one and zero
        torch.nn.init.normal_(p, 0.1, 0.3)
    return processor


# ---- dense attention on uniform tilings


def uniform(space, size, frames, batch=2) -> TokenSet:
    knobs = {"ndim": len(space), "in_channels": 1, "dim": DIM, "size": size}
    cells = create_tokenizer("uniform", **knobs).cells(torch.zeros(batch, frames, 1, *space))
    return TokenSet(torch.randn(len(cells), DIM).double(), cells)


def normed(norm, x, axes):
    """A norm of packed rows on a dense array (..., d); `axes` are those of a segment."""
    if isinstance(norm, torch.nn.LayerNorm):
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    if isinstance(norm, torch.nn.RMSNorm):
        scale = x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps
        return x / scale.sqrt() * norm.weight
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def dense_heads(branch, x, along, axes):
    """Attention of a dense array (b, t, *g, d) along single axes, averaged; before projection."""
    attention = branch.attention
    x = normed(branch.norm_attention, x, axes)
    heads = [attention.q(x), *attention.kv(x).chunk(2, -1)]
    q, k, v = (y.unflatten(-1, (HEADS, -1)) for y in heads)
    q, k = attention.norm_q(q), attention.norm_k(k)
    parts = []
    for flat in along:  # axes that are one sequence
        rest = [a for a in range(x.ndim - 1) if a not in flat]
        order = [*rest, x.ndim - 1, *flat, x.ndim]
        shape = [q.permute(order).shape[i] for i in range(x.ndim - len(flat))]
        seq = [y.permute(order).reshape(*shape, -1, y.shape[-1]) for y in (q, k, v)]
        scores = seq[0] @ seq[1].transpose(-1, -2) * seq[0].shape[-1] ** -0.5
        out = (scores.softmax(-1) @ seq[2]).reshape(q.permute(order).shape)
        parts.append(out.permute([order.index(i) for i in range(x.ndim + 1)]))
    return torch.stack(parts).mean(0).flatten(-2)


def dense_branch(branch, x, along, axes):
    out = dense_heads(branch, x, along, axes)
    attention = branch.attention
    out = out if attention.norm_out is None else normed(attention.norm_out, out, axes)
    out = attention.out(out)
    return x + (out if branch.scale_attention is None else out * branch.scale_attention)


def mlp(block, x):
    return block.mlp.down(F.gelu(block.mlp.up(x)))


def dense_mlp(block, x, axes):
    if block.norm_first:
        out = mlp(block, normed(block.norm_mlp, x, axes))
    else:
        out = normed(block.norm_mlp, mlp(block, x), axes)
    return x + (out if block.scale_mlp is None else out * block.scale_mlp)


def dense(name, processor, x):
    """x is (b, t, *grid, d)."""
    space = tuple(range(2, x.ndim - 1))
    if name == "vit":
        for block in processor.blocks:
            axes = (1, *space)
            x = dense_mlp(block, dense_branch(block, x, [axes], axes), axes)
        return x if processor.norm is None else normed(processor.norm, x, (1, *space))
    for time, block in zip(processor.time, processor.space, strict=True):
        x = dense_branch(time, x, [(1,)], (1,) if name == "spacetime" else space)
        along = [space] if name == "spacetime" else [(a,) for a in space]
        x = dense_mlp(block, dense_branch(block, x, along, space), space)
    return x if processor.norm is None else normed(processor.norm, x, space)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("placement", ["pre", "matey"])
@pytest.mark.parametrize(("space", "frames"), [((16, 24), 3), ((12,), 4), ((8, 12, 4), 2)])
def test_equals_dense_attention_on_uniform_cells(name, norm, placement, space, frames):
    tokens = uniform(space, 4, frames)
    knobs = {
        "norm": norm,
        "norm_placement": placement,
        "positions": "none",
        "qk_norm": placement == "matey",
    }
    processor = build(name, tokens, **knobs, layer_scale=0.5 if placement == "matey" else None)
    grid = [n // 4 for n in space]
    x = tokens.features.view(2, frames, *grid, DIM)
    expected = dense(name, processor, x)
    out = processor(tokens).features
    torch.testing.assert_close(out.view_as(expected), expected)
    assert (expected - x).abs().max() > 0.1


def test_shared_queries_are_averaged_over_the_axes():
    """Along one axis alone, `axial` is `spacetime`."""
    tokens = uniform((24,), 4, 3)
    axial, spacetime = build("axial", tokens), build("spacetime", tokens)
    spacetime.load_state_dict(axial.state_dict())
    torch.testing.assert_close(axial(tokens).features, spacetime(tokens).features)


# ---- groups on refined tilings


def members(groups, n) -> set[frozenset[int]]:
    order = groups.gather(torch.arange(n)).tolist()
    starts = groups.cu_seqlens.tolist()
    assert starts[-1] == n
    assert groups.max_seqlen >= max(b - a for a, b in itertools.pairwise(starts))
    return {frozenset(order[a:b]) for a, b in itertools.pairwise(starts)}


def by_key(cells, key) -> set[frozenset[int]]:
    found: dict = {}
    rows = zip(
        cells.sample.tolist(),
        cells.origin.tolist(),
        cells.center.tolist(),
        cells.level.tolist(),
        strict=True,
    )
    for row, facts in enumerate(rows):
        found.setdefault(key(*facts), []).append(row)
    return {frozenset(rows) for rows in found.values()}


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("mode", ["replace", "add"])
def test_groups_of_refined_cells(ndim, per_frame, mode):
    cells = refined(ndim, frames=3, per_frame=per_frame, mode=mode).cells
    n, coarse = len(cells), cells.sizes[0]
    assert len(set(cells.level.tolist())) == 3
    expected = by_key(cells, lambda sample, origin, center, level: (sample, origin[0]))
    assert members(frame_groups(cells), n) == expected
    for axis in range(1, ndim + 1):

        def band(sample, origin, center, level, axis=axis):
            others = [a for a in range(1, ndim + 1) if a != axis]
            return (sample, origin[0], *(int(center[a] // coarse[a]) for a in others))

        assert members(axis_groups(cells, axis), n) == by_key(cells, band)
    if mode == "add" or not per_frame:  # the very same cell

        def same(sample, origin, center, level):
            return (sample, level, *origin[1:])
    else:  # the finest cell that the centre lies in

        def same(sample, origin, center, level):
            return (sample, *(int(c // 2) for c in center[1:]))

    assert members(time_groups(cells), n) == by_key(cells, same)
    if not per_frame:
        assert set(time_groups(cells).lengths) == {3}  # all alike: one dense kernel


def test_local_attention_stays_in_the_coarsest_cell():
    tokens = refined(frames=2)
    vit = build("vit", tokens, attention="local")
    changed = tokens.features.clone()
    changed[0] += 1
    before, after = vit(tokens).features, vit(tokens.replace(features=changed)).features
    moved = (before - after).abs().amax(1) > 0
    cells = tokens.cells
    block = (cells.center[:, 1:] // 8).long()
    expected = (cells.sample == 0) & (block == block[0]).all(1)
    assert torch.equal(moved, expected)
    assert 1 < expected.sum() < (cells.sample == 0).sum()


# ---- packed rows


def masked_reference(vit, dense, mask):
    """The blocks on padded tokens (b, m, d) with masked attention and masked statistics."""

    def norm(layer, x):
        if not isinstance(layer, (torch.nn.LayerNorm, torch.nn.RMSNorm)):
            weight = mask[..., None].double() / mask.sum(1)[:, None, None]
            mean = (x * weight).sum(1, keepdim=True)
            var = ((x - mean).square() * weight).sum(1, keepdim=True)
            return (x - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias
        return normed(layer, x, None)

    x = dense
    for block in vit.blocks:
        attention, y = block.attention, norm(block.norm_attention, x)
        heads = [attention.q(y), *attention.kv(y).chunk(2, -1)]
        q, k, v = (h.unflatten(-1, (HEADS, -1)).transpose(1, 2) for h in heads)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        out = out.transpose(1, 2).flatten(2)
        out = out if attention.norm_out is None else norm(attention.norm_out, out)
        x = x + attention.out(out)
        before = norm(block.norm_mlp, x) if block.norm_first else x
        out = mlp(block, before)
        x = x + (out if block.norm_first else norm(block.norm_mlp, out))
    return x if vit.norm is None else norm(vit.norm, x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("placement", ["pre", "matey"])
def test_packed_equals_padded_and_masked(norm, placement):
    tokens = refined(batch=3)
    lengths = tokens.cells.lengths
    assert len(set(lengths)) > 1
    vit = build("vit", tokens, norm=norm, norm_placement=placement, positions="none")
    dense, mask = tokens.padded()
    dense = dense.masked_fill(~mask[..., None], 7.0)  # whatever stands in the padding
    expected = tokens.from_padded(masked_reference(vit, dense, mask)).features
    torch.testing.assert_close(vit(tokens).features, expected)


KNOBS = [
    {},
    {"norm": "rms", "positions": "fourier"},
    {
        "norm": "instance",
        "norm_placement": "matey",
        "positions": {"name": "fourier", "space": [1e-3, 1]},
    },
]


@pytest.mark.parametrize("name", [*PROCESSORS, "local"])
@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize(("mode", "per_frame"), [("replace", False), ("add", True)])
def test_order_inside_a_sample_and_other_samples_do_not_matter(name, knobs, per_frame, mode):
    tokens = refined(per_frame=per_frame, mode=mode)
    extra = {"attention": "local"} if name == "local" else {}
    processor = build("vit" if name == "local" else name, tokens, **knobs, **extra)
    out = processor(tokens)
    cells, n = tokens.cells, len(tokens.cells)
    shuffled = (torch.rand(n) + cells.sample).argsort()
    moved = {field: getattr(cells, field)[shuffled] for field in ("origin", "size", "level")}
    again = TokenSet(tokens.features[shuffled], dataclasses.replace(cells, **moved))
    torch.testing.assert_close(processor(again).features, out.features[shuffled])
    first = cells.lengths[0]
    other = tokens.features.clone()
    other[first:] = torch.randn_like(other[first:]) * 100
    torch.testing.assert_close(
        processor(tokens.replace(features=other)).features[:first],
        out.features[:first],
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize(
    ("frames", "size", "gamma"),
    [(1, 32, 0.3), (2, 8, 1.0), (1, 8, 1.0), (2, 32, 1.0), (2, 32, 1e-9)],
    ids=["one frame", "one token a frame", "one token", "nothing refined", "everything refined"],
)
def test_forward_and_backward_at_the_extremes(name, knobs, frames, size, gamma):
    """One token per group too: an instance norm of one row gives its bias."""
    model = adaptok.create_surrogate(
        ndim=2,
        in_channels=2,
        history=frames,
        history_mode="frames",
        tokenizer={"name": "matey", "sizes": (2, 8), "gamma": gamma},
        processor={"name": name, "layer_scale": 1e-6, **knobs},
        dim=12,
        depth=2,
        heads=2,
    )
    out = model(torch.randn(2, frames, 2, size, size))
    assert out.shape == (2, 1, 2, size, size)
    out.square().mean().backward()
    grads = [p.grad for p in model.processor.parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() for g in grads)


def test_knobs_of_the_attention_reach_the_sample():
    tokens = refined()
    one, other = build("vit", tokens), build("vit", tokens, positions="none")
    other.load_state_dict(one.state_dict())
    assert not torch.allclose(one(tokens).features, other(tokens).features)


def test_misplaced_positions_change_the_result_of_every_processor():
    knobs = {"ndim": 2, "in_channels": 1, "dim": DIM, "sizes": (2, 8), "gamma": 0.3}
    tokenizer = create_tokenizer("matey", **knobs, legacy_positions=True)
    field = torch.zeros(1, 2, 1, 16, 16)
    field[..., 8:, 8:] = torch.randn(8, 8)
    tokens = tokenizer(field)
    for name in adaptok.PROCESSORS.names():
        knobs = {"depth": 1, "heads": HEADS, "layer_scale": 1.0}
        if "positions" in adaptok.PROCESSORS.knobs(name):
            knobs["positions"] = "fourier"
        legacy = create_processor(name, tokenizer.spec, **knobs)
        spec = dataclasses.replace(tokenizer.spec, position_center=cell_center)
        correct = create_processor(name, spec, **knobs)
        correct.load_state_dict(legacy.state_dict())
        assert not torch.allclose(legacy(tokens).features, correct(tokens).features)


# ---- graphs and accelerators


@pytest.mark.parametrize(  # compiled with the cells of a batch padded: in test_compiling, all
    "name", [PROCESSORS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in PROCESSORS[1:])]
)
def test_a_fixed_number_of_cells_compiles_as_one_graph(name):
    knobs = {"ndim": 2, "in_channels": 1, "dim": DIM, "sizes": (2, 8), "fraction": 0.4}
    tokenizer = create_tokenizer("matey", **knobs)
    knobs = {"norm": "instance", "norm_placement": "matey", "positions": "fourier"}
    processor = create_processor(name, tokenizer.spec, depth=1, heads=HEADS, **knobs)

    def step(field):
        return processor(tokenizer(field)).features

    field = torch.randn(2, 2, 1, 32, 32)
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(field), step(field), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*PROCESSORS, "local"])
def test_nothing_is_read_back_from_an_accelerator(name, dtype):
    """Fake CUDA tensors run the code of the device without kernels: a read of values raises."""
    tokens = refined()
    knobs = {"attention": "local"} if name == "local" else {}
    name = "vit" if name == "local" else name
    processor = create_processor(
        name, spec_of(tokens), depth=1, heads=HEADS, norm="instance", **knobs
    )
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        processor = processor.to("cuda", dtype)
        moved = {k: fake.from_tensor(getattr(tokens.cells, k)).to("cuda") for k in GEOMETRY}
        cells = dataclasses.replace(tokens.cells, **moved)
        features = torch.empty(len(tokens.cells), DIM, device="cuda", dtype=dtype)
        out = processor(TokenSet(features, cells))
        assert out.features.shape == features.shape
        assert out.features.device.type == "cuda"


@pytest.mark.parametrize("mode", ["replace", "add"])
@pytest.mark.parametrize("per_frame", [False, True])
def test_bounds_that_the_host_knows_hold(mode, per_frame):
    """Where lengths are not read back, `max_seqlen` is what a kernel goes by."""
    cells = refined(frames=3, mode=mode, per_frame=per_frame).cells
    for axis in (1, 2):
        for pitch in (2, 3, 8, 12):
            groups = cells.groups(fixed=(0, axis), pitch=(1, pitch))
            bound = cells._most((0, axis), (1, pitch), (0, 0), False)
            assert max(groups.lengths) <= bound <= cells.max_seqlen
    assert cells._most((1, 2), (2, 2), (0, 0), True) == 3


# ---- bad input


@pytest.mark.parametrize("name", ["spacetime", "axial"])
def test_a_folded_history_has_no_frames(name):
    make = {"ndim": 2, "in_channels": 1, "dim": 12, "depth": 1, "heads": 2, "processor": name}
    with pytest.raises(ValueError, match=f"'{name}' attends over frames.*history_mode=\"frames\""):
        adaptok.create_surrogate(**make, history=2, history_mode="fold")
    model = adaptok.create_surrogate(**make, history=2)
    assert model.history_mode == "frames"
    adaptok.create_surrogate(**make)  # one frame: nothing is folded


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"norm": "instanc"}, "did you mean 'instance'"),
        ({"norm_placement": "post"}, "norm_placement must be one of pre, matey"),
        ({"positions": "furier"}, "did you mean 'fourier'"),
        ({"depth": -1}, "depth must be .* at least 0"),
    ],
)
def test_knobs_that_make_no_sense(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        create_processor(name, spec_of(refined()), **{"heads": HEADS, **knobs})


def test_attention_that_does_not_exist():
    with pytest.raises(ValueError, match="attention must be one of global, local"):
        create_processor("vit", spec_of(refined()), heads=HEADS, attention="window")


# ---- norms


def test_instance_norm_segment_by_segment():
    tokens = refined()
    groups = frame_groups(tokens.cells)
    norm = create_norm("instance", DIM).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    ours = norm(tokens.features, Segments.of(groups, len(tokens.cells)))
    for rows in members(groups, len(tokens.cells)):
        index = sorted(rows)
        part = tokens.features[index].T[None]  # (1, d, m)
        expected = F.instance_norm(part, weight=norm.weight, bias=norm.bias)[0].T
        torch.testing.assert_close(ours[index], expected)


def test_instance_norm_of_one_row_and_in_half_precision():
    norm = create_norm("instance", 8)
    one = Segments(torch.zeros(1, dtype=torch.int64), torch.ones(1))
    assert torch.equal(norm(torch.randn(1, 8), one), torch.zeros(1, 8))
    ids = Segments(torch.zeros(400, dtype=torch.int64), torch.tensor([400.0]))
    x = torch.randn(400, 8) + 3
    half = norm(x.bfloat16(), ids)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), norm(x.bfloat16().float(), ids), rtol=0.01, atol=0.01)
