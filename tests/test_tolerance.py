"""Tilings to a tolerance, against errors computed from the painted cells, and against a heap."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import Forest, boxes, pop_order
from test_near_best import modified_errors, node_errors, residual, smooth

import adaptok
from adaptok.testing.inputs import random_errors
from adaptok.tokenizers.marking import ToleranceMarking
from adaptok.tree import Tree


def true_error(x: np.ndarray, cells, sample: int, degree: int) -> float:
    """Least squares on every cell of one sample (t, c, *s), from the cells alone."""
    start, end = cells.cu_seqlens[sample : sample + 2].tolist()
    left = 0.0
    rows = (x[start:end].tolist() for x in (cells.origin, cells.size))
    for origin, size in zip(*rows, strict=True):
        box = tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))
        values = x[(box[0], slice(None), *box[1:])].swapaxes(0, 1)
        left += residual(values, degree) if values.size else 0.0
    mean = x.mean((0, *range(2, x.ndim)), keepdims=True)
    return math.sqrt(left / ((x - mean) ** 2).sum())


def pieces(batch: int, t: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Piecewise constant on blocks of four, and rough in one corner."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, t, 2, *(-(-n // 4) for n in shape), generator=generator)
    field = coarse
    for axis, n in enumerate(shape):
        field = field.repeat_interleave(4, axis + 3).narrow(axis + 3, 0, n)
    corner = (..., *(slice(0, n // 3) for n in shape))
    field = field.clone()
    field[corner] += torch.randn(field[corner].shape, generator=generator)
    return field


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([(37,), (16, 24), (21, 18), (8, 9, 12)]),
    st.sampled_from([0.02, 0.05, 0.3]),
    st.integers(0, 1),
    st.booleans(),
    st.sampled_from(["clip", "split"]),
    st.integers(0, 1000),
)
def test_the_true_error_of_every_sample_meets_the_tolerance(
    shape, tolerance, degree, per_frame, border, seed
):
    """The finest cells are points, so that they reach any tolerance."""
    tokenizer = adaptok.create_tokenizer(
        "near_best", ndim=len(shape), in_channels=2, dim=4, min_size=1, max_size=8,
        tolerance=tolerance, degree=degree, per_frame=per_frame, border=border,
    )  # fmt: skip
    field = pieces(2, 2, shape, seed)
    cells = tokenizer.cells(field).validate()
    found = tokenizer.certificate(field)
    for sample, x in enumerate(field.double().numpy()):
        true = true_error(x, cells, sample, degree)
        assert true <= tolerance
        if per_frame:  # the certificate is that of the worst frame, relative to that frame
            assert true <= float(found[sample]) + 1e-6
            assert found[sample] <= tolerance
        else:
            assert float(found[sample]) == pytest.approx(true, rel=1e-4, abs=1e-7)


def test_cells_are_those_of_a_heap_that_stops_at_the_tolerance():
    sizes, shape = ((8, 8), (4, 4), (2, 2), (1, 1)), (16, 24)
    forest = Forest(shape, sizes)
    field = smooth(2, 1, 1, *shape)
    tokenizer = adaptok.create_tokenizer(
        "near_best", ndim=2, in_channels=1, dim=4, min_size=1, max_size=8, degree=1
    )
    for tolerance in (0.3, 0.05):
        cells = tokenizer.cells(field, tolerance=tolerance)
        for sample, x in enumerate(field.numpy()):
            errors = node_errors(x, forest, 1)
            order = pop_order(forest, modified_errors(errors, forest).__getitem__)
            split: set = set()
            while sum(errors[leaf] for leaf in forest.leaves(split)) > tolerance**2:
                split.add(order[len(split)])
            assert boxes(cells, sample) == [forest.box(leaf) for leaf in forest.leaves(split)]


@pytest.mark.parametrize("indicator", ["gradient", "variance"])
def test_any_indicator_may_give_the_order(indicator):
    tokenizer = adaptok.create_tokenizer(
        "composed", ndim=2, in_channels=2, dim=4, min_size=1, max_size=8, indicator=indicator,
        marking={"name": "tolerance", "tolerance": 0.1},
    )  # fmt: skip
    field = pieces(2, 1, (16, 24), 3)
    cells = tokenizer.cells(field)
    best = adaptok.create_tokenizer(
        "near_best", ndim=2, in_channels=2, dim=4, min_size=1, max_size=8, tolerance=0.1
    ).cells(field)
    for sample, x in enumerate(field.double().numpy()):
        assert true_error(x, cells, sample, 0) <= 0.1
    assert len(best) < len(cells)


def test_a_budget_caps_a_tolerance_and_alone_is_exact():
    make = {"ndim": 2, "in_channels": 1, "dim": 4}
    field = torch.randn(2, 1, 1, 32, 32)
    both = adaptok.create_tokenizer("near_best", **make, tolerance=0.5, budget=40)
    assert both.cells(field).lengths == (40, 40)
    assert both.cells(torch.ones_like(field)).lengths == (4, 4)
    assert (both.certificate(field) > 0.5).all()
    alone = adaptok.create_tokenizer("near_best", **make, budget=40)
    assert alone.static
    open_ended = adaptok.create_tokenizer("near_best", **make)
    assert not open_ended.static
    for cells in (alone.cells(field), open_ended.cells(field, budget=40)):
        assert boxes(cells) == boxes(both.cells(field))
    assert open_ended.cells(field[..., :1].expand_as(field), tolerance=1.0).lengths[0] == 4
    assert adaptok.at_budget(open_ended, 40, field) == {"budget": 40}
    assert open_ended.cells(field, budget=[40, 70]).lengths == (40, 70)


def test_what_the_finest_cells_do_not_reach_warns_once_and_is_certified():
    tokenizer = adaptok.create_tokenizer("near_best", ndim=2, in_channels=1, dim=4)
    field = torch.randn(2, 1, 1, 32, 32)
    field[:, :, :, :16] = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            cells = tokenizer.cells(field)
    assert [str(w.message)[:56] for w in caught] == [
        "cells of (2, 2) do not meet the tolerance 0.05 in some s"
    ]
    found = tokenizer.certificate(field)
    wanted = [true_error(x, cells, i, 0) for i, x in enumerate(field.double().numpy())]
    assert min(wanted) > 0.05
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4)
    assert cells.lengths == (2 + 128,) * 2  # what does not vary stays whole


def test_a_certificate_of_any_tree_tokenizer():
    field = smooth(3, 2, 2, 32, 32, dtype=torch.float32)
    for name, knobs in {
        "iap": {"budget": 80},
        "matey": {"sizes": (4, 16), "ignore": [0]},
        "apt": {"per_frame": False},
    }.items():
        tokenizer = adaptok.create_tokenizer(name, ndim=2, in_channels=2, dim=4, **knobs)
        seen = field[:, :, 1:] if name == "matey" else field
        cells, found = tokenizer.cells(field), tokenizer.certificate(field)
        wanted = [true_error(x, cells, i, 0) for i, x in enumerate(seen.double().numpy())]
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4)
    added = adaptok.create_tokenizer("matey", ndim=2, in_channels=2, dim=4, mode="add")
    same = adaptok.create_tokenizer("matey", ndim=2, in_channels=2, dim=4)
    assert torch.equal(added.certificate(field), same.certificate(field))
    finer, coarser = (tokenizer.certificate(field, thresholds=t) for t in (0.0, 99.0))
    assert (finer < coarser).all()
    listed = tokenizer.certificate([x[:, :, :n] for x, n in zip(field, (16, 32, 32), strict=True)])
    assert torch.equal(listed[1:], found[1:])
    assert tokenizer.certificate(torch.ones_like(field)).eq(0).all()


def test_what_makes_no_sense_is_refused():
    make = {"ndim": 2, "in_channels": 1, "dim": 4}
    for bad in (0.0, -0.1, 1.5, math.nan, "small"):
        with pytest.raises(ValueError, match="tolerance must be a number"):
            adaptok.create_tokenizer("near_best", **make, tolerance=bad)
    tokenizer = adaptok.create_tokenizer("near_best", **make)
    with pytest.raises(ValueError, match="tolerance must be a number"):
        tokenizer.cells(torch.randn(1, 1, 1, 32, 32), tolerance=0)
    tree = Tree((16, 16), ((8, 8), (4, 4)))
    with pytest.raises(ValueError, match="needs the errors of the nodes"):
        ToleranceMarking()(torch.rand(1, 1, tree.inner), tree)
    one = Tree((16, 16), ((4, 4),))
    marks = ToleranceMarking()(torch.rand(3, 1, 0), one, errors=random_errors(one))
    assert marks.split.shape == (3, 1, 0)
