"""The ViT on packed tokens against a plain dense ViT, and its layers."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import adaptok
from adaptok import PROCESSORS, create_processor
from adaptok.layers import blocks as layers
from adaptok.layers.blocks import Attention, DropPath
from adaptok.layers.positions import rotary
from adaptok.tokens import TokenizerSpec, TokenSet


def ragged_tokens(budgets=(20, 45, 6), dim: int = 24, shape=(16, 24)) -> TokenSet:
    score = torch.rand(len(budgets), *shape)
    cells = adaptok.cells_from_score(score, min_size=2, max_size=8, budget=list(budgets))
    return TokenSet(torch.randn(len(cells), dim), cells)


SPEC = TokenizerSpec(2, 1, 24, ((1, 8, 8), (1, 4, 4), (1, 2, 2)))


def permuted(tokens: TokenSet, order: Tensor) -> TokenSet:
    names = ("origin", "size", "level")
    moved = {name: getattr(tokens.cells, name)[order] for name in names}
    return TokenSet(tokens.features[order], dataclasses.replace(tokens.cells, **moved))


# ---- uniform + vit + linear is a plain ViT


def axial_rope(x: Tensor, height: int, width: int, size: tuple[int, int]) -> Tensor:
    """Rotates (b, heads, height * width, e) by patch centres in grid points: y, then x."""
    y = (torch.arange(height) + 0.5) * size[0]
    x_ = (torch.arange(width) + 0.5) * size[1]
    pairs = x.shape[-1] // 4
    frequency = 10000.0 ** (-torch.arange(pairs) / pairs)
    angles = torch.cat(
        [
            (y[:, None] * frequency)[:, None].expand(height, width, pairs),
            (x_[:, None] * frequency)[None].expand(height, width, pairs),
        ],
        -1,
    ).flatten(0, 1)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(turned * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def dense_block(block: nn.Module, x: Tensor, rope) -> Tensor:
    """Textbook pre-norm block on (b, n, d)."""
    attention, d = block.attention, x.shape[-1]
    h = F.layer_norm(x, (d,), block.norm_attention.weight, block.norm_attention.bias)
    q = F.linear(h, attention.q.weight, attention.q.bias)
    k, v = F.linear(h, attention.kv.weight, attention.kv.bias).chunk(2, -1)
    q, k, v = (t.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for t in (q, k, v))
    if isinstance(attention.norm_q, nn.LayerNorm):
        q, k = attention.norm_q(q), attention.norm_k(k)
    q, k = rope(q), rope(k)
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    x = x + F.linear(mixed, attention.out.weight, attention.out.bias)
    h = F.layer_norm(x, (d,), block.norm_mlp.weight, block.norm_mlp.bias)
    h = F.gelu(F.linear(h, block.mlp.up.weight, block.mlp.up.bias))
    return x + F.linear(h, block.mlp.down.weight, block.mlp.down.bias)


def dense_vit(model: adaptok.Surrogate, field: Tensor, size: tuple[int, int]) -> Tensor:
    """A plain ViT on (b, c, h, w) with the weights of the surrogate."""
    linear = model.tokenizer.embedding.levels[0]
    d, channels = linear.weight.shape[0], field.shape[1]
    x = F.conv2d(field, linear.weight.view(d, channels, *size), linear.bias, stride=size)
    grid = tuple(x.shape[2:])
    x = x.flatten(2).transpose(1, 2)
    for block in model.processor.blocks:
        x = dense_block(block, x, lambda t: axial_rope(t, *grid, size))
    x = F.layer_norm(x, (d,), model.processor.norm.weight, model.processor.norm.bias)
    head = model.decoder.levels[0]
    x = F.linear(x, head.weight, head.bias)  # (b, n, c * p * p)
    x = x.transpose(1, 2).unflatten(1, (-1, size[0] * size[1])).unflatten(-1, grid)
    out = field.new_zeros(field.shape[0], x.shape[1], *field.shape[2:])
    for i in range(size[0]):
        for j in range(size[1]):
            out[:, :, i :: size[0], j :: size[1]] = x[:, :, i * size[1] + j]
    return out


@pytest.mark.parametrize("size", [(4, 4), (2, 8)])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_vit_linear_is_a_plain_vit(size, qk_norm, dtype):
    model = adaptok.create_surrogate(
        ndim=2,
        in_channels=3,
        tokenizer={"name": "uniform", "size": size},
        processor={"name": "vit", "qk_norm": qk_norm},
        dim=48,
        depth=3,
        heads=4,
        normalise="none",
        predict="state",
    )
    if dtype == torch.float64:  # far from the initial weights, which could hide a mistake
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.15)
    model = model.to(dtype)
    field = torch.randn(2, 3, 16, 24, dtype=dtype)
    expected = dense_vit(model, field, size)
    out = model(field)
    assert out.shape == (2, 1, 3, 16, 24)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(out[:, 0], expected, atol=1e-5, rtol=1e-5)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(out.square().mean(), parameters)
    wanted = torch.autograd.grad(expected.square().mean(), parameters)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, atol=1e-4, rtol=1e-3)


# ---- every processor


@pytest.mark.parametrize("name", PROCESSORS.names())
def test_processors_keep_cells_and_samples_apart(name):
    tokens = ragged_tokens()
    processor = create_processor(name, SPEC).eval()
    before = processor(tokens)
    assert before.cells is tokens.cells
    assert before.features.shape == tokens.features.shape
    own = (tokens.cells.sample == 1)[:, None]
    other = tokens.replace(
        features=torch.where(own, torch.randn_like(tokens.features), tokens.features)
    )
    after = processor(other)
    for i, (x, y) in enumerate(zip(before.split(), after.split(), strict=True)):
        assert torch.equal(x, y) == (i != 1)


@pytest.mark.parametrize("name", PROCESSORS.names())
def test_a_batch_equals_its_samples_one_by_one(name):
    score = torch.rand(3, 16, 24)
    budgets = [20, 45, 6]
    cells = adaptok.cells_from_score(score, min_size=2, max_size=8, budget=budgets)
    tokens = TokenSet(torch.randn(len(cells), 24), cells)
    processor = create_processor(name, SPEC).eval()
    together = processor(tokens).split()
    for i, budget in enumerate(budgets):
        alone = adaptok.cells_from_score(score[i : i + 1], min_size=2, max_size=8, budget=budget)
        out = processor(TokenSet(tokens.split()[i], alone)).features
        torch.testing.assert_close(out, together[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PROCESSORS.names())
def test_permuting_the_tokens_of_a_sample_permutes_the_output(name):
    tokens = ragged_tokens()
    processor = create_processor(name, SPEC).eval()
    ends = tokens.cells.cu_seqlens.tolist()
    parts = [start + torch.randperm(end - start) for start, end in itertools.pairwise(ends)]
    order = torch.cat(parts)
    expected = processor(tokens).features[order]
    out = processor(permuted(tokens, order)).features
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PROCESSORS.names())
def test_an_unknown_knob_lists_the_valid_ones(name):
    with pytest.raises(ValueError, match=f"processor '{name}' has no knob 'colour'") as error:
        create_processor(name, SPEC, colour="red")
    for knob in PROCESSORS.knobs(name):
        assert knob in str(error.value)


# ---- vit


def test_positions_matter_and_shifts_do_not():
    tokens = ragged_tokens((20,))
    vit = create_processor("vit", SPEC, depth=2, heads=2)
    out = vit(tokens).features
    cells = tokens.cells

    def at(origin: Tensor) -> Tensor:
        moved = dataclasses.replace(cells, origin=origin.int())
        return vit(TokenSet(tokens.features, moved)).features

    torch.testing.assert_close(at(cells.origin + 5), out, atol=1e-5, rtol=1e-5)
    assert (at(cells.origin * 2) - out).abs().max() > 1e-3


def test_depth_zero_is_a_norm():
    tokens = ragged_tokens()
    out = create_processor("vit", SPEC, depth=0, heads=2)(tokens).features
    torch.testing.assert_close(out, F.layer_norm(tokens.features, (24,)))


def test_mlp_ratio_sets_the_hidden_width():
    vit = create_processor("vit", SPEC, depth=1, heads=2, mlp_ratio=2.0)
    assert vit.blocks[0].mlp.up.out_features == 48


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"heads": 5}, "dim 24 is not divisible by 5 heads"),
        ({"heads": 0}, "heads must be a whole number of at least 1, got 0"),
        ({"heads": 12}, "rotary positions on 2 axes need head_dim >= 4, got 2"),
        ({"depth": -1}, "depth must be a whole number .*, got -1"),
        ({"drop_path": 1.0}, r"drop_path must be a number of at least 0 and below 1, got 1.0"),
        ({"drop_path": -0.1}, "drop_path must be a number of at least 0 and below 1"),
    ],
)
def test_knobs_that_make_no_sense(knobs, message):
    with pytest.raises(ValueError, match=message):
        create_processor("vit", SPEC, **({"heads": 2, "depth": 2} | knobs))


# ---- drop path


@given(st.floats(0.05, 0.9), st.integers(0, 10**6))
def test_drop_path_drops_whole_samples_and_keeps_the_mean(rate, seed):
    torch.manual_seed(seed)
    lengths = torch.randint(1, 6, (40,))
    sample = torch.arange(40).repeat_interleave(lengths)
    out = DropPath(rate)(torch.ones(len(sample), 2), sample, 40)
    for rows in out.split(lengths.tolist()):
        value = float(rows[0, 0])
        assert bool((rows == value).all())
        assert value == 0 or value == pytest.approx(1 / (1 - rate), rel=1e-5)


def test_drop_path_drops_at_its_rate():
    sample = torch.arange(20000)
    kept = (DropPath(0.3)(torch.ones(20000, 1), sample, 20000) > 0).float().mean()
    assert 0.68 < float(kept) < 0.72


def test_drop_path_rests_in_evaluation():
    x, sample = torch.randn(6, 2), torch.zeros(6, dtype=torch.long)
    assert torch.equal(DropPath(0.9).eval()(x, sample, 1), x)
    assert torch.equal(DropPath(0.0)(x, sample, 1), x)


def test_drop_path_grows_with_depth():
    vit = create_processor("vit", SPEC, depth=5, heads=2, drop_path=0.4)
    assert [block.drop_path.rate for block in vit.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    single = create_processor("vit", SPEC, depth=1, heads=2, drop_path=0.4)
    assert [block.drop_path.rate for block in single.blocks] == [0.0]


# ---- cross-attention of a layer


def test_queries_and_keys_have_the_dtype_of_the_values(monkeypatch):
    """Under CUDA autocast a layer norm returns float32, which no half-precision kernel takes."""

    class Upcast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    seen = []

    def spy(q, k, v, *groups, **options):
        seen.extend([q.dtype, k.dtype, v.dtype])
        return adaptok.attend(q, k, v, *groups, **options)

    monkeypatch.setattr(layers, "attend", spy)
    tokens = ragged_tokens()
    attention = Attention(24, 3, qk_norm=True).bfloat16()
    attention.norm_q, attention.norm_k = Upcast(), Upcast()
    rotate = rotary(tokens.cells.center, tokens.cells.shape, 8)
    attention(tokens.features.bfloat16(), tokens.cells.groups(), rotate)
    assert seen == [torch.bfloat16] * 3


def test_attention_with_a_context_equals_attention_on_the_joint_rows():
    """Queries that are their own context give self-attention."""
    tokens = ragged_tokens()
    groups = tokens.cells.groups()
    attention = Attention(24, 3)
    own = attention(tokens.features, groups)
    other = attention(tokens.features, groups, context=tokens.features, context_groups=groups)
    torch.testing.assert_close(own, other)


@pytest.mark.parametrize(
    ("processor", "norm"),
    [("vit", "group"), ("axial", "group"), ("spacetime_parallel", "instance")],
)
def test_norms_that_a_processor_does_not_have(processor, norm):
    with pytest.raises(ValueError, match=f"norm must be one of .*, got '{norm}'"):
        adaptok.create_surrogate(
            ndim=2, in_channels=1, dim=24, heads=2, processor={"name": processor, "norm": norm}
        )
