"""Data behind URLs, offline: equal to local files, and errors that say what to do."""

import builtins
import shutil
from pathlib import Path

import fsspec
import h5py
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("the_well")

from the_well.data.utils import WELL_DATASETS

from adaptok.data import WellData
from adaptok.data.location import locate
from adaptok.data.synthetic import generate

MAZE, MATTER = "acoustic_scattering_maze", "active_matter"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    maze = {"resolution": 16, "nodes": 4, "frames": 5, "train": 9, "valid": 1, "test": 2}
    generate(MAZE, root, progress=False, **maze)
    matter = {"resolution": 8, "frames": 4, "start": 0.0, "train": 4, "valid": 1, "test": 1}
    generate(MATTER, root, progress=False, **matter)
    return root


@pytest.fixture
def remote(root) -> str:
    """The same sets in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{root}/", "/well/datasets", recursive=True)
    yield "memory://well/datasets"
    memory.rm("/well", recursive=True)


@pytest.mark.parametrize(("name", "cache"), [(MAZE, True), (MATTER, False)])
def test_a_url_gives_the_batches_of_the_local_files(root, remote, name, cache):
    near = WellData(name, root, batch_size=4, cache=False)
    for far in (
        WellData(name, remote, batch_size=4, cache=cache),
        WellData(path=f"{remote}/{name}/", batch_size=4, cache=cache),
    ):
        for split in ("train", "test"):
            pairs = list(zip(near.loader(split), far.loader(split), strict=True))
            assert pairs
            for one, other in pairs:
                assert one.keys() == other.keys()
                assert all(torch.equal(one[key], other[key]) for key in one)
        assert torch.equal(near.info.std, far.info.std)
        assert near.info.scalars == far.info.scalars
        assert str(far.folder).startswith("memory://well")


def test_missing_things_behind_a_url_are_named(remote):
    memory = fsspec.filesystem("memory")
    with pytest.raises(ValueError, match=r"unknown data set 'active_mater' \(did you mean 'active"):
        WellData("active_mater", remote).setup()
    with pytest.raises(ValueError, match=r"no data set at memory://well/datasets/planetswe"):
        WellData("planetswe", remote).setup()
    with pytest.raises(ValueError, match=r"no such folder: memory://nowhere"):
        WellData(path="memory://nowhere").setup()
    memory.rm(f"/well/datasets/{MAZE}/stats.yaml")
    with pytest.raises(ValueError, match=r"memory://.*stats\.yaml is missing"):
        WellData(MAZE, remote).setup()
    memory.rm(f"/well/datasets/{MAZE}/data/valid", recursive=True)
    with pytest.raises(ValueError, match=r"split 'valid' of memory://.* is missing"):
        WellData(MAZE, remote).loader("valid")


@pytest.mark.parametrize("cache", [True, False])
def test_a_damaged_file_behind_a_url_is_named(remote, cache):
    memory = fsspec.filesystem("memory")
    path = f"/well/datasets/{MAZE}/data/train/train_001.hdf5"
    memory.pipe_file(path, memory.cat_file(path)[:3000])
    with pytest.raises(ValueError, match=r"damaged or truncated HDF5.*memory://.*train_001\.hdf5"):
        WellData(MAZE, remote, cache=cache).setup()


@pytest.mark.parametrize("name", WELL_DATASETS)
def test_every_official_name_is_known(name, tmp_path):
    with pytest.raises(ValueError, match=rf"no data set at .*{name}.*(generate it|hf://datasets)"):
        WellData(name, tmp_path).setup()
    wrong = name.replace("_", "-", 1) + "x"
    with pytest.raises(ValueError, match="did you mean"):
        WellData(wrong, tmp_path).setup()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] if i % 4 else [])
        for i, n in enumerate(WELL_DATASETS)
    ],
)
def test_a_set_of_any_official_name_is_read(root, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(root / MATTER, folder)
    for file in folder.rglob("*.hdf5"):
        with h5py.File(file, "a") as content:
            content.attrs["dataset_name"] = name
    data = WellData(name, tmp_path, batch_size=2)
    assert next(iter(data.train_dataloader()))["input"].shape == (2, 1, 11, 8, 8)
    assert data.info.name == name


def test_a_missing_driver_is_named_with_its_package(monkeypatch):
    ordinary = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] in ("s3fs", "gcsfs"):
            raise ImportError(f"No module named {name!r}")
        return ordinary(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for url, package in (("s3://bucket/set", "s3fs"), ("gs://bucket/set", "gcsfs")):
        with pytest.raises(ValueError, match=rf"cannot open {url}.*driver is missing.*{package}"):
            WellData(path=url).setup()


def test_unknown_protocols_and_options_are_named():
    with pytest.raises(ValueError, match=r"unknown protocol 'memry'.*did you mean 'memory'"):
        WellData(path="memry://x").setup()
    with pytest.raises(ValueError, match=r"cannot open .* with options \{'nonsense': 1\}"):
        WellData(path="zip://x", storage_options={"nonsense": 1}).setup()


def test_the_hub_is_reached_through_its_own_file_system():
    pytest.importorskip("huggingface_hub")
    folder = locate("hf://datasets/polymathic-ai") / "shear_flow"
    assert type(folder.fs).__name__ == "HfFileSystem"
    assert str(folder) == "hf://datasets/polymathic-ai/shear_flow"
    assert folder.path == "datasets/polymathic-ai/shear_flow"
    with pytest.raises(ValueError, match="cannot read hf://datasets/polymathic-ai"):  # offline here
        WellData("shear_flow", "hf://datasets/polymathic-ai").setup()


def test_options_reach_the_file_system(root, tmp_path):
    data = WellData(MAZE, root, storage_options={"auto_mkdir": True})
    data.setup("test")
    assert data.folder.fs.auto_mkdir
    assert not locate(tmp_path).fs.auto_mkdir


def test_relative_paths_and_odd_names_are_read(root, tmp_path, monkeypatch):
    folder = tmp_path / "my set (2)"
    shutil.copytree(root / MAZE, folder)
    monkeypatch.chdir(tmp_path)
    assert len(WellData(path="my set (2)").test_dataloader().dataset) == 8
    assert len(WellData(path="./my set (2)/").test_dataloader().dataset) == 8


def test_files_of_another_layout_are_named(root, tmp_path):
    shutil.copytree(root / MAZE, tmp_path / MAZE)
    odd = tmp_path / MAZE / "data" / "train" / "train_001.hdf5"
    with h5py.File(odd, "a") as file:
        file["t0_fields"].attrs["field_names"] = ["pressure", "density"]
        del file["t0_fields"]["speed_of_sound"]
    with pytest.raises(ValueError, match=r"train_001.hdf5: it has scalar fields \('pressure', 'de"):
        WellData(MAZE, tmp_path).setup()
