"""PDEBench's files: small ones of the published layouts, written here."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

import adaptok
from adaptok.config.build import build_data
from adaptok.config.menu import compose, plain
from adaptok.data.pdebench import PDEBench, split_range
from adaptok.evaluation.evaluate import evaluate

N, T, X, Y = 5, 6, 8, 12


def values(*shape: int) -> np.ndarray:
    return np.random.standard_normal(shape).astype(np.float32).cumsum(1)


def write_compressible(path, n=N):
    arrays = {name: values(n, T, X, Y) for name in ("Vx", "Vy", "density", "pressure")}
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["t-coordinate"] = np.linspace(0, 0.3, T + 1, dtype=np.float32)  # one more than frames
        file["x-coordinate"], file["y-coordinate"] = np.arange(X), np.arange(Y)
    return np.stack([arrays[k] for k in ("density", "pressure", "Vx", "Vy")], 2)


def write_incompressible(path):
    particles, velocity = values(N, T, X, Y, 1), values(N, T, X, Y, 2)
    with h5py.File(path, "w") as file:
        file["particles"], file["velocity"] = particles, velocity
        file["force"] = values(N, X, Y, 2)
        file["t"] = np.broadcast_to(np.arange(T) * 0.05, (N, T))
    return np.moveaxis(np.concatenate([particles, velocity], -1), -1, 2)


def write_groups(path, channels):
    data = values(N, T, X, Y, channels)
    with h5py.File(path, "w") as file:
        for number in range(N):
            group = file.create_group(f"{number:04d}")
            group["data"] = data[number]
            group["grid/t"] = np.linspace(0, 1, T)
            group["grid/x"], group["grid/y"] = np.arange(X), np.arange(Y)
    return np.moveaxis(data, -1, 2)


def write_shallow_water(path):
    return write_groups(path, 1)


def write_diffusion_reaction(path):
    return write_groups(path, 2)


KINDS = {
    write_compressible: (("density", "pressure", "velocity_x", "velocity_y"), 2, 0.05),
    write_incompressible: (("particles", "velocity_x", "velocity_y"), 0, 0.05),
    write_shallow_water: (("height",), 1, 0.2),
    write_diffusion_reaction: (("activator", "inhibitor"), 0, 0.2),
}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("write", KINDS)
def test_every_layout(write, cache, tmp_path):
    fields, boundary, dt = KINDS[write]
    truth = torch.from_numpy(write(tmp_path / "2D.h5"))
    data = PDEBench(path=tmp_path / "2D.h5", history=2, batch_size=1, cache=cache)
    data.setup()
    info = data.info
    assert info.fields == fields
    assert info.shape == (X, Y)
    assert (info.boundary == boundary).all()
    windows = data.loader("train").dataset
    assert len(windows) == 3 * (T - 2)  # three of five trajectories
    for index in (0, 5, len(windows) - 1):
        trajectory, first = divmod(index, T - 2)
        sample = windows[index]
        torch.testing.assert_close(sample["input"], truth[trajectory, first : first + 2])
        torch.testing.assert_close(sample["target"], truth[trajectory, first + 2 : first + 3])
        torch.testing.assert_close(float(sample["time_step"]), dt)
    (last,) = data.rollout_loader("test")
    torch.testing.assert_close(last["target"][0], truth[4, 2:])
    assert {k: v.shape for k, v in last.items() if k in ("boundary", "time_step")} == {
        "boundary": (1, 2, 2),
        "time_step": (1,),
    }


def test_statistics_are_those_of_the_training_pairs(tmp_path):
    truth = torch.from_numpy(write_compressible(tmp_path / "2D.h5"))[:3].double()
    data = PDEBench(path=tmp_path / "2D.h5")
    first, change = truth[:, :-1], truth.diff(dim=1)
    axes = (0, 1, 3, 4)
    for name, value in (
        ("mean", first.mean(axes)),
        ("std", first.std(axes, correction=0)),
        ("delta_mean", change.mean(axes)),
        ("delta_std", change.std(axes, correction=0)),
    ):
        torch.testing.assert_close(getattr(data.info, name), value.float(), rtol=1e-4, atol=1e-5)


def test_a_folder_of_files_gives_each_split_some_of_each(tmp_path):
    first = write_compressible(tmp_path / "a.hdf5")
    second = write_compressible(tmp_path / "b.hdf5", n=3)
    data = PDEBench(path=tmp_path, batch_size=2)
    (batch,) = data.rollout_loader("test")
    expected = np.stack([first[4, 0], second[2, 0]])
    torch.testing.assert_close(batch["input"][:, 0], torch.from_numpy(expected))


def test_from_the_command_line_and_with_augmentation(tmp_path):
    write_incompressible(tmp_path / "ns.h5")
    config = compose(
        "train",
        ["data=pdebench", f"data.path={tmp_path}/ns.h5", "data.augment=[flip]", "history=2"],
    )
    module = build_data(plain(config))
    batch = next(iter(module.train_dataloader()))
    assert batch["input"].shape == (8, 2, 3, X, Y)


def test_predictions_are_refused_at_the_start(tmp_path):
    write_shallow_water(tmp_path / "swe.h5")
    data = PDEBench(path=tmp_path / "swe.h5")
    model = adaptok.create_surrogate(ndim=2, in_channels=1, dim=24, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"a set in the Well's format, which .*swe\.h5"):
        evaluate(model, data, steps=1, predictions=tmp_path / "predictions")


@pytest.mark.parametrize(("count", "sizes"), [(3, (1, 1, 1)), (10, (8, 1, 1)), (100, (80, 10, 10))])
def test_splits_are_eight_one_one(count, sizes):
    parts = [split_range(count, split) for split in ("train", "valid", "test")]
    assert tuple(map(len, parts)) == sizes
    assert [i for part in parts for i in part] == list(range(count))


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"no file of PDEBench .* at .*nowhere"):
        PDEBench(path=tmp_path / "nowhere.h5").setup()
    with pytest.raises(ValueError, match="given by path"):
        PDEBench().setup()
    with pytest.raises(ValueError, match=r"can be left out: skip_bad=false$"):
        PDEBench(path=tmp_path, skip_bad=True).setup()
    with h5py.File(tmp_path / "1D.hdf5", "w") as file:
        file["tensor"] = values(3, T, X)
    with pytest.raises(ValueError, match=r"is not one of PDEBench's 2D files .* it holds tensor"):
        PDEBench(path=tmp_path / "1D.hdf5").setup()
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"damaged .*cut\.h5"):
        PDEBench(path=tmp_path / "cut.h5").setup()
    write_compressible(tmp_path / "few.h5", n=2)
    with pytest.raises(ValueError, match="at least three trajectories, got 2"):
        PDEBench(path=tmp_path / "few.h5").setup()
    write_groups(tmp_path / "swe.h5", 1)
    with h5py.File(tmp_path / "swe.h5", "a") as file:
        file["0001"]["data"][3, 2, 2, 0] = np.nan
    with pytest.raises(
        ValueError, match=r"NaN or Inf in channel height of .*swe\.h5, trajectory 1"
    ):
        PDEBench(path=tmp_path / "swe.h5").setup()
    PDEBench(path=tmp_path / "swe.h5", replace_nan=True).setup()
    with pytest.raises(
        ValueError, match=r"need 7 frames; the shortest trajectory of .*swe.h5 has 6"
    ):
        PDEBench(path=tmp_path / "swe.h5", history=6, replace_nan=True).setup()
    folder = tmp_path / "two"
    folder.mkdir()
    write_shallow_water(folder / "a.h5")
    write_diffusion_reaction(folder / "b.h5")
    with pytest.raises(ValueError, match=r"diffusion_reaction .*shallow_water .*a folder for each"):
        PDEBench(path=folder).setup()
