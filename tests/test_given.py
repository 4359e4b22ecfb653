"""Given refinement: levels, boxes, plotfiles; read, cut into cells and written back."""

from __future__ import annotations

import itertools
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given as draw
from hypothesis import settings
from hypothesis import strategies as st

import adaptok
from adaptok.cells import Boxes, boxes_of, load_boxes, read_patches, save_boxes, yt_grids


def make(ndim=2, **knobs):
    torch.manual_seed(0)
    return adaptok.create_tokenizer("given", ndim=ndim, in_channels=1, dim=8, **knobs)


def field_of(*space, batch=2, frames=1):
    return torch.randn(batch, frames, 1, *space)


def cells_by_hand(levels, sizes):
    """The boxes of a tree over one map of levels, by recursion."""
    found = set()

    def visit(start, level):
        size = sizes[level]
        box = tuple(slice(o, o + s) for o, s in zip(start, size, strict=True))
        if level < len(sizes) - 1 and levels[box].numel() and int(levels[box].max()) > level:
            below = sizes[level + 1]
            axes = (range(o, o + s, b) for o, s, b in zip(start, size, below, strict=True))
            for child in itertools.product(*axes):
                if all(c < n for c, n in zip(child, levels.shape, strict=True)):
                    visit(child, level + 1)
        else:
            found.add((start, size))

    axes = (range(0, n, s) for n, s in zip(levels.shape, sizes[0], strict=True))
    for start in itertools.product(*axes):
        visit(start, 0)
    return found


