"""Surrogate: normalisation, history, constants, boundaries, rollouts, bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from references import boxes

import adaptok
from adaptok import create_schedule, create_surrogate

IAP = {"name": "iap", "min_size": 2, "max_size": 8, "budget": 30}


def surrogate(**changes) -> adaptok.Surrogate:
    make = {"ndim": 2, "in_channels": 2, "tokenizer": IAP, "dim": 24, "depth": 1, "heads": 2}
    return create_surrogate(**(make | changes))


def draw(*, batch: int = 2, t: int = 1, c: int = 2, shape=(16, 24)) -> torch.Tensor:
    scale = torch.tensor([3.0, 0.1, 20.0])[:c].view(-1, *[1] * len(shape))
    return torch.randn(batch, t, c, *shape) * scale + 5 * scale


def decoded(model, x, scored=None, **control) -> torch.Tensor:
    """What the parts give, without the surrogate around them."""
    cells = model.tokenizer.cells(x if scored is None else scored, **control)
    return model.decoder(model.processor(model.tokenizer.embed(x, cells)))[:, -1:]


def sample_statistics(field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population std per sample and channel, over time and space."""
    rows = field.movedim(2, 1).flatten(2).double()  # (b, c, t * points)
    mean = rows.mean(2)
    std = ((rows - mean[..., None]) ** 2).mean(2).sqrt()
    shape = (field.shape[0], 1, field.shape[2], *[1] * (field.ndim - 3))
    return mean.float().view(shape), std.float().view(shape)


STATISTICS = {
    "mean": torch.tensor([1.0, -2.0]),
    "std": torch.tensor([2.0, 0.5]),
    "delta_std": torch.tensor([0.1, 0.3]),
}


# ---- normalisation and prediction


