"""MATEY: selections, layouts, forward passes and losses of its own code; options; bad input."""

from __future__ import annotations

import pytest
import torch
from matey_weights import mix_model, paper_model

import adaptok
from adaptok.evaluation.metrics import mse, nmse, nrmse
from adaptok.registry import LOSSES
from adaptok.training.optim import Optim

MAKE = {"ndim": 2, "in_channels": 4, "dim": 12}


def selection(arrays, **knobs):
    """Cells of a golden case; MATEY's fields are (t, b, c, z, row, col)."""
    x = torch.from_numpy(arrays["x"])[:, :, :, 0].transpose(0, 1)
    sizes = (int(arrays["ps_fine"][1]), int(arrays["ps_coarse"][1]))
    return adaptok.create_tokenizer("matey", **MAKE, sizes=sizes, **knobs).cells(x)


def rows_of(cells, sample):
    """(t, level, row, col, z, volume) of each token, as fractions of the domain; sorted."""
    mine = cells.sample == sample
    level, origin = cells.level[mine].tolist(), cells.origin[mine, 0].tolist()
    center = (cells.center[mine, 1:] / torch.tensor(cells.shape[1:])).tolist()
    volume = (cells.volume[mine] / (cells.shape[1] * cells.shape[2])).tolist()
    return sorted(
        (t, lev, *c, 0.5, v) for t, lev, c, v in zip(origin, level, center, volume, strict=True)
    )


@pytest.mark.parametrize("case", ["matey_s64_T1_c32f8", "matey_s64_T2_c16f4"])
@pytest.mark.parametrize(
    ("gamma", "mode"),
    [(0.1, "replace"), (0.2, "replace"), (0.4, "replace"), (0.8, "replace"), (0.2, "add")],
)
def test_golden_selection_and_positions(golden, case, gamma, mode):
    arrays = golden(case)
    cells = selection(arrays, gamma=gamma, mode=mode)
    assert cells.tiling == (mode == "replace")
    cells.validate()
    prefix = f"g{gamma}_replace{int(mode == 'replace')}_"
    for sample in range(cells.batch_size):
        mask = arrays[f"{prefix}mask"][sample]
        level = arrays[f"{prefix}slot_level"][sample][mask]
        theirs = [
            (float(t), int(lev), float(row), float(col), float(z), float(v))
            for frame in arrays[f"{prefix}pos"][sample]
            for lev, (t, z, row, col, v) in zip(level, frame[mask], strict=True)
        ]
        assert rows_of(cells, sample) == sorted(theirs)


@pytest.mark.parametrize("case", ["matey_s64_T1_c32f8", "matey_s64_T2_c16f4"])
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_golden_selection_by_fraction(golden, case, ratio):
    arrays = golden(case)
    cells = selection(arrays, fraction=ratio)
    coarse = int(arrays["ps_coarse"][1])
    columns = cells.shape[2] // coarse
    for sample, ids in enumerate(arrays[f"idx_ratio{ratio}"]):
        fine = (cells.sample == sample) & (cells.level == 1)
        parents = cells.origin[fine, 1] // coarse * columns + cells.origin[fine, 2] // coarse
        assert sorted(set(parents.tolist())) == sorted(i for i in ids.tolist() if i >= 0)


def predict(model, x, eps):
    """MATEY's normalisation around the parts: per sample and channel, over frames and space."""
    tokenizer, processor, decoder = model
    cells = tokenizer.cells(x)
    std, mean = torch.std_mean(x, dim=(1, 3, 4), keepdim=True)
    std = std.clamp(min=1e-4) if eps is None else std + eps
    decoded = decoder(processor(tokenizer.embed((x - mean) / std, cells)))[:, -1]
    return decoded * std[:, 0] + mean[:, 0]


