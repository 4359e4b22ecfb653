"""Run-length tokens: beside the authors' masks, loops over tubelets, and the uniform tokenizer."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import adaptok
from adaptok import create_decoder, create_surrogate, create_tokenizer, testing
from adaptok.cells import Cells
from adaptok.decoders.runs import run_owners
from adaptok.evaluation.tilings import tiling_errors, tree_of
from adaptok.tokenizers.at_budget import at_budget, part_at_budget
from adaptok.tokenizers.indicators import relative_errors
from adaptok.tokens import TokenSet

GOLDEN = Path(__file__).parent / "golden" / "rlt_mask_tub1.npz"
MAKE = {"ndim": 2, "in_channels": 2, "dim": 12}


def draw(*shape: int, quiet: float = 0.6, seed: int = 0) -> Tensor:
    """Frames most of whose points stay as they were."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(shape, generator=generator).double()
    still = torch.rand(shape, generator=generator) < quiet
    return torch.where(still, 0, steps).cumsum(1)


@pytest.mark.parametrize("threshold", ["0.1", "0.3"])
def test_masks_and_lengths_are_the_authors(threshold):
    arrays = np.load(GOLDEN)
    video = torch.from_numpy(arrays["video"]).transpose(1, 2)
    knobs = {"size": 8, "threshold": float(threshold)}
    tokenizer = create_tokenizer("rlt", ndim=2, in_channels=3, dim=4, **knobs)
    cells = tokenizer.cells(video).validate()
    (t, h, w), (sample, rows) = (8, 4, 6), (cells.sample, cells.origin.long())
    time, y, x = rows[:, 0], rows[:, 1] // 8, rows[:, 2] // 8
    keep = torch.zeros(2, t * h * w, dtype=torch.bool)
    keep[sample, (time * h + y) * w + x] = True
    assert torch.equal(keep, torch.from_numpy(arrays[f"keep_th{threshold}_tub1"]))
    assert len(cells) == int(keep.sum())
    # theirs lie in the order (h, w, t), beside tokens in the order (t, h, w)
    order = (((sample * h + y) * w + x) * t + time).argsort()
    lengths = torch.from_numpy(arrays[f"lengths_hwt_order_th{threshold}_tub1"])
    assert torch.equal(cells.size[order, 0].long(), lengths)


# ---- beside loops


def runs_slowly(tokenizer, field: Tensor) -> list[list[int]]:
    """Sample, first grid point and size of each run, by frame and raster of space."""
    frame_size, size = tokenizer.spec.sizes[-1][0], tokenizer.size
    space, frames = field.shape[3:], field.shape[1] // frame_size
    found = []
    for sample, x in enumerate(field):
        own = []
        for corner in itertools.product(
            *(range(0, n, p) for n, p in zip(space, size, strict=True))
        ):
            box = (slice(None), *(slice(o, o + p) for o, p in zip(corner, size, strict=True)))
            start, extent = 0, list(size)
            if tokenizer.border == "split":
                extent = [min(p, n - o) for o, p, n in zip(corner, size, space, strict=True)]
            for k in range(1, frames + 1):
                if k < frames and k - start < tokenizer.longest:
                    last, first = x[(k + 1) * frame_size - 1], x[(k - 1) * frame_size]
                    if float((last[box] - first[box]).abs().mean()) <= tokenizer.threshold:
                        continue
                length = (k - start) * frame_size
                own.append([sample, start * frame_size, *corner, length, *extent])
                start = k
        found += sorted(own)
    return found


@st.composite
def cases(draw):
    ndim = draw(st.integers(1, 3))
    space = draw(st.tuples(*[st.integers(3, {1: 12, 2: 6, 3: 4}[ndim])] * ndim))
    knobs = {
        "size": draw(st.sampled_from([1, 2, 3])),
        "frame_size": draw(st.integers(1, 2)),
        "longest": draw(st.sampled_from([1, 2, 3, 16])),
        "border": draw(st.sampled_from(["clip", "split"])),
        "threshold": draw(st.sampled_from([0.0, 0.3, 0.6])),
    }
    return space, knobs, draw(st.integers(1, 4)), draw(st.integers(0, 99))


