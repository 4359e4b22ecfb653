"""Samples of different size in one batch, and the small operations on packed tokens."""

from __future__ import annotations

import collections
import itertools

import pytest
import torch
from torch.utils import _pytree as pytree

import adaptok
from adaptok import Cells, TokenSet

FIELDS = [(2, 2, 16, 24), (2, 2, 16, 24), (2, 2, 32, 16)]
TOKENIZERS = {
    "iap": {"budget": 40},
    "apt": {},
    "matey": {"sizes": (4, 8)},
    "uniform": {"size": 4},
}
PROCESSORS, DECODERS = ("vit", "axial", "spacetime"), ("linear", "cross_attention", "local")
COMBINATIONS = [  # every two parts meet
    (tokenizer, processor, DECODERS[(i + j) % 3])
    for (i, tokenizer), (j, processor) in itertools.product(
        enumerate(TOKENIZERS), enumerate(PROCESSORS)
    )
]


def fields():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in FIELDS]


def mixed_tokens() -> TokenSet:
    knobs = {"ndim": 2, "in_channels": 2, "dim": 8, "border": "split"}
    tokenizer = adaptok.create_tokenizer("iap", **knobs)
    return tokenizer([x[:1] for x in fields()], budget=[42, 42, 38])


@pytest.mark.parametrize(("tokenizer", "processor", "decoder"), COMBINATIONS)
def test_a_batch_of_different_sizes_equals_its_samples_alone(tokenizer, processor, decoder):
    torch.manual_seed(0)
    model = adaptok.create_surrogate(
        ndim=2,
        in_channels=2,
        history=2,
        dim=24,
        depth=1,
        heads=2,
        tokenizer={"name": tokenizer, **TOKENIZERS[tokenizer]},
        processor=processor,
        decoder=decoder,
    )
    samples = fields()
    together, alone = model(samples), [model(x[None])[0] for x in samples]
    assert isinstance(together, list)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    weights = [p for p in model.parameters() if p.requires_grad]
    grads = [
        torch.autograd.grad(sum(x.square().sum() for x in out), weights, allow_unused=True)
        for out in (together, alone)
    ]
    for one, other in zip(*grads, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_a_rollout_of_different_sizes_equals_its_samples_alone():
    torch.manual_seed(0)
    model = adaptok.create_surrogate(
        ndim=2, in_channels=2, dim=24, depth=1, heads=2, tokenizer={"name": "iap", "budget": 40}
    )
    samples = [x[0] for x in fields()]  # a history of one frame: (c, *space)
    together = model.rollout(samples, 3, budget=[40, 34, 52])
    for x, out, budget in zip(samples, together, (40, 34, 52), strict=True):
        torch.testing.assert_close(out, model.rollout(x[None], 3, budget=budget)[0])


def test_constants_and_boundaries_go_with_their_samples():
    torch.manual_seed(0)
    model = adaptok.create_surrogate(
        ndim=2, in_channels=2, history=2, constant_channels=1, dim=24, depth=1, heads=2
    )
    samples = fields()
    constants = [torch.randn(1, *x.shape[2:]) for x in samples]
    boundary = torch.tensor([[[0, 0]] * 2, [[2, 2]] * 2, [[1, 1]] * 2])
    together = model(samples, constants=constants, boundary=boundary)
    for i, out in enumerate(together):
        alone = model(samples[i][None], constants=constants[i][None], boundary=boundary[i])
        torch.testing.assert_close(out, alone[0])
    with pytest.raises(ValueError, match="list of"):
        model(samples, constants=torch.randn(3, 1, 16, 24))


def test_cells_of_different_shapes():
    cells = mixed_tokens().cells
    assert cells.shapes == ((1, 16, 24), (1, 16, 24), (1, 32, 16))
    with pytest.raises(ValueError, match="use `shapes`"):
        _ = cells.shape
    assert cells.validate() is cells
    assert cells.samples(0, 2).shape == (1, 16, 24)
    leaves, spec = pytree.tree_flatten(cells)
    again = pytree.tree_unflatten(leaves, spec)
    assert again.shapes == cells.shapes
    assert again.to("cpu").shapes == cells.shapes
    assert "(1, 32, 16)" in repr(cells)
    with pytest.raises(ValueError, match="2 shapes for 3 samples"):
        cells.replace(mixed=cells.shapes[:2])


def test_samples_of_one_shape_keep_the_fast_path():
    tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=8, budget=40)
    x = torch.stack([y[:1] for y in fields()[:2]])
    listed, batched = tokenizer(list(x)), tokenizer(x)
    assert listed.cells.shape == batched.cells.shape
    assert torch.equal(listed.features, batched.features)
    with pytest.raises(ValueError, match="empty"):
        tokenizer([])


