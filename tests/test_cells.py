"""Cells and Groups: invariants, grouping by bands, packings and their inverses, pytrees."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import adaptok
from adaptok.cells import Cells, Groups, nested, product
from adaptok.patches import point_owners


def refined(shape=(16, 24), budgets=(20, 45, 6), *, frames: int = 1) -> Cells:
    """A ragged batch of adaptive cells."""
    tokenizer = adaptok.create_tokenizer(
        "iap", ndim=len(shape), in_channels=1, dim=8, min_size=2, max_size=8
    )
    field = torch.rand(len(budgets), frames, 1, *shape)
    return tokenizer.cells(field, budget=[budget * frames for budget in budgets])


def changed(cells: Cells, **changes) -> Cells:
    """A copy that skips the constructor, so that it may be broken."""
    copy = object.__new__(Cells)
    for field in dataclasses.fields(Cells):
        object.__setattr__(copy, field.name, changes.get(field.name, getattr(cells, field.name)))
    return copy


def same(one: Cells, other: Cells) -> bool:
    tensors = ("origin", "size", "level", "cu_seqlens")
    static = ("max_seqlen", "lengths", "shape", "sizes", "tiling", "layout")
    return all(torch.equal(getattr(one, t), getattr(other, t)) for t in tensors) and all(
        getattr(one, s) == getattr(other, s) for s in static
    )


# ---- properties


def test_sample_center_and_volume():
    cells = refined()
    assert len(cells) == sum(cells.lengths)
    assert (cells.batch_size, cells.ndim, cells.device.type) == (3, 2, "cpu")
    expected = [i for i, length in enumerate(cells.lengths) for _ in range(length)]
    assert cells.sample.tolist() == expected
    for row in range(len(cells)):
        origin, size = cells.origin[row].tolist(), cells.size[row].tolist()
        centre = [o + s / 2 for o, s in zip(origin, size, strict=True)]
        assert cells.center[row].tolist() == centre
        assert int(cells.volume[row]) == math.prod(size)
    assert int(cells.volume.sum()) == 3 * 16 * 24


def test_cells_are_frozen_and_compare_by_identity():
    cells = refined()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cells.origin = cells.size  # type: ignore[misc]
    assert cells == cells
    assert cells != dataclasses.replace(cells)


def test_to_moves_and_never_changes_dtypes():
    cells = refined()
    for moved in (cells.to("cpu"), cells.to(torch.float16), cells.to(torch.empty(1))):
        assert same(moved, cells)
    elsewhere = cells.to("meta")
    assert elsewhere.origin.device.type == elsewhere.cu_seqlens.device.type == "meta"
    assert elsewhere.lengths == cells.lengths


def test_owner_map_names_the_covering_row():
    cells = refined((7, 10), (20, 20))
    owner = cells.owner_map()
    for row in range(len(cells)):
        (_, y, x), (_, h, w) = cells.origin[row].tolist(), cells.size[row].tolist()
        sample = int(cells.sample[row])
        assert bool((owner[sample, 0, y : y + h, x : x + w] == row).all())
    assert owner.shape == (2, 1, 7, 10)


# ---- validate: one test per invariant


def test_a_good_one_is_returned():
    cells = refined()
    assert cells.validate() is cells


def row_dropped(cells: Cells) -> dict:
    ends = cells.cu_seqlens.clone()
    ends[-1] -= 1
    lengths = (*cells.lengths[:-1], cells.lengths[-1] - 1)
    tensors = {name: getattr(cells, name)[:-1] for name in ("origin", "size", "level")}
    return {**tensors, "cu_seqlens": ends, "lengths": lengths}


BROKEN = {
    "time and space axes": lambda c: {"shape": c.shape[1:]},
    "shapes and sizes have time": lambda c: {"sizes": tuple(size[1:] for size in c.sizes)},
    "one row per token": lambda c: {"level": c.level[:-1]},
    "origin, size and level": lambda c: {"size": c.size[:-1]},
    "geometry is int32": lambda c: {"origin": c.origin.long()},
    "level int8": lambda c: {"level": c.level.long()},
    "starts at 0": lambda c: {"cu_seqlens": c.cu_seqlens + 1},
    "ends at n": lambda c: {"cu_seqlens": c.cu_seqlens.clamp(max=len(c) - 1)},
    "cu_seqlens is int32": lambda c: {"cu_seqlens": c.cu_seqlens.long()},
    "no negative length": lambda c: {
        "cu_seqlens": torch.tensor([0, 60, 50, len(c)], dtype=torch.int32)
    },
    "max_seqlen bounds": lambda c: {"max_seqlen": c.max_seqlen - 1},
    "lengths are the true ones": lambda c: {"lengths": c.lengths[::-1]},
    "sizes are at least 1": lambda c: {"size": c.size * (torch.arange(len(c)) > 0)[:, None]},
    "levels index sizes": lambda c: {"level": c.level + 2},
    "levels index": lambda c: {"level": c.level - 1},
    "integer ratios": lambda c: {"sizes": ((1, 8, 8), (1, 3, 3), (1, 2, 2))},
    "overlaps another cell": lambda c: {"origin": c.origin * (torch.arange(len(c)) > 1)[:, None]},
    "leave a hole": row_dropped,
    "at .* sticks out of": lambda c: {"origin": c.origin - 1, "on_grid": False},
    "larger than the size of its level": lambda c: {"size": c.size * 2},
    "on the grid of its level": lambda c: {"origin": c.origin + (c.level == 2)[:, None]},
}


@pytest.mark.parametrize("message", BROKEN)
def test_validate_finds_what_does_not_hold(message):
    cells = refined()
    broken = changed(cells, **BROKEN[message](cells))
    if broken.size.dtype != torch.int32:
        broken = changed(broken, size=broken.size.int(), origin=broken.origin.int())
    with pytest.raises(ValueError, match=message):
        broken.validate()


def test_overlap_is_allowed_where_it_is_no_tiling():
    cells = refined()
    shifted = changed(cells, origin=(cells.origin - 1).int(), tiling=False, on_grid=False)
    assert shifted.validate() is shifted


def test_an_upper_bound_is_enough_for_max_seqlen():
    cells = refined()
    dataclasses.replace(cells, max_seqlen=1000, lengths=None).validate()


def test_nested_and_product():
    assert nested([(1, 8, 6), (1, 4, 2), (1, 4, 1)])
    assert not nested([(8,), (8,)])
    assert not nested([(8,), (5,)])
    assert not nested([(4,), (8,)])
    assert nested([(3,)])
    assert product([]) == 1
    assert product([2, 3, 7]) == 42


# ---- groups


def brute_groups(cells: Cells, fixed, pitch=None, offset=None) -> set[frozenset[int]]:
    """Rows that share sample and bands, straight from the definition."""
    pitch = pitch or [cells.sizes[0][axis] for axis in fixed]
    offset = offset or [0] * len(fixed)
    out: dict[tuple, set[int]] = {}
    for row, (centre, sample) in enumerate(
        zip(cells.center.tolist(), cells.sample.tolist(), strict=True)
    ):
        bands = [(centre[a] - o) // p for a, p, o in zip(fixed, pitch, offset, strict=True)]
        out.setdefault((sample, *bands), set()).add(row)
    return {frozenset(rows) for rows in out.values()}


def groups_as_sets(groups: Groups, n: int) -> set[frozenset[int]]:
    order = list(range(n)) if groups.order is None else groups.order.tolist()
    ends = groups.cu_seqlens.tolist()
    parts = [order[s:e] for s, e in itertools.pairwise(ends)]
    assert sorted(row for part in parts for row in part) == list(range(n))  # each exactly once
    assert groups.max_seqlen >= max(map(len, parts))
    assert groups.lengths is None or list(groups.lengths) == [len(part) for part in parts]
    return {frozenset(part) for part in parts if part}


@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_each_row_is_in_one_group_per_axis_and_shares_its_band(data, ndim, frames, batch):
    longest = 30 if ndim < 3 else 14
    shape = tuple(data.draw(st.integers(4, longest)) for _ in range(ndim))
    finest = math.prod(-(-n // 2) for n in shape)
    budgets = tuple(random.randint(finest * 2 // 3, finest) for _ in range(batch))
    try:
        cells = refined(shape, budgets, frames=frames)
    except ValueError:  # below what this border needs
        cells = refined(shape, (finest,) * batch, frames=frames)
    fixed = tuple(data.draw(st.sets(st.integers(0, ndim))))
    assert groups_as_sets(cells.groups(fixed), len(cells)) == brute_groups(cells, fixed)
    pitch = [data.draw(st.integers(1, 9)) for _ in fixed]
    offset = [data.draw(st.sampled_from([0.0, 0.5, -3.0, -1.5])) for _ in fixed]
    groups = cells.groups(fixed, pitch=pitch or None, offset=offset or None)
    assert groups_as_sets(groups, len(cells)) == brute_groups(cells, fixed, pitch, offset)


def test_groups_of_a_uniform_tiling_are_rows_and_columns():
    cells = adaptok.create_tokenizer("uniform", ndim=2, in_channels=1, dim=8, size=4).cells(
        torch.rand(2, 1, 1, 8, 12)
    )
    rows = [[0, 1, 2], [3, 4, 5]]
    columns = [[0, 3], [1, 4], [2, 5]]
    for fixed, parts in (((1,), rows), ((2,), columns), ((1, 2), [[i] for i in range(6)])):
        groups = cells.groups(fixed)
        expected = [[r + 6 * sample for r in part] for sample in range(2) for part in parts]
        assert [list(part) for part in groups.order.split(groups.lengths)] == expected


def test_no_fixed_axis_means_one_group_per_sample():
    cells = refined()
    groups = cells.groups()
    assert groups.order is None
    assert groups.inverse is None
    assert groups.lengths == cells.lengths
    assert torch.equal(groups.cu_seqlens, cells.cu_seqlens)


def test_gather_and_scatter_are_inverses():
    cells = refined()
    x = torch.rand(len(cells), 2, 3)
    for groups in (cells.groups(), cells.groups((1,)), cells.groups((0, 2))):
        assert torch.equal(groups.scatter(groups.gather(x)), x)
        assert torch.equal(groups.gather(groups.scatter(x)), x)
        assert groups.packed.order is None
        assert torch.equal(groups.packed.cu_seqlens, groups.cu_seqlens)


def test_prefix_rows_lead_each_sample():
    cells, prefix = refined(), 2
    groups = cells.groups(prefix=prefix)
    assert groups.lengths == tuple(length + 2 for length in cells.lengths)
    assert groups.max_seqlen == cells.max_seqlen + 2
    special = [f"p{i}.{j}" for i in range(3) for j in range(2)]
    tokens = [f"t{i}.{j}" for i, length in enumerate(cells.lengths) for j in range(length)]
    names = special + tokens
    packed = [names[row] for row in groups.order.tolist()]
    expected = []
    for i, length in enumerate(cells.lengths):
        expected += [f"p{i}.0", f"p{i}.1"] + [f"t{i}.{j}" for j in range(length)]
    assert packed == expected
    rows = torch.rand(len(names), 3)
    assert torch.equal(groups.scatter(groups.gather(rows)), rows)
    assert groups.cu_seqlens.tolist()[-1] == len(names)
    assert groups.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("fixed", [(3,), (-1,), (1, 1), (0, 4)])
def test_axes_that_do_not_exist_are_refused(fixed):
    with pytest.raises(ValueError, match=r"fixed axes must be different numbers in 0\.\.2"):
        refined().groups(fixed)


def test_prefix_and_fixed_axes_do_not_mix():
    with pytest.raises(ValueError, match="prefix rows have no cell"):
        refined().groups((1,), prefix=1)


def test_filler_takes_the_bound_from_groups_whose_lengths_stay_on_the_device():
    cells = refined().to("meta")
    bound = cells.groups(fixed=(1, 2), pitch=(4, 4)).max_seqlen
    filled = dataclasses.replace(cells, bounded=False)
    assert bound < filled.groups(fixed=(1, 2), pitch=(4, 4)).max_seqlen == cells.max_seqlen
    assert not pytree.tree_map(lambda x: x, filled).bounded


# ---- pytree


def test_pytree_round_trip_keeps_everything():
    cells = dataclasses.replace(refined(), layout=("kernel", 3))
    leaves, spec = pytree.tree_flatten(cells)
    assert len(leaves) == 4
    assert same(pytree.tree_unflatten(leaves, spec), cells)
    again = pytree.tree_map(lambda x: x.clone(), {"cells": [cells]})["cells"][0]
    assert isinstance(again, Cells)
    assert same(again, cells)
    names = pytree.tree_map(lambda x: str(x.dtype), cells)  # leaves may become anything
    assert names.origin == "torch.int32"
    assert spec == pytree.tree_flatten(cells)[1]
    assert spec != pytree.tree_flatten(dataclasses.replace(cells, max_seqlen=999))[1]


@pytest.mark.parametrize("pitch", [0, -4])
def test_bands_have_a_width(pitch):
    with pytest.raises(ValueError, match="pitch of bands is above 0"):
        refined().groups(fixed=(1,), pitch=(pitch,))


def test_rows_that_came_twice_are_no_whole_grid():
    tokenizer = adaptok.create_tokenizer("ckm", ndim=1, in_channels=1, dim=24, size=4)
    cells = tokenizer.cells(torch.zeros(1, 2, 1, 16))
    again = cells.select(torch.tensor([0, 0, 0, 1, 2, 3, 4, 5]))  # 8 rows, as in the grid
    assert again.groups(fixed=(0,)).cu_seqlens.diff().tolist() == [6, 2]
    assert again.groups(fixed=(0,)).lengths in (None, (6, 2))
    owner = point_owners(again)
    points = torch.arange(16)
    for row in owner[0, 0].unique():
        if row >= 0:
            inside = points[owner[0, 0] == row]
            assert inside.min() >= again.origin[row, 1]
            assert inside.max() < again.origin[row, 1] + again.size[row, 1]
