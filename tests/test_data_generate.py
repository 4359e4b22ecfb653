"""Generated sets: the Well's format, exact statistics, caching, and all or nothing."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from sampled import sampled

from adaptok.data.synthetic import SOLVERS, generate, generation
from adaptok.data.synthetic.solver import Trajectories
from adaptok.data.synthetic.store import write_file

MAZE, BLAST = "acoustic_scattering_maze", "supernova_explosion_64"
TINY = {
    MAZE: {"resolution": 16, "nodes": 4, "frames": 4, "train": 9, "valid": 1, "test": 2},
    BLAST: {"resolution": 8, "frames": 3, "train": 3, "valid": 1, "test": 1},
    **{
        name: {"resolution": 16, "frames": 3, "start": 0.0, "train": 9, "valid": 1, "test": 1}
        for name in SOLVERS.names()
        if name not in (MAZE, BLAST)
    },
}
PERIODIC = [[2, 2], [2, 2]]
CODES = {
    MAZE: [[0, 0], [1, 1]],
    BLAST: [[1, 1]] * 3,
    "active_matter": PERIODIC,
    "euler_multi_quadrants_openBC": [[1, 1], [1, 1]],
    "euler_multi_quadrants_periodicBC": PERIODIC,
    "gray_scott_reaction_diffusion": PERIODIC,
    "rayleigh_benard": [[2, 2], [0, 0]],
    "shear_flow": PERIODIC,
}
CHANNELS = {  # in the Well's order
    MAZE: "pressure velocity_x velocity_y",
    BLAST: "density pressure temperature velocity_x velocity_y velocity_z",
    "active_matter": "concentration velocity_x velocity_y D_xx D_xy D_yx D_yy E_xx E_xy E_yx E_yy",
    "euler_multi_quadrants_openBC": "energy density pressure momentum_x momentum_y",
    "euler_multi_quadrants_periodicBC": "energy density pressure momentum_x momentum_y",
    "gray_scott_reaction_diffusion": "A B",
    "rayleigh_benard": "buoyancy pressure velocity_x velocity_y",
    "shear_flow": "tracer pressure velocity_x velocity_y",
}
SCALARS = {
    MAZE: [],
    BLAST: ["gamma"],
    "active_matter": ["L", "zeta", "alpha"],
    "euler_multi_quadrants_openBC": ["gamma"],
    "euler_multi_quadrants_periodicBC": ["gamma"],
    "gray_scott_reaction_diffusion": ["F", "k"],
    "rayleigh_benard": ["Rayleigh", "Prandtl"],
    "shear_flow": ["Rayleigh", "Schmidt"],
}
GRID = {"shear_flow": (16, 32), "rayleigh_benard": (64, 16)}


def make(name: str, root: Path, **options) -> Path:
    return generate(name, root, progress=False, **{**TINY[name], **options})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All sets, tiny."""
    root = tmp_path_factory.mktemp("sets")
    for name in TINY:
        make(name, root)
    return root


def check_schema(path: Path) -> None:
    """What the Well's documentation of its format requires of a file."""
    with h5py.File(path) as file:
        axes = list(file["dimensions"].attrs["spatial_dims"])
        ndim, batch = file.attrs["n_spatial_dims"], file.attrs["n_trajectories"]
        assert axes == ["x", "y", "z"][:ndim]
        assert file.attrs["grid_type"] == "cartesian"
        assert isinstance(file.attrs["dataset_name"], str)
        assert set(file) == {
            *("boundary_conditions", "dimensions", "scalars"),
            *("t0_fields", "t1_fields", "t2_fields"),
        }
        dimensions = file["dimensions"]
        steps = dimensions["time"].shape[-1]
        shape = tuple(dimensions[axis].shape[-1] for axis in axes)
        assert dimensions["time"].attrs["time_varying"]
        assert (np.diff(dimensions["time"]) > 0).all()
        for axis in axes:
            assert not dimensions[axis].attrs["time_varying"]
            assert (np.diff(dimensions[axis]) > 0).all()
        for name in file.attrs["simulation_parameters"]:
            assert file["scalars"][name][()] == pytest.approx(file.attrs[name])
        assert list(file["scalars"].attrs["field_names"]) == list(
            file.attrs["simulation_parameters"]
        )
        check_boundaries(file["boundary_conditions"], dict(zip(axes, shape, strict=True)))
        for order in range(3):
            group = file[f"t{order}_fields"]
            assert set(group.attrs["field_names"]) == set(group)
            for field in group.values():
                lead = (batch,) * bool(field.attrs["sample_varying"])
                lead += (steps,) * bool(field.attrs["time_varying"])
                assert field.shape == lead + shape + (ndim,) * order
                assert field.attrs["dim_varying"].tolist() == [True] * ndim
                assert field.dtype == np.float32
                assert np.isfinite(field[:]).all()


