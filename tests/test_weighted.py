"""Attention weighted by area: a token of weight w counts as w equal ones."""

from __future__ import annotations

import math

import pytest
import torch
from references import Forest

import adaptok
from adaptok import INDICATORS, PROCESSORS, TokenSet, attention_backend, create_processor
from adaptok.layers.blocks import Attention, bias_by_weight
from adaptok.tree import Tree

SIZES = {"min_size": 2, "max_size": 8}


def tokens_of(ndim=2, *, frames=2, shape=None, budget=40, name="iap", **knobs) -> TokenSet:
    """Random features of cells of several sizes, two samples, in double precision."""
    torch.manual_seed(0)
    shape = shape or {1: (64,), 2: (16, 16), 3: (8, 8, 8)}[ndim]
    knobs = {**SIZES, "budget": budget, **knobs} if name == "iap" else knobs
    tokenizer = adaptok.create_tokenizer(name, ndim=ndim, in_channels=1, dim=24, **knobs)
    cells = tokenizer.cells(torch.rand(2, frames, 1, *shape))
    return TokenSet(torch.randn(len(cells), 24).double(), cells)


def processor_of(name, spec, weighted, **more):
    """The same weights for every `weighted`, far from the initial ones; nothing but attention asks
    how many tokens there are, or in which order.
    """
    whole = {"spacetime_parallel": {"norm": "layer"}, "routed": {"shares": 1}}
    knobs = (whole | {"windowed": {"tokens_per_window": 999}}).get(name, {})
    made = create_processor(name, spec, depth=2, heads=2, weighted=weighted, **knobs, **more)
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 * ("bias.table" not in key))
    return made.double().eval()


def spec_of(ndim=2):
    make = {"ndim": ndim, "in_channels": 1, "dim": 24}
    return adaptok.create_tokenizer("iap", **make, **SIZES).spec


@pytest.mark.parametrize(
    ("name", "ndim"), [*((name, 2) for name in PROCESSORS.names()), ("axial", 3), ("vit", 1)]
)
def test_a_token_of_weight_w_counts_as_w_equal_ones(name, ndim):
    tokens = tokens_of(ndim)
    weight = torch.randint(1, 5, (len(tokens),))
    heavy = tokens.replace(payload={"weight": weight})
    rows = torch.arange(len(tokens)).repeat_interleave(weight)
    copies = tokens.select(rows)
    # Copies are no tiling, whose tokens meet over time by level: here all of a level meet anyway.
    copies = copies.replace(cells=copies.cells.replace(tiling=True))
    spec = spec_of(ndim)
    out = processor_of(name, spec, True)(heavy).features
    expected = processor_of(name, spec, False)(copies).features
    torch.testing.assert_close(out[rows], expected, atol=1e-10, rtol=1e-10)
    plain = processor_of(name, spec, False)(tokens).features
    assert (out - plain).abs().max() > 1e-3


def test_attention_against_sums_over_keys():
    tokens, power = tokens_of(frames=1, budget=13), 0.7
    layer = Attention(24, 2).double()
    groups, key_bias = tokens.cells.groups(), bias_by_weight(tokens, power)
    out = layer(tokens.features, groups, key_bias=key_bias)
    area = tokens.cells.volume / 4
    q = layer.q(tokens.features).unflatten(1, (2, -1))
    k, v = layer.kv(tokens.features).unflatten(1, (2, 2, -1)).unbind(1)
    rows = []
    for row, sample in enumerate(tokens.cells.sample.tolist()):
        heads = []
        for head in range(2):
            total, norm = torch.zeros(12).double(), 0.0
            for key in range(len(tokens)):
                if int(tokens.cells.sample[key]) == sample:
                    score = float(q[row, head] @ k[key, head]) / math.sqrt(12)
                    share = float(area[key]) ** power * math.exp(score)
                    total, norm = total + share * v[key, head], norm + share
            heads.append(total / norm)
        rows.append(layer.out(torch.cat(heads)))
    torch.testing.assert_close(out, torch.stack(rows))


@pytest.mark.parametrize("name", PROCESSORS.names())
def test_cells_of_one_size_are_not_moved(name):
    tokens = tokens_of(name="uniform", size=4)
    spec = adaptok.create_tokenizer("uniform", ndim=2, in_channels=1, dim=24, size=4).spec
    out, plain = (processor_of(name, spec, w)(tokens).features for w in (True, False))
    torch.testing.assert_close(out, plain)


