"""Routed, sliced, latent and windowed processors against slow references."""

from __future__ import annotations

import math

import pytest
import torch
from test_processors import SPEC, ragged_tokens
from torch import Tensor

from adaptok import create_processor
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


COMPILED = [("routed", {"shares": [1, 0.7]})]


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
