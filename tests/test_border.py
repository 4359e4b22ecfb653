"""Cells that cross the border of a domain that does not divide and stay whole, against a field that
is continued by hand.
"""

from __future__ import annotations

import heapq
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import Forest, box_sum

import adaptok
from adaptok import INDICATORS, Cells, TokenSet, create_decoder, create_tokenizer
from adaptok.tokenizers.marking import BudgetMarking
from adaptok.tree import Tree, cells_from_splits, leaves, sum_pyramid

WALL, OPEN, PERIODIC = 0, 1, 2
DECODERS = ("linear", "cross_attention", "local", "boxes", "hmlp")
EMBEDDINGS = ("linear", "hmlp", "resize_zero", "boxes")
LONGEST = {1: 50, 2: 21, 3: 9}
SIZES = ((8, 8), (4, 4), (2, 2))


@st.composite
def domains(draw):
    """(shape, sizes): 1D to 3D, divisible or not, by halves or by quarters."""
    ndim = draw(st.integers(1, 3))
    sizes = draw(st.sampled_from([(8, 4, 2), (4, 2, 1), (8, 2)]))
    shape = draw(st.tuples(*[st.integers(1, LONGEST[ndim])] * ndim))
    return shape, tuple((size,) * ndim for size in sizes)


def continued(x: torch.Tensor, space: tuple[int, ...], codes: list[list[int]]) -> torch.Tensor:
    """One sample (t, c, *s) up to `space` points, by numpy and axis by axis."""
    values = x.numpy()
    for axis, (n, end, (_, code)) in enumerate(zip(x.shape[2:], space, codes, strict=True)):
        width = [(0, 0)] * values.ndim
        width[axis + 2] = (0, end - n)
        values = np.pad(values, width, mode="wrap" if code == PERIODIC else "edge")
    return torch.from_numpy(values)


def domain_of(cells: Cells) -> tuple[int, ...]:
    """The domain rounded up to whole coarsest cells."""
    pairs = zip(cells.shape[1:], cells.sizes[0][1:], strict=True)
    return tuple(math.ceil(n / size) * size for n, size in pairs)


def on_whole_domain(cells: Cells) -> Cells:
    """The same boxes as cells of a domain that divides."""
    shape = (cells.shape[0], *domain_of(cells))
    return cells.replace(shape=shape, overhang=False)


def touching(cells: Cells) -> torch.Tensor:
    """Rows with grid points inside the domain whose box ends at the border or beyond it."""
    ends = (cells.origin + cells.size)[:, 1:] >= torch.tensor(cells.shape[1:])
    return ends.any(1) & (cells.volume > 0)


# ---- cells


def heap_of(forest: Forest, score: np.ndarray, splits: int) -> set:
    """The nodes that a heap pops first; those that cross the border wait like others."""
    heap = [(-box_sum(score, forest.box(root)), root) for root in forest.roots()]
    heapq.heapify(heap)
    popped: set = set()
    while len(popped) < splits:
        _, node = heapq.heappop(heap)
        popped.add(node)
        if node[0] + 1 < forest.last:
            for child in forest.children(node):
                heapq.heappush(heap, (-box_sum(score, forest.box(child)), child))
    return popped