@pytest.mark.parametrize("predict", ["delta", "state"])
@pytest.mark.parametrize("t", [1, 3])
def test_normalise_per_sample(predict, t):
    model, field = surrogate(predict=predict, history=t), draw(t=t)
    mean, std = sample_statistics(field)
    x = ((field - mean) / std).flatten(1, 2).unsqueeze(1)  # history folded into channels
    torch.testing.assert_close(model.prepare(field), x, atol=1e-4, rtol=1e-4)
    out = decoded(model, model.prepare(field))
    expected = field[:, -1:] + std * out if predict == "delta" else mean + std * out
    torch.testing.assert_close(model(field), expected, atol=1e-4, rtol=1e-4)
    model.set_statistics(**STATISTICS)  # a change is this large in units of the context's std
    relative = (STATISTICS["delta_std"] / STATISTICS["std"]).view(2, 1, 1)
    expected = field[:, -1:] + std * relative * out if predict == "delta" else mean + std * out
    torch.testing.assert_close(model(field), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("predict", ["delta", "state"])
def test_normalise_by_the_data_set(predict):
    model, field = surrogate(predict=predict, normalise="dataset"), draw()
    torch.testing.assert_close(model.prepare(field), field)  # nothing set: mean 0, std 1
    model.set_statistics(**STATISTICS)
    mean, std, delta = (value.view(2, 1, 1) for value in STATISTICS.values())
    x = (field - mean) / std
    torch.testing.assert_close(model.prepare(field), x)
    out = decoded(model, x)
    expected = field + delta * out if predict == "delta" else mean + std * out
    torch.testing.assert_close(model(field), expected)


@pytest.mark.parametrize("predict", ["delta", "state"])
def test_normalise_none_leaves_physical_units_alone(predict):
    """Also where statistics were set, as a training loop does whatever the model."""
    model, field = surrogate(predict=predict, normalise="none"), draw()
    model.set_statistics(**STATISTICS)
    assert torch.equal(model.prepare(field), field)
    out = decoded(model, field)
    torch.testing.assert_close(model(field), field + out if predict == "delta" else out)


def test_a_constant_channel_is_no_division_by_zero():
    model, field = surrogate(), draw()
    field[0, :, 1] = 7.0
    out = model(field)
    assert torch.isfinite(out).all()
    assert not model.prepare(field)[0, 0, 1].any()
    torch.testing.assert_close(out[0, 0, 1], field[0, 0, 1])  # what never changed stays


@pytest.mark.parametrize("normalise", ["sample", "dataset"])
def test_what_is_scored(normalise):
    """`score_on` decides what the indicator sees; what is embedded is normalised either way."""
    field = draw()
    for score_on in ("normalised", "raw"):
        torch.manual_seed(0)
        model = surrogate(score_on=score_on, normalise=normalise)
        model.set_statistics(**STATISTICS)
        seen = []
        score_map = model.tokenizer.indicator.score_map

        def spy(x, seen=seen, score_map=score_map, **options):
            seen.append(x)
            return score_map(x, **options)

        model.tokenizer.indicator.score_map = spy
        model(field)
        torch.testing.assert_close(seen[0], field if score_on == "raw" else model.prepare(field))


def test_other_output_channels():
    model = surrogate(in_channels=3, out_channels=1, predict="state", normalise="none")
    field = draw(c=3)
    out = model(field)
    assert out.shape == (2, 1, 1, 16, 24)
    torch.testing.assert_close(out, decoded(model, field))
    more = surrogate(in_channels=1, out_channels=2, predict="state", normalise="none")
    assert more(draw(c=1)).shape == (2, 1, 2, 16, 24)
    with pytest.raises(ValueError, match="a rollout needs as many output as input channels"):
        model.rollout(field, 2)
    with pytest.raises(ValueError, match='use predict="state" and normalise="none"'):
        surrogate(in_channels=3, out_channels=1)


# ---- fields, history, constants


def test_a_field_without_time_is_one_frame():
    model, field = surrogate(), draw()
    assert torch.equal(model(field[:, 0]), model(field))
    assert boxes(model.cells(field[:, 0])) == boxes(model.cells(field))


def test_folded_history_becomes_channels():
    model, field = surrogate(history=3, normalise="none"), draw(t=3)
    assert model.tokenizer.spec.in_channels == 6
    x = model.prepare(field)
    assert x.shape == (2, 1, 6, 16, 24)
    for frame in range(3):
        assert torch.equal(x[:, 0, 2 * frame : 2 * frame + 2], field[:, frame])
    assert model(field).shape == (2, 1, 2, 16, 24)


def test_frames_stay_frames():
    model, field = surrogate(history=3, history_mode="frames", normalise="none"), draw(t=3)
    assert model.tokenizer.spec.in_channels == 2
    assert torch.equal(model.prepare(field), field)
    cells = model.cells(field, budget=60)
    assert cells.shape == (3, 16, 24)
    assert cells.validate().cu_seqlens.diff().tolist() == [54, 54]  # three frames of 18
    out = model(field, budget=60)
    torch.testing.assert_close(out, field[:, -1:] + decoded(model, field, budget=60))


@pytest.mark.parametrize("history_mode", ["fold", "frames"])
@pytest.mark.parametrize("normalise", ["sample", "dataset", "none"])
def test_constants_are_input_channels(history_mode, normalise):
    model = surrogate(
        history=2, history_mode=history_mode, constant_channels=1, normalise=normalise
    )
    statistics = {"constant_mean": torch.tensor([4.0]), "constant_std": torch.tensor([2.0])}
    model.set_statistics(**STATISTICS, **statistics)
    field, constants = draw(t=2), torch.randn(2, 1, 16, 24) * 3 + 1
    x = model.prepare(field, constants)
    frames = 1 if history_mode == "fold" else 2
    assert x.shape == (2, frames, 5 if history_mode == "fold" else 3, 16, 24)
    mean, std = {
        "sample": [s[:, 0] for s in sample_statistics(constants[:, None])],
        "dataset": (4.0, 2.0),
        "none": (0.0, 1.0),
    }[normalise]
    for frame in range(frames):
        torch.testing.assert_close(x[:, frame, -1:], (constants - mean) / std, atol=1e-5, rtol=1e-5)
    out = model(field, constants=constants, budget=60)
    assert out.shape == (2, 1, 2, 16, 24)
    other = model(field, constants=constants.flip(2) * 2 - constants, budget=60)
    assert not torch.equal(out, other)
    rolled = model.rollout(field, 2, constants=constants, budget=60)
    torch.testing.assert_close(rolled[:, :1], out)


def test_constants_must_be_given_where_and_only_where_they_were_announced():
    without, field = surrogate(), draw()
    constants = torch.rand(2, 1, 16, 24)
    with pytest.raises(ValueError, match=r"constants must have shape None, got \(2, 1, 16, 24\)"):
        without(field, constants=constants)
    assert torch.equal(without(field, constants=constants[:, :0]), without(field))
    with_one = surrogate(constant_channels=1)
    for given in (None, constants[:, :0], constants[:1], constants[..., :8], constants[:, 0]):
        with pytest.raises(ValueError, match=r"constants must have shape \(2, 1, 16, 24\)"):
            with_one(field, constants=given)
        with pytest.raises(ValueError, match="constants must have shape"):
            with_one.rollout(field, 2, constants=given)


def test_constants_that_are_not_finite_are_named():
    constants = torch.rand(2, 1, 16, 24)
    constants[1, 0, 2, 3] = math.nan
    with pytest.raises(
        ValueError, match=r"constant field is not finite: nan in sample 1.* channel 0"
    ):
        surrogate(constant_channels=1)(draw(), constants=constants)


# ---- boundaries and controls


def test_a_periodic_boundary_reaches_the_padding():
    """With periodic codes a shift of the field shifts the scores; with walls it does not."""
    model = surrogate()
    field = draw(batch=1).cumsum(-1).cumsum(-2)  # far from periodic
    periodic = torch.full((2, 2), 2)
    shifted = field.roll((8, 8), (-2, -1))

    def score(x, boundary):
        return model.tokenizer.score_map(model.prepare(x), boundary=boundary)

    rolled = score(field, periodic).roll((8, 8), (-2, -1))
    torch.testing.assert_close(score(shifted, periodic), rolled, atol=1e-3, rtol=1e-3)
    walls = score(field, None).roll((8, 8), (-2, -1))
    assert not torch.allclose(score(shifted, None), walls, atol=0.1)

    cells = model.cells(field, boundary=periodic)
    expected = model.tokenizer.cells(model.prepare(field), boundary=periodic)
    assert boxes(cells) == boxes(expected) != boxes(model.cells(field))
    out = model(field, boundary=periodic)
    assert not torch.equal(out, model(field))
    torch.testing.assert_close(model.rollout(field, 1, boundary=periodic), out)
    per_sample = periodic.expand(2, 2, 2)
    torch.testing.assert_close(model(field.expand(2, -1, -1, -1, -1), boundary=per_sample)[:1], out)


def test_controls_are_the_tokenizer_s():
    model, field = surrogate(), draw()
    assert model.controls == ("budget",)
    assert len(model.cells(field, budget=40)) == 78
    assert model.cells(field, budget=[9, 30]).cu_seqlens.diff().tolist() == [9, 30]
    assert not torch.equal(model(field, budget=60), model(field))
    for call in (model, model.cells, lambda x, **k: model.rollout(x, 2, **k)):
        with pytest.raises(ValueError, match=r"unknown control 'bugdet'.*'budget'"):
            call(field, bugdet=40)
    uniform = surrogate(tokenizer={"name": "uniform", "size": 4})
    assert uniform.controls == ()


# ---- rollout


@pytest.mark.parametrize("history_mode", ["fold", "frames"])
@pytest.mark.parametrize("t", [1, 3])
def test_a_rollout_is_a_loop(history_mode, t):
    model, field = surrogate(history=t, history_mode=history_mode), draw(t=t)
    frames = [field[:, i : i + 1] for i in range(t)]
    for _ in range(4):
        frames.append(model(torch.cat(frames[-t:], 1), budget=60).detach())
    out = model.rollout(field, 4, budget=60)
    assert out.shape == (2, 4, 2, 16, 24)
    torch.testing.assert_close(out, torch.cat(frames[t:], 1))
    assert not out.requires_grad


def test_a_rollout_follows_a_schedule():
    model, field = surrogate(), draw()
    settings = create_schedule({"name": "cyclic", "settings": [{"budget": 60}, {"budget": 9}]})
    first = model(field, budget=60).detach()
    second = model(first, budget=9).detach()
    expected = torch.cat([first, second, model(second, budget=60).detach()], 1)
    torch.testing.assert_close(model.rollout(field, 3, settings=settings, budget=12), expected)
    assert torch.equal(
        model.rollout(field, 2, settings=create_schedule("fixed"), budget=12),
        model.rollout(field, 2, budget=12),
    )


@pytest.mark.parametrize("steps", [0, -1])
def test_a_rollout_has_at_least_one_step(steps):
    with pytest.raises(
        ValueError, match=f"n_steps must be a whole number of at least 1, got {steps}"
    ):
        surrogate().rollout(draw(), steps)


# ---- statistics and state


def test_statistics_are_checked_before_anything_changes():
    model = surrogate(normalise="dataset")
    good = STATISTICS
    model.set_statistics(**good)
    for bad, message in (
        ({"mean": torch.zeros(3)}, r"mean needs 2 channels, got \(3,\)"),
        ({"std": torch.tensor([1.0, -1.0])}, "std must be finite and not negative"),
        ({"delta_std": torch.tensor([1.0, math.nan])}, "delta_std must be finite and not negative"),
        ({"delta_std": torch.tensor([-1.0, 1.0])}, "delta_std must be finite and not negative"),
        ({"mean": torch.tensor([math.inf, 1.0])}, "mean must be finite"),
        ({"constant_mean": torch.zeros(1)}, "constant_mean needs 0 channels"),
    ):
        other = {name: value + 1 for name, value in good.items()}
        with pytest.raises(ValueError, match=message):
            model.set_statistics(**(other | bad))
        for name, value in good.items():
            assert torch.equal(getattr(model, name), value)


def test_the_state_dict_carries_weights_and_statistics():
    model = surrogate(decoder="cross_attention", normalise="dataset")
    model.set_statistics(**STATISTICS)
    other = surrogate(decoder="cross_attention", normalise="dataset")
    field = draw()
    assert not torch.equal(other(field), model(field))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(field), model(field))
    assert torch.equal(other.delta_std, STATISTICS["delta_std"])


