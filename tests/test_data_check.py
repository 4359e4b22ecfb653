"""`adaptok data check`: good sets pass, and everything that is wrong is said in words."""

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest
import torch
import yaml
from sampled import sampled

pytest.importorskip("lightning")
pytest.importorskip("the_well")

from adaptok.cli import main
from adaptok.data import WellData
from adaptok.data.check import check
from adaptok.data.synthetic import SOLVERS, generate
from adaptok.data.synthetic.store import Statistics
from adaptok.utils.checksums import CHECKSUMS

MAZE = "acoustic_scattering_maze"
NO_STATISTICS = (
    "is missing: the statistics of the training split; `adaptok data stats FOLDER` computes them"
)
NOT_COMPARED = "was not compared with the training files, as some are defective"
TINY = {"resolution": 16, "frames": 3, "train": 9, "valid": 1, "test": 1}


class Made:
    """Tiny sets, each made when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __truediv__(self, name: str) -> Path:
        more = {"nodes": 4} if name == MAZE else {"start": 0.0}
        if not (self.root / name).exists():
            generate(name, self.root, progress=False, **TINY | more)
        return self.root / name


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def copy(root, tmp_path) -> Path:
    """A copy of the maze that may be damaged."""
    shutil.copytree(root / MAZE, tmp_path / MAZE, ignore=shutil.ignore_patterns(CHECKSUMS))
    return tmp_path / MAZE


@pytest.fixture
def bad(copy) -> Path:
    """One of its two training files."""
    return copy / "data" / "train" / "train_001.hdf5"


@pytest.mark.parametrize("name", sampled(SOLVERS.names(), 4))
def test_every_generated_set_passes(root, name):
    report = check(root / name)
    assert report.problems == []
    assert report.files == len(list((root / name).rglob("*.hdf5")))


def test_files_folders_and_urls_can_be_checked(root):
    folder = root / MAZE / "data" / "train"
    assert check(folder) == (2, [])
    assert check(folder / "train_000.hdf5") == (1, [])
    memory = fsspec.filesystem("memory")
    memory.put(f"{root / MAZE}/", "/checked", recursive=True)
    assert check("memory://checked") == (4, [])
    memory.rm("/checked/stats.yaml")
    lacking = [str(p) for p in check("memory://checked").problems]
    assert lacking == [f"memory://checked/stats.yaml: {NO_STATISTICS}"]
    memory.rm("/checked", recursive=True)


def remake(group: h5py.Group, name: str, values: np.ndarray) -> None:
    attributes = dict(group[name].attrs)
    del group[name]
    group.create_dataset(name, data=values).attrs.update(attributes)


def nothing_varies(file: h5py.File) -> None:
    for order in range(3):
        group = file[f"t{order}_fields"]
        for name in list(group):
            if group[name].attrs["time_varying"]:
                del group[name]
        group.attrs["field_names"] = list(group) or np.array([], dtype="S1")


def text_as_scalar(file: h5py.File) -> None:
    file["scalars"].attrs["field_names"] = ["K"]
    file["scalars"]["K"] = "high"
    file["scalars"]["K"].attrs.update(sample_varying=False, time_varying=False)


DAMAGE = {
    "missing group scalars": lambda f: f.pop("scalars"),
    "missing attribute grid_type of the file": lambda f: f.attrs.pop("grid_type"),
    "n_trajectories must be a number of at least 1, got .*0": lambda f: f.attrs.modify(
        "n_trajectories", 0
    ),
    r"n_spatial_dims is 3, but dimensions names the axes \['x', 'y'\]": lambda f: f.attrs.modify(
        "n_spatial_dims", 3
    ),
    "dimensions lacks y": lambda f: f["dimensions"].pop("y"),
    "t1_fields lacks the attribute field_names": lambda f: f["t1_fields"].attrs.pop("field_names"),
    "dimensions/time lacks the attribute sample_varying": lambda f: f["dimensions"][
        "time"
    ].attrs.pop("sample_varying"),
    "the times do not increase": lambda f: f["dimensions"]["time"].write_direct(
        np.array([0, 2, 1], dtype=np.float32)
    ),
    "NaN or Inf in dimensions/x": lambda f: f["dimensions"]["x"].__setitem__(3, np.nan),
    "the coordinates along x are not in order": lambda f: f["dimensions"]["x"].__setitem__(3, 9.0),
    r"x_wall has type TORUS, not one of WALL, OPEN, PERIODIC": lambda f: f["boundary_conditions"][
        "x_wall"
    ].attrs.modify("bc_type", "torus"),
    r"boundary condition y_open belongs to the axes \['q'\]": lambda f: f["boundary_conditions"][
        "y_open"
    ].attrs.modify("associated_dims", ["q"]),
    "boundary condition x_wall has no mask": lambda f: f["boundary_conditions"]["x_wall"].pop(
        "mask"
    ),
    r"mask of boundary condition x_wall has shape \(5,\), expected \(16,\)": lambda f: remake(
        f["boundary_conditions"]["x_wall"], "mask", np.ones(5, dtype=bool)
    ),
    "boundary condition x_wall is False at both ends: acts nowhere": lambda f: f[
        "boundary_conditions"
    ]["x_wall"]["mask"].write_direct(np.zeros(16, dtype=bool)),
    "field pressure is announced in t0_fields but missing": lambda f: f["t0_fields"].pop(
        "pressure"
    ),
    "field extra is not among the field_names of t0_fields": lambda f: f[
        "t0_fields"
    ].create_dataset("extra", data=np.zeros(3)),
    "field velocity lacks the attribute dim_varying": lambda f: f["t1_fields"][
        "velocity"
    ].attrs.pop("dim_varying"),
    r"field pressure has shape \(1, 3, 16, 15\), expected \(1, 3, 16, 16\)": lambda f: remake(
        f["t0_fields"], "pressure", f["t0_fields"]["pressure"][..., :15]
    ),
    "field pressure has type >f4; write it as real numbers": lambda f: remake(
        f["t0_fields"], "pressure", f["t0_fields"]["pressure"][:].astype(">f4")
    ),
    "scalar K has type .*; write it as real numbers": text_as_scalar,
    "dimensions/time has type": lambda f: remake(f["dimensions"], "time", np.array([b"a"] * 3)),
    "the mask of boundary condition x_wall has type": lambda f: remake(
        f["boundary_conditions"]["x_wall"], "mask", np.array([b"yes"] * 16)
    ),
    r"dim_varying of field pressure is \[True\], one per axis": lambda f: f["t0_fields"][
        "pressure"
    ].attrs.__setitem__("dim_varying", True),
    r"spatial_dims of dimensions must be names, got \[0, 1\]": lambda f: f[
        "dimensions"
    ].attrs.__setitem__("spatial_dims", [0, 1]),
    r"field_names of scalars must be strings, got \[3\]": lambda f: f["scalars"].attrs.__setitem__(
        "field_names", 3
    ),
    "boundary condition extra has type None": lambda f: f["boundary_conditions"].create_dataset(
        "extra", data=0.0
    ),
    "NaN or Inf in field velocity: trajectory 0, frame 2": lambda f: f["t1_fields"][
        "velocity"
    ].__setitem__((0, 2, 3, 3, 1), np.nan),
    "NaN or Inf in field density: trajectory 0": lambda f: f["t0_fields"]["density"].__setitem__(
        (0, 3, 3), np.inf
    ),
    "no field changes with time: there is nothing to predict": nothing_varies,
    "scalar K is announced but missing": lambda f: f["scalars"].attrs.__setitem__(
        "field_names", ["K"]
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_what_is_wrong_with_a_file_is_said_in_words(copy, bad, message):
    with h5py.File(bad, "a") as file:
        DAMAGE[message](file)
    problems = check(bad).problems
    assert len(problems) == 1, problems
    with pytest.raises(ValueError, match=message):
        raise ValueError(problems[0].what)
    assert problems[0].where == str(bad)
    # and the whole set names the same file
    assert str(bad) in {problem.where for problem in check(copy).problems}


def test_whole_numbers_are_as_good_as_others(copy, bad):
    with h5py.File(bad, "a") as file:
        remake(file["t0_fields"], "pressure", np.ones((1, 3, 16, 16), dtype=np.uint8))
    assert check(bad) == (1, [])
    assert len(list(WellData(path=copy, batch_size=1, skip_bad=True).loader("train"))) == 9 * 2
    statistics = Statistics()
    statistics.accumulate("pressure", 0, True, np.array([3, 1], dtype=np.uint8))
    assert statistics.summary()["mean_delta"] == {"pressure": -2.0}


@pytest.mark.parametrize("name", ["gray_scott_reaction_diffusion", "rayleigh_benard"])
def test_a_mask_that_is_false_at_a_periodic_end_is_found(root, tmp_path, name):
    shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns(CHECKSUMS))
    file = next((tmp_path / name).rglob("test*.hdf5"))
    with h5py.File(file, "a") as content:
        content["boundary_conditions"]["x_periodic"]["mask"][-1] = False
    (problem,) = check(tmp_path / name).problems
    assert "mask of the periodic boundary x_periodic is False at an end" in problem.what
    assert "read as open" in problem.what


def test_truncated_corrupt_and_foreign_files_are_found(copy, bad):
    content = bad.read_bytes()
    for damaged in (content[: len(content) // 2], b"no HDF5" * 99, b""):
        bad.write_bytes(damaged)
        (problem,) = check(bad).problems
        assert problem.what.startswith("damaged or truncated HDF5 file")
        found = check(copy).problems
        assert found[0] == problem
        assert [p.what for p in found[1:]] == [NOT_COMPARED]
    broken = bytearray(content)
    for start in range(2048, len(content) - 64, 4096):  # flipped bytes anywhere never raise
        broken[start : start + 64] = bytes(64)
    bad.write_bytes(broken)
    assert isinstance(check(bad).problems, list)


def test_a_corrupt_chunk_is_found(copy, bad):
    """Checksummed data, as h5py writes on request, damaged on disk."""
    with h5py.File(bad, "a") as file:
        values = file["t0_fields"]["pressure"][:]
        attributes = dict(file["t0_fields"]["pressure"].attrs)
        del file["t0_fields"]["pressure"]
        options = {"fletcher32": True, "chunks": True}
        data = file["t0_fields"].create_dataset("pressure", data=values, **options)
        data.attrs.update(attributes)
        where = data.id.get_chunk_info(0).byte_offset
    content = bytearray(bad.read_bytes())
    content[where : where + 8] = b"\x01" * 8
    bad.write_bytes(content)
    (problem,) = check(bad).problems
    assert problem.what.startswith("damaged or truncated HDF5 file")


def test_files_that_do_not_fit_each_other_are_found(root, copy, bad):
    with h5py.File(bad, "a") as file:
        file["t0_fields"].attrs["field_names"] = ["pressure", "density"]
        del file["t0_fields"]["speed_of_sound"]
    (problem,) = [p for p in check(copy).problems if p.where == str(bad)]
    assert "it has scalar fields ('pressure', 'density') in place of" in problem.what
    other = next((root / "active_matter" / "data" / "test").iterdir())
    shutil.copy(other, copy / "data" / "test" / "test_000.hdf5")
    assert any("it has data set active_matter in place of" in p.what for p in check(copy).problems)


def test_missing_splits_and_statistics_are_found(copy):
    shutil.rmtree(copy / "data" / "valid")
    (copy / "stats.yaml").unlink()
    assert [p.what for p in check(copy).problems] == [
        "split valid is missing or empty",
        NO_STATISTICS,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["mean"].update(pressure=9.0), "mean of pressure is 9.0, but the training"),
        (lambda s: s["std"].update(pressure=9.0), "std of pressure is 9.0, but the training"),
        (lambda s: s["std_delta"].pop("pressure"), "std_delta of pressure is missing"),
        (lambda s: s["mean"].update(velocity=1.0), r"mean of velocity has shape \(\), expected"),
        (lambda s: s["std"].update(density=float("nan")), "std of density is not finite"),
        (lambda s: s["std"].update(density="1e-5x"), "is not made of numbers: '1e-5x'"),
        (lambda s: s.pop("std"), r"must have the tables mean, std"),
    ],
)
def test_statistics_that_disagree_are_found(copy, change, message):
    path = copy / "stats.yaml"
    stats = yaml.safe_load(path.read_text())
    change(stats)
    path.write_text(yaml.safe_dump(stats))
    (problem,) = check(copy).problems
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem.what)
    assert problem.where == str(path)


def test_a_path_without_data_is_an_error(tmp_path):
    for name in ("absent", "absent.hdf5"):
        with pytest.raises(ValueError, match="no such file"):
            check(tmp_path / name)
    with pytest.raises(ValueError, match="is not a data set"):
        check(tmp_path)


def test_the_command_prints_and_its_exit_status_tells(copy, bad, capsys):
    assert main(["data", "check", str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy}: 4 files, nothing wrong\n"
    with h5py.File(bad, "a") as file:
        file["t0_fields"]["pressure"][0, 1, 2, 3] = np.nan
    assert main(["data", "check", str(bad), str(copy / "data" / "test")]) == 1
    out, err = capsys.readouterr()
    assert f"{bad}: NaN or Inf in field pressure: trajectory 0, frame 1" in out
    assert f"{bad}: 1 file, 1 problem" in err
    assert "1 file, nothing wrong" in out
    assert main(["data", "check"]) == 2
    assert "takes a file, a folder or a URL" in capsys.readouterr().err
    assert main(["data", "check", "nowhere"]) == 2
    assert "no such file or folder: nowhere" in capsys.readouterr().err


@pytest.mark.slow
def test_checking_needs_neither_lightning_nor_the_well(copy):
    code = (
        "import sys\n"
        "for name in ('lightning', 'the_well', 'hydra'): sys.modules[name] = None\n"
        "from adaptok.cli import main\n"
        f"sys.exit(main(['data', 'check', {str(copy)!r}]))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def nan(bad: Path) -> str:
    with h5py.File(bad, "a") as file:
        file["t0_fields"]["pressure"][0, 1, 2, 3] = np.nan
    return "NaN or Inf in field pressure"


def cut(bad: Path) -> str:
    bad.write_bytes(bad.read_bytes()[:5000])
    return "damaged or truncated"


def reshape(bad: Path) -> str:
    with h5py.File(bad, "a") as file:
        remake(file["t0_fields"], "pressure", file["t0_fields"]["pressure"][..., :15])
    return "has shape"


def other_fields(bad: Path) -> str:
    with h5py.File(bad, "a") as file:
        file["t0_fields"].attrs["field_names"] = ["pressure", "density"]
        del file["t0_fields"]["speed_of_sound"]
    return "it has scalar fields"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "cache"),
    [(nan, True), (nan, False), (cut, True), (reshape, False), (other_fields, True)],
)
def test_training_goes_on_without_the_bad_files_if_asked(copy, bad, damage, cache):
    message = damage(bad)
    with pytest.raises(ValueError, match=r"train_001\.hdf5|data/train"):
        list(WellData(path=copy, batch_size=4, cache=cache).loader("train"))
    data = WellData(path=copy, batch_size=4, cache=cache, skip_bad=True)
    with pytest.warns(UserWarning, match=rf"left out .*train_001\.hdf5: .*{message}"):
        data.setup()
    bad.unlink()
    expected = WellData(path=copy, batch_size=4, cache=cache)
    for one, other in zip(data.train_dataloader(), expected.train_dataloader(), strict=True):
        assert torch.equal(one["input"], other["input"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WellData(path=copy, batch_size=4, skip_bad=True).setup()


def test_a_split_without_a_good_file_is_an_error(copy):
    cut(copy / "data" / "test" / "test_000.hdf5")
    data = WellData(path=copy, skip_bad=True)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match=r"every file of split 'test' of .* is defective"),
    ):
        data.setup("test")
