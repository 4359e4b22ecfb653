"""Nothing depends on units, constant channels included, and no score need be finite.

How the package was searched: for ``1e-``, ``eps``, ``clamp(min=``, ``clamp_min``, ``finfo``,
``.std(``, ``.var(``, ``std_mean`` and ``nan_to_num``. Kept as they are: the Well's epsilon of its
metrics, floors of numbers without a unit (norms between layers, normalised targets, entropies,
counts, errors in plots), the generators of data, which have units of their own, and tolerances of
checks. For comparisons that NaN passes: ``min(...) <``, ``min(...) <=``, ``if x < `` of numbers
that are not counts.
"""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptok
from adaptok.evaluation import metrics
from adaptok.models.baselines import BASELINES, create_baseline
from adaptok.registry import DECODERS, INDICATORS, MARKINGS, PROCESSORS, TOKENIZERS
from adaptok.testing.inputs import random_errors
from adaptok.tokenizers.embeddings.hmlp import ImageNorm
from adaptok.tokenizers.indicators.variance import channel_variances
from adaptok.tokenizers.marking import split_best_first, top_mask
from adaptok.training.optim import Optim
from adaptok.tree import Tree, cells_from_splits
from adaptok.utils.magnitude import excess, magnitude, moments, standardised

KNOBS = {
    "iap": {"budget": 40},
    "composed": {"indicator": "variance", "marking": {"name": "budget", "budget": 40}},
    "matey": {"sizes": (2, 8)},
    "apt": {"min_size": 2, "thresholds": (4.5, 3.5)},
    "ckm": {"patch_sizes": (4, 8)},
    "csm": {"patch_sizes": (4, 8)},
}
POWERS = (-30, -21, -12, -5, 5, 12, 21, 30)
NORMALISATIONS = ("sample", "dataset", "context")
MEAN, STD, CHANGE = (torch.tensor(v) for v in ([0.3, -20.0], [1.5, 9.0], [0.4, 2.0]))


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(finest cells|initiali).*")
        torch.manual_seed(0)
        yield


def draw(batch=2, frames=2, dtype=torch.float32):
    """Two channels of different size, whose frames change; values have 20 bits."""
    field = torch.randn(batch, frames, 2, 16, 16, dtype=torch.float64).cumsum(-1).cumsum(1)
    field = field * torch.tensor([0.5, 3.0])[:, None, None] + MEAN[:, None, None]
    return field.to(dtype)


def surrogate(**changes):
    make = {"ndim": 2, "in_channels": 2, "history": 2, "dim": 24, "depth": 1, "heads": 2}
    return adaptok.create_surrogate(**(make | changes)).eval()


def scaled(model, power):
    """Sets the statistics of training data in other units."""
    model.set_statistics(*(v.double() * 10.0**power for v in (MEAN, STD, CHANGE)))
    return model


@torch.no_grad()
def check_units(model, powers, dtype=torch.float32):
    """Same cells, and the same prediction relative to the field, and its change."""
    field = draw(dtype=dtype)
    model = scaled(model.to(dtype), 0)
    cells = model.cells(field) if hasattr(model, "cells") else None
    wanted = model(field)
    change = wanted - field[:, -1:]
    assert change.abs().max() > 1e-3
    for power in powers:
        unit = 10.0**power
        other = scaled(model, power)(field * unit)
        assert other.isfinite().all(), power
        off = other / unit - wanted
        assert off.abs().max() < 1e-4 * field.abs().max(), power
        relative = off.abs().amax((0, 1, 3, 4)) / change.abs().amax((0, 1, 3, 4))
        assert relative.max() < 1e-2, power
        if cells is not None:
            same(model.cells(field * unit), cells)


def same(cells, wanted):
    cells.validate()
    assert len(cells) == len(wanted)
    assert torch.equal(cells.origin, wanted.origin)
    assert torch.equal(cells.size, wanted.size)


# ---- surrogates and baselines


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("name", ["iap", "matey", "apt", "ckm"])
def test_units_of_surrogates(name, normalise):
    tokenizer = {"name": name, **KNOBS[name]}
    check_units(surrogate(tokenizer=tokenizer, normalise=normalise), (-30, -9, 30))