@settings(max_examples=7)
@given(cases())
def test_runs_against_a_loop_over_tubelets(case):
    space, knobs, frames, seed = case
    make = {"ndim": len(space), "in_channels": 2, "dim": 4}
    tokenizer = create_tokenizer("rlt", **make, **knobs).double()
    field = draw(2, frames * knobs["frame_size"], 2, *space, seed=seed)
    cells = tokenizer.cells(field).validate()
    boxes = torch.cat([cells.sample[:, None], cells.origin, cells.size], 1)
    assert boxes.tolist() == runs_slowly(tokenizer, field)
    assert (cells.tiling, cells.sizes) == (True, tokenizer.spec.sizes)
    # what a token holds is copied over its box
    tokens = tokenizer(field)
    decoder = create_decoder("auto", tokenizer.spec, 3).double()
    painted = decoder(tokens)
    assert painted.shape == (2, field.shape[1], 3, *space)
    # that of every tubelet, painted by itself
    head = decoder.head if hasattr(decoder, "head") else decoder.levels[0]
    every = grid_of(knobs, make)
    plain = create_decoder("linear", every.spec, 3).double()
    plain.levels[0].load_state_dict(head.state_dict())
    tubelets = every.cells(field)
    rows = {(s, *o[1:], t): n for n, (s, o, t) in enumerate(_tubelets(tokens.cells, knobs))}
    rows = [rows[(s, *o[1:], t)] for s, o, t in _tubelets(tubelets, knobs)]
    copies = TokenSet(
        tokens.features.repeat_interleave(_count(tokens.cells, knobs), 0)[rows], tubelets
    )
    torch.testing.assert_close(painted, plain(copies))


def grid_of(knobs: dict, make: dict):
    """Every tubelet is a cell."""
    size = {"min_size": knobs["size"], "max_size": knobs["size"]}
    size |= {"frame_size": knobs["frame_size"], "border": knobs["border"]}
    marking = {"name": "fraction", "ratio": 0.0}
    return create_tokenizer("composed", **make, **size, marking=marking).double()


def _count(cells: Cells, knobs: dict) -> Tensor:
    return cells.size[:, 0].long() // knobs["frame_size"]


def _tubelets(cells: Cells, knobs: dict) -> list[tuple[int, tuple[int, ...], int]]:
    """Sample, first point and frame of the tubelets of each cell."""
    count, sample = _count(cells, knobs).tolist(), cells.sample.tolist()
    return [
        (s, tuple(o), o[0] + k * knobs["frame_size"])
        for s, o, n in zip(sample, cells.origin.tolist(), count, strict=True)
        for k in range(n)
    ]


@settings(max_examples=6)
@given(cases(), st.integers(0, 2))
def test_tokens_are_those_of_the_first_tubelet(case, halo):
    """Cells for all tubelets with the same weights, their rows at the beginning of runs."""
    space, knobs, frames, seed = case
    halo = min(halo, *space)
    make = {"ndim": len(space), "in_channels": 2, "dim": 4, "halo": halo}
    tokenizer = create_tokenizer("rlt", **make, **knobs, length_embedding=True).double()
    uniform = grid_of(knobs, make)
    uniform.load_state_dict(tokenizer.state_dict(), strict=False)
    field = draw(2, frames * knobs["frame_size"], 2, *space, seed=seed)
    codes = torch.tensor([[[2, 2]] * len(space), [[0, 1]] * len(space)])
    tokens, every = tokenizer(field, boundary=codes), uniform(field, boundary=codes)
    place = {tuple(o): i for i, o in enumerate(_places(every.cells))}
    rows = [place[tuple(o)] for o in _places(tokens.cells)]
    run = tokens.cells.size[:, 0] // knobs["frame_size"]
    expected = every.features[rows] + tokenizer.lengths.weight[run - 1]
    torch.testing.assert_close(tokens.features, expected)
    tokens.features.square().sum().backward()
    assert all(p.grad is not None for p in tokenizer.parameters())


def _places(cells: Cells) -> list[list[int]]:
    return torch.cat([cells.sample[:, None], cells.origin], 1).tolist()