def check_boundaries(group: h5py.Group, sizes: dict[str, int]) -> None:
    seen = []
    for name, condition in group.items():
        (axis,) = condition.attrs["associated_dims"]
        kind = condition.attrs["bc_type"]
        assert kind in ("WALL", "OPEN", "PERIODIC")
        assert name == f"{axis}_{kind.lower()}"
        assert list(condition.attrs["associated_fields"]) == []
        assert not condition.attrs["sample_varying"]
        assert not condition.attrs["time_varying"]
        mask = condition["mask"]
        assert mask.dtype == bool
        assert np.flatnonzero(mask).tolist() == [0, sizes[axis] - 1]
        seen.append(axis)
    assert sorted(seen) == list(sizes)


@pytest.mark.parametrize("name", sampled(TINY, 4))
def test_files_follow_the_format_and_say_that_they_are_generated(name, root):
    files = sorted((root / name).glob("data/*/*.hdf5"))
    assert {f.parent.name for f in files} == {"train", "valid", "test"}
    counts = dict.fromkeys(("train", "valid", "test"), 0)
    for path in files:
        check_schema(path)
        with h5py.File(path) as file:
            counts[path.parent.name] += file.attrs["n_trajectories"]
            assert file.attrs["dataset_name"] == name
            assert file.attrs["adaptok_generated"]
            assert file.attrs["adaptok_solver"] == name
            assert file.attrs["adaptok_version"] == SOLVERS.get(name).version
            assert file.attrs["adaptok_seed"] == 0
            assert file.attrs["adaptok_resolution"] == TINY[name]["resolution"]
    assert counts == {split: TINY[name][split] for split in counts}
    # bounded files, each with one setting of the parameters
    settings = len(SOLVERS.create(name).settings)
    assert len(list((root / name / "data" / "train").iterdir())) == max(2, settings)


@pytest.mark.parametrize("name", TINY)
def test_the_wells_own_reader_loads_them(name, root):
    well = pytest.importorskip("the_well.data")
    from the_well.data.normalization import ZScoreNormalization

    data = well.WellDataset(
        well_base_path=str(root),
        well_dataset_name=name,
        well_split_name="train",
        n_steps_input=1,
        n_steps_output=2,
        use_normalization=True,
        normalization_type=ZScoreNormalization,
    )
    sample = data[len(data) - 1]
    n, ndim = TINY[name]["resolution"], len(CODES[name])
    shape, channels = GRID.get(name, (n,) * ndim), CHANNELS[name].split()
    assert [c for names in data.metadata.field_names.values() for c in names] == channels
    assert data.metadata.constant_scalar_names == SCALARS[name]
    assert sample["input_fields"].shape == (1, *shape, len(channels))
    assert sample["output_fields"].shape == (2, *shape, len(channels))
    assert sample["input_fields"].dtype == torch.float32
    assert sample["boundary_conditions"].tolist() == CODES[name]
    if name == MAZE:
        assert sample["constant_fields"].shape == (n, n, 2)
        assert data.metadata.constant_field_names[0] == ["density", "speed_of_sound"]
    assert len(data) == TINY[name]["train"] * (TINY[name]["frames"] - 2)


@pytest.mark.parametrize("name", TINY)
def test_statistics_equal_a_computation_from_scratch(name, root):
    stats = yaml.safe_load((root / name / "stats.yaml").read_text())
    for order in range(3):
        values: dict[str, list] = {}
        for path in sorted((root / name / "data" / "train").iterdir()):
            with h5py.File(path) as file:
                for key, field in file[f"t{order}_fields"].items():
                    entry = values.setdefault(key, [bool(field.attrs["time_varying"]), []])
                    entry[1].append(field[:].astype(np.float64))
        for key, (varying, parts) in values.items():
            whole = np.concatenate(parts)
            pairs = {"": whole}
            if varying:
                pairs["_delta"] = np.concatenate(
                    [np.diff(p.astype(np.float32), axis=1) for p in parts]
                )
            else:
                assert key not in stats["mean_delta"]
            for suffix, array in pairs.items():
                flat = array.astype(np.float64).reshape(-1, *array.shape[array.ndim - order :])
                expected = {
                    "mean": flat.mean(0),
                    "std": flat.std(0),
                    "rms": np.sqrt((flat**2).mean(0)),
                }
                for statistic, value in expected.items():
                    got = stats[statistic + suffix][key]
                    assert all(type(v) is float for v in np.ravel(np.array(got, dtype=object)))
                    scale = np.abs(flat).max()
                    np.testing.assert_allclose(got, value, rtol=1e-9, atol=1e-9 * scale)