# ---- operations


def test_cat_and_samples_are_inverse():
    tokens = mixed_tokens().replace(payload={"weight": torch.arange(122.0)})
    parts = [tokens.samples(i, i + 1) for i in range(3)]
    again = TokenSet.cat(parts)
    assert torch.equal(again.features, tokens.features)
    assert torch.equal(again.payload["weight"], tokens.payload["weight"])
    assert again.cells.shapes == tokens.cells.shapes
    for name in ("origin", "size", "level", "cu_seqlens"):
        assert torch.equal(getattr(again.cells, name), getattr(tokens.cells, name))
    assert (again.cells.lengths, again.cells.max_seqlen) == ((42, 42, 38), 42)
    with pytest.raises(ValueError, match="payload"):
        TokenSet.cat([parts[0], parts[1].replace(payload={})])
    with pytest.raises(ValueError, match="sizes"):
        Cells.cat([tokens.cells, tokens.cells.replace(sizes=((1, 16, 16), (1, 8, 8)))])


def test_select_keeps_rows_of_everything():
    tokens = mixed_tokens().replace(payload={"score": torch.arange(122)})
    mask = torch.arange(122) % 3 == 0
    kept = tokens.select(mask)
    assert torch.equal(kept.features, tokens.features[mask])
    assert kept.payload["score"].tolist() == list(range(0, 122, 3))
    assert kept.cells.lengths == (14, 14, 13)
    assert not kept.cells.tiling
    assert torch.equal(tokens.select(mask.nonzero().squeeze(1)).features, kept.features)
    with pytest.raises(ValueError, match="order"):
        tokens.select(torch.tensor([100, 0]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(3, dtype=torch.bool), r"mask of shape \(122,\).*torch.bool .* \(3,\)"),
        (torch.ones(122, 1, dtype=torch.bool), r"got a torch.bool tensor of shape \(122, 1\)"),
        (torch.zeros(2, 2, dtype=torch.int64), r"indices \(m,\).*shape \(2, 2\)"),
        (torch.ones(122), "int64 or int32, got a torch.float32"),
        (torch.ones(122, dtype=torch.uint8), "got a torch.uint8"),
        ([0, 1], r"got \[0, 1\]"),
        (torch.tensor([0, 122]), r"indices of 122 rows are 0\.\.121, got some from 0 to 122"),
        (torch.tensor([-1, 3]), "got some from -1 to 3"),
    ],
)
def test_select_refuses_what_names_no_rows(rows, message):
    tokens = mixed_tokens()
    for whole in (tokens, tokens.cells):
        with pytest.raises(ValueError, match=message):
            whole.select(rows)


def test_select_copies_a_row_that_comes_several_times(monkeypatch):
    tokens = mixed_tokens()
    rows = torch.tensor([0] * 50 + [60])
    copies = tokens.select(rows)
    assert torch.equal(copies.features, tokens.features[rows])
    assert copies.cells.lengths == (50, 1, 0)
    monkeypatch.setattr("adaptok.cells.cells.reads_are_free", lambda x: False)  # as on a device
    blind = tokens.select(rows).cells
    assert blind.cu_seqlens.tolist() == [0, 50, 51, 51]
    assert blind.max_seqlen >= 50
    assert tokens.select(torch.ones(122, dtype=torch.bool)).cells.max_seqlen == 42


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_pool_reduces_each_sample(how):
    tokens = mixed_tokens()
    function = {"mean": lambda x: x.mean(0), "sum": lambda x: x.sum(0), "max": lambda x: x.amax(0)}
    expected = torch.stack([function[how](x) for x in tokens.split()])
    torch.testing.assert_close(tokens.pool(how), expected)


