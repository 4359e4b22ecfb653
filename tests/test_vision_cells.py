"""Cells of timm models: thresholds, budgets, calibration, and calls that are refused."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from sampled import sampled
from small_vits import BY_NAME, NORM, images, small_vit

import adaptok
from adaptok.vision import Tokenize, apply_apt, apply_reducer, supported

timm = pytest.importorskip("timm")


def test_calibration_takes_normalised_images_of_any_kind():
    """The mean is the closest from below: the reference calibrates the restored values by hand."""
    fast = apply_apt(small_vit(), (6.0, 5.0), **NORM).eval()
    x = torch.cat([images(3, 3, 64, 64), torch.zeros(1, 3, 64, 64)])
    expected = adaptok.calibrate(fast.tiling.trees, fast.tiling.restore(x), 30)
    assert fast.calibrate(x, 30) == expected
    assert fast.calibrate(x, share=30 / 64) == expected
    assert adaptok.calibrate(fast, x, 30) == expected
    assert fast.calibrate(list(x), 30) == expected
    assert fast.calibrate([x[:3], x[3:]], 30) == expected
    labelled = torch.utils.data.TensorDataset(x, torch.arange(4))
    assert fast.calibrate(torch.utils.data.DataLoader(labelled, batch_size=3), 30) == expected
    for name in ("image", "pixel_values"):
        items = [{"labels": 0, name: batch} for batch in (*x[:2], x[2:])]
        assert fast.calibrate(items, 30) == fast.calibrate({name: x}, 30) == expected
    cut = adaptok.collate([Tokenize(fast)(image) for image in x])
    assert fast.calibrate(cut, 30) == fast.calibrate([(cut, 1)], 30) == expected
    fast(x, thresholds=expected)
    assert 20 < len(fast.last_cells) / 4 <= 30
    mixed = [*x[:2], images(3, 64, 99)]  # 64, 64 and 96 patches
    fast(mixed, thresholds=fast.calibrate(mixed, share=0.5))
    assert 0.3 < len(fast.last_cells) / 224 <= 0.5


def test_another_normalisation_than_the_models_is_named_once(recwarn):
    values = ((images(2, 3, 64, 64) * 0.5 + 0.5) * 255).round()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229,) * 3))
    wrong = {"0..1": values / 255, "bytes": values, "ImageNet": (values / 255 - mean) / std}
    right = {"right": values / 127.5 - 1, "flat": torch.zeros(2, 3, 64, 64)}
    for name, x in (right | wrong).items():
        fast = apply_apt(small_vit(depth=1), (6.0, 5.0), **NORM).eval()
        fast(x, thresholds=(-1.0, -1.0))  # nothing is scored, nothing is read
        assert not recwarn.list, name
        fast(x)
        fast(x)
        said = [str(recwarn.pop().message) for _ in list(recwarn.list)]
        assert len(said) == (name in wrong), name
        assert all("do not look normalised by the mean (0.5, 0.5, 0.5)" in one for one in said)
    narrow = apply_apt(small_vit(), (6.0, 5.0), mean=(0.485, 0.456, 0.406), std=(0.229,) * 3).eval()
    with pytest.warns(UserWarning, match="span"):
        narrow(right["right"])


def test_tokens_are_counted_by_level():
    fast = apply_apt(small_vit(), (6.0, 4.0), **NORM).eval()
    with pytest.raises(ValueError, match="there was none"):
        fast.tokens_per_level()
    x = torch.cat([images(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 64, 64)])
    fast(x)
    counts = fast.tokens_per_level()
    assert list(counts) == [(8, 8), (16, 16), (32, 32)]
    cells = fast.last_cells
    for (side, _), own in counts.items():  # one image and one size at a time
        rows = [(cells.sample == i) & (cells.size[:, 1] == side) for i in range(3)]
        assert own.tolist() == [int(row.sum()) for row in rows]
    assert [int(own[1]) for own in counts.values()] == [0, 0, 4]
    assert sum(counts.values()).tolist() == list(cells.lengths)
    fast(x, thresholds=(-1.0, -1.0))
    every = [own.tolist() for own in fast.tokens_per_level().values()]
    assert every == [[64] * 3, [0] * 3, [0] * 3]


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (72, 96), (70, 45)])
def test_the_range_of_the_number_of_tokens(size, pad):
    """All that a flat image can merge, and all patches."""
    fast = apply_apt(small_vit(dynamic_img_pad=pad, dynamic_img_size=pad), (6.0, 6.0), **NORM)
    least, most = fast.token_range(*size)
    flat = torch.zeros(1, 3, *size)
    assert fast.tiling(flat).lengths == (least,)
    assert fast.tiling(flat, thresholds=(-1.0, -1.0)).lengths == (most,)


def test_calibrations_that_make_no_sense_are_refused():
    fast, x = apply_apt(small_vit(), (6.0, 5.0), **NORM), images(2, 3, 64, 64)
    for wrong in ({}, {"tokens": 30, "share": 0.5}, {"share": 0.0}, {"share": 50}, {"tokens": 500}):
        with pytest.raises(ValueError, match=r"tokens|share"):
            fast.calibrate(x, **wrong)
    with pytest.raises(ValueError, match="at least one field"):
        fast.calibrate([], 30)
    for wrong in ([{"pixels": x}], {"pixels": x}, "images", ["images"], 3):
        with pytest.raises(ValueError, match=r"loader of images.*; got an? (dict with p|str|int)"):
            fast.calibrate(wrong, 30)
    with pytest.raises(ValueError, match=r"marks by thresholds.* BudgetMarking"):
        apply_apt(small_vit(), marking={"name": "budget", "budget": 22}, **NORM).calibrate(x, 30)
    with pytest.raises(ValueError, match="got VisionTransformer"):
        adaptok.calibrate(small_vit(), x, 30)


def test_values_out_of_range_are_clamped():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM).eval()
    fast(torch.full((1, 3, 64, 64), 100.0))
    assert fast.last_cells.lengths == (4,)


def test_normalisation_of_the_models_configuration_is_undone():
    model = timm.create_model("test_vit", num_classes=3)
    fast = apply_apt(model, (5.5,))
    values = torch.randint(0, 256, (1, 3, 64, 64)).float()
    mean, std = (torch.tensor(model.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    assert torch.equal(fast.tiling.restore((values / 255 - mean) / std), values)


def test_thresholds_and_budget_per_call_and_a_tiling_of_ones_own():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM).eval()
    x = images(2, 3, 64, 64)
    fast(x, thresholds=(-1.0, -1.0))
    assert fast.last_cells.lengths == (64, 64)
    fast(x, budget=20)
    assert max(fast.last_cells.lengths) <= 20
    cells = adaptok.cells_from_score(x[:, 0], min_size=8, max_size=32, budget=19)
    fast(x, cells=cells)
    assert fast.last_cells is cells


def test_a_budget_gives_equal_lengths():
    fast = apply_apt(
        small_vit(), (6.0, 6.0), marking={"name": "budget", "budget": 22}, **NORM
    ).eval()
    fast(images(3, 3, 64, 64))
    assert fast.last_cells.lengths == (22, 22, 22)


@pytest.mark.parametrize("mode", sampled([torch.inference_mode, torch.no_grad], 2))
def test_writes_to_parameters_are_seen_at_once(mode):
    """Also those through `.data`, which raise no version; each against a fresh model."""
    fast, x = apply_apt(small_vit(depth=1), (6.0, 6.0), **NORM).eval(), images(1, 3, 64, 80)
    for name in ("pos_embed", "patch_embed.proj.weight", "cls_token", "cell_embed.zero.bias"):
        with mode():
            before = fast(x)
            assert torch.equal(fast(x), before)
        fast.get_parameter(name).data[..., :1] += 0.5
        with mode():
            after, fresh = fast(x), copy.deepcopy(fast)
            fresh.cell_positions = type(fresh.cell_positions)()
            assert torch.equal(after, fresh(x)), name
        assert not torch.equal(after, before), name
        assert len(fast.cell_positions.kept) == 1


@pytest.mark.parametrize("thresholds", [(), "5.5", (5.5, "4"), 5.5, (True,)])
def test_thresholds_that_are_none_are_refused(thresholds):
    with pytest.raises(ValueError, match=r"thresholds are a list of numbers, .* as \(5\.5,\); got"):
        apply_apt(small_vit(), thresholds, **NORM)


def test_knobs_of_the_marking_are_given_with_it():
    marking = 'marking={"name": "budget", "budget": 85}'
    with pytest.raises(TypeError, match=f"apply_apt: .* 'budget', a knob .*{marking}"):
        apply_apt(small_vit(), budget=85, **NORM)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"'indicater' \(did you mean 'indicator'"):
        apply_apt(small_vit(), indicater="edges", **NORM)  # type: ignore[call-arg]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_are_of_the_dtype_of_the_weights_but_under_autocast(dtype):
    x = images(2, 3, 64, 64)
    message = f"images is {dtype}, the weights are torch.float32: convert one"
    for fast in (apply_apt(small_vit(), **NORM), apply_reducer(small_vit(), "tome")):
        with pytest.raises(ValueError, match=message):
            fast(x.to(dtype))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(fast(x.bfloat16())).all()


def test_bad_calls_are_refused():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM).eval()
    x = images(1, 3, 64, 64)
    with pytest.raises(ValueError, match="3 cell sizes need 2 threshold"):
        fast(x, thresholds=(1.0,))
    with pytest.raises(ValueError, match="3 cell sizes need 2 threshold"):
        fast(x, thresholds=(-1.0,))
    with pytest.raises(ValueError, match="height, width"):
        fast(x[0])
    with pytest.raises(ValueError, match="3 channel"):
        fast(x[:, :1])
    with pytest.raises(ValueError, match="smaller than the coarsest cell"):
        fast(x[..., :31])
    with pytest.raises(ValueError, match="unknown control"):
        fast(x, tresholds=(1.0, 1.0))
    with pytest.raises(ValueError, match="cells"):
        fast(x, cells=apply_apt(small_vit(patch_size=4), (6.0,), **NORM).tiling(x))


REFUSED = {
    "vit_relpos_small_patch16_224": "relative position bias",
    "beit_base_patch16_224": "relative position bias",
    "samvit_base_patch16_224": "windowed blocks",
    "resnet18": "not a plain vision transformer",
    "vit_tiny_r_s16_p8_224": "HybridEmbed",
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_models_say_why(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=REFUSED[name]) as error:
        apply_apt(model)
    assert "supported()" in str(error.value)
    assert name not in supported()


def test_options_that_packed_tokens_cannot_do_are_refused():
    with pytest.raises(ValueError, match="attn_drop_rate"):
        apply_apt(small_vit(attn_drop_rate=0.1), **NORM)
    with pytest.raises(ValueError, match="patch_drop_rate"):
        apply_apt(small_vit(patch_drop_rate=0.1), **NORM)
    with pytest.raises(ValueError, match="mean of the normalisation is needed"):
        apply_apt(small_vit())
    with pytest.raises(ValueError, match="pooling"):
        apply_apt(small_vit(), pooling="sum", **NORM)


def test_images_with_channels_last_are_named():
    fast = apply_apt(small_vit(), **NORM).eval()
    x = images(2, 3, 64, 64).movedim(1, -1)
    with pytest.raises(ValueError, match=r"got 64; channels come first: images\.movedim\(-1, 1\)"):
        fast(x)


def test_one_number_normalises_all_channels():
    fast = apply_apt(small_vit(), mean=0.5, std=0.25)
    assert fast.tiling.stats == ((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ValueError, match="mean must be a number or a list of them, got 'gray'"):
        apply_apt(small_vit(), mean="gray", std=0.25)  # type: ignore[arg-type]


@pytest.mark.parametrize("apply", [apply_apt, lambda model: apply_reducer(model, "tome")])
def test_a_name_in_place_of_a_model_is_refused(apply):
    with pytest.raises(ValueError, match=r"such as timm.create_model\('vit_tiny', pretrained"):
        apply("vit_tiny")


def test_supported_names_match_a_pattern():
    names = supported("deit3_*")
    assert "deit3_small_patch16_224" in names
    assert all(name.startswith("deit3_") for name in names)
    assert set(BY_NAME) <= set(supported())


def test_the_host_asks_for_the_number_of_cells_only(monkeypatch):
    """One synchronisation per forward pass, whatever the device; later calls have warm caches."""
    fast, x = apply_apt(small_vit(), (4.0, 3.0), **NORM).eval(), images(2, 3, 64, 64)
    monkeypatch.setattr("adaptok.tokens._check_finite", lambda field, what: None)
    monkeypatch.setattr("adaptok.tokenizers.asked._check_finite", lambda scores, indicator: None)
    for module in [*sys.modules.values()]:  # as on an accelerator
        if module.__name__.startswith("adaptok.") and hasattr(module, "reads_are_free"):
            monkeypatch.setattr(module, "reads_are_free", lambda *_: False)
    with torch.no_grad():
        expected = fast(x)
    assert fast.last_cells.lengths != (64, 64)
    asked = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy"):
        method = getattr(torch.Tensor, name)

        def counted(self, *args, method=method, name=name):
            asked.append(name)
            return method(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    with torch.no_grad():
        got = fast(x)
    monkeypatch.undo()
    assert asked == ["tolist"]
    assert torch.equal(got, expected)