def test_small_statistics_are_read_back_as_floats(tmp_path):
    from adaptok.data.synthetic.store import Statistics

    field = torch.tensor([0.0, 1e-6, 2e-6, 3e-6]).view(1, 2, 2)
    x = torch.arange(2.0)
    statistics = Statistics()
    statistics.add(Trajectories(torch.arange(2.0), {"x": x}, {0: {"a": field}}))
    statistics.write(tmp_path / "stats.yaml")
    content = yaml.safe_load((tmp_path / "stats.yaml").read_text())
    assert content["mean"]["a"] == pytest.approx(1.5e-6)
    assert isinstance(content["std_delta"]["a"], float)


def test_periodic_ends_and_matrix_fields_survive_the_wells_reader(tmp_path):
    well = pytest.importorskip("the_well.data")
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    tensor = torch.randn(1, 3, 4, 4, 2, 2)
    data = Trajectories(
        time=torch.arange(3.0),
        coordinates={"x": torch.arange(4.0), "y": torch.arange(4.0)},
        fields={0: {"a": torch.randn(1, 3, 4, 4)}, 2: {"D": tensor}},
        scalars={"alpha": -1.5},
    )
    path = folder / "a.hdf5"
    write_file(path, data, name="other", boundary=("PERIODIC", "WALL"), attributes={})
    check_schema(path)
    read = well.WellDataset(path=str(tmp_path), well_split_name="train")
    sample = read[0]
    assert sample["boundary_conditions"].tolist() == [[2, 2], [0, 0]]
    torch.testing.assert_close(sample["input_fields"][..., 1:], tensor[0, :1].flatten(-2))
    assert sample["constant_scalars"].tolist() == [-1.5]


def test_each_file_has_the_parameters_of_its_trajectories(root):
    name = "gray_scott_reaction_diffusion"
    solver = SOLVERS.create(name, **TINY[name])
    feed = {}
    for path in sorted((root / name / "data" / "train").iterdir()):
        with h5py.File(path) as file:
            feed[file["scalars"]["F"][()], file["scalars"]["k"][()]] = file.attrs["n_trajectories"]
    expected = {
        tuple(np.float32(v) for v in s.values()): 9 // 6 + (i < 9 % 6)
        for i, s in enumerate(solver.settings)
    }
    assert feed == expected
    alone = solver.run(0, "train", range(8, 9))  # the second trajectory of the third setting
    with h5py.File(sorted((root / name / "data" / "train").iterdir())[2]) as file:
        np.testing.assert_allclose(file["t0_fields"]["A"][1], alone.fields[0]["A"][0], atol=1e-5)


def test_a_set_is_reused_and_equal_knobs_give_equal_numbers(root, tmp_path):
    stamps = {f: f.stat().st_mtime_ns for f in root.rglob("*.hdf5")}
    assert make(MAZE, root) == root / MAZE
    assert make(MAZE, root, frame_dt=0.02, start=0.1) == root / MAZE  # the defaults
    assert {f: f.stat().st_mtime_ns for f in root.rglob("*.hdf5")} == stamps
    again = make(MAZE, tmp_path)
    for file in again.rglob("*.hdf5"):
        with h5py.File(file) as one, h5py.File(root / MAZE / file.relative_to(again)) as other:
            np.testing.assert_array_equal(
                one["t1_fields"]["velocity"][:], other["t1_fields"]["velocity"][:]
            )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 0 there, 1 wanted"),
        ({"frames": 5}, "frames is 4 there, 5 wanted"),
        ({"resolution": 20}, "resolution is 16 there, 20 wanted"),
    ],
)
def test_a_different_set_is_kept_unless_overwritten(change, message, tmp_path):
    folder = make(MAZE, tmp_path)
    before = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    with pytest.raises(ValueError, match=message):
        make(MAZE, tmp_path, **change)
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == before
    make(MAZE, tmp_path)  # still whole
    make(MAZE, tmp_path, **change, overwrite=True)
    make(MAZE, tmp_path, **change)
    assert visible(tmp_path) == [MAZE]


def test_another_solver_version_is_another_set(tmp_path, monkeypatch):
    make(MAZE, tmp_path)
    monkeypatch.setattr(SOLVERS.get(MAZE), "version", 99)
    with pytest.raises(ValueError, match="version is 1 there, 99 wanted"):
        make(MAZE, tmp_path)