PARTS = [("vit", decoder) for decoder in DECODERS.names()]
PARTS += [(processor, "auto") for processor in PROCESSORS.names() if processor != "vit"]
# Units meet the tokenizers through the normalisation; behind it every part sees numbers of order 1.
IN_TURN = itertools.cycle(NORMALISATIONS)  # two for each tokenizer
EVERY = [(name, "vit", "auto", next(IN_TURN)) for name in TOKENIZERS.names() for _ in range(2)]
EVERY += [(name, *parts, "sample") for name in ("iap", "ckm") for parts in PARTS]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processor", "decoder", "normalise"), EVERY)
def test_units_of_every_surrogate(name, processor, decoder, normalise):
    tokenizer = {"name": name, **KNOBS.get(name, {})}
    parts = {"tokenizer": tokenizer, "processor": processor, "decoder": decoder}
    for dtype, predict in ((torch.float32, "delta"), (torch.float64, "state")):
        try:
            model = surrogate(**parts, normalise=normalise, predict=predict)
        except ValueError:
            continue  # parts that do not go together, as the matrix of all parts checks
        check_units(model, POWERS, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("name", [n for n in BASELINES.names() if n != "persistence"])
def test_units_of_every_baseline(name, normalise):
    options = {"ndim": 2, "in_channels": 2, "history": 2, "shape": (16, 16)}
    check_units(create_baseline(name, **options, normalise=normalise).eval(), POWERS)


def test_only_the_authors_constant_has_a_unit():
    field = draw(batch=1)
    relative, absolute = (surrogate(normalise=n) for n in ("context", "context_absolute"))
    absolute.load_state_dict(relative.state_dict())
    for unit, alike in ((1.0, True), (1e-5, False)):
        close = torch.allclose(
            relative.prepare(field * unit), absolute.prepare(field * unit), rtol=1e-3, atol=1e-3
        )
        assert close == alike


# ---- scores and cells


def parts_of_cells():
    for indicator in INDICATORS.names():
        yield {"indicator": indicator, "marking": {"name": "budget", "budget": 40}}
    knobs = {"value_range": None}
    for indicator in ("entropy", "laplacian", "resampling"):
        yield {
            "indicator": {"name": indicator, **knobs},
            "marking": {"name": "budget", "budget": 40},
        }
    for marking in ("maximum", "fraction"):
        yield {"indicator": "variance", "marking": marking}
    yield {"indicator": {"name": "variance", "normalise": True}, "marking": "maximum"}


@pytest.mark.parametrize("parts", list(parts_of_cells()), ids=str)
def test_units_of_raw_scores(parts):
    """Ranks and shares of scores have no unit; entropies of bins between fixed values do."""
    tokenizer = adaptok.create_tokenizer("composed", ndim=2, in_channels=2, dim=8, **parts)
    field = draw()
    wanted = tokenizer.cells(field)
    powers = (-30, -18, 18, 30) if parts["indicator"] != "entropy" else ()
    for power in powers:
        same(tokenizer.cells(field * 10.0**power), wanted)


def test_each_sample_has_its_unit():
    units = torch.tensor([1e-30, 1.0, 1e30]).view(3, 1, 1, 1, 1)
    field = draw(batch=1).expand(3, -1, -1, -1, -1)
    for name in ("iap", "matey", "apt", "composed"):
        tokenizer = adaptok.create_tokenizer(name, ndim=2, in_channels=2, dim=8, **KNOBS[name])
        same(tokenizer.cells(field * units), tokenizer.cells(field))


def test_scores_of_ordinary_fields_keep_their_bits():
    field, tree = draw(), Tree((16, 16), ((8, 8), (4, 4)))
    variance = INDICATORS.create("variance")(field, tree)
    assert torch.equal(variance, channel_variances(field, tree).sum(-1) / 2)
    power = 2.0**20
    assert torch.equal(INDICATORS.create("variance")(field * power, tree), variance * power**2)
    gradient = INDICATORS.create("gradient")
    assert torch.equal(gradient(field * power, tree), gradient(field, tree))


# ---- arithmetic


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-30, 1e30), st.sampled_from([torch.float32, torch.float64]))
def test_magnitude_is_a_power_of_two(value, dtype):
    x = torch.tensor([[value, -value / 3, 0.0]], dtype=dtype)
    power = float(magnitude(x, (1,)))
    assert math.frexp(power)[0] == 0.5
    assert power <= float(x[0, 0]) < 2 * power
    assert excess(x, (1,)) == 1 or not 1e-14 < value < 1e14