def test_samples_do_not_see_one_another():
    model = surrogate(decoder="cross_attention").eval()
    field = draw(batch=3)
    before = model(field)
    other = field.clone()
    other[1] = other[1].cumsum(-1) * 10
    after = model(other)
    for i in (0, 2):
        torch.testing.assert_close(after[i], before[i], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[1], before[1])
    for i in range(3):
        alone = model(field[i : i + 1])
        torch.testing.assert_close(alone[0], before[i], atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_result():
    field, results = draw(), []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(surrogate(processor={"name": "vit", "drop_path": 0.5})(field))
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("decoder", ["linear", "cross_attention"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_half_precision_by_autocast(decoder, qk_norm):
    model, field = surrogate(decoder=decoder, processor={"name": "vit", "qk_norm": qk_norm}), draw()
    exact = model(field)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(field)
    assert out.dtype == torch.float32
    std = sample_statistics(field)[1]
    torch.testing.assert_close(out / std, exact / std, atol=0.03, rtol=0.01)
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_step_is_deterministic_and_copies_behave_alike():
    model, field = surrogate(decoder="cross_attention"), draw()
    twin = copy.deepcopy(model)
    torch.use_deterministic_algorithms(True)
    try:
        for each in (model, twin):
            each(field).square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


# ---- construction


def test_depth_and_heads_go_to_the_parts_that_have_them():
    model = surrogate(depth=3, heads=4, decoder="cross_attention")
    assert len(model.processor.blocks) == 3
    assert model.processor.blocks[0].attention.heads == model.decoder.attention.heads == 4
    own = surrogate(
        depth=3,
        heads=4,
        processor={"name": "vit", "depth": 2},
        decoder={"name": "cross_attention", "heads": 3},
    )
    assert len(own.processor.blocks) == 2
    assert own.processor.blocks[0].attention.heads == 4
    assert own.decoder.attention.heads == 3


def test_the_defaults_are_those_of_the_documentation():
    model = create_surrogate(ndim=2, in_channels=1)
    assert model.tokenizer.spec.dim == 384
    assert len(model.processor.blocks) == 8
    assert model.processor.blocks[0].attention.heads == 6
    assert (model.history_mode, model.normalise, model.predict) == ("fold", "sample", "delta")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "iapp"}, r"unknown tokenizer 'iapp' \(did you mean 'iap'\?\)"),
        ({"tokenizer": {"name": "iap", "bugdet": 3}}, "no knob 'bugdet'.*did you mean 'budget'"),
        ({"tokenizer": {"budget": 3}}, "a tokenizer is a name or a mapping with 'name'"),
        ({"processor": "vitt"}, "unknown processor 'vitt'.*'vit'"),
        ({"processor": {"name": "vit", "depht": 3}}, "no knob 'depht'.*'depth'"),
        ({"decoder": "liner"}, "unknown decoder 'liner'.*'linear'"),
        (
            {"history_mode": "folded"},
            "history_mode must be one of auto, fold, frames, got 'folded'",
        ),
        ({"normalise": "samples"}, "normalise must be one of sample, context, dataset, none"),
        ({"score_on": "x"}, "score_on must be one of normalised, raw, got 'x'"),
        ({"predict": "deltas"}, "predict must be one of delta, state.*did you mean 'delta'"),
        ({"history": 0}, "history must be a whole number of at least 1, got 0"),
        ({"ndim": 4}, "ndim must be a whole number .* at most 3, got 4"),
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1, got 0"),
        (
            {"constant_channels": -1},
            "constant_channels must be a whole number of at least 0, got -1",
        ),
        (
            {"out_channels": 0, "predict": "state", "normalise": "none"},
            "out_channels must be a whole number of at least 1 or null, got 0",
        ),
        ({"heads": 5}, "dim 24 is not divisible by 5 heads"),
    ],
)
def test_constructions_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        surrogate(**changes)