def test_weights_are_areas_unless_the_payload_says_others():
    tokens = tokens_of(budget=30)
    assert tokens.weight.tolist() == (tokens.cells.volume / 4).tolist()
    assert {4.0, 16.0} <= set(tokens.weight.tolist())
    given = tokens.replace(payload={"weight": tokens.weight})
    process = processor_of("vit", spec_of(), True)
    assert torch.equal(process(given).features, process(tokens).features)
    half, none = processor_of("vit", spec_of(), 0.5), processor_of("vit", spec_of(), 0)
    root = tokens.replace(payload={"weight": tokens.weight.sqrt()})
    torch.testing.assert_close(half(tokens).features, process(root).features)
    assert torch.equal(none(tokens).features, processor_of("vit", spec_of(), False)(given).features)


@pytest.mark.parametrize("backend", ["padded", "math"])
def test_every_back_end_knows_weights(backend):
    tokens, process = tokens_of(), processor_of("axial", spec_of(), 0.5)
    with attention_backend("loop"):
        expected = process(tokens).features
    with attention_backend(backend):
        torch.testing.assert_close(process(tokens).features, expected)


def test_cells_beyond_the_border_vanish():
    tokens = tokens_of(shape=(13, 11), budget=40, frames=1)
    beyond = tokens.cells.volume == 0
    assert beyond.any()
    process = processor_of("vit", spec_of(), True)
    other = tokens.replace(features=torch.where(beyond[:, None], 9.0, tokens.features))
    out, moved = process(tokens).features, process(other).features
    torch.testing.assert_close(out[~beyond], moved[~beyond])
    assert out.isfinite().all()


def test_samples_and_precision():
    tokens, process = tokens_of(), processor_of("vit", spec_of(), True)
    whole = process(tokens).features
    ends = len(tokens) // 2
    torch.testing.assert_close(process(tokens.samples(1, 2)).features, whole[ends:])
    with torch.autocast("cpu", torch.bfloat16):
        half = process.float()(tokens.to(torch.float32)).features
    torch.testing.assert_close(half.double(), whole, atol=0.5, rtol=0.1)


@pytest.mark.slow
def test_compiled_without_a_break():
    tokens, process = tokens_of(), processor_of("spacetime", spec_of(), True)
    compiled = torch.compile(process, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens).features, process(tokens).features)


@pytest.mark.parametrize("weighted", [-1, "yes", math.nan, None, 101])
def test_powers_that_cannot_be(weighted):
    for name in PROCESSORS.names():
        with pytest.raises(ValueError, match="weighted must be true or false or a number"):
            create_processor(name, spec_of(), weighted=weighted)


@pytest.mark.parametrize("weight", [torch.tensor([-1.0]), torch.ones(1, 2)])
def test_weights_that_cannot_be(weight):
    tokens = tokens_of()
    payload = {"weight": weight.expand(len(tokens), *weight.shape[1:])}
    with pytest.raises(ValueError, match="weight is a number of at least 0 per token, got a"):
        processor_of("vit", spec_of(), True)(tokens.replace(payload=payload))


@pytest.mark.parametrize("name", ["variance", "resampling"])
@pytest.mark.parametrize("shape", [(24,), (13, 17)])
def test_scores_by_area_are_totals_in_finest_cells(name, shape):
    sizes = [(size,) * len(shape) for size in (8, 4, 2)]
    tree, field = Tree(shape, tuple(sizes)), torch.rand(2, 1, 2, *shape)
    mean, total = (INDICATORS.create(name, by_area=by)(field, tree) for by in (False, True))
    forest = Forest(shape, sizes)
    boxes = [forest.box(node) for node in forest.inner()]
    area = torch.tensor([math.prod(size) / 2 ** len(shape) for _, _, size in boxes])
    inside = ~tree.nodes(torch.device("cpu")).outside
    torch.testing.assert_close(total[:, inside], mean[:, inside] * area)


def test_one_threshold_on_totals_is_one_per_size_on_means():
    make = {"ndim": 2, "in_channels": 1, "dim": 4, **SIZES}
    field, cells = torch.rand(2, 1, 1, 32, 32) * torch.linspace(0, 1, 32), []
    for by_area, bars in ((True, 0.1), (False, [0.1 / 4, 0.1 / 16])):
        indicator = {"name": "variance", "by_area": by_area}
        marking = {"name": "threshold", "thresholds": bars}
        tokenizer = adaptok.create_tokenizer(
            "composed", **make, indicator=indicator, marking=marking
        )
        cells.append(tokenizer.cells(field))
    assert len(set(cells[0].level.tolist())) == 3
    assert torch.equal(cells[0].origin, cells[1].origin)
