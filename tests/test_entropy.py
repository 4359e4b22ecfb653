"""Indicators of APT: golden maps, histograms node by node, ranges and colours."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from references import Forest

from adaptok import INDICATORS
from adaptok.tokenizers.indicators import EntropyIndicator, LaplacianIndicator, ResamplingIndicator
from adaptok.tree import Tree

TREES = {
    "1d": ((50,), ((16,), (4,), (2,))),  # ratios 4 and 2
    "2d": ((13, 22), ((8, 8), (4, 4), (2, 2))),
    "3d": ((9, 8, 5), ((4, 4, 4), (2, 2, 2))),
    "anisotropic": ((12, 20), ((4, 8), (2, 2))),
}


def node_boxes(tree: Tree):
    """(number, slices) of every inner node that meets the domain."""
    forest = Forest(tree.shape, tree.sizes)
    for level, index in forest.inner():
        number = tree.offsets[level] + int(np.ravel_multi_index(index, tree.grids[level]))
        _, origin, size = forest.box((level, index))
        yield number, tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))


def entropy_of(values: np.ndarray, low: float, high: float, bins: int) -> float:
    scaled = (values.astype(np.float64) - low) * bins / (high - low)
    index = np.clip(np.trunc(scaled), 0, bins - 1).astype(int).ravel()
    p = np.unique(index, return_counts=True)[1] / index.size
    return float(-(p * np.log2(p)).sum())


# ---- golden


def golden_field(golden) -> torch.Tensor:
    return torch.from_numpy(golden("apt_images_224")["images_u8"]).float()[:, None]


def check_golden(indicator, golden, key: str, patch: int, tolerance: float, sizes=None) -> None:
    """Nodes inside the image; what crosses the border has no meaning in the authors' maps."""
    arrays = golden(f"apt_maps_224_p{patch}")
    sizes = sizes or (4 * patch, 2 * patch)
    tree = Tree(
        (224, 224), tuple((s, s) for s in (*sizes, patch // (1 if sizes[-1] > patch else 2)))
    )
    scores = tree.per_level(indicator(golden_field(golden), tree))
    for size, grid, score in zip(sizes, tree.grids, scores, strict=False):
        whole = 224 // size
        ours = score.unflatten(1, grid)[:, :whole, :whole].numpy()
        expected = arrays[f"{key}_{size}"][:, :whole, :whole]
        assert expected.max() < 100
        np.testing.assert_allclose(ours, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("patch", [14, 16])
def test_golden_entropy_maps(golden, patch):
    sizes = (4 * patch, 2 * patch, patch)
    check_golden(EntropyIndicator(), golden, "ent_histc", patch, 5e-6, sizes)


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("statistic", ["mean", "max", "std"])
def test_golden_laplacian_maps(golden, patch, statistic):
    indicator = LaplacianIndicator(statistic=statistic)
    check_golden(indicator, golden, f"lap_{statistic}", patch, 5e-6)


@pytest.mark.parametrize("patch", [14, 16])
def test_golden_resampling_maps(golden, patch):
    check_golden(ResamplingIndicator(), golden, "mse_tok", patch, 1e-6)


def test_the_authors_dilute_border_cells_and_we_do_not(golden):
    """224 px do not divide by 64: their mean is over 64² points, ours over those that exist."""
    tree = Tree((224, 224), ((64, 64), (32, 32)))
    ours = LaplacianIndicator()(golden_field(golden), tree).view(7, 4, 4).numpy()
    theirs = golden("apt_maps_224_p16")["lap_mean_64"]
    inside = np.minimum(64, 224 - 64 * np.arange(4)) / 64
    np.testing.assert_allclose(ours * np.outer(inside, inside), theirs, atol=1e-5)


# ---- entropy


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("color", ["gray", "channels"])
def test_entropy_counts_the_points_of_each_node(kind, color):
    tree = Tree(*TREES[kind])
    field = torch.randn(2, 2, 3, *tree.shape)
    scores = EntropyIndicator(color=color, bins=12, value_range=(-2, 2))(field, tree)
    maps = field.numpy().astype(np.float64)
    if color == "gray":
        maps = np.tensordot(maps, [0.2989, 0.5870, 0.1140], ([2], [0]))[:, :, None]
    for number, box in node_boxes(tree):
        for sample in range(2):
            expected = [
                entropy_of(maps[(sample, frame, channel, *box)], -2, 2, 12)
                for frame, channel in itertools.product(range(2), range(maps.shape[2]))
            ]
            assert float(scores[sample, number]) == pytest.approx(np.mean(expected), abs=2e-6)


def test_without_a_range_each_map_of_each_sample_spans_its_own():
    tree = Tree((16, 16), ((8, 8), (4, 4)))
    field = torch.randn(3, 2, 4, 16, 16)
    indicator = EntropyIndicator(value_range=None)
    scale = 10.0 ** torch.randint(-3, 4, (3, 1, 4, 1, 1))
    scores = indicator(field, tree)
    assert scores.min() > 4
    torch.testing.assert_close(indicator(field * scale, tree), scores, atol=0.05, rtol=0)
    x = field[0, :, 1].double().numpy()  # both frames of a channel share their range
    expected = entropy_of(x[0, :8, :8], x.min(), x.max(), 512)
    one = indicator(field[:1, :, 1:2], tree)
    other = entropy_of(x[1, :8, :8], x.min(), x.max(), 512)
    assert float(one[0, 0]) == pytest.approx((expected + other) / 2, abs=0.04)


def test_a_flat_field_has_no_entropy():
    tree = Tree((13, 16), ((8, 8), (4, 4), (2, 2)))
    for value_range in ((0.0, 255.0), None):
        indicator = EntropyIndicator(value_range=value_range)
        assert not indicator(torch.full((1, 1, 2, 13, 16), 7.3), tree).any()


def test_every_bin_once_is_the_most_entropy():
    """Bytes 0..255 fill every other bin of 512; what lies outside counts for the last ones."""
    tree = Tree((16, 16), ((16, 16), (8, 8)))
    ramp = torch.arange(256.0).view(1, 1, 1, 16, 16)
    assert float(EntropyIndicator()(ramp, tree)) == 8.0
    assert float(EntropyIndicator(bins=2)(ramp, tree)) == 1.0
    outside = torch.where(ramp < 128, -1e30, 1e30)
    assert float(EntropyIndicator()(outside, tree)) == 1.0


def test_a_batch_equals_its_samples_and_half_precision_is_read_as_it_is():
    tree = Tree((20, 24), ((8, 8), (4, 4), (2, 2)))
    field = (torch.rand(3, 1, 3, 20, 24) * 255).half()
    together = EntropyIndicator()(field, tree)
    for i in range(3):
        assert torch.equal(EntropyIndicator()(field[i : i + 1], tree)[0], together[i])
    assert torch.equal(EntropyIndicator()(field.float(), tree), together)


def test_the_memory_is_that_of_the_counts():
    """Largest tensor: one histogram per finest node, not one bin vector per point."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.numel())
            return out

    tree = Tree((224, 224), ((56, 56), (28, 28), (14, 14)))
    field = torch.rand(2, 1, 3, 224, 224) * 255
    with Largest() as largest:
        EntropyIndicator()(field, tree)
    assert largest.size <= field.numel()


def test_entropy_compiles_as_one_graph():
    tree = Tree((20, 24), ((8, 8), (4, 4), (2, 2)))
    field = torch.rand(2, 1, 3, 20, 24) * 255
    indicator = EntropyIndicator()
    compiled = torch.compile(lambda x: indicator(x, tree), fullgraph=True, backend="eager")
    assert torch.equal(compiled(field), indicator(field, tree))


# ---- laplacian and resampling


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("statistic", ["mean", "max", "std"])
def test_laplacian_of_each_node(kind, statistic):
    tree = Tree(*TREES[kind])
    ndim = len(tree.shape)
    field = torch.randn(2, 1, 2, *tree.shape, dtype=torch.float64)
    make = {"statistic": statistic, "value_range": (-1.0, 3.0)}
    for boundary, modes in (
        (None, ["reflect"] * ndim),
        (True, ["wrap"] + ["reflect"] * (ndim - 1)),
    ):
        codes = torch.tensor([[2, 2]] + [[0, 1]] * (ndim - 1)) if boundary else None
        scores = LaplacianIndicator(**make)(field, tree, boundary=codes)
        maps = np.empty((2, 2, *tree.shape))
        for place in itertools.product(range(2), range(2)):
            x = field[place[0], 0, place[1]].numpy() / 4
            padded = x
            for axis, mode in enumerate(modes):
                widths = [(1, 1) if a == axis else (0, 0) for a in range(ndim)]
                padded = np.pad(padded, widths, mode=mode)
            total = sum(
                padded[tuple(slice(o, o + n) for o, n in zip(offset, x.shape, strict=True))]
                for offset in itertools.product(range(3), repeat=ndim)
            )
            maps[place] = np.abs(total - 3**ndim * x)
        reduce = {"mean": np.mean, "max": np.max, "std": lambda v: np.std(v, ddof=v.size > 1)}
        for number, box in node_boxes(tree):
            for sample in range(2):
                expected = np.mean([reduce[statistic](maps[(sample, c, *box)]) for c in range(2)])
                assert float(scores[sample, number]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["1d", "2d", "3d"])
def test_resampling_of_each_node(kind):
    """Down by sampling at the centres of the new points, up by interpolation, edges repeated."""
    tree = Tree(*TREES[kind])
    field = torch.randn(2, 2, 2, *tree.shape, dtype=torch.float64)
    scores = ResamplingIndicator(value_range=(0.0, 2.0))(field, tree)
    maps = field.flatten(0, 2).numpy() / 2

    def at(x: np.ndarray, axis: int, position: float) -> np.ndarray:
        n = x.shape[axis]
        position = min(max(position, 0), n - 1)
        low = math.floor(position)
        high = min(low + 1, n - 1)
        return x.take(low, axis) * (1 - position + low) + x.take(high, axis) * (position - low)

    def resample(x: np.ndarray, axis: int, count: int, step: float) -> np.ndarray:
        columns = [at(x, axis, (i + 0.5) * step - 0.5) for i in range(count)]
        return np.stack(columns, axis)

    errors = []
    for size in tree.sizes[:-1]:
        y = maps
        for axis, (n, s, fine) in enumerate(zip(tree.shape, size, tree.sizes[-1], strict=True)):
            f = s // fine
            y = np.pad(y, [(0, -n % f if a == axis + 1 else 0) for a in range(y.ndim)], mode="edge")
            y = resample(y, axis + 1, y.shape[axis + 1] // f, f)
        for axis, (n, s, fine) in enumerate(zip(tree.shape, size, tree.sizes[-1], strict=True)):
            y = resample(y, axis + 1, n, fine / s)
        errors.append(((y - maps) ** 2).reshape(2, 4, *tree.shape).mean(1))
    for number, box in node_boxes(tree):
        level = next(i for i, end in enumerate(tree.offsets[1:]) if number < end)
        for sample in range(2):
            expected = errors[level][(sample, *box)].mean()
            assert float(scores[sample, number]) == pytest.approx(expected, abs=1e-9)


# ---- bad input


@pytest.mark.parametrize("name", ["entropy", "laplacian"])
def test_gray_needs_one_or_three_channels(name):
    tree = Tree((8, 8), ((4, 4), (2, 2)))
    with pytest.raises(ValueError, match=r"'gray' needs 1 or 3 channels, the field has 2; use"):
        INDICATORS.create(name, color="gray")(torch.rand(1, 1, 2, 8, 8), tree)
    free = INDICATORS.create(name)(torch.rand(1, 1, 2, 8, 8), tree)
    assert free.shape == (1, tree.inner)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("entropy", {"color": "rgb"}, "gray, channels, None, got 'rgb'"),
        ("entropy", {"bins": 1}, "bins must be a whole number .*, got 1"),
        ("entropy", {"value_range": (1.0,)}, "value_range "),
        ("entropy", {"value_range": (2, 2)}, "value_range is"),
        ("laplacian", {"statistic": "sum"}, "statistic must be one of mean, max, std, got 'sum'"),
        ("laplacian", {"padding": "zeros"}, "padding must be one of"),
        ("resampling", {"value_range": (2, 1)}, "value_range is"),
    ],
)
def test_knobs_that_make_no_sense(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        INDICATORS.create(name, **knobs)