@settings(max_examples=15)
@given(domains(), st.floats(0, 1), st.booleans(), st.integers(0, 10**6))
def test_cells_are_those_of_a_heap_that_counts_children_inside(domain, fill, signed, seed):
    """And their number is that of a domain that divides, so it is known beforehand."""
    shape, sizes = domain
    score = np.random.default_rng(seed).integers(-9 * signed, 20, shape).astype(float)
    forest, tree = Forest(shape, sizes), Tree(shape, sizes, border="clip")
    roots, finest = len(list(forest.roots())), math.prod(-(-n // sizes[-1][0]) for n in shape)
    budget = roots + int(fill * (finest - roots))
    sums = sum_pyramid(torch.from_numpy(score)[None, None], tree)
    marks = BudgetMarking()(sums, tree, monotone=not signed, budget=budget)
    cells = cells_from_splits(marks.split, tree, frames=1, lengths=marks.lengths).validate()
    gain = math.prod(c // f for c, f in zip(*sizes[:2], strict=True)) - 1
    assert len(cells) == roots + gain * ((budget - roots) // gain) <= budget

    inside = cells.select(cells.volume > 0)
    rows = zip(inside.level.tolist(), inside.origin[:, 1:].tolist(), strict=True)
    ours = [(level, tuple(o // sizes[level][0] for o in origin)) for level, origin in rows]
    exist = leaves(marks.split, tree)  # also those beyond the border
    splits = int((exist.sum() - roots) // gain)
    assert ours == forest.leaves(heap_of(forest, score, splits))
    assert len(cells) <= exist.sum()


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize(
    "knobs",
    [
        {"name": "iap", "budget": 60},
        {"name": "iap", "budget": 60, "splits_per_step": 3},
        {"name": "iap", "budget": 60, "per_batch": True},
        {"name": "composed", "indicator": "variance", "marking": {"name": "budget", "budget": 60}},
        {"name": "composed", "marking": {"name": "fraction", "ratio": 0.6}},
        {"name": "composed", "marking": {"name": "fraction", "ratio": 1.0}},
        {"name": "composed", "marking": {"name": "random", "budget": 60}},
        {"name": "composed", "marking": {"name": "threshold", "budget": 50, "thresholds": 9.0}},
        {"name": "matey", "sizes": [2, 4, 8], "gamma": 0.7},
        {"name": "matey", "sizes": [2, 8], "mode": "add"},
        {"name": "apt", "border": "clip", "min_size": 2, "thresholds": [1.0, 3.0]},
    ],
    ids=str,
)
def test_every_marking_tiles_the_domain(knobs, per_frame):
    sizes = {} if knobs["name"] in ("matey", "apt") else {"min_size": 2, "max_size": 8}
    knobs = {**knobs, **sizes, "per_frame": per_frame}
    tokenizer = create_tokenizer(knobs, ndim=2, in_channels=1, dim=8)
    field = torch.randn(2, 2, 1, 13, 18).cumsum(-1)
    cells = tokenizer.cells(field).validate()
    assert cells.overhang
    assert cells.shape == (2, 13, 18)
    assert int(cells.volume.sum()) == field.numel() or knobs.get("mode") == "add"
    assert (cells.size[:, 1:] == torch.tensor(tokenizer.spec.sizes)[cells.level.long(), 1:]).all()
    beyond = int((cells.volume == 0).sum())
    if not tokenizer.static:
        assert beyond == 0
    elif knobs.get("marking", {}).get("name") != "fraction" and "splits_per_step" not in knobs:
        assert beyond < 3 * 2 * 2  # per frame and sample less than a split adds


@pytest.mark.parametrize("indicator", INDICATORS.names())
def test_scores_see_points_inside_the_domain_only(indicator):
    """So they are those of a tree that splits at the border, whose boxes are clipped."""
    wired = {"in_channels": 1, "sizes": tuple((1, *size) for size in SIZES)}
    score, field = INDICATORS.build(indicator, **wired), torch.rand(2, 1, 1, 13, 18) * 255
    given = (score(field, Tree((13, 18), SIZES, border=border)) for border in ("clip", "split"))
    assert torch.equal(*given)


def test_a_domain_that_divides_knows_no_border():
    field = torch.randn(2, 1, 1, 16, 32)
    clip, split = (
        create_tokenizer("iap", ndim=2, in_channels=1, dim=8, budget=30, border=border)
        for border in ("clip", "split")
    )
    split.load_state_dict(clip.state_dict())
    one, other = clip(field), split(field)
    assert torch.equal(one.features, other.features)
    assert not one.cells.overhang
    assert torch.equal(one.cells.origin, other.cells.origin)


def test_the_budget_is_not_spent_on_the_border():
    def cells(*shape: int, budget: int) -> Cells:
        axes = torch.meshgrid(*(torch.arange(n) / n for n in shape), indexing="ij")
        bump = torch.exp(-sum((x - 0.4).square() for x in axes) / 0.005)
        tokenizer = create_tokenizer("iap", ndim=len(shape), in_channels=1, dim=8)
        return tokenizer.cells(bump[None, None], budget=budget).validate()

    for shape, budget in (((45, 70), 120), ((130, 130), 120)):
        own = cells(*shape, budget=budget)
        small = touching(own) & (own.level >= 2)
        assert len(own) > 0.95 * budget
        assert small.sum() <= 0.2 * len(own)
    assert len(cells(20, 24, 17, budget=30)) <= 30


def test_an_unknown_border_is_refused():
    with pytest.raises(ValueError, match="border"):
        create_tokenizer("iap", ndim=2, in_channels=1, dim=8, border="cut")


# ---- features and fields


@settings(max_examples=8)
@given(domains(), st.lists(st.sampled_from((WALL, OPEN, PERIODIC)), min_size=6), st.integers(0, 99))
def test_features_and_fields_equal_those_of_the_continued_domain(domain, codes, seed):
    shape, sizes = domain
    torch.manual_seed(seed)
    boundary = torch.tensor(codes[:6]).view(2, 3, 1).expand(-1, -1, 2)[:, : len(shape)]
    ends = {"min_size": sizes[-1][0], "max_size": sizes[0][0]}
    ndim, field = len(shape), torch.randn(2, 1, 2, *shape, dtype=torch.float64)
    tokenizer = create_tokenizer("iap", ndim=ndim, in_channels=2, dim=8, **ends).double()
    count = math.prod(-(-n // sizes[0][0]) for n in shape)
    tokens = tokenizer(field, boundary=boundary, budget=[count, count + 9])
    cells, space = tokens.cells, domain_of(tokens.cells)
    pairs = zip(field, boundary.tolist(), strict=True)
    whole = torch.stack([continued(x, space, own) for x, own in pairs])
    for row in range(len(cells)):
        level, sample = int(cells.level[row]), int(cells.sample[row])
        first, size = cells.origin[row, 1:].tolist(), tokenizer.spec.sizes[level][1:]
        cut = (slice(o, o + p) for o, p in zip(first, size, strict=True))
        linear = tokenizer.embedding.levels[level]
        expected = linear(whole[(sample, 0, slice(None), *cut)].flatten())
        torch.testing.assert_close(tokens.features[row], expected)
    decoder = create_decoder("linear", tokenizer.spec, 3).double()
    painted = decoder(tokens.replace(cells=on_whole_domain(cells)))
    assert torch.equal(decoder(tokens), painted[(..., *map(slice, shape))])


@pytest.mark.parametrize("shape", [(21,), (13, 18), (9, 5, 6)])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_every_embedding_sees_the_continued_field(embedding, shape):
    knobs = {"ndim": len(shape), "in_channels": 1, "dim": 8, "min_size": 2, "max_size": 8}
    marking = {"name": "budget", "budget": 30}
    tokenizer = create_tokenizer("composed", **knobs, marking=marking, embedding=embedding)
    field = torch.randn(2, 1, 1, *shape)
    codes = [[PERIODIC, PERIODIC], [WALL, OPEN], [OPEN, WALL]][: len(shape)]
    cells = tokenizer.cells(field)
    whole = torch.stack([continued(x, domain_of(cells), codes) for x in field])
    tokens = tokenizer.embed(field, cells, boundary=torch.tensor(codes))
    assert tokens.cells is cells
    assert torch.equal(tokens.features, tokenizer.embed(whole, on_whole_domain(cells)).features)


@pytest.mark.parametrize("shape", [(21,), (13, 18), (9, 5, 6)])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_paints_the_domain_alone(decoder, shape):
    knobs = {"ndim": len(shape), "in_channels": 1, "dim": 12, "min_size": 2, "max_size": 8}
    tokenizer = create_tokenizer("iap", **knobs, budget=30)
    heads = {"heads": 1} if decoder in ("cross_attention", "local") else {}
    decode = create_decoder(decoder, tokenizer.spec, 2, **heads)
    cells = tokenizer.cells(torch.randn(2, 1, 1, *shape))
    tokens = TokenSet(torch.randn(len(cells), 12), cells)
    painted = decode(tokens)
    assert painted.shape == (2, 1, 2, *shape)
    whole = decode(tokens.replace(cells=on_whole_domain(cells)))
    assert torch.equal(painted, whole[(..., *map(slice, shape))])


def test_dense_and_owners_are_those_inside_the_domain():
    tokenizer = create_tokenizer("iap", ndim=2, in_channels=1, dim=8, budget=30)
    tokens = tokenizer(torch.randn(2, 1, 1, 13, 18))
    owner = tokens.cells.owner_map()
    assert owner.shape == (2, 1, 13, 18)
    assert torch.equal(tokens.dense(), tokens.features[owner].movedim(-1, 2))
    counts = torch.bincount(owner.flatten(), minlength=len(tokens))
    assert torch.equal(tokens.cells.volume, counts)


# ---- models


def surrogate(**changes) -> adaptok.Surrogate:
    make = {"ndim": 2, "in_channels": 1, "dim": 24, "depth": 1, "heads": 2, "tokenizer": "iap"}
    make["tokenizer"] = {"name": "iap", "budget": 40, "max_size": 8}
    return adaptok.create_surrogate(**make | changes)


@pytest.mark.parametrize("processor", ["vit", "axial"])
def test_a_batch_and_a_list_equal_their_samples(processor):
    model = surrogate(processor=processor).eval()
    a, b, c = torch.randn(1, 1, 13, 18), torch.randn(1, 1, 13, 18), torch.randn(1, 1, 16, 24)
    alone = [model(x[None])[0] for x in (a, b, c)]
    torch.testing.assert_close(model(torch.stack([a, b])), torch.stack(alone[:2]))
    for one, other in zip(model([a, b, c]), alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_models_of_before_the_knob_still_split(tmp_path):
    model, field = surrogate(tokenizer={"name": "iap", "budget": 90}), torch.randn(1, 1, 1, 13, 18)
    assert model.config["tokenizer"]["border"] == "clip"
    adaptok.save_pretrained(model, tmp_path)
    assert torch.equal(adaptok.from_pretrained(tmp_path)(field), model.eval()(field))
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for old in ({"name": "iap", "budget": 90}, "iap"):
        file.write_text(json.dumps(config | {"tokenizer": old}))
        assert adaptok.from_pretrained(tmp_path).tokenizer.border == "split"


def test_clipped_and_whole_cells_do_not_share_a_batch():
    clip, split = (
        create_tokenizer("iap", ndim=2, in_channels=1, dim=8, border=border).cells(
            torch.randn(1, 1, 1, 13, 18), budget=60
        )
        for border in ("clip", "split")
    )
    with pytest.raises(ValueError, match="clipped at the border"):
        Cells.cat([clip, split])


def test_a_model_learns_a_field_that_does_not_divide():
    torch.manual_seed(0)
    model = surrogate()
    field = torch.randn(2, 1, 1, 13, 18).cumsum(-1).cumsum(-2) / 10
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = (model(field) - field.roll(1, -1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["linear", "local", "boxes"])
def test_a_compiled_model_equals_itself(decoder):
    model = surrogate(decoder=decoder).eval()
    field = torch.randn(2, 1, 1, 13, 18)
    boundary = torch.tensor([[PERIODIC, PERIODIC], [WALL, OPEN]])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(field, boundary=boundary), model(field, boundary=boundary))


@given(st.integers(3, 30), st.integers(3, 30), st.sampled_from([(1,), (2,), (0, 1)]))
@settings(max_examples=10)
def test_groups_keep_their_bound(height, width, fixed):
    tokenizer = create_tokenizer("iap", ndim=2, in_channels=1, dim=8, max_size=8)
    cells = tokenizer.cells(torch.randn(1, 1, 1, height, width), budget=60)
    groups = cells.groups(fixed=fixed)
    longest = int(groups.cu_seqlens.diff().max())
    pitch = [cells.sizes[0][axis] for axis in fixed]
    assert longest <= cells._most(fixed, pitch, [0] * len(fixed), by_level=False)
