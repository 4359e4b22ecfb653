"""Saved rollouts: the Well's own reader gets back what was predicted, or nothing at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import small_runs
import torch
from forked import Forked
from the_well.data.datasets import WellDataset

from adaptok import create_schedule
from adaptok.cli import main
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.data import WellData, from_arrays
from adaptok.evaluation.evaluate import evaluate, rollouts
from adaptok.evaluation.predictions import PredictionWriter, folder_name
from adaptok.evaluation.results import Results

STEPS = 3


@pytest.fixture(scope="module")
def parts():
    config = plain(compose("train", [*small_runs.train(), "history=2"]))
    data = build_data(config)
    torch.manual_seed(0)
    return build_surrogate(config, data.info).eval(), data


@pytest.fixture(scope="module")
def written(parts, tmp_path_factory) -> tuple[Path, Results]:
    surrogate, data = parts
    folder = tmp_path_factory.mktemp("predictions")
    settings = [{"budget": 10}, {"budget": 22}]
    results = evaluate(
        surrogate, data, settings=settings, steps=STEPS, device="cpu", predictions=folder
    )
    return folder, results


def predicted(parts, budget):
    surrogate, data = parts
    schedule = create_schedule({"name": "fixed", "settings": [{"budget": budget}]})
    pairs = list(rollouts(surrogate, data, "test", schedule, STEPS))
    return torch.cat([torch.cat([batch["input"], out], 1) for batch, out in pairs])


def test_our_reader_gets_the_prediction(parts, written):
    folder, results = written
    _, data = parts
    assert sorted(p.name for p in folder.iterdir()) == ["budget=10", "budget=22"]
    assert results.settings[0].predictions == str(folder / "budget=10")
    for budget in (10, 22):
        again = WellData(path=folder / f"budget={budget}", history=2)
        again.setup("test")
        batch = next(iter(again.rollout_loader("test", STEPS)))
        whole = torch.cat([batch["input"], batch["target"]], 1)
        assert torch.equal(whole, predicted(parts, budget))
        first = next(iter(data.rollout_loader("test", STEPS)))
        assert torch.equal(batch["input"], first["input"])
        assert torch.equal(batch["constants"], first["constants"])
        assert torch.equal(batch["boundary"], first["boundary"])
        assert again.info.fields == data.info.fields
        assert torch.equal(again.info.std, data.info.std)


def test_the_wells_reader_gets_the_prediction(parts, written):
    folder, _ = written
    where = folder / "budget=10" / "data" / "test"
    dataset = WellDataset(path=str(where), n_steps_input=2, n_steps_output=STEPS)
    expected = predicted(parts, 10).movedim(2, -1)
    assert len(dataset) == len(expected)
    for number, trajectory in enumerate(expected):
        sample = dataset[number]
        assert torch.equal(sample["input_fields"], trajectory[:2])
        assert torch.equal(sample["output_fields"], trajectory[2:])


def test_files_say_what_they_are(parts, written):
    folder, _ = written
    _, data = parts
    (path,) = (folder / "budget=22" / "data" / "test").iterdir()
    with (
        h5py.File(path) as ours,
        h5py.File(next((Path(str(data.folder)) / "data" / "test").iterdir())) as true,
    ):
        about = json.loads(ours.attrs["adaptok"])
        assert about == {"prediction_of": data.info.name, "setting": {"budget": 22}, "history": 2}
        assert ours.attrs["dataset_name"] == true.attrs["dataset_name"]
        assert np.array_equal(ours["dimensions/time"], true["dimensions/time"][: 2 + STEPS])
        assert np.array_equal(ours["dimensions/x"], true["dimensions/x"])


def test_a_stride_keeps_its_times(parts, tmp_path):
    surrogate, data = parts
    sparse = WellData(path=str(data.folder), history=2, stride=2)
    sparse.setup("test")
    options = {"steps": 1, "device": "cpu", "predictions": tmp_path}
    evaluate(surrogate, sparse, settings=[{}], **options)
    (path,) = (tmp_path / "as_built" / "data" / "test").iterdir()
    with (
        h5py.File(path) as ours,
        h5py.File(next((Path(str(data.folder)) / "data" / "test").iterdir())) as true,
    ):
        assert np.array_equal(ours["dimensions/time"], true["dimensions/time"][:5:2])


def test_an_error_leaves_nothing(parts, tmp_path):
    surrogate, data = parts
    schedule = create_schedule("fixed")

    def broken():
        yield from rollouts(surrogate, data, "test", schedule, 1)
        raise RuntimeError("stopped")

    def write():
        with PredictionWriter(tmp_path / "set", data, "test", 1, {}) as writer:
            list(writer.passing(broken()))

    with pytest.raises(RuntimeError, match="stopped"):
        write()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def two(tmp_path) -> Path:
    """The folder of a test split of two files, a trajectory each."""
    u = np.random.default_rng(0).normal(size=(4, 6, 8, 8))
    axes = ["trajectory", "time", "x", "y"]
    folder = from_arrays({"u": u}, tmp_path / "set", axes=axes, boundary="wall", dt=0.1)
    file = folder / "data" / "test" / "test_000.hdf5"
    shutil.copy(file, file.with_name("test_001.hdf5"))
    return file.parent


def copied(data: WellData, folder: Path) -> list[Path]:
    """Writes the truth as a prediction; returns the files."""
    pairs = ((batch, batch["target"]) for batch in data.rollout_loader("test", STEPS))
    with PredictionWriter(folder, data, "test", STEPS, {}) as writer:
        assert list(writer.passing(pairs))
    return sorted((folder / "data" / "test").iterdir())


def test_files_that_are_left_out_get_no_prediction(two, tmp_path):
    with h5py.File(two / "test_000.hdf5", "r+") as file:
        file["t0_fields/u"][0, 2] = np.nan
    data = WellData(path=two.parents[1], skip_bad=True)
    with pytest.warns(UserWarning, match=r"left out .*test_000\.hdf5"):
        (path,) = copied(data, tmp_path / "predicted")
    assert path.name == "test_001.hdf5"
    with h5py.File(path) as ours, h5py.File(two / path.name) as true:
        assert np.array_equal(ours["t0_fields/u"], true["t0_fields/u"][:, : 1 + STEPS])


def test_files_that_differ_in_their_ending_stay_two(two, tmp_path):
    (two / "test_001.hdf5").rename(two / "test_000.h5")
    files = copied(WellData(path=two.parents[1]), tmp_path / "predicted")
    assert [file.name for file in files] == ["test_000.h5", "test_000.hdf5"]


def test_predictions_need_steps(parts, tmp_path):
    surrogate, data = parts
    with pytest.raises(ValueError, match="kept of rollouts: steps must be at least 1, got 0"):
        evaluate(surrogate, data, predictions=tmp_path)


def test_names_of_folders():
    assert folder_name("cyclic budget=10 / budget=22") == "cyclic_budget=10_budget=22"
    assert folder_name("../x/y") == ".._x_y"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", *small_runs.train(), f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.mark.slow
def test_the_command_keeps_predictions_and_a_film(trained, tmp_path, capsys):
    options = ["save_predictions=true", "video=gif", "steps=2", f"hydra.run.dir={tmp_path}"]
    assert main(["eval", f"ckpt={trained}", *options]) == 0
    assert (tmp_path / "predictions" / "as_built" / "stats.yaml").exists()
    names = {p.name for p in (tmp_path / "pictures").iterdir()}
    assert {"rollout.gif", "error_maps.png", "spectra.png", "rollout.png"} <= names
    assert main(["eval", f"ckpt={trained}", "video=avi", f"hydra.run.dir={tmp_path / 'avi'}"]) == 2
    err = capsys.readouterr().err
    assert "gif or mp4" in err
    assert "'avi'" in err


@pytest.mark.slow
def test_a_killed_evaluation_leaves_nothing_that_loads(trained, tmp_path):
    root = Path(__file__).parents[1]
    words = ["-m", "adaptok", "eval", f"ckpt={trained}", "save_predictions=true"]
    words += ["steps=4", "+data.batch_size=1", f"hydra.run.dir={tmp_path}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    process = Forked(words, env=environment)
    place, deadline = tmp_path / "predictions", time.monotonic() + 300
    while not list(place.rglob("*.hdf5")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    visible = [p for p in place.iterdir() if not p.name.startswith(".")] if place.exists() else []
    for folder in visible:  # it was faster than the kill: then it is complete
        data = WellData(path=folder)
        data.setup("test")
    assert not (tmp_path / "metrics.json").exists()
    assert main(["eval", *words[3:]]) == 0
    assert sorted(p.name for p in place.iterdir()) == ["as_built"]