def test_pool_with_weights():
    tokens = mixed_tokens().replace(payload={"weight": torch.rand(122)})
    for name, own in (("weight", tokens.payload["weight"]), ("volume", tokens.cells.volume)):
        rows = zip(tokens.split(), own.float().split([42, 42, 38]), strict=True)
        expected = torch.stack([(x * w[:, None]).sum(0) / w.sum() for x, w in rows])
        torch.testing.assert_close(tokens.pool(weight=name), expected)
    with pytest.raises(ValueError, match="weight must be one of"):
        tokens.pool(weight="size")
    with pytest.raises(ValueError, match="maximum"):
        tokens.pool("max", weight="volume")


def test_dense_equals_the_owner_map():
    tokens = mixed_tokens().samples(0, 2)
    expected = tokens.features[tokens.cells.owner_map()].movedim(-1, 2)
    assert torch.equal(tokens.dense(), expected)
    holes = tokens.select(torch.arange(len(tokens)) % 2 == 0)
    inside = holes.replace(features=torch.ones_like(holes.features)).dense()
    assert inside.sum() == holes.cells.volume.sum() * 8


def test_rows_must_be_those_of_the_cells():
    tokens = mixed_tokens().samples(0, 2)
    classes = torch.zeros(2, 8)
    with pytest.raises(ValueError, match="n = 84"):
        tokens.replace(features=torch.cat([classes, tokens.features]))
    with pytest.raises(ValueError, match="score has a row per token"):
        tokens.replace(payload={"score": torch.zeros(3)})
    with pytest.raises(ValueError, match="cond"):
        tokens.replace(cond=torch.zeros(3, 8))
    padded, _ = tokens.padded()
    for wrong in (padded.flatten(0, 1), padded[:, :-1], padded[:1]):
        with pytest.raises(ValueError, match=r"\(2, 42\)"):
            tokens.from_padded(wrong)


def test_decoders_refuse_cells_of_other_levels():
    tokens = mixed_tokens().samples(0, 2)
    other = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=8, min_size=1, max_size=8)
    for name in ("linear", "cross_attention", "hmlp"):
        knobs = {"heads": 2} if name == "cross_attention" else {}
        decoder = adaptok.create_decoder(name, other.spec, 1, **knobs)
        with pytest.raises(ValueError, match="built for cells of sizes"):
            decoder(tokens)


def test_payload_moves_with_the_tokens():
    payload = {"weight": torch.ones(84), "number": torch.arange(84)}
    tokens = mixed_tokens().samples(0, 2).replace(payload=payload)
    moved = tokens.to(torch.float64)
    assert moved.features.dtype == moved.payload["weight"].dtype == torch.float64
    assert moved.payload["number"].dtype == torch.int64
    assert not tokens.detach().features.requires_grad
    leaves, spec = pytree.tree_flatten(tokens)
    assert pytree.tree_unflatten(leaves, spec).payload.keys() == payload.keys()
    assert len(tokens) == 84
    assert repr(tokens).count("\n") == 0
    assert "weight (84,)" in repr(tokens)


@pytest.mark.parametrize("name", ["iap", "uniform", "ckm", "csm"])
def test_static_tokenizers_under_vmap(name):
    torch.manual_seed(0)
    knobs = {"budget": 64} if name == "iap" else {}
    tokenizer = adaptok.create_tokenizer(name, ndim=2, in_channels=2, dim=24, **knobs)
    x = torch.randn(3, 2, 32, 32)
    mapped = torch.func.vmap(lambda field: tokenizer(field[None, None]).features)(x)
    torch.testing.assert_close(mapped.flatten(0, 1), tokenizer(x[:, None]).features)


@pytest.mark.parametrize("name", ["iap", "uniform", "ckm", "csm"])
def test_surrogates_run_on_the_meta_device(name):
    model = adaptok.create_surrogate(
        ndim=2, in_channels=2, dim=24, depth=1, heads=2, tokenizer=name
    ).to("meta")
    assert model(torch.empty(2, 1, 2, 32, 32, device="meta")).shape == (2, 1, 2, 32, 32)