@draw(
    space=st.sampled_from([(16,), (21,), (16, 24), (13, 18), (8, 16, 8), (9, 8, 5)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_levels_split_the_cells_around_them(space, seed):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 4, (2, *space), generator=generator)
    levels *= torch.rand(2, *space, generator=generator) < 0.02
    tokenizer = make(len(space), min_size=2, max_size=8)
    cells = tokenizer.cells(field_of(*space), levels=levels).validate()
    sizes = [size[1:] for size in tokenizer.spec.sizes]
    for sample in range(2):
        own = cells.samples(sample, sample + 1)
        boxes = zip(own.origin[:, 1:].tolist(), own.size[:, 1:].tolist(), strict=True)
        found = {(tuple(origin), tuple(size)) for origin, size in boxes}
        assert found == cells_by_hand(levels[sample], sizes)


def test_levels_of_frames_and_of_a_channel():
    levels = torch.zeros(2, 4, 16, 16)
    levels[0, 1, 3, 3] = 2
    tokenizer = make(min_size=2, max_size=8, frame_size=2)
    cells = tokenizer.cells(field_of(16, 16, frames=4), levels=levels)
    assert cells.validate().lengths == (4 + 4 + 3 + 3, 8)
    assert make(min_size=2, max_size=8).cells(field_of(16, 16), levels=levels[0, 1]).lengths == (
        10,
        10,
    )
    by_channel = make(min_size=2, max_size=8, frame_size=2, channel=-1)
    both = torch.cat([field_of(16, 16, frames=4), levels[:, :, None]], 2)
    assert torch.equal(by_channel.cells(both).origin, cells.origin)
    with pytest.raises(ValueError, match=r"channel -1 of the field has .*normalised"):
        by_channel.cells(both + 0.5)
    with pytest.raises(ValueError, match="channel 7: the field has 2 channels"):
        make(channel=7).cells(both)


def test_a_surrogate_reads_levels_from_its_constants():
    levels = torch.zeros(2, 1, 16, 16)
    levels[1, 0, 9, 2] = 3
    tokenizer = {"name": "given", "channel": -1, "min_size": 2, "max_size": 8}
    shared = {"dim": 12, "depth": 1, "heads": 1, "score_on": "raw", "constant_channels": 1}
    model = adaptok.create_surrogate(ndim=2, in_channels=1, tokenizer=tokenizer, **shared)
    assert model.cells(field_of(16, 16), constants=levels).lengths == (4, 10)
    assert torch.isfinite(model(field_of(16, 16), constants=levels)).all()
    own = adaptok.create_surrogate(
        ndim=2, in_channels=1, tokenizer="given", dim=12, depth=1, heads=1
    )
    listed = [field_of(32, 32)[0], field_of(16, 32)[0]]
    out = own(listed, levels=[torch.ones(32, 32), torch.zeros(16, 32)])
    assert [x.shape[-2:] for x in out] == [(32, 32), (16, 32)]


ORIGIN = [[0, 0], [0, 8], [8, 0], [8, 8], [8, 12], [12, 8], [12, 12]]
SIZE = [[8, 8]] * 3 + [[4, 4]] * 4


def test_boxes_of_all_samples_and_of_each():
    fixed = make(boxes=[ORIGIN, SIZE])
    assert fixed.spec.sizes == ((1, 8, 8), (1, 4, 4))
    field = field_of(16, 16, frames=2)
    cells = fixed.cells(field)
    assert cells.validate().lengths == (14, 14)
    assert cells.tiling
    assert cells.on_grid
    per_call = make(min_size=4, max_size=8)
    coarse = Boxes(list(itertools.product((0, 8), (0, 8))), [[8, 8]] * 4)
    fine = Boxes(torch.tensor(ORIGIN), torch.tensor(SIZE))
    assert torch.equal(per_call.cells(field, boxes=fine).origin, cells.origin)
    both = per_call.cells(field, boxes=[coarse, fine])
    assert both.validate().lengths == (8, 14)
    expected = cells.samples(1, 2)
    assert torch.equal(both.samples(1, 2).size, expected.size)
    again = pickle.loads(pickle.dumps(fixed))
    assert torch.equal(again(field).features, fixed(field).features)


@pytest.mark.parametrize(
    ("boxes", "knobs", "message"),
    [
        (([[0, 0], [0, 4]], [[8, 8], [8, 8]]), {}, "no tiling.*overlaps another cell"),
        (([[0, 0]], [[8, 8]]), {}, "no tiling.*leave a hole"),
        (([[0, 0], [0, 8]], [[16, 8], [16, 8]]), {"min_size": 8, "max_size": 8}, "larger than"),
        (([[0, 0], [0, 6]], [[16, 6], [16, 10]]), {"min_size": 4, "max_size": 16}, "on_grid=False"),
        (([[0]], [[16]]), {}, "an origin and a size of 2 number"),
        (([[0.5, 0]], [[16, 16]]), {}, "boxes are rows of whole numbers"),
        (([[0, 0], [1]], [[16, 16]]), {}, "boxes are rows of whole numbers"),
        (("abc", [[16, 16]]), {}, "boxes are rows of whole numbers"),
    ],
)
def test_boxes_that_do_not_suit_are_named(boxes, knobs, message):
    tokenizer = make(**({"min_size": 4, "max_size": 16} | knobs))
    with pytest.raises(ValueError, match=message):
        tokenizer.cells(field_of(16, 16), boxes=Boxes(*boxes))


def test_boxes_that_are_no_tiling_if_they_may():
    knobs = {"min_size": 4, "max_size": 16, "tiling": False, "on_grid": False}
    tokenizer = make(**knobs, embedding="boxes")
    cells = tokenizer.cells(field_of(16, 16), boxes=Boxes([[0, 0], [0, 6]], [[16, 8], [5, 10]]))
    assert not cells.tiling
    model = adaptok.Surrogate(tokenizer, decoder="boxes", dim=8, depth=1, heads=1)
    out = model(field_of(16, 16), boxes=Boxes([[0, 0], [0, 6]], [[16, 8], [5, 10]]))
    assert torch.isfinite(out).all()
    with pytest.raises(ValueError, match="decodes cells on the grids"):
        adaptok.create_decoder("hmlp", tokenizer.spec, 1)


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"levels": torch.zeros(16, 16), "boxes": Boxes(ORIGIN, SIZE)}, "not both"),
        ({"levels": torch.zeros(16, 8)}, r"levels of a field of .* got \(16, 8\)"),
        ({"levels": torch.zeros(3, 16, 16)}, r"got \(3, 16, 16\)"),
        ({"levels": torch.full((16, 16), -1)}, "levels are whole numbers of at least 0"),
        ({"levels": torch.full((16, 16), torch.nan)}, "levels are whole numbers of at least 0"),
        ({"levels": "fine"}, "one per sample of one shape, got 'fine'"),
        ({"boxes": [Boxes(ORIGIN, SIZE)] * 3}, r"3 boxes for 2 sample\(s\)"),
        ({"boxes": [ORIGIN, SIZE]}, "boxes are `Boxes`, or a list of one per sample"),
    ],
)
def test_controls_that_make_no_sense(control, message):
    with pytest.raises(ValueError, match=message):
        make(min_size=4, max_size=8).cells(field_of(16, 16), **control)