# ---- bad fields


def test_half_precision_is_normalised_in_that_of_the_statistics():
    model, field = surrogate(), draw().half()
    assert torch.equal(model(field), model(field.float()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokeniser": "iap"}, r"^create_surrogate: .*'tokeniser' \(did you mean 'tokenizer'\?\)"),
        ({"budget": 64}, 'a knob of the tokenizer: give tokenizer={"name": "iap", "budget": 64}'),
        (
            {"mlp_ratio": 2},
            'of the processor: give processor={"name": "vit", "mlp_ratio": 2}',
        ),
        ({"in_channels": 1}, "^create_surrogate: missing a required argument: 'ndim'"),
    ],
)
def test_arguments_that_it_does_not_have(arguments, message):
    given = {"in_channels": 1, "ndim": 2} if "in_channels" not in arguments else {}
    with pytest.raises(TypeError, match=message):
        create_surrogate(**given, **arguments)


def test_a_parameter_of_its_own_is_meant_rather_than_a_knob():
    message = r"argument 'channels' \(did you mean 'in_channels'\?\)"
    with pytest.raises(TypeError, match=message):
        create_surrogate(ndim=2, channels=3, dim=24)  # type: ignore[call-arg]


def test_devices_are_chosen_after_building(tmp_path):
    message = r"'device': what is built takes it later, \.to\(device\)"
    small: dict = {"ndim": 2, "in_channels": 1}
    with pytest.raises(TypeError, match=message):
        create_surrogate(**small, device="cpu")
    with pytest.raises(TypeError, match=message):
        adaptok.from_pretrained(tmp_path, device="cpu")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=message):
        adaptok.create_tokenizer("iap", dim=8, **small, device="cpu")