@pytest.mark.parametrize("value", [0.0, 3.1, -1e30, 1e-38, math.inf, math.nan])
def test_magnitude_is_finite(value):
    x = torch.full((1, 4), value)
    for power in (magnitude(x, (1,)), excess(x, (1,))):
        assert power.isfinite().all()
        assert (power > 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(-30, 30), st.integers(0, 1000))
def test_moments_are_those_of_float64(power, seed):
    x = torch.randn(2, 40, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    found = moments(x, (1,))
    wide = x.double()
    torch.testing.assert_close(found.mean.double(), wide.mean(1, True), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        found.std.double(), wide.std(1, correction=0, keepdim=True), rtol=1e-5, atol=0
    )
    assert torch.equal(found.unit, found.std)
    torch.testing.assert_close(
        standardised(x, (1,)), ((x - found.mean) / found.std), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("value", [0.0, 1.0, 3.1, 1e-30, -1e30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_constants_do_not_vary(value, dtype):
    x = torch.full((1, 333), value, dtype=torch.float64).clamp(-6e4, 6e4).to(dtype)
    found = moments(x, (1,))
    assert found.std == 0
    assert found.unit > 0
    assert found.mean.dtype == torch.promote_types(dtype, torch.float32)
    exact = x.to(found.mean.dtype)
    noise = torch.nextafter(exact, torch.full_like(exact, math.inf))
    for y in (x, noise.where(torch.arange(333) % 2 == 0, exact)):
        assert ((y - moments(y, (1,)).mean) / moments(y, (1,)).unit).abs().max() < 1e-6
        assert standardised(y, (1,)).abs().max() == 0


# ---- constant and never-changing channels


@pytest.mark.parametrize(
    ("normalise", "predict"),
    [(n, "delta") for n in ("none", *NORMALISATIONS, "context_absolute")]
    + [("sample", "state"), ("dataset", "state")],
)
@pytest.mark.parametrize("std", [0.0, 2.0])
def test_channels_that_do_not_vary_train(normalise, predict, std):
    from adaptok.training.surrogate_module import SurrogateModule

    model = surrogate(normalise=normalise, predict=predict).train()
    statistics = (torch.tensor(v) for v in ([0.0, 3.0], [1.0, std], [0.1, 0.0]))
    with pytest.warns(UserWarning, match="without variation in the training data: .*pressure"):
        model.set_statistics(*statistics, names=("velocity", "pressure"))
    frames = draw(frames=3)
    frames[:, :, 1] = frames[:1, :1, 1] if std else 3.0
    batch = {"input": frames[:, :2], "target": frames[:, 2:], "boundary": None}
    optim = Optim(loss_unit="std" if normalise == "none" else "prediction")
    module = SurrogateModule(model, optim, adaptok.create_schedule({"name": "fixed"}))
    losses = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(4):
        loss = module.loss(batch, step)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    out = model(frames[:, :2])
    assert out.isfinite().all()
    if predict == "delta" and normalise in ("sample", "context", "dataset"):
        torch.testing.assert_close(out[:, 0, 1], frames[:, 1, 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("version", ["current", "paper"])
@pytest.mark.parametrize("kind", ["constant", "zero", "one constant sample", "nearly constant"])
def test_hmlp_of_constant_fields(version, kind):
    field = torch.ones(3, 1, 1, 16, 16) * (kind != "zero")
    if kind == "one constant sample":
        field[1:] = torch.randn(2, 1, 1, 16, 16)
    if kind == "nearly constant":
        field += 1e-6 * torch.randn(field.shape)
    embedding = {"name": "hmlp", "version": version}
    make = {"in_channels": 1, "history": 1, "normalise": "none", "predict": "state"}
    tokenizer = {"name": "matey", "sizes": (2, 8), "embedding": embedding}
    model = surrogate(tokenizer=tokenizer, decoder=embedding, **make)
    out = model(field)
    out.square().mean().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    features = model.tokenizer(field).features
    assert features.abs().max() < 1e5


def test_the_paper_norm_of_images_that_vary_is_the_authors():
    x = torch.randn(2, 3, 5, 5) + 2
    wanted = x / (x.std((2, 3), keepdim=True) + 1e-8)
    torch.testing.assert_close(ImageNorm(3, "paper")(x), wanted)
    assert ImageNorm(3, "paper")(torch.full((1, 3, 1, 1), -4.0)).eq(-1).all()  # not 0 / 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_half_precision_computes_statistics_in_float32(dtype, normalise):
    model = surrogate(normalise=normalise, tokenizer={"name": "uniform", "size": 4})
    field = draw().to(dtype)
    field[:, :, 1] = 3.0
    with torch.no_grad():
        prepared, half = model.prepare(field.float()), model.to(dtype).prepare(field)
        out = model(field)
    assert half.dtype == out.dtype == dtype
    torch.testing.assert_close(half, prepared.to(dtype))
    assert out.isfinite().all()


def test_statistics_of_pairs_of_constants():
    from adaptok.data.well import pair_statistics
    from adaptok.data.windows import Windows

    class Pairs(Windows):
        def __init__(self, samples):
            self.samples = samples

        def __len__(self):
            return len(self.samples)

        def __getitem__(self, index):
            return self.samples[index]

    frames = torch.full((4, 5, 5), 0.1)
    varying = 1e6 + torch.randn(4, 5, 5)
    value = torch.stack([frames, varying], 1)
    pairs = [{"input": value[i : i + 1], "target": value[i + 1 : i + 2]} for i in range(3)]
    found = pair_statistics(Pairs(pairs))
    assert found["std"][0] == found["delta_std"][0] == found["delta_mean"][0] == 0
    assert found["mean"][0] == torch.tensor(0.1)
    wide = value[:3, 1].double()
    assert abs(found["std"][1] - wide.std(correction=0)) < 1e-6
    assert abs(found["delta_std"][1] - value[:, 1].double().diff(dim=0).std(correction=0)) < 1e-6


# ---- metrics and losses


@pytest.mark.parametrize("metric", ["vrmse", "nrmse"])
def test_metrics_of_huge_fields(metric):
    """Only the Well's epsilon has a unit, and it vanishes for large fields."""
    function = getattr(metrics, metric)
    prediction, target = draw(), draw()
    wanted = function(prediction, target, 2, eps=0.0)
    for unit in (1e10, 1e20, 1e30):
        found = function(prediction * unit, target * unit, 2)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)
    assert function(target * 1e30, target * 1e30, 2).eq(0).all()
    flat = torch.full_like(target, 1e30)
    assert function(flat, flat, 2).eq(0).all()
    assert function(prediction.half(), target.half(), 2).dtype == torch.float32
    spectral = metrics.binned_spectral_error(prediction * 1e30, target * 1e30, 2).nmse
    torch.testing.assert_close(
        spectral, metrics.binned_spectral_error(prediction * 1e5, target * 1e5, 2).nmse,
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["mse", "nmse", "matey_nmse"])
def test_units_of_losses(loss):
    prediction, target = draw(), draw()
    mean, std = (v[:, None, None] for v in (MEAN, STD))
    optim = Optim(loss=loss)
    wanted = optim.loss_of(prediction, target, mean, std)
    for unit in (1e-30, 1e-8, 1e8, 1e30):
        found = optim.loss_of(*(v * unit for v in (prediction, target, mean, std)))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)
    half = optim.loss_of(*(v.half() for v in (prediction * 100, target * 100, mean, std / 4)))
    assert half.isfinite()
    assert half.dtype == torch.float32


# ---- scores that are not finite


def hostile(tree, seed):
    scores = torch.rand(3, 2, tree.inner, generator=torch.Generator().manual_seed(seed))
    kinds = torch.randint(0, 8, scores.shape, generator=torch.Generator().manual_seed(seed + 1))
    for kind, value in enumerate((math.nan, math.inf, -math.inf)):
        scores[kinds == kind] = value
    return scores


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([(16, 16), (13, 18)]),
    st.sampled_from(MARKINGS.names()),
    st.integers(0, 10_000),
    st.sampled_from(["mixed", math.nan, math.inf, -math.inf]),
)
def test_markings_survive_any_score(shape, name, seed, what):
    tree = Tree(shape, ((8, 8), (4, 4), (2, 2)))
    scores = hostile(tree, seed) if what == "mixed" else torch.full((3, 2, tree.inner), what)
    knobs = {
        "budget": [{"budget": 70, **m} for m in ({}, {"per_batch": True}, {"splits_per_step": 4})],
        "random": [{"budget": 70}],
        "threshold": [{"thresholds": 0.5}, {"thresholds": (0.2, 0.6), "budget": 70}],
        "fraction": [{"ratio": 0.3}],
        "maximum": [{"gamma": 0.4}],
        "tolerance": [{"tolerance": 0.5}, {"tolerance": 0.5, "budget": 70}, {"budget": 70}],
    }.get(name, [{}])  # fmt: skip
    for each in knobs:
        marking = MARKINGS.create(name, **each)
        asked = getattr(marking, "needs_errors", False)
        errors = {"errors": random_errors(tree, frames=2)} if asked else {}
        marks = marking(scores, tree, monotone=False, shared=1, **errors)
        known = {"lengths": marks.lengths, "total": marks.total}
        cells_from_splits(marks.split, tree, frames=2, **known).validate()


def test_nan_splits_first_and_infinity_with_it():
    tree = Tree((8, 8), ((4, 4), (2, 2)))
    scores = torch.tensor([0.1, 5.0, math.nan, 0.2]).view(1, 1, 4)
    nan, five = [False, False, True, False], [False, True, False, False]
    for name, knobs in (
        ("budget", {"budget": 7}),
        ("fraction", {"ratio": 0.25}),
        ("maximum", {"gamma": 0.5}),
        ("threshold", {"thresholds": 9.0}),
    ):
        assert MARKINGS.create(name, **knobs)(scores, tree).split.flatten().tolist() == nan
        clean = scores.nan_to_num(0.0)
        if name != "threshold":
            assert MARKINGS.create(name, **knobs)(clean, tree).split.flatten().tolist() == five


@pytest.mark.parametrize("name", ["budget", "fraction", "maximum"])
def test_finite_scores_are_ranked_as_before(name):
    tree = Tree((16, 16), ((8, 8), (4, 4), (2, 2)))
    scores = torch.rand(2, 1, tree.inner)
    if name == "budget":
        wanted = split_best_first(scores, tree, (10, 10))
        found = MARKINGS.create("budget", budget=4 + 30)(scores, tree).split
    elif name == "maximum":
        wanted = scores > 0.2 * tree.per_level(scores)[0].amax((1, 2), keepdim=True)
        found = MARKINGS.create("maximum")(scores, tree).split
    else:
        wanted = top_mask(scores[:, 0, :4], (1, 1))
        found = MARKINGS.create("fraction", ratio=0.25)(scores, tree).split[:, 0, :4]
    assert torch.equal(found, wanted)


def test_huge_fields_have_valid_cells():
    large = torch.randn(2, 1, 1, 69) * 1e20
    for knobs in (
        {"name": "matey", "sizes": (1, 4), "fraction": 0.5},
        {"name": "composed", "indicator": "variance", "min_size": 1, "max_size": 4,
         "marking": {"name": "budget", "budget": 30}},
    ):  # fmt: skip
        tokenizer = adaptok.create_tokenizer(**knobs, ndim=1, in_channels=1, dim=8)
        same(tokenizer.cells(large), tokenizer.cells(large / 1e20))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 1e300])
@pytest.mark.parametrize("indicator", ["gradient", "variance"])
def test_weights_are_finite(indicator, bad):
    with pytest.raises(ValueError, match="weights must "):
        INDICATORS.create(indicator, weights=[bad, 1.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda bad: INDICATORS.create("gradient", power=bad), "power"),
        (lambda bad: INDICATORS.create("entropy", value_range=(0, bad)), "value_range"),
        (lambda bad: MARKINGS.create("maximum", gamma=bad), "gamma"),
        (lambda bad: MARKINGS.create("fraction", ratio=bad), "ratio"),
    ],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_are_finite(make, message, bad):
    with pytest.raises(ValueError, match=message):
        make(bad)


@pytest.mark.parametrize("budget", [3, 15])
def test_one_level_keeps_a_budget_or_refuses(budget):
    """As in iap: 16 cells of one size are not 15."""
    apt = adaptok.create_tokenizer(
        "apt", ndim=2, in_channels=1, dim=8, min_size=4, max_size=4, thresholds=(), budget=budget
    )
    field = torch.randn(2, 1, 1, 16, 16)
    with pytest.raises(ValueError, match=f"budget {budget} is below the 16 cells"):
        apt.cells(field)
    assert len(apt.cells(field, budget=16)) == 32


def test_calibration_of_scores_that_are_not_finite():
    tree_tokenizer = adaptok.create_tokenizer("matey", ndim=2, in_channels=1, dim=8, sizes=(2, 8))

    class Hostile:
        monotone = False

        def __call__(self, field, tree, *, boundary=None):
            return hostile(tree, 5)[: len(field), 0]

    tree_tokenizer.indicator = Hostile()
    field = torch.randn(3, 1, 1, 16, 16)
    with pytest.raises(ValueError, match="indicator Hostile gives the score"):
        adaptok.calibrate(tree_tokenizer, field, 24)