def test_runs_end_at_holes():
    tokenizer = create_tokenizer("rlt", **MAKE, size=4).double()
    cells = tokenizer.cells(draw(1, 6, 2, 8, 8))
    owner = run_owners(cells)
    assert torch.equal(owner.unflatten(2, (2, 2)), cells.owner_map()[:, :, ::4, ::4])
    kept = torch.arange(0, len(cells), 2)
    fewer = run_owners(cells.select(kept))
    wanted = torch.where(owner % 2 == 0, owner // 2, -1)
    assert torch.equal(fewer, wanted)
    with pytest.raises(ValueError, match="not runs of tubelets"):
        run_owners(cells.replace(origin=cells.origin + 1))


# ---- models


def test_a_surrogate_of_frames():
    torch.manual_seed(0)
    tokenizer = {"name": "rlt", "size": 4, "threshold": 0.3}
    make = {"ndim": 2, "in_channels": 2, "history": 4, "history_mode": "frames", "depth": 1}
    make |= {"dim": 24, "heads": 2, "tokenizer": tokenizer, "constant_channels": 1}
    field, constants = draw(2, 4, 2, 16, 12).float(), torch.randn(2, 1, 16, 12)
    for processor in ("spacetime", "windowed"):
        model = create_surrogate(**make, processor=processor)
        out = model.rollout(field, 2, constants=constants)
        alone = [model.rollout(field[i : i + 1], 2, constants=constants[i : i + 1]) for i in (0, 1)]
        torch.testing.assert_close(out, torch.cat(alone), atol=1e-5, rtol=1e-4)
        model(field, constants=constants).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    lengths = model.cells(field, constants=constants).lengths
    assert lengths[0] != lengths[1]
    assert all(12 < n < 4 * 12 for n in lengths)
    mixed = model([field[0], field[1, :, :, :10]], constants=[constants[0], constants[1, :, :10]])
    assert [tuple(x.shape[-2:]) for x in mixed] == [(16, 12), (10, 12)]
    # a still field has one token per place; constants count for nothing
    assert model.cells(field[:, :1].expand_as(field), constants=constants).lengths == (12, 12)
    assert model.tokenizer.seen(3) == [0, 1]


def test_one_frame_is_uniform():
    field = torch.randn(2, 1, 2, 16, 24)
    one, other = (
        create_tokenizer(name, **MAKE, size=8).cells(field) for name in ("rlt", "uniform")
    )
    assert torch.equal(one.origin, other.origin)
    assert torch.equal(one.size, other.size)
    trees = tree_of(one), tree_of(other)
    assert trees[0] == trees[1]
    node = relative_errors(field, trees[0])
    errors = [tiling_errors(node, trees[0], cells) for cells in (one, other)]
    assert torch.equal(*errors)


def test_parts_keep_their_promises():
    tokenizer = create_tokenizer("rlt", **MAKE, size=4, threshold=0.5)
    testing.check_tokenizer(tokenizer, frames=4)
    cells = tokenizer.cells(draw(3, 4, 2, 8, 8))
    for name in ("runs", "linear"):
        decoder = create_decoder(name, tokenizer.spec, 2)
        testing.check_decoder(decoder, tokenizer.spec, 2, cells=cells)
    assert type(create_decoder("auto", tokenizer.spec, 2)).__name__ == "RunDecoder"


def test_positions_at_the_first_tubelet():
    make = {**MAKE, "size": 4, "threshold": 9.0, "frame_size": 2}
    run, first = (create_tokenizer("rlt", **make, place=p) for p in ("run", "first"))
    cells = run.cells(draw(1, 8, 2, 8, 8))
    assert run.spec.position_center(cells)[:, 0].tolist() == [4.0] * 4
    assert first.spec.position_center(cells)[:, 0].tolist() == [1.0] * 4
    assert torch.equal(first.spec.position_center(cells)[:, 1:], cells.center[:, 1:])


# ---- budgets


def test_thresholds_are_calibrated_to_the_closest_number_from_below():
    """Beside a try of every threshold that makes a difference."""
    fields = [draw(2, 4, 2, 8, 8), draw(1, 4, 2, 8, 8, seed=1) / 3]
    tokenizer = create_tokenizer("rlt", **MAKE, size=4, longest=2).double()

    def count(threshold: float) -> float:
        return sum(len(tokenizer.cells(f, threshold=threshold)) for f in fields) / 3

    values = torch.cat([tokenizer.changes(f).flatten() for f in fields]).unique().tolist()
    reached = sorted({count(v) for v in [0.0, *values]})
    assert len(reached) > 10
    for wanted in (reached[0], reached[3], sum(reached[4:6]) / 2, reached[-1]):
        threshold = adaptok.calibrate(tokenizer, fields, wanted)
        assert count(threshold) == max(r for r in reached if r <= wanted)
    with pytest.raises(ValueError, match="tokens per sample, 999 are asked for"):
        adaptok.calibrate(tokenizer, fields, 999)


@pytest.mark.parametrize("budget", [20, 150])
def test_a_budget_chooses_size_and_threshold(budget):
    field = draw(4, 4, 2, 16, 16, quiet=0.3).float()
    tokenizer = create_tokenizer("rlt", **MAKE)
    part = part_at_budget("rlt", tokenizer, budget, field)
    assert {*part} == {"name", "size", "threshold"}
    built = create_tokenizer(**part, **MAKE)
    got = len(built.cells(field)) / 4
    assert 0.8 * budget <= got <= budget
    fixed = part_at_budget({"name": "rlt", "size": part["size"]}, built, budget, field)
    assert fixed["size"] == part["size"]
    assert at_budget(built, budget, field) == {"threshold": fixed["threshold"]}


# ---- bad input


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"threshold": -1}, "threshold must be a finite number of at least 0"),
        ({"longest": 0}, "longest must be a whole number of at least 1"),
        ({"size": (4, 4, 4)}, "size is a positive whole number or 2 of them"),
        ({"place": "last"}, "place must be one of run, first"),
        ({"border": "wrap"}, "border"),
        ({"embedding": "conv"}, "unknown embedding"),
    ],
)
def test_knobs_that_make_no_sense(knobs, message):
    with pytest.raises(ValueError, match=message):
        create_tokenizer("rlt", **MAKE, **knobs)