@pytest.mark.parametrize("settings", [{"budget": 22}, [{"budget": 22}, {"budget": 28}]])
def test_settings_of_a_rollout_in_another_form_are_refused_with_the_right_one(settings):
    message = r'{"name": "cyclic", "settings": \[{"budget": 64}, {"budget": 256}\]}'
    with pytest.raises(ValueError, match=message):
        surrogate().rollout(draw(), 2, settings=settings)


def test_what_is_given_by_position():
    with pytest.raises(
        TypeError,
        match=r"^create_tokenizer: takes by position name, got 4 .*: ndim, in_channels, dim$",
    ):
        adaptok.create_tokenizer("iap", 2, 3, 8)  # type: ignore[misc]


def test_fields_that_do_not_fit():
    model, field = surrogate(history=2), draw(t=2)
    for call in (model, model.prepare, model.cells, lambda x: model.rollout(x, 2)):
        with pytest.raises(ValueError, match="built for a history of 2 frames, got 1"):
            call(field[:, :1])
        with pytest.raises(ValueError, match=r"built for 2 channel\(s\), the field has 1"):
            call(field[:, :, :1])
        with pytest.raises(ValueError, match=r"is \(b, t, c, \*space\) or \(b, c, \*space\)"):
            call(field[0, 0, 0])
        with pytest.raises(ValueError, match=r"floating-point tensor.* got a torch\.int64"):
            call(field.long())
        bad = field.clone()
        bad[1, 0, 1, 2, 3] = math.inf
        with pytest.raises(ValueError, match="inf in sample 1, frame 0, channel 1"):
            call(bad)


def test_a_budget_below_the_roots_reaches_the_caller():
    with pytest.raises(ValueError, match="budget 5 is below the 6 cells"):
        surrogate()(draw(), budget=5)


def test_a_budget_above_the_finest_warns_once():
    with pytest.warns(UserWarning, match="every cell is the finest") as caught:
        out = surrogate()(draw(), budget=10**6)
    assert len([w for w in caught if "finest" in str(w.message)]) == 1
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x[:, :, :1],
        lambda x: x[..., :1, :1],
        lambda x: x[:, 0],
        lambda x: x[:1],
        lambda x: x.tolist(),
    ],
)
def test_what_a_decoder_paints_is_not_broadcast(wrong):
    model = surrogate(in_channels=3, tokenizer={**IAP, "budget": 19})
    right = model.decoder.forward
    model.decoder.forward = lambda *args, **kwargs: wrong(right(*args, **kwargs))
    name = type(model.decoder).__name__
    with pytest.raises(ValueError, match=rf"{name} must return a field .*\(2, 1, 3, 16, 16\), got"):
        model(torch.randn(2, 1, 3, 16, 16))
