"""adaptok.testing: every registered part keeps its promises, and every broken one is found."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import adaptok
from adaptok import TOKENIZERS, testing
from adaptok.registry import DECODERS, EMBEDDINGS, INDICATORS, MARKINGS, PROCESSORS
from adaptok.tokenizers.marking.base import Marks
from adaptok.tree import sum_pyramid

SPEC = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=24).spec


@pytest.mark.parametrize("name", INDICATORS.names())
def test_indicators(name):
    testing.check_indicator(INDICATORS.build(name, in_channels=2, sizes=SPEC.sizes[1:]))


@pytest.mark.parametrize("name", MARKINGS.names())
def test_markings(name):
    control = {"budget": 120} if name == "budget" else {}
    testing.check_marking(MARKINGS.create(name), **control)


@pytest.mark.parametrize("name", EMBEDDINGS.names())
def test_embeddings(name):
    testing.check_embedding(EMBEDDINGS.create(name, 2, 24, SPEC.sizes), SPEC)


@pytest.mark.parametrize("name", [n for n in PROCESSORS.names() if n != "spacetime_parallel"])
def test_processors(name):
    testing.check_processor(adaptok.create_processor(name, SPEC, depth=1), SPEC)


@pytest.mark.parametrize("name", [n for n in DECODERS.names() if n not in ("modulated", "runs")])
def test_decoders(name):
    testing.check_decoder(adaptok.create_decoder(name, SPEC, 3), SPEC, 3)


@pytest.mark.parametrize(
    "name", [n for n in TOKENIZERS.names() if n not in ("composed", "given", "random")]
)
def test_tokenizers(name):
    knobs = {"budget": 80} if name == "iap" else {}
    testing.check_tokenizer(adaptok.create_tokenizer(name, ndim=2, in_channels=2, dim=24, **knobs))


# ---- parts that break a promise


class Falsely:
    """Sums of signed values, which are not monotone though it says so."""

    monotone = True

    def __call__(self, field, tree, *, boundary=None):
        return sum_pyramid(field.mean((1, 2))[:, None], tree)[:, 0]


class Nan(Falsely):
    monotone = False

    def __call__(self, field, tree, *, boundary=None):
        return super().__call__(field, tree) / field.flatten(1).std(1, keepdim=True)


class Across(Falsely):
    monotone = False

    def __call__(self, field, tree, *, boundary=None):
        return super().__call__(field - field.mean(0), tree)


class Short(Falsely):
    monotone = False

    def __call__(self, field, tree, *, boundary=None):
        return super().__call__(field, tree)[:, 1:]


@pytest.mark.parametrize(
    ("indicator", "promise"),
    [
        (Falsely, "monotone"),
        (Nan, "finite"),
        (Across, "depend on it alone"),
        (Short, r"\(b, inner\)"),
    ],
)
def test_indicators_that_lie_are_found(indicator, promise):
    with pytest.raises(AssertionError, match=f"{indicator.__name__}: .*{promise}"):
        testing.check_indicator(indicator())


class Miscounts:
    """Splits everything and says that nothing was split."""

    controls = ()

    def __call__(self, scores, tree, *, monotone=False, shared=1):
        roots = tree.inside[0] if hasattr(tree, "inside") else 1
        return Marks(torch.ones_like(scores, dtype=torch.bool), (roots,) * len(scores))


class Moody(Miscounts):
    """Splits more where scores are high, and calls that static."""

    static = True

    def __call__(self, scores, tree, *, monotone=False, shared=1):
        return Marks(scores > 0.5, None)


@pytest.mark.parametrize(("marking", "promise"), [(Miscounts, "lengths"), (Moody, "static")])
def test_markings_that_lie_are_found(marking, promise):
    with pytest.raises(AssertionError, match=f"{marking.__name__}: .*{promise}"):
        testing.check_marking(marking())


class Gossip(nn.Module):
    """Tokens see the mean of the whole batch."""

    def forward(self, tokens):
        return tokens.replace(features=tokens.features - tokens.features.mean(0))


class Cut(nn.Module):
    """Drops a token."""

    def forward(self, tokens):
        return tokens.select(torch.arange(1, len(tokens)))


@pytest.mark.parametrize(
    ("processor", "promise"), [(Gossip, "no other sample"), (Cut, "cells they came with")]
)
def test_processors_that_lie_are_found(processor, promise):
    with pytest.raises(AssertionError, match=f"{processor.__name__}: .*{promise}"):
        testing.check_processor(processor(), SPEC)


class Sideways(nn.Module):
    """Forgets the time axis."""

    def forward(self, tokens):
        return tokens.dense()[:, 0, :3]


def test_a_decoder_of_another_shape_is_found():
    with pytest.raises(AssertionError, match="Sideways: the field is"):
        testing.check_decoder(Sideways(), SPEC, 3)


class Shifted(adaptok.TreeTokenizer):
    """Cells one point beside the grid that they promise to lie on."""

    def cells(self, field, *, boundary=None, **control):
        cells = super().cells(field, boundary=boundary, **control)
        return cells.replace(origin=cells.origin + 1, tiling=False)


def test_a_tokenizer_off_its_grid_is_found():
    iap = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=24, budget=80)
    spec = dataclasses.replace(iap.spec, tiling=False)
    shifted = Shifted(spec, iap.indicator, iap.marking, iap.embedding)
    with pytest.raises(AssertionError, match=r"Shifted: .*on the grid of its level"):
        testing.check_tokenizer(shifted)