def test_a_set_that_lost_a_file_is_noticed(tmp_path):
    folder = make(MAZE, tmp_path)
    (folder / "data" / "train" / "train_001.hdf5").unlink()
    with pytest.raises(ValueError, match=r"data/train/train_001\.hdf5 is missing"):
        make(MAZE, tmp_path)
    file = folder / "data" / "test" / "test_000.hdf5"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"data/test/test_000\.hdf5 is damaged"):
        make(MAZE, tmp_path)
    make(MAZE, tmp_path, overwrite=True)
    make(MAZE, tmp_path)


def test_what_was_not_generated_is_never_replaced(tmp_path):
    folder = make(MAZE, tmp_path)
    for file in folder.rglob("*.hdf5"):
        with h5py.File(file, "a") as content:
            del content.attrs["adaptok_generated"]
    with pytest.raises(ValueError, match="adaptok did not generate"):
        make(MAZE, tmp_path, overwrite=True)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no readable generated set"):
        make(MAZE, tmp_path, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_error_leaves_nothing_and_the_old_set_in_place(tmp_path, monkeypatch):
    folder = make(MAZE, tmp_path)
    written = []

    def interrupted(path, *args, **kwargs):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_file(path, *args, **kwargs)

    monkeypatch.setattr(generation, "write_file", interrupted)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        make(MAZE, tmp_path, seed=3, overwrite=True)
    assert torch.get_num_threads() == threads
    assert visible(tmp_path) == [MAZE]
    assert make(MAZE, tmp_path) == folder  # the old one, found whole


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_generator_leaves_nothing_that_loads(tmp_path):
    code = (
        "from adaptok.data.synthetic import generate;"
        f"generate({BLAST!r}, {str(tmp_path)!r}, resolution=48, progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=environment())
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(f".{BLAST}.partial-*/new")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / BLAST).exists()
    assert list(tmp_path.glob(".*.partial-*"))  # the leftover
    make(BLAST, tmp_path)
    assert visible(tmp_path) == [BLAST]


def test_two_generators_of_one_set_do_the_work_once(tmp_path, monkeypatch):
    runs = []
    write_set = generation._write_set
    monkeypatch.setattr(
        generation, "_write_set", lambda *a, **k: (runs.append(1), write_set(*a, **k))[1]
    )
    threads = [threading.Thread(target=make, args=(MAZE, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == [1]
    assert (tmp_path / MAZE / "stats.yaml").is_file()


def test_a_set_in_a_read_only_folder_is_found_without_a_lock(tmp_path, monkeypatch):
    folder = make(MAZE, tmp_path)
    (tmp_path / generation.LOCK).unlink()
    monkeypatch.setattr(generation.os, "access", lambda *_: False)
    assert make(MAZE, tmp_path) == folder
    assert [p.name for p in tmp_path.iterdir()] == [MAZE]


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown solver 'acoustic_maze'.*did you mean"):
        generate("acoustic_maze", tmp_path)
    with pytest.raises(ValueError, match=r"has no knob 'resolutoin'.*did you mean 'resolution'"):
        generate(MAZE, tmp_path, resolutoin=8)
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0, got -1"):
        generate(MAZE, tmp_path, seed=-1)
    assert list(tmp_path.iterdir()) == []


def test_a_simulation_that_blows_up_is_not_stored(tmp_path):
    # a density that overflows: its logarithm has a standard deviation of 1000
    with pytest.raises(ValueError, match="blew up with the knobs"):
        make(BLAST, tmp_path, contrast=1000.0)
    assert visible(tmp_path) == []


def test_progress_is_shown_on_stderr(tmp_path, capfd):
    generate(MAZE, tmp_path, **TINY[MAZE], progress=False)
    assert capfd.readouterr() == ("", "")
    generate(MAZE, tmp_path, **TINY[MAZE], seed=2, overwrite=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert MAZE in err
    assert "100%" in err


@pytest.mark.slow
def test_generating_needs_neither_lightning_nor_the_well(tmp_path):
    code = (
        "import sys\n"
        "for name in ('lightning', 'the_well', 'hydra'): sys.modules[name] = None\n"
        "from adaptok.data import FieldInfo\n"
        "assert 'h5py' not in sys.modules\n"
        "from adaptok.data.synthetic import generate\n"
        f"generate({MAZE!r}, {str(tmp_path)!r}, **{TINY[MAZE]!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
    assert (tmp_path / MAZE / "stats.yaml").is_file()


def visible(folder: Path) -> list[str]:
    """What is in a folder, without the lock file."""
    return [path.name for path in folder.iterdir() if path.name != generation.LOCK]


def environment() -> dict[str, str]:
    checkout = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": checkout, "OMP_NUM_THREADS": "1"}
