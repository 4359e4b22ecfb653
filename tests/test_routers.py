"""Routed, sliced, latent and windowed processors against slow references."""

from __future__ import annotations

import math

import pytest
import torch
from test_processors import SPEC, ragged_tokens
from torch import Tensor

from adaptok import create_processor, testing
from adaptok.cells import Groups
from adaptok.layers.positions import Rotary
from adaptok.models.compiling import in_bucket
from adaptok.tokens import TokenSet


def made(name: str, **knobs):
    """A processor of weights far from the initial ones."""
    torch.manual_seed(1)
    processor = create_processor(name, SPEC, **{"depth": 4, "heads": 2, **knobs})
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
    rotate = Rotary(rotate.cos[rows], rotate.sin[rows])
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


COMPILED = [("routed", {"shares": [1, 0.7]}), ("transolver", {"slices": 5})]


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


# ---- all of them


ALL = [*COMPILED]


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