def test_knobs_that_make_no_sense(tmp_path):
    with pytest.raises(ValueError, match="give one of refinement, boxes, channel"):
        make(channel=0, boxes=[ORIGIN, SIZE])
    with pytest.raises(ValueError, match="a list of origins and a list of as many sizes"):
        make(boxes=[ORIGIN, SIZE[1:]])
    for name, what in (("a.npy", "has no field of levels"), ("a.npz", "has no boxes")):
        with pytest.raises(ValueError, match=what):
            make(refinement=str(tmp_path / name))
    np.save(tmp_path / "b.npy", np.zeros((4, 4, 4)))
    with pytest.raises(ValueError, match="levels of a 2D domain have 2 axes"):
        make(refinement=str(tmp_path / "b.npy"))


def test_nothing_given_is_the_coarsest_and_says_so():
    with pytest.warns(UserWarning, match="nothing is given: all cells are the coarsest"):
        cells = make(min_size=2, max_size=8).cells(field_of(16, 24))
    assert cells.validate().lengths == (6, 6)


def test_cells_are_written_as_boxes_and_read_again(tmp_path):
    iap = adaptok.create_tokenizer("iap", ndim=2, in_channels=1, dim=8, max_size=8, budget=40)
    cells = iap.cells(field_of(13, 18))
    save_boxes(tmp_path / "cells.npz", cells)
    again = load_boxes(tmp_path / "cells.npz")
    assert again.tiling
    assert (again.shapes, again.sizes) == (cells.shapes, cells.sizes)
    for sample in range(2):
        for one, other in zip(
            boxes_of(cells, sample)[:2], boxes_of(again, sample)[:2], strict=True
        ):
            assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"boxes of 2 sample\(s\), which are not those of one"):
        make(refinement=str(tmp_path / "cells.npz"))
    save_boxes(tmp_path / "one.npz", cells.samples(0, 1))
    fixed = make(refinement=str(tmp_path / "one.npz"))
    assert fixed.cells(field_of(13, 18)).lengths == (len(boxes_of(cells).origin),) * 2


