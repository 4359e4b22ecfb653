"""Routed, sliced, latent and windowed processors against slow references."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from test_processors import SPEC, ragged_tokens
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import adaptok
from adaptok import create_processor, testing
from adaptok.cells import Groups
from adaptok.layers.slices import SliceAttention
from adaptok.models.compiling import in_bucket
from adaptok.tokens import TokenizerSpec, TokenSet


def made(name: str, ndim: int = 2, **knobs):
    """A processor of weights far from the initial ones."""
    torch.manual_seed(1)
    spec = (
        SPEC
        if ndim == 2
        else TokenizerSpec(ndim, 1, 24, ((1, *(8,) * ndim), (1, *(4,) * ndim), (1, *(2,) * ndim)))
    )
    processor = create_processor(name, spec, **{"depth": 4, "heads": 2, **knobs})
    with torch.no_grad():
        for parameter in processor.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return processor.double().eval()


def doubled(tokens: TokenSet) -> TokenSet:
    return tokens.replace(features=tokens.features.double())


def among(processor, block, x: Tensor, tokens: TokenSet, rows: Tensor) -> Tensor:
    """A block on some rows alone, which attend to one another."""
    ends = torch.tensor([0, len(rows)], dtype=torch.int32)
    _, rotate = processor.positions(x, tokens.cells, tokens.cells.center)
    rotate = rotate.rows(rows)
    sample = torch.zeros(len(rows), dtype=torch.int64)
    return block(x[rows], Groups(None, None, ends, len(rows), (len(rows),)), rotate, sample, 1)


def samples_of(tokens: TokenSet) -> list[Tensor]:
    return [(tokens.cells.sample == i).nonzero()[:, 0] for i in range(tokens.cells.batch_size)]


# ---- routed


def routed_slowly(processor, tokens: TokenSet, shares) -> Tensor:
    x = tokens.features
    score = processor.router(x)[:, 0]
    for block, share in zip(processor.blocks, shares, strict=True):
        out = x.clone()
        for rows in samples_of(tokens):
            kept = rows[score[rows].argsort(descending=True)[: math.ceil(share * len(rows))]]
            gate = score[kept].sigmoid()[:, None] if share < 1 else 1
            out[kept] = x[kept] + gate * (among(processor, block, x, tokens, kept) - x[kept])
        x = out
    return processor.norm(x)


@pytest.mark.parametrize("budgets", [(20, 44, 8), (20, 20)])
def test_the_best_share_of_each_sample_is_processed(budgets):
    tokens = doubled(ragged_tokens(budgets))
    processor = made("routed", shares=[1, 0.7, 0.25])
    expected = routed_slowly(processor, tokens, [1, 0.7, 0.25, 0.25])
    out = processor(tokens).features
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in processor.router.parameters())


def test_lengths_that_the_host_does_not_know(monkeypatch):
    tokens, processor = doubled(ragged_tokens()), made("routed", shares=[1, 0.7, 0.25])
    n, padded = len(tokens), in_bucket(tokens, 16)
    monkeypatch.setattr("adaptok.processors.routed.reads_are_free", lambda _: False)
    expected = processor(tokens).features
    torch.testing.assert_close(processor(padded).features[:n], expected)


COMPILED = [
    ("routed", {"shares": [1, 0.7]}),
    ("transolver", {"slices": 5}),
    ("perceiver", {"latents": 5}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "knobs"), COMPILED)
def test_compiled_in_one_graph(name, knobs):
    """Equal lengths, and lengths that the host does not know with filler at the end."""
    processor = made(name, depth=2, **knobs)
    options = {"backend": "eager", "fullgraph": True, "dynamic": False}
    compiled = torch.compile(processor.forward, **options)
    for tokens in (doubled(ragged_tokens(budgets)) for budgets in ((20, 20), (20, 44, 8))):
        given = tokens if len(tokens) == 40 else in_bucket(tokens, 16)
        expected = processor(tokens).features
        torch.testing.assert_close(compiled(given).features[: len(tokens)], expected)


def test_shares_of_one_are_a_vit():
    tokens = doubled(ragged_tokens())
    processor, vit = made("routed", shares=1), made("vit")
    vit.load_state_dict(processor.state_dict())
    assert torch.equal(processor(tokens).features, vit(tokens).features)
    most = made("routed", shares=[1, 1, 1, 0.999])  # all tokens of few, with a gate
    most.load_state_dict(processor.state_dict(), strict=False)
    with torch.no_grad():
        most.router[2].bias.fill_(50.0)
    torch.testing.assert_close(most(tokens).features, vit(tokens).features)


@pytest.mark.parametrize("shares", [0, [], [0.5, 1.5], "half"])
def test_shares_that_cannot_be(shares):
    with pytest.raises(ValueError, match="shares must be"):
        create_processor("routed", SPEC, shares=shares)


# ---- transolver


def slices_slowly(layer, x: Tensor, mass: Tensor) -> Tensor:
    """Physics-attention of one sample, head by head."""
    heads = []
    for head in range(layer.heads):
        own = slice(12 * head, 12 * head + 12)
        share = layer.slice(layer.assign(x)[:, own]) / layer.temperature[head]
        share = share.softmax(1)  # (n, g)
        weight = share * mass[:, None]
        token = weight.T @ layer.value(x)[:, own] / (weight.sum(0)[:, None] + 1e-5)
        q, k, v = (linear(token) for linear in layer.qkv)
        token = (q @ k.T / math.sqrt(12)).softmax(1) @ v
        heads.append(share @ token)
    return layer.out(torch.cat(heads, 1))


@pytest.mark.parametrize("budgets", [(20, 44, 8), (20, 20)])
@pytest.mark.parametrize("weighted", [True, 0.5, False])
def test_slices_are_averages_over_volumes(budgets, weighted):
    tokens = doubled(ragged_tokens(budgets))
    processor = made("transolver", slices=5, depth=2, weighted=weighted)
    mass = (tokens.cells.volume / 4).double() ** float(weighted)
    x, _ = processor.positions(tokens.features, tokens.cells, tokens.cells.center)
    for block in processor.blocks:
        seen = block.norm_attention(x)
        parts = [slices_slowly(block.attention, seen[r], mass[r]) for r in samples_of(tokens)]
        x = x + torch.cat(parts)
        x = x + block.mlp(block.norm_mlp(x))
    torch.testing.assert_close(processor(tokens).features, processor.norm(x))


def test_slices_of_large_cells_fit_half_precision():
    layer = SliceAttention(24, 2, 1).half()  # one slice: areas add up
    groups, x = Groups(None, None, torch.tensor([0, 300]), 300, (300,)), torch.rand(300, 24)
    bias = torch.full((300,), 1024.0).log()
    assert layer(x.half(), groups, key_bias=bias).isfinite().all()


def test_slices_of_split_cells_are_those_of_the_whole_ones():
    """A token that is split into equal ones of a quarter of its volume changes nothing."""
    layer = made("transolver", slices=5, depth=1).blocks[0].attention
    x, rows = torch.randn(6, 24).double(), torch.tensor([0, 1, 1, 1, 1, 2, 3, 4, 5])
    volume = torch.tensor([1.0, 4, 1, 1, 1, 1]).double()
    finer = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 1, 1]).double()

    def mixed(x: Tensor, volume: Tensor) -> Tensor:
        ends = torch.tensor([0, len(x)], dtype=torch.int32)
        return layer(x, Groups(None, None, ends, len(x), (len(x),)), key_bias=volume.log())

    torch.testing.assert_close(mixed(x[rows], finer), mixed(x, volume)[rows])


def test_slices_have_no_place_to_rotate_by():
    with pytest.raises(ValueError, match="slices of 'transolver' have no place"):
        create_processor("transolver", SPEC, positions="rotary")


# ---- perceiver


def attended(layer, x: Tensor, context: Tensor, mass: Tensor) -> Tensor:
    """Attention of one sample, head by head; a key of mass m counts as m equal ones."""
    heads = []
    for head in range(2):
        own = slice(12 * head, 12 * head + 12)
        q = layer.q(x)[:, own]
        k, v = (part[:, own] for part in layer.kv(context).chunk(2, 1))
        share = (q @ k.T / math.sqrt(12)).exp() * mass
        heads.append(share @ v / share.sum(1, keepdim=True))
    return layer.out(torch.cat(heads, 1))


def crossed(block, x: Tensor, context: Tensor, mass: Tensor) -> Tensor:
    seen = block.norm_context(context)
    x = x + attended(block.attention, block.norm_rows(x), seen, mass)
    return x + block.mlp(block.norm_mlp(x))


@pytest.mark.parametrize("weighted", [True, False])
def test_latents_read_and_are_read(weighted):
    tokens = doubled(ragged_tokens())
    processor = made("perceiver", latents=5, depth=2, weighted=weighted)
    x, _ = processor.positions(tokens.features, tokens.cells, tokens.cells.center)
    mass = (tokens.cells.volume / 4).double() ** float(weighted)
    parts = []
    for rows in samples_of(tokens):
        z, one = crossed(processor.read, processor.latents, x[rows], mass[rows]), torch.ones(5)
        for block in processor.blocks:
            seen = block.norm_attention(z)
            z = z + attended(block.attention, seen, seen, one)
            z = z + block.mlp(block.norm_mlp(z))
        parts.append(processor.norm(crossed(processor.write, x[rows], z, one)))
    torch.testing.assert_close(processor(tokens).features, torch.cat(parts))


def test_latents_know_where_rotated_tokens_lie():
    tokens = doubled(ragged_tokens())
    rotary, none = (made("perceiver", latents=5, positions=p) for p in ("rotary", "none"))
    none.load_state_dict(rotary.state_dict())
    assert not torch.allclose(rotary(tokens).features, none(tokens).features)


# ---- windowed


def depth_first(place: dict[int, tuple[int, ...]], corner: tuple[int, ...], side: int) -> list[int]:
    """Rows of places (point, by row) inside a cube, in the depth-first order of its halves."""
    inside = {
        row: point
        for row, point in place.items()
        if all(c <= x < c + side for x, c in zip(point, corner, strict=True))
    }
    if len(inside) < 2 or side == 1:
        return sorted(inside)
    half, order = side // 2, []
    for step in itertools.product((0, half), repeat=len(corner)):
        child = tuple(c + s for c, s in zip(corner, step, strict=True))
        order += depth_first(inside, child, half)
    return order


def windows_slowly(tokens: TokenSet, rows: Tensor, most: int, odd: bool) -> list[Tensor]:
    """The windows of a sample."""
    cells, side = tokens.cells, 1 << max(n - 1 for n in tokens.cells.shape[1:]).bit_length()
    shift = side // 3 if odd else 0
    place = {int(r): [int(x) + shift for x in cells.center[r, 1:]] for r in rows}
    time = {int(r): int(cells.origin[r, 0]) for r in rows}
    order: list[int] = []
    if odd:  # the frames of a cell follow one another
        first = {r: tuple(p) for r, p in place.items() if time[r] == 0}
        for lead in depth_first(first, (0,) * cells.ndim, 2 * side):
            order += sorted((r for r in place if place[r] == place[lead]), key=time.get)
    else:
        for t in sorted({*time.values()}):
            own = {r: tuple(p) for r, p in place.items() if time[r] == t}
            order += depth_first(own, (0,) * cells.ndim, side)
    n, count = len(order), -(-len(order) // most)
    half = n // (2 * count) if odd else 0
    order = order[n - half :] + order[: n - half]
    return [torch.tensor(order[i * n // count : (i + 1) * n // count]) for i in range(count)]


def frames_of(budgets: list[int], frames: int, shape: tuple[int, ...]) -> TokenSet:
    """Tokens of samples that have the same tiling in each of their frames."""
    torch.manual_seed(0)
    make = {"ndim": len(shape), "in_channels": 1, "dim": 24, "min_size": 2, "max_size": 8}
    tokenizer = adaptok.create_tokenizer("iap", **make)
    cells = tokenizer.cells(torch.rand(len(budgets), frames, 1, *shape), budget=budgets)
    return doubled(TokenSet(torch.randn(len(cells), 24), cells))


@pytest.mark.parametrize(
    ("budgets", "frames", "shape"),
    [([20, 44, 8], 1, (16, 24)), ([32, 32], 2, (16, 24)), ([30], 1, (64,)), ([44], 1, (8, 8, 16))],
)
def test_tokens_attend_inside_windows(budgets, frames, shape):
    tokens = frames_of(budgets, frames, shape)
    processor = made("windowed", len(shape), tokens_per_window=6, depth=2)
    x, numbers = tokens.features, []
    for i, block in enumerate(processor.blocks):
        out = x.clone()
        for rows in samples_of(tokens):
            for own in windows_slowly(tokens, rows, 6, odd=i % 2 == 1):
                out[own] = among(processor, block, x, tokens, own)
                numbers.append(len(own))
        x = out
    assert max(numbers) <= 6
    torch.testing.assert_close(processor(tokens).features, processor.norm(x))


def test_what_a_token_knows_reaches_all_others():
    tokens = frames_of([64], 1, (16, 16))
    processor = made("windowed", tokens_per_window=16, depth=6)
    other = tokens.replace(features=tokens.features.clone())
    other.features[5] += 1
    moved = (processor(tokens).features - processor(other).features).abs().amax(1)
    assert (moved > 0).all()


def test_windows_that_hold_a_sample_are_a_vit():
    tokens = doubled(ragged_tokens())
    processor, vit = made("windowed", tokens_per_window=45), made("vit")
    vit.load_state_dict(processor.state_dict())
    assert torch.equal(processor(tokens).features, vit(tokens).features)


# ---- all of them


ALL = [*COMPILED, ("perceiver", {"norm": "instance"}), ("routed", {"norm": "rms", "shares": 0.5})]


@pytest.mark.parametrize(("name", "knobs"), ALL)
def test_promises_with_knobs_that_matter(name, knobs):
    processor = create_processor(name, SPEC, depth=2, heads=2, **knobs)
    testing.check_processor(processor, SPEC)
    tokens = ragged_tokens()
    whole = processor.eval()(tokens).features
    with torch.autocast("cpu", torch.bfloat16):
        half = processor(tokens).features
    assert (half - whole).abs().mean() < 0.05
    later = tokens.replace(cond=torch.randn(3, 24))
    assert not torch.allclose(processor(later).features, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "knobs"), COMPILED)
@pytest.mark.parametrize("known", [True, False])
def test_nothing_is_read_back_from_an_accelerator(name, knobs, known):
    """Fake CUDA tensors run the code of the device without kernels: a read of values raises."""
    tokens = ragged_tokens() if known else in_bucket(ragged_tokens(), 16)
    processor = create_processor(name, SPEC, depth=2, heads=2, **knobs)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert processor.to("cuda")(tokens.to("cuda")).features.device.type == "cuda"