def test_calls_that_make_no_sense(monkeypatch):
    tokenizer = create_tokenizer("rlt", **MAKE, frame_size=2)
    with pytest.raises(ValueError, match=r"3 frame\(s\) do not divide"):
        tokenizer(torch.randn(1, 3, 2, 16, 16))
    x = torch.randn(1, 2, 2, 16, 16)
    others = create_tokenizer("uniform", **MAKE, frame_size=2).cells(x)
    with pytest.raises(ValueError, match="built for cells of sizes"):
        tokenizer.embed(x, others)
    with pytest.raises(ValueError, match="threshold must be a finite number"):
        tokenizer(torch.randn(1, 2, 2, 16, 16), threshold="high")
    spec = create_tokenizer("iap", **MAKE).spec
    with pytest.raises(ValueError, match=r"'runs' copies .* needs cells of one size in space"):
        create_decoder("runs", spec, 2)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    with pytest.raises(ValueError, match="as many cells as the content asks for"):
        tokenizer(torch.randn(1, 8, 2, 16, 16))
    assert len(tokenizer(torch.randn(1, 2, 2, 16, 16))) == 4


def test_film_tells_the_frames_of_runs_apart():
    from adaptok.layers.positions.film import FilmPositions

    tokenizer = create_tokenizer("rlt", ndim=1, in_channels=1, dim=8, size=4)
    tokens = tokenizer(torch.randn(1, 8, 1, 16))
    film = FilmPositions(tokenizer.spec, 1)
    out, _ = film(torch.zeros(len(tokens), 8), tokens.cells, tokens.cells.center)
    assert len(out.unique(dim=0)) == len(tokens.cells.origin[:, 0].unique()) > 1


def test_cells_smaller_than_a_tubelet_are_no_runs():
    knobs = {"boxes": [[[0]], [[2]]], "min_size": 4, "max_size": 4}
    tokenizer = create_tokenizer(
        "given", ndim=1, in_channels=1, dim=8, **knobs, tiling=False, on_grid=False
    )
    decoder = create_decoder("runs", tokenizer.spec, 1)
    with pytest.raises(ValueError, match="not runs of tubelets"):
        decoder(tokenizer(torch.randn(1, 1, 1, 8)))
