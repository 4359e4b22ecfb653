"""The gradient indicator: golden Sobel maps, reductions, boundaries, and scores per node."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from references import Forest, box_sum, boxes, sobel

import adaptok
from adaptok import INDICATORS
from adaptok.tokenizers.indicators import GradientIndicator, central_difference, gradient_norm
from adaptok.tree import Tree

NUMPY_MODES = {"replicate": "edge", "circular": "wrap", "reflect": "reflect"}
PERIODIC_Y = torch.tensor([[2, 2], [0, 1]])


def reference_maps(x: np.ndarray, k: int, modes: str) -> np.ndarray:
    """(b, t, c, *s): each map standardised over its own image, then the Sobel norm."""
    stencil = np.array(central_difference(k))
    out = np.empty_like(x)
    for place in itertools.product(*map(range, x.shape[:3])):
        image = x[place]
        standard = (image - image.mean()) / (image.std() + 1e-8)
        out[place] = sobel(standard, stencil, modes)
    return out


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("padding", ["replicate", "circular", "reflect"])
def test_golden_sobel_maps(golden, ndim, k, padding):
    arrays = golden("iap_sobel")
    x = torch.from_numpy(arrays[f"x_{ndim}d"])[None, None]
    expected = arrays[f"s_{ndim}d_k{k}_{NUMPY_MODES[padding]}"]
    # The authors add 1e-8 to each channel's std, which is a weight of its scores.
    std = x[0, 0].flatten(1).std(1, correction=0)
    weights = (std / (std + 1e-8)).tolist()
    expected = expected * (len(weights) / sum(weights))
    score = GradientIndicator(k=k, padding=padding, weights=weights).score_map(x)[0]
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-12, atol=1e-12)
    single = GradientIndicator(k=k, padding=padding).score_map(x.float())[0]
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-4, atol=1e-4)


def test_stencils(golden):
    for k in (1, 2, 3):
        np.testing.assert_allclose(central_difference(k), golden("iap_sobel")[f"fd_k{k}"])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_stencil_differentiates_polynomials_exactly(k):
    """Order 2k: exact for polynomials of degree up to 2k."""
    steps = np.arange(-k, k + 1)
    for degree in range(2 * k + 1):
        assert abs(np.dot(central_difference(k), steps**degree) - (degree == 1)) < 1e-9


def test_one_dimension_has_no_smoothing():
    x = torch.sin(torch.arange(32.0) * 2 * torch.pi / 32)[None]
    norm = gradient_norm(x, (1,), padding="circular")
    expected = (torch.roll(x, -1, 1) - torch.roll(x, 1, 1)).abs() / 2
    torch.testing.assert_close(norm, expected)


def test_channels_frames_weights_and_power_reduce_as_documented():
    x = torch.randn(2, 3, 4, 9, 11, dtype=torch.float64)
    maps = reference_maps(x.numpy(), 1, "edge")
    np.testing.assert_allclose(GradientIndicator().channel_maps(x).numpy(), maps, atol=1e-12)
    expected = {
        (): maps.mean((1, 2)),
        (("channels", "max"),): maps.max(2).mean(1),
        (("frames", "max"),): maps.mean(2).max(1),
        (("channels", "max"), ("frames", "max")): maps.max((1, 2)),
        (("power", 2.5),): maps.mean((1, 2)) ** 2.5,
        (("ignore", (1, -1)),): maps[:, :, [0, 2]].mean((1, 2)),
        (("weights", (1.0, 0.0, 2.0, 0.5)),): (
            np.einsum("btcyx,c->byx", maps, [1, 0, 2, 0.5]) / 3.5 / 3
        ),
        (("weights", (1.0, 0.0, 2.0, 0.5)), ("channels", "max")): (
            (maps * np.array([1, 0, 2, 0.5]).reshape(-1, 1, 1)).max(2).mean(1)
        ),
    }
    for knobs, wanted in expected.items():
        score = GradientIndicator(**dict(knobs)).score_map(x)
        np.testing.assert_allclose(score.numpy(), wanted, atol=1e-10, err_msg=str(knobs))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e5, -3e-7])
@pytest.mark.parametrize("k", [1, 2])
def test_a_constant_channel_scores_nothing(value, k):
    x = torch.full((1, 1, 2, 33, 47), value)
    x[:, :, 1] = torch.randn(33, 47)
    maps = GradientIndicator(k=k).channel_maps(x)
    assert not maps[:, :, 0].any()
    assert maps[:, :, 1].all()


def test_scores_ignore_scale_and_offset_of_a_channel():
    x = torch.randn(1, 1, 2, 16, 16, dtype=torch.float64)
    scaled = x * torch.tensor([1e3, 1e-2]).view(2, 1, 1) + torch.tensor([5.0, -7.0]).view(2, 1, 1)
    torch.testing.assert_close(
        GradientIndicator().score_map(scaled),
        GradientIndicator().score_map(x),
        rtol=1e-5,
        atol=1e-8,
    )


# ---- boundaries


def test_periodic_axes_wrap_and_the_others_keep_the_padding():
    x = torch.randn(2, 1, 1, 8, 9, dtype=torch.float64)
    both = torch.full((2, 2), 2)
    for padding in NUMPY_MODES:
        indicator = GradientIndicator(padding=padding)
        wrapped = reference_maps(x.numpy(), 1, "wrap")[:, 0, 0]
        np.testing.assert_allclose(indicator.score_map(x, boundary=both).numpy(), wrapped)
        score = indicator.score_map(x, boundary=PERIODIC_Y)
        # Wrapping y by hand, then the padding on x alone.
        std, mean = torch.std_mean(x, dim=(3, 4), correction=0, keepdim=True)
        standard = ((x - mean) / (std + 1e-8))[:, 0, 0].numpy()
        tall = np.concatenate([standard[:, -1:], standard, standard[:, :1]], 1)
        stencil = np.array(central_difference(1))
        mode = NUMPY_MODES[padding]
        inner = np.stack([sobel(image, stencil, mode)[1:-1] for image in tall])
        np.testing.assert_allclose(score.numpy(), inner, atol=1e-12)


def test_boundary_codes_per_sample():
    x = torch.randn(3, 2, 2, 8, 9)
    codes = torch.stack([torch.full((2, 2), 2), PERIODIC_Y, torch.zeros(2, 2, dtype=torch.long)])
    score = GradientIndicator().score_map(x, boundary=codes)
    for i in range(3):
        alone = GradientIndicator().score_map(x[i : i + 1], boundary=codes[i])
        torch.testing.assert_close(score[i : i + 1], alone)


def test_an_axis_is_periodic_only_if_both_ends_are():
    x = torch.randn(1, 1, 1, 8, 8)
    half = torch.tensor([[2, 0], [1, 2]])
    assert torch.equal(
        GradientIndicator().score_map(x, boundary=half), GradientIndicator().score_map(x)
    )


def test_boundary_codes_of_one_sample_or_of_frames():
    x = torch.randn(2, 3, 1, 16, 16)
    codes = torch.stack([PERIODIC_Y, torch.full((2, 2), 2)])
    make = {"ndim": 2, "in_channels": 1, "dim": 8, "min_size": 2, "max_size": 8}
    tokenizer = adaptok.create_tokenizer("iap", **make, per_frame=True)
    for given, per_sample in (
        (codes, codes),
        (codes[:1], codes[[0, 0]]),
        (codes[1], codes[[1, 1]]),
    ):
        cells = tokenizer.cells(x, boundary=given, budget=60)
        for i in range(2):
            alone = tokenizer.cells(x[i : i + 1], boundary=per_sample[i], budget=60)
            assert boxes(cells, i) == boxes(alone)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 3), (1, 1, 2, 2), (3, 2, 2)])
def test_boundary_codes_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"boundary codes are \(2, 2\) or \(b, 2, 2\)") as error:
        GradientIndicator().score_map(
            torch.rand(2, 1, 1, 8, 8), boundary=torch.zeros(shape, dtype=torch.long)
        )
    assert str(shape) in str(error.value)


# ---- node scores


@pytest.mark.parametrize("name", INDICATORS.names())
def test_every_indicator_scores_every_inner_node(name):
    for shape, sizes in (((16, 24), ((8, 8), (4, 4), (2, 2))), ((9, 7, 8), ((4,) * 3, (2,) * 3))):
        tree = Tree(shape, sizes)
        field = torch.randn(2, 2, 3, *shape)
        wired = {"in_channels": 3, "sizes": tuple((1, *size) for size in sizes)}
        indicator = INDICATORS.build(name, **wired)
        scores = indicator(field, tree).detach()
        assert scores.shape == (2, tree.inner)
        assert torch.isfinite(scores).all()
        assert not scores.requires_grad
        if getattr(indicator, "monotone", False):
            levels = tree.per_level(scores)
            for level, (parents, children) in enumerate(itertools.pairwise(levels)):
                assert bool((children <= tree.expand(parents, level)).all())


def test_the_score_of_a_node_is_the_sum_of_its_points():
    shape, sizes = (13, 22), ((8, 8), (4, 4), (2, 2))
    tree, forest = Tree(shape, sizes), Forest(shape, sizes)
    field = torch.randn(1, 2, 3, *shape, dtype=torch.float64)
    indicator = GradientIndicator(power=1.5)
    score = indicator.score_map(field)[0].numpy()
    nodes = indicator(field, tree)[0]
    for level, index in forest.inner():
        number = tree.offsets[level] + int(np.ravel_multi_index(index, tree.grids[level]))
        expected = box_sum(score, forest.box((level, index)))
        assert float(nodes[number]) == pytest.approx(expected, rel=1e-12)


def test_the_tokenizer_refines_where_its_indicator_points():
    """`cells` of a field equal `cells_from_score` of its score map."""
    tokenizer = adaptok.create_tokenizer(
        "iap", ndim=2, in_channels=3, dim=8, min_size=2, max_size=8, budget=90, k=2, channels="max"
    )
    field = torch.randn(3, 1, 3, 21, 32)
    for boundary in (None, PERIODIC_Y):
        score = tokenizer.score_map(field, boundary=boundary)
        assert score.shape == (3, 21, 32)
        expected = adaptok.cells_from_score(score, min_size=2, max_size=8, budget=90)
        cells = tokenizer.cells(field, boundary=boundary)
        assert [boxes(cells, i) for i in range(3)] == [boxes(expected, i) for i in range(3)]


def test_shared_frames_are_scored_together_and_own_frames_apart():
    field = torch.randn(2, 3, 1, 16, 16)
    make = {"ndim": 2, "in_channels": 1, "dim": 8, "min_size": 2, "max_size": 8}
    shared = adaptok.create_tokenizer("iap", **make, frames="max")
    expected = GradientIndicator().channel_maps(field).amax((1, 2))
    torch.testing.assert_close(shared.score_map(field), expected)
    pairs = adaptok.create_tokenizer("iap", **make, frame_size=3, per_frame=True)
    joint = adaptok.create_tokenizer("iap", **make, frame_size=3)
    assert boxes(pairs.cells(field, budget=50)) == boxes(joint.cells(field, budget=50))


# ---- bad input


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"padding": "zeros"}, "padding must be one of replicate, circular, reflect, got 'zeros'"),
        ({"weights": [1.0, -1.0]}, "weights must be a list, each a finite number of at least 0"),
        ({"channels": "sum"}, "channels.* mean, max, got 'sum'"),
        ({"frames": "last"}, "frames.* mean, max, got 'last'"),
    ],
)
def test_knobs_that_make_no_sense(knobs, message):
    with pytest.raises(ValueError, match=message):
        adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=8, **knobs)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"weights": [1.0, 1.0, 1.0]}, "3 channel weights for a field of 2 channels"),
        ({"ignore": [2]}, "ignored channel 2: the field has 2 channels"),
        ({"ignore": [0, 1]}, "every channel is ignored"),
    ],
)
def test_channel_lists_must_fit_the_field(knobs, message):
    tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=8, **knobs)
    with pytest.raises(ValueError, match=message):
        tokenizer.cells(torch.rand(1, 1, 2, 32, 32), budget=16)


@pytest.mark.parametrize("power", [0.0, -1.0])
def test_the_power_is_positive(power):
    """A power of 0 or below would make flat regions score as much as fronts, or infinitely."""
    with pytest.raises(ValueError, match="power must be a number above 0"):
        adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=8, power=power)


@pytest.mark.parametrize("indicator", ["entropy", "variance", "near_best", "gradient"])
def test_cells_of_one_size_have_a_map_of_scores(indicator):
    knobs = {"indicator": indicator, "min_size": 4, "max_size": 4}
    tokenizer = adaptok.create_tokenizer("composed", ndim=2, in_channels=1, dim=8, **knobs)
    assert tokenizer.score_map(torch.randn(2, 1, 1, 16, 12)).shape == (2, 16, 12)
