"""The space-time block of CKM and CSM: its norm, its bias over time, who sees whom."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import adaptok
from adaptok import create_processor, create_tokenizer
from adaptok.layers.norms import create_norm
from adaptok.processors.spacetime_parallel import RelativeBias
from adaptok.tokens import TokenSet


def tokens_of(name: str, shape=(32, 24), t: int = 3, **knobs) -> tuple:
    """Random features on the cells of a tokenizer, and its spec."""
    tokenizer = create_tokenizer(name, ndim=len(shape), in_channels=1, dim=24, **knobs)
    cells = tokenizer.cells(torch.randn(2, t, 1, *shape).cumsum(-1))
    return TokenSet(torch.randn(len(cells), 24), cells), tokenizer.spec


IAP = {"min_size": 2, "max_size": 8, "budget": 90}
KINDS = {
    "ckm": {"size": 4},
    "csm": {"size": 4},
    "uniform": {"size": 8},
    "iap": IAP,
}


def block(spec, **knobs):
    processor = create_processor(
        "spacetime_parallel", spec, **({"depth": 1, "heads": 3, "layer_scale": 1.0} | knobs)
    )
    for parameter in processor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return processor.eval()


def dense_block(processor, x: torch.Tensor, rotate, causal: bool) -> torch.Tensor:
    """Textbook on (b, t, n, d): group norm per frame, attention over t, then over n beside the
    gated MLP.
    """
    b, t, n, d = x.shape
    time, space = processor.time[0], processor.space[0]
    h = time.heads

    def norm(layer, y):
        y = F.group_norm(y.flatten(0, 1).mT, h, layer.weight, layer.bias).mT
        return y.unflatten(0, (b, t))

    qkv = time.qkv(norm(time.norm, x)).view(b, t, n, h, 3, d // h).permute(4, 0, 2, 3, 1, 5)
    q, k, v = time.norm_q(qkv[0]), time.norm_k(qkv[1]), qkv[2]  # (b, n, h, t, e)
    scores = q @ k.mT / math.sqrt(d // h) + time.bias(t)
    if causal:
        scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -torch.inf)
    mixed = (scores.softmax(-1) @ v).permute(0, 3, 1, 2, 4).flatten(3)
    x = x + time.scale * time.out(mixed)

    value, gate, q, k, v = space.mlp_qkv(norm(space.norm, x)).split((2 * d, 2 * d, d, d, d), -1)
    q, k, v = (y.unflatten(-1, (h, -1)) for y in (q, k, v))  # (b, t, n, h, e)
    rows = [y.flatten(0, 2) for y in (space.norm_q(q), space.norm_k(k))]
    q, k = (rotate(y).view(b, t, n, h, -1).transpose(2, 3) for y in rows)
    scores = (q @ k.mT / math.sqrt(d // h)).softmax(-1)
    mixed = (scores @ v.transpose(2, 3)).transpose(2, 3).flatten(3)
    return x + space.scale * (space.out(mixed) + space.down(F.silu(gate) * value))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rope", ["cell", "endpoint"])
@pytest.mark.parametrize("name", KINDS)
def test_equal_to_a_dense_block(name, rope, causal):
    """Cells shared by the frames of a sample: a grid (b, t, n) of tokens."""
    tokens, spec = tokens_of(name, **KINDS[name])
    if rope == "endpoint" and spec.layout is None:
        pytest.skip("refused")
    processor = block(spec, rope=rope, causal=causal)
    rotate = processor.context(tokens.cells).rotate
    dense = tokens.features.view(2, 3, -1, 24)
    expected = dense_block(processor, dense, rotate, causal).flatten(0, 2)
    out = processor(tokens)
    assert out.cells is tokens.cells
    torch.testing.assert_close(out.features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["layer", "rms", "group"])
@pytest.mark.parametrize("name", KINDS)
def test_a_causal_block_does_not_see_later_frames(name, norm):
    tokens, spec = tokens_of(name, **KINDS[name])
    for causal in (True, False):
        processor = block(spec, causal=causal, norm=norm)
        late = (tokens.cells.origin[:, 0] == 2)[:, None]
        other = torch.where(late, torch.randn_like(tokens.features), tokens.features)
        before = processor(tokens).features
        after = processor(tokens.replace(features=other)).features
        assert torch.equal(before[~late[:, 0]], after[~late[:, 0]]) == causal


def test_a_tiling_per_frame_is_read_along_time():
    tokens, spec = tokens_of("iap", per_frame=True, **IAP)
    processor = block(spec, causal=True)
    groups = processor.context(tokens.cells).time
    frame = tokens.cells.origin[:, 0][groups.order]
    for own in frame.split(groups.lengths):
        assert bool((own.diff() > 0).all())  # each frame once, in order
    assert torch.isfinite(processor(tokens).features).all()


@pytest.mark.parametrize("name", KINDS)
def test_the_group_norm_is_that_of_each_frame(name):
    tokens, spec = tokens_of(name, **KINDS[name])
    context = block(spec).context(tokens.cells)
    norm = create_norm("group", 24, 3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    out = norm(tokens.features * 5 + 3, context.frames)
    for sample in range(2):
        for frame in range(3):
            own = (tokens.cells.sample == sample) & (tokens.cells.origin[:, 0] == frame)
            x = (tokens.features * 5 + 3)[own].T[None]
            expected = F.group_norm(x, 3, norm.weight, norm.bias)[0].T
            torch.testing.assert_close(out[own], expected, rtol=1e-4, atol=1e-4)


def bucket_by_hand(distance: int, bidirectional: bool) -> int:
    """Distance is key minus query; 32 buckets, the farthest at 32."""
    first, buckets = 0, 32
    if bidirectional:
        buckets = 16
        first = 16 if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    far = math.log(distance / exact) / math.log(32 / exact) * (buckets - exact)
    return first + min(exact + int(far + 1e-6), buckets - 1)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets_of_the_bias_over_time(bidirectional):
    bias = RelativeBias(2, bidirectional)
    rank = torch.arange(50)
    buckets = bias.bucket(rank - rank[:, None])
    wanted = [[bucket_by_hand(k - q, bidirectional) for k in range(50)] for q in range(50)]
    # powers of two lie on the edge of a bucket, where rounding decides
    different = (buckets - torch.tensor(wanted)).abs()
    assert different.max() <= 1
    distance = (rank - rank[:, None]).abs()
    on_edge = (distance & (distance - 1)) == 0
    assert different[~on_edge].max() == 0
    table = bias.table.weight
    out = bias(4)
    assert out.shape == (2, 4, 4)
    assert torch.equal(out[:, 3, 1], table[bucket_by_hand(-2, bidirectional)])
    assert torch.equal(out[:, 1, 3], table[bucket_by_hand(2, bidirectional)])


def test_the_first_step_hardly_changes_the_tokens():
    tokens, spec = tokens_of("ckm")
    processor = create_processor("spacetime_parallel", spec, depth=2, heads=3)
    torch.testing.assert_close(processor(tokens).features, tokens.features, rtol=0, atol=1e-4)


def test_fourteen_squares_per_block():
    _, spec = tokens_of("ckm")
    parameters = block(spec).parameters()
    squares = sum(p.numel() for p in parameters if p.ndim == 2 and p.shape[0] != 32)
    assert squares == 14 * 24**2


def test_autocast_is_close():
    tokens, spec = tokens_of("ckm", size=4)
    processor = create_processor("spacetime_parallel", spec, depth=2, heads=3, layer_scale=1.0)
    exact = processor(tokens).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = processor(tokens).features
    assert (half - exact).abs().mean() < 0.02 * exact.abs().mean()


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("uniform", {"rope": "endpoint"}, "rope 'endpoint' needs cells that form a regular grid"),
        ("ckm", {"rope": "end"}, "rope must be one of cell, endpoint, got 'end'"),
        ("ckm", {"norm": "batch"}, "norm must be one of layer, rms, group"),
        ("ckm", {"heads": 5}, "dim 24 is not divisible by 5 heads"),
        ("ckm", {"depth": -1}, "depth must be .* at least 0"),
    ],
)
def test_knobs_that_make_no_sense(name, knobs, message):
    _, spec = tokens_of(name)
    with pytest.raises(ValueError, match=message):
        create_processor("spacetime_parallel", spec, **knobs)


def test_overlapping_cells_without_a_grid_are_refused():
    spec = adaptok.TokenizerSpec(2, 1, 24, ((1, 8, 8), (1, 4, 4)), tiling=False)
    with pytest.raises(ValueError, match="'spacetime_parallel' needs cells that form a regular"):
        create_processor("spacetime_parallel", spec)


def test_narrow_heads():
    tokens, spec = tokens_of("ckm")
    with pytest.raises(ValueError, match="rope 'endpoint' needs head_dim >= 8, got 4"):
        create_processor("spacetime_parallel", spec, heads=6, rope="endpoint")(tokens)