def test_golden_forward_of_the_mixed_sequence(golden):
    arrays = golden("matey_mix")
    x = torch.from_numpy(arrays["x"])[:, :, :, 0].transpose(0, 1)
    model = mix_model(arrays)
    y = predict(model, x, None)
    expected = torch.from_numpy(arrays["y"])[:, :, 0]
    tolerance = 3 * float(arrays["floor"]) + 2e-5
    torch.testing.assert_close(y, expected, rtol=0, atol=tolerance)
    loss = nmse(y, torch.from_numpy(arrays["target"])[:, :, 0], 2).mean()
    assert abs(float(loss) - float(arrays["loss"])) < 1e-5
    loss.backward()
    lift = model[0].embedding.lift.weight.grad * (6 / 4) ** 0.5
    theirs = torch.from_numpy(arrays["grad::space_bag.0.weight"])[:, arrays["labels"]]
    torch.testing.assert_close(lift, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_golden_forward_of_the_paper(golden):
    """With the paper code's misplaced tokens; where they lie makes a difference."""
    arrays = golden("matey_paper")
    x = torch.from_numpy(arrays["x"]).transpose(0, 1)
    expected = torch.from_numpy(arrays["y"])
    with torch.no_grad():
        legacy = predict(paper_model(arrays, legacy_positions=True), x, 1e-7)
        correct = predict(paper_model(arrays, legacy_positions=False), x, 1e-7)
    torch.testing.assert_close(legacy, expected, rtol=0, atol=2e-5)
    assert (correct - expected).abs().max() > 0.1


def test_golden_losses(golden):
    units = golden("matey_units")
    out, target = (torch.from_numpy(units[k])[:, :, 0] for k in ("out", "tar"))
    assert abs(nmse(out, target, 2).mean() - units["loss"]) < 1e-6
    assert abs(nrmse(out, target, 2).mean() - units["nrmse"]) < 1e-6
    assert abs(mse(out, target, 2).sqrt().mean() - units["rmse"]) < 1e-6
    framed = (out - target)[:, None], target[:, None]
    assert abs(LOSSES.get("matey_nmse")(*framed) - units["loss"]) < 1e-6


def test_the_loss_of_matey_is_in_physical_units():
    prediction, target = torch.rand(2, 1, 3, 8, 8) + 10, torch.rand(2, 1, 3, 8, 8) + 10
    mean, std = (torch.full((3, 1, 1), v) for v in (10.0, 0.3))
    physical = Optim(loss="matey_nmse").loss_of(prediction, target, mean, std)
    torch.testing.assert_close(physical, nmse(prediction, target, 2).mean())
    assert Optim(loss="nmse").loss_of(prediction, target, mean, std) > 100 * physical


# ---- options


def waves(frames=1, size=64):
    line = torch.linspace(0, 1, size)
    wave = torch.sin(40 * line**3)[:, None] * torch.cos(3 * line)
    return torch.stack([wave * (1 + 0.1 * t) for t in range(frames)])[None, :, None]


def test_three_levels_share_one_threshold():
    tokenizer = adaptok.create_tokenizer(
        "matey", ndim=2, in_channels=1, dim=4, sizes=(4, 8, 16), gamma=0.4
    )
    cells = tokenizer.cells(waves()).validate()
    assert set(cells.level.tolist()) == {0, 1, 2}


def test_sizes_per_axis_and_frames():
    tokenizer = adaptok.create_tokenizer(
        "matey", ndim=2, in_channels=1, dim=4, sizes=((4, 8), (8, 32)), frame_size=2
    )
    assert tokenizer.spec.sizes == ((2, 8, 32), (2, 4, 8))
    cells = tokenizer.cells(waves(4)).validate()
    first = cells.origin[cells.origin[:, 0] == 0, 1:]
    assert torch.equal(first, cells.origin[cells.origin[:, 0] == 2, 1:])


def test_one_decision_for_all_frames_or_one_each():
    """A front that moves: its cells are refined in all frames, or where it is."""
    field = torch.zeros(1, 2, 1, 32, 32)
    field[0, 0, 0, :8, :8] = torch.randn(8, 8)
    field[0, 1, 0, 24:, 24:] = torch.randn(8, 8)
    make = {"ndim": 2, "in_channels": 1, "dim": 4, "sizes": (2, 8), "gamma": 0.2}
    shared = adaptok.create_tokenizer("matey", **make).cells(field)
    each = adaptok.create_tokenizer("matey", **make, per_frame=True).cells(field).validate()
    assert shared.lengths == (2 * (14 + 32),)
    assert each.lengths == (2 * (15 + 16),)


def test_rescaling_a_channel_changes_the_selection_unless_normalised():
    field = torch.zeros(1, 1, 4, 64, 64)
    field[0, 0, 0, :32, :32] = torch.randn(32, 32)
    field[0, 0, 1, 32:, 32:] = 0.1 * torch.randn(32, 32)
    scaled = field * torch.tensor([1.0, 100.0, 1, 1]).view(4, 1, 1)

    def fine(field, **knobs):
        cells = adaptok.create_tokenizer("matey", **MAKE, **knobs).cells(field)
        return set(map(tuple, (cells.origin[cells.level == 1, 1:] // 32).tolist()))

    assert fine(field) == {(0, 0)}
    assert fine(scaled) == {(1, 1)}
    assert fine(field, normalise=True) == fine(scaled, normalise=True) == {(0, 0), (1, 1)}


def test_the_raw_field_is_scored_where_the_surrogate_says_so():
    make = {"ndim": 2, "in_channels": 2, "tokenizer": "matey", "dim": 12, "depth": 1, "heads": 2}
    field = torch.zeros(1, 1, 2, 64, 64)
    field[0, 0, 0, :32, :32] = torch.randn(32, 32)
    field[0, 0, 1, 32:, 32:] = 0.1 * torch.randn(32, 32)
    lengths = [
        adaptok.create_surrogate(**make, score_on=score_on).cells(field).lengths
        for score_on in ("raw", "normalised")
    ]
    assert lengths == [(3 + 16,), (2 + 32,)]


@pytest.mark.parametrize("decoder", ["linear", "cross_attention", "hmlp"])
@pytest.mark.parametrize("mode", ["replace", "add"])
@pytest.mark.parametrize("embedding", ["linear", "hmlp"])
def test_every_decoder_reads_both_modes(decoder, mode, embedding):
    tokenizer = {"name": "matey", "sizes": (4, 16), "mode": mode, "embedding": embedding}
    model = adaptok.create_surrogate(
        ndim=2,
        in_channels=2,
        tokenizer=tokenizer,
        decoder=decoder,
        dim=12,
        depth=1,
        heads=2,
    )
    field = torch.randn(2, 1, 2, 30, 33)
    out = model(field)
    assert out.shape == (2, 1, 2, 30, 33)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_controls_per_call():
    tokenizer = adaptok.create_tokenizer("matey", ndim=2, in_channels=1, dim=4, sizes=(4, 16))
    assert tokenizer.controls == ("gamma",)
    assert tokenizer.cells(waves(), gamma=1.0).lengths == (16,)
    assert tokenizer.cells(waves(), gamma=0.01).lengths > tokenizer.cells(waves()).lengths
    tokenizer = adaptok.create_tokenizer(
        "matey", ndim=2, in_channels=1, dim=4, sizes=(4, 16), fraction=0.5
    )
    assert tokenizer.controls == ("ratio",)
    assert tokenizer.cells(waves(), ratio=0.25).lengths == (12 + 4 * 16,)


# ---- bad input


@pytest.mark.parametrize("sizes", [(8, 20), (32, 8), (8, 8), (), ((4, 8), (8, 12))])
def test_sizes_that_do_not_nest(sizes):
    with pytest.raises(ValueError, match=r"sizes go from fine to coarse.*got \["):
        adaptok.create_tokenizer("matey", **MAKE, sizes=sizes)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"gamma": 0.0}, r"gamma must be a number above 0 and of at most 1, got 0.0"),
        ({"gamma": 1.2}, r"gamma must be a number above 0 and of at most 1, got 1.2"),
        (
            {"fraction": 1.2},
            r"fraction must be a number .* or null, got 1.2",
        ),
        ({"mode": "mix"}, "mode must be one of replace, add"),
        ({"legacy_positions": True, "sizes": (2, 4, 8)}, "two sizes"),
        ({"legacy_positions": True, "fraction": 0.5}, "and a gamma"),
        ({"embedding": {"name": "hmlp", "version": "papr"}}, "did you mean 'paper'"),
        ({"frame_size": 0}, "at least 1"),
    ],
)
def test_knobs_that_make_no_sense(knobs, message):
    with pytest.raises(ValueError, match=message):
        adaptok.create_tokenizer("matey", **MAKE, **knobs)


def test_channels_that_four_does_not_divide():
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        adaptok.create_tokenizer("matey", ndim=2, in_channels=1, dim=6, embedding="hmlp")


def test_misplaced_positions_of_samples_that_differ():
    tokenizer = adaptok.create_tokenizer("matey", **MAKE, sizes=(4, 8), legacy_positions=True)
    fields = [torch.randn(2, 4, *space).cumsum(-1) for space in ((16, 24), (24, 16))]
    place = tokenizer.spec.position_center
    each = [place(tokenizer.cells(x[None])) for x in fields]
    assert torch.equal(place(tokenizer.cells(fields)), torch.cat(each))