def test_gradients_go_through_a_rollout_that_asks_for_them():
    torch.manual_seed(0)
    model = adaptok.create_surrogate(
        ndim=1, in_channels=1, dim=8, depth=1, heads=2, tokenizer={"name": "uniform", "size": 4}
    ).double()
    x = torch.randn(1, 1, 1, 16, dtype=torch.float64, requires_grad=True)
    assert not model.rollout(x, 2).requires_grad
    out = model.rollout(x, 2, grad=True)
    (slope,) = torch.autograd.grad(out[:, -1].sum(), x)
    step = torch.zeros_like(x)
    step[..., 3] = 1e-6
    ends = [model.rollout(x.detach() + sign * step, 2)[:, -1].sum() for sign in (1, -1)]
    assert abs((ends[0] - ends[1]) / 2e-6 - slope[..., 3]) < 1e-5


# ---- batches of a loader


def test_collate_stacks_what_is_equal_and_lists_what_is_not():
    a, b, c = fields()
    tokens = mixed_tokens()
    parts = [tokens.samples(i, i + 1) for i in (0, 2)]
    samples = [
        {"field": a, "target": (a, b), "tokens": parts[0], "cells": parts[0].cells, "step": 1},
        {"field": c, "target": (b, c), "tokens": parts[1], "cells": parts[1].cells, "step": 2},
    ]
    batch = adaptok.collate(samples)
    assert isinstance(batch["field"], list)
    assert batch["field"][1] is c
    assert torch.equal(batch["target"][0], torch.stack([a, b]))
    assert [x.shape for x in batch["target"][1]] == [b.shape, c.shape]
    assert batch["tokens"].cells.shapes == (tokens.cells.shapes[0], tokens.cells.shapes[2])
    assert batch["cells"].lengths == (42, 38)
    assert batch["step"].tolist() == [1, 2]
    pair = collections.namedtuple("pair", "x y")
    assert adaptok.collate([pair(1, a), pair(2, c)]).x.tolist() == [1, 2]


def test_collate_refuses_what_is_no_batch():
    with pytest.raises(ValueError, match="no samples"):
        adaptok.collate([])
    with pytest.raises(ValueError, match="rank, dtype"):
        adaptok.collate([torch.zeros(2), torch.zeros(2, 2)])


def test_rollouts_of_lists_take_constants():
    torch.manual_seed(0)
    model = adaptok.create_surrogate(
        ndim=2,
        in_channels=2,
        dim=24,
        depth=1,
        heads=2,
        constant_channels=1,
        tokenizer={"name": "iap", "budget": 40, "max_size": 8},
    ).eval()
    fields = [torch.randn(1, 2, 20, 24), torch.randn(1, 2, 16, 32)]
    constants = [torch.rand(1, 20, 24), torch.rand(1, 16, 32)]
    made = model.rollout(fields, 2, constants=constants)
    for one, field, constant in zip(made, fields, constants, strict=True):
        alone = model.rollout(field[None], 2, constants=constant[None])[0]
        torch.testing.assert_close(one, alone)


@pytest.mark.parametrize("name", ["ckm", "csm"])
def test_cells_of_a_convolution_are_of_one_domain(name):
    tokenizer = adaptok.create_tokenizer(name, ndim=2, in_channels=1, dim=16)
    same = [torch.randn(1, 1, 32, 32)] * 2
    assert len(tokenizer(same).cells) == 2 * len(tokenizer(same[:1]).cells)
    with pytest.raises(ValueError, match="laid out over one domain, so that a list holds fields"):
        tokenizer([same[0], torch.randn(1, 1, 64, 32)])
    cells = [tokenizer.cells(same[0][None], patch_size=size) for size in (None, tokenizer.size)]
    assert torch.equal(cells[0].origin, cells[1].origin)


def test_attention_over_time_and_space_takes_samples_of_different_size():
    model = adaptok.create_surrogate(
        ndim=2,
        in_channels=1,
        history=2,
        dim=24,
        depth=1,
        heads=2,
        tokenizer={"name": "iap", "budget": 40, "max_size": 8, "per_frame": False},
        processor="spacetime_parallel",
    ).eval()
    fields = [torch.randn(2, 1, 20, 24), torch.randn(2, 1, 16, 32)]
    for one, field in zip(model(fields), fields, strict=True):
        torch.testing.assert_close(one, model(field[None])[0], rtol=1e-4, atol=1e-5)