def test_levels_of_another_resolution(tmp_path):
    levels = torch.zeros(16, 16, dtype=torch.int64)
    levels[5, 5] = 1
    np.save(tmp_path / "levels.npy", levels.numpy())
    fixed = make(refinement=str(tmp_path / "levels.npy"), min_size=2, max_size=4)
    fine = make(min_size=2, max_size=4)
    for space, same in (((16, 16), levels), ((32, 32), levels.repeat_interleave(2, 0))):
        same = same.repeat_interleave(space[1] // 16, 1)
        expected = fine.cells(field_of(*space), levels=same)
        assert torch.equal(fixed.cells(field_of(*space)).origin, expected.origin)
    assert fixed.cells(field_of(8, 8)).lengths == (4 + 3,) * 2
    with pytest.raises(ValueError, match="do not fit a domain"):
        fixed.cells(field_of(24, 16))


# ---- AMR codes; a stand-in with the attributes of yt's data sets


def dataset(grids, dimensions, factor=2, ndim=2, low=0.5, width=2.0):
    """What read_patches asks of a data set of yt: grids are (level, origin, size) in their mesh."""
    level, origin, size = (np.array(x) for x in zip(*grids, strict=True))
    three = [*dimensions, 1, 1][:3]
    scale = width / np.array(dimensions) / factor ** level[:, None]
    left = np.full((len(grids), 3), low)
    left[:, :ndim] += origin * scale
    dims = np.ones((len(grids), 3), dtype=np.int32)
    dims[:, :ndim] = size
    index = types.SimpleNamespace(
        grid_left_edge=left, grid_levels=level[:, None], grid_dimensions=dims
    )
    return types.SimpleNamespace(
        index=index,
        dimensionality=ndim,
        refine_by=factor,
        domain_dimensions=np.array(three),
        domain_left_edge=np.full(3, low),
        domain_right_edge=np.full(3, low + width),
    )


GRIDS = [(0, (0, 0), (4, 4)), (0, (0, 4), (4, 4)), (1, (0, 8), (8, 4)), (1, (0, 12), (8, 4))]


def test_patches_of_a_data_set():
    patches = read_patches(dataset(GRIDS, (4, 8)))
    assert patches.shape == (8, 16)
    levels = patches.levels()
    assert levels.shape == (8, 16)
    assert (levels[:, :8] == 0).all()
    assert (levels[:, 8:] == 1).all()
    leaves = patches.leaves()  # the second coarse patch is refined all over
    assert leaves.origin.tolist() == [[0, 0], [0, 8], [0, 12]]
    assert leaves.size.tolist() == [[8, 8], [8, 4], [8, 4]]
    cells = make(min_size=4, max_size=8, on_grid=False).cells(field_of(8, 16), boxes=leaves)
    assert cells.validate().tiling
    partly = read_patches(dataset([*GRIDS[:2], (1, (0, 8), (4, 4))], (4, 8)))
    with pytest.raises(ValueError, match="overlaps another cell"):
        make(min_size=4, max_size=8).cells(field_of(8, 16), boxes=partly.leaves())
    by_level = make(min_size=4, max_size=8).cells(field_of(8, 16), levels=partly.levels())
    assert by_level.lengths == (5, 5)


def test_a_refinement_by_four_is_two_halvings():
    patches = read_patches(dataset([(0, (0,), (4,)), (1, (4,), (4,))], (4,), factor=4, ndim=1))
    assert patches.levels().tolist() == [0] * 4 + [2] * 4 + [0] * 8
    with pytest.raises(ValueError, match="refines by 3"):
        read_patches(dataset([(0, (0,), (4,))], (4,), factor=3, ndim=1))
    with pytest.raises(ValueError, match="begins at point"):
        read_patches(dataset([(0, (0.5,), (4,))], (4,), ndim=1))
    octree = types.SimpleNamespace(index=types.SimpleNamespace(), dimensionality=3)
    with pytest.raises(ValueError, match="has no patches"):
        read_patches(octree)


def test_a_plotfile_needs_yt(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yt", None)
    with pytest.raises(
        ValueError, match=r"yt, which is not installed: pip install 'adaptok\[amr\]'"
    ):
        make(refinement=str(tmp_path / "plt00010"))
    loaded = types.SimpleNamespace(load=lambda path: dataset(GRIDS, (4, 8)))
    monkeypatch.setitem(sys.modules, "yt", loaded)
    with pytest.raises(ValueError, match="there is no plotfile"):
        make(refinement=str(tmp_path / "plt00010"))
    (tmp_path / "plt00010").mkdir()
    tokenizer = make(refinement=str(tmp_path / "plt00010"))
    assert tokenizer.spec.sizes == ((1, 4, 4), (1, 2, 2))
    assert tokenizer.cells(field_of(8, 16)).lengths == (4 + 16,) * 2


def test_grids_for_yt_hold_the_means_and_all_ancestors():
    tokenizer = make(min_size=2, max_size=8)
    levels = torch.zeros(8, 16)
    levels[1, 2] = 2
    cells = tokenizer.cells(field_of(8, 16, batch=1), levels=levels)
    values = torch.arange(128.0).view(8, 16)
    grids, dimensions = yt_grids(cells, {"density": values})
    assert dimensions == [2, 4, 1]
    assert [grid["level"] for grid in grids] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    read = read_patches(
        dataset(
            [
                (g["level"], [e * 2 ** g["level"] // 4 for e in g["left_edge"][:2]], (2, 2))
                for g in grids
            ],
            (2, 4),
            low=0.0,
        )
    )
    assert read.levels().amax() == 2
    again = tokenizer.cells(field_of(8, 16, batch=1), levels=read.levels())
    assert torch.equal(again.origin, cells.origin)
    for grid in grids:
        (a, b, _), (c, d, _) = grid["left_edge"], grid["right_edge"]
        block = values[a:c, b:d].unflatten(0, (2, -1)).unflatten(2, (2, -1)).mean((1, 3))
        assert grid["density"][:, :, 0].tolist() == block.tolist()
    with pytest.raises(ValueError, match="not so density"):
        yt_grids(cells, {"density": values[:4]})
    with pytest.raises(ValueError, match="a tiling of one frame by cells on the grids"):
        yt_grids(tokenizer.cells(field_of(8, 15)), {})


@pytest.mark.slow
def test_fixed_cells_compile_in_one_graph():
    tokenizer = make(boxes=[ORIGIN, SIZE])
    compiled = torch.compile(lambda x: tokenizer(x).features, fullgraph=True, backend="eager")
    field = field_of(16, 16, frames=2)
    torch.testing.assert_close(compiled(field), tokenizer(field).features)


@pytest.mark.slow
def test_yt_itself():
    """What yt makes of our grids has our levels (needs yt)."""
    yt = pytest.importorskip("yt")
    yt.set_log_level(50)
    for space in ((16, 32), (16, 16, 8)):
        levels = torch.zeros(space)
        levels[(slice(2, 5),) * len(space)] = 2
        tokenizer = make(len(space), min_size=2, max_size=8)
        cells = tokenizer.cells(field_of(*space, batch=1), levels=levels)
        grids, dimensions = yt_grids(cells, {"density": torch.rand(space)})
        box = [[0, n] for n in [*space, 1][:3]]
        loaded = yt.load_amr_grids(grids, dimensions, bbox=np.array(box, dtype=float))
        patches = read_patches(loaded)
        factor = [n // m for n, m in zip(space, patches.shape, strict=True)]
        found = patches.levels()
        for axis, times in enumerate(factor):
            found = found.repeat_interleave(times, axis)
        again = tokenizer.cells(field_of(*space, batch=1), levels=found)
        assert torch.equal(again.origin, cells.origin)
        everything = loaded.all_data()
        places = [np.asarray(everything["index", name]) for name in "xyz"[: len(space)]]
        own = np.asarray(everything["index", "grid_level"])
        index = tuple(place.astype(int) for place in places)
        assert (found.numpy()[index] == own).all()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "uint32"])
def test_levels_of_any_whole_numbers_are_read(tmp_path, dtype):
    levels = np.zeros((8, 8), dtype)
    levels[:2] = 1
    np.save(tmp_path / "levels.npy", levels)
    read = make(refinement=str(tmp_path / "levels.npy"), min_size=2, max_size=4).cells(
        field_of(8, 8)
    )
    whole = torch.from_numpy(levels.astype(np.int64))
    wanted = make(min_size=2, max_size=4).cells(field_of(8, 8), levels=whole)
    assert torch.equal(read.origin, wanted.origin)


def test_files_that_hold_something_else(tmp_path):
    (tmp_path / "empty.npz").touch()
    (tmp_path / "empty.npy").touch()
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no more")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("empty.npz", "broken.npz", "array.npy"):
        with pytest.raises(ValueError, match=f"{name} has no boxes"):
            load_boxes(tmp_path / name)
    with pytest.raises(ValueError, match=r"empty.npy has no field of levels"):
        make(refinement=str(tmp_path / "empty.npy"))


def test_no_boxes_come_back_as_none(tmp_path):
    cells = make().cells(field_of(8, 8, batch=1), levels=torch.zeros(8, 8))
    none = cells.select(torch.zeros(len(cells), dtype=torch.bool))
    save_boxes(tmp_path / "none.npz", none)
    assert len(load_boxes(tmp_path / "none.npz")) == 0


@pytest.mark.parametrize("levels", [[[0] * 8] * 8, [torch.zeros(8, 8), torch.zeros(4, 4)], []])
def test_levels_of_a_call_are_tensors_of_one_shape(levels):
    with pytest.raises(ValueError, match="levels are a tensor, or one per sample of one shape"):
        make().cells(field_of(8, 8), levels=levels)
