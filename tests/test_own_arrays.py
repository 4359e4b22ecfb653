"""`from_arrays` and `data stats`: what is read equals what was given; mistakes are named."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("lightning")
pytest.importorskip("the_well")

from adaptok.cli import main
from adaptok.data import Mixture, WellData, from_arrays, write_statistics
from adaptok.data.array_files import read_arrays
from adaptok.data.array_layout import describe
from adaptok.data.arrays import _rows
from adaptok.data.check import check
from adaptok.data.location import locate

AXES = ["trajectory", "time", "x", "y"]
KINDS = ["wall", "open", "periodic"]  # in the order of their codes


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def read(folder: Path, split: str) -> list[dict[str, torch.Tensor]]:
    """The trajectories of a split, each (t, c, *space), with its constants."""
    data = WellData(path=folder)
    steps = data._split(split).steps - 1
    windows = data.loader(split, steps).dataset
    out = []
    for start in windows.starts:  # type: ignore[attr-defined]
        sample = windows[start]
        fields = torch.cat([sample["input"], sample["target"]])
        out.append({**sample, "fields": fields})
    return out


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    grid=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    order=st.randoms(use_true_random=False),
    shared=st.booleans(),
    double=st.booleans(),
    kinds=st.lists(st.sampled_from(KINDS), min_size=3, max_size=3),
)
def test_what_is_read_equals_what_was_given(tmp_path_factory, grid, order, shared, double, kinds):
    same_after_reading(tmp_path_factory.mktemp("sets"), grid, order, shared, double, kinds)


def test_what_is_read_equals_what_was_given_once(tmp_path):
    kinds = ["periodic", "wall"]
    same_after_reading(tmp_path, [3, 4], random.Random(1), False, True, kinds)


def same_after_reading(
    folder: Path, grid: list[int], order: random.Random, shared: bool, double: bool, kinds: list
) -> None:
    """Writes a scalar, a vector and a constant, their axes in any order, and reads them."""
    ndim, space, dtype = len(grid), list("xyz"[: len(grid)]), np.float64 if double else np.float32
    u = normal(4, 3, *grid).astype(dtype)
    v = normal(4, 3, *grid, ndim, seed=1).astype(dtype)
    c = normal(*([] if shared else [4]), *grid, seed=2).astype(dtype)
    axes = ["trajectory", "time", *space]
    order.shuffle(axes)
    where = [["trajectory", "time", *space].index(axis) for axis in axes]
    still = [a for a in axes if a != "time" and not (shared and a == "trajectory")]
    natural = [*([] if shared else ["trajectory"]), *space]
    arrays = {
        "v": v.transpose([*where, ndim + 2]),
        "u": u.transpose(where),
        "c": c.transpose([natural.index(axis) for axis in still]),
    }
    typed = [kinds[space.index(axis)] for axis in axes if axis in space]
    folder = from_arrays(
        arrays,
        folder / "mine",
        axes=axes,
        boundary=typed,
        vectors=["v"],
        constants=["c"],
        dt=0.5,
    )
    assert check(folder).problems == []
    whole = np.concatenate([u[:, :, None], np.moveaxis(v, -1, 2)], 2).astype(np.float32)
    found = [sample for split in ("train", "valid", "test") for sample in read(folder, split)]
    assert len(found) == 4
    rows = set()
    for sample in found:
        row = next(i for i in range(4) if np.array_equal(sample["fields"].numpy(), whole[i]))
        rows.add(row)
        constant = (c if shared else c[row]).astype(np.float32)
        assert np.array_equal(sample["constants"][0].numpy(), constant)
        codes = [KINDS.index(kind) for kind in kinds[:ndim]]
        assert sample["boundary"].tolist() == [[code, code] for code in codes]
        assert sample["time_step"].item() == 0.5
    assert rows == {0, 1, 2, 3}
    info = WellData(path=folder).info
    assert info.name == "mine"
    assert info.fields == ("u", *(f"v_{axis}" for axis in space))


def test_channels_are_fields_or_components(tmp_path):
    u, w = normal(3, 4, 2, 5, 6), normal(3, 4, 2, 5, 6, seed=1)
    axes = ["trajectory", "time", "channel", "x", "y"]
    options = {"axes": axes, "boundary": "wall", "vectors": ["w"]}
    named = from_arrays({"u": u, "w": w}, tmp_path / "a", **options, names=["rho", "p", "flow"])
    info = WellData(path=named).info
    assert info.fields == ("rho", "p", "flow_x", "flow_y")
    slope, mask = normal(2, 5, 6), normal(5, 6)  # of all trajectories
    options = options | {"vectors": ["w", "slope"], "constants": ["slope", "mask"]}
    arrays = {"u": u, "w": w, "slope": slope, "mask": mask}
    numbered = from_arrays(arrays, tmp_path / "b", **options)
    info = WellData(path=numbered).info
    assert info.fields == ("u_0", "u_1", "w_x", "w_y")
    assert info.constants == ("mask", "slope_x", "slope_y")
    expected = np.stack([mask, *slope]).astype("f4")
    assert np.array_equal(read(numbered, "test")[0]["constants"], expected)
    (first,) = read(named, "train")
    rows = [i for i in range(3) if np.array_equal(first["fields"][:, 0], u[i, :, 0].astype("f4"))]
    assert np.array_equal(first["fields"][:, 3], w[rows[0], :, 1].astype("f4"))


def coordinates_of(file: Path) -> dict[str, np.ndarray]:
    """The coordinates in a file."""
    with locate(file).hdf5() as content:
        return {key: value[...] for key, value in content["dimensions"].items()}


def test_coordinates_are_taken_from_arrays_named_like_axes(tmp_path):
    arrays = {"u": normal(3, 4, 5), "x": np.linspace(2, 3, 5), "time": np.array([0, 1, 3, 6])}
    folder = from_arrays(arrays, tmp_path / "a", axes=["trajectory", "time", "x"], boundary="open")
    (sample,) = read(folder, "train")
    assert sample["time_step"].item() == 1
    written = coordinates_of(folder / "data/train/train_000.hdf5")
    assert written["x"].tolist() == arrays["x"].astype("f4").tolist()
    assert written["time"].tolist() == [0, 1, 3, 6]
    arrays["time"] = np.array(["2020-01-01", "2020-01-03"] * 2, dtype="M8[D]")  # are not read
    typed = from_arrays(
        arrays, tmp_path / "b", axes=["trajectory", "time", "x"], boundary="open", dt=0.1
    )
    assert read(typed, "train")[0]["time_step"].item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("total", "counts"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (10, [8, 1, 1]), (25, [20, 3, 2])]
)
def test_splits_are_a_seeded_choice_with_at_least_one_trajectory(total, counts):
    """Every trajectory is in one split; another seed chooses others."""
    options = {"constants": [], "vectors": [], "names": None}
    found = describe({"u": normal(total, 2, 3)}, tuple(AXES[:3]), fields=["u"], **options)
    first, again, other = (_rows({"train": found}, (8, 1, 1), seed) for seed in (0, 0, 1))
    assert [*first] == ["train", "valid", "test"]
    assert sorted(itertools.chain(*first.values())) == [*range(total)]
    assert [len(rows) for rows in first.values()] == counts
    assert first == again
    assert first != other


def test_large_splits_are_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("adaptok.data.arrays.FILE_BYTES", 2 * 4 * 2 * 3)  # two trajectories
    u = normal(7, 2, 3)
    options = {"axes": ["trajectory", "time", "x"], "boundary": "wall"}
    folder = from_arrays({"u": u}, tmp_path / "a", **options)
    assert len([*(folder / "data/train").iterdir()]) == 3
    assert check(folder).problems == []
    assert len(read(folder, "train")) == 5


def test_splits_may_be_given(tmp_path):
    """One long trajectory, cut in time."""
    u, options = normal(9, 5), {"axes": ["time", "x"], "boundary": "periodic"}
    folder = from_arrays(
        {"u": u[:4]}, tmp_path / "a", **options, valid={"u": u[4:6]}, test={"u": u[6:]}
    )
    assert check(folder).problems == []
    assert [len(read(folder, s)[0]["fields"]) for s in ("train", "valid", "test")] == [4, 2, 3]
    assert np.array_equal(read(folder, "test")[0]["fields"][:, 0], u[6:].astype("f4"))
    np.save(tmp_path / "first.npy", u[:4])
    np.save(tmp_path / "last.npy", u[6:])
    first, last = tmp_path / "first.npy", tmp_path / "last.npy"
    folder = from_arrays(first, tmp_path / "c", **options, valid=last, test=last)
    assert WellData(path=folder).info.fields == ("first",)
    assert np.array_equal(read(folder, "test")[0]["fields"][:, 0], u[6:].astype("f4"))
    more = {"u": normal(2, 4, 5)}
    axes = ["trajectory", "time", "x"]
    folder = from_arrays(more, tmp_path / "b", axes=axes, boundary="wall", test=more)
    assert [len(read(folder, s)) for s in ("train", "valid", "test")] == [1, 1, 2]


def test_a_steady_map_starts_from_the_mean_field(tmp_path):
    """Persistence is then the mean field of the training samples."""
    a, u = normal(8, 5, 4), normal(8, 5, 4, seed=1)
    folder = from_arrays(
        {"a": a, "u": u},
        tmp_path / "map",
        axes=["trajectory", "x", "y"],
        inputs=["a"],
        outputs=["u"],
        boundary="wall",
    )
    assert check(folder).problems == []
    train, test = read(folder, "train"), read(folder, "test")
    outputs = torch.stack([sample["fields"][1, 0] for sample in train])
    for sample in [*train, *test]:
        assert len(sample["fields"]) == 2
        assert torch.equal(sample["fields"][0, 0], train[0]["fields"][0, 0])
        row = next(i for i in range(8) if np.array_equal(sample["fields"][1, 0], u[i].astype("f4")))
        assert np.array_equal(sample["constants"][0], a[row].astype("f4"))
    torch.testing.assert_close(outputs.mean(0), test[0]["fields"][0, 0])
    info = WellData(path=folder).info
    assert info.fields == ("u",)
    assert info.constants == ("a",)
    assert abs(info.delta_mean.item()) < 1e-6


def made(**changes) -> tuple[dict, dict]:
    """Arrays and arguments of a good set, changed."""
    arrays = {"u": normal(4, 3, 5, 6), "p": normal(4, 3, 5, 6, seed=1)}
    options = {"axes": AXES, "boundary": "wall", "dt": 0.1}
    for key, value in changes.items():
        (options if key in ARGUMENTS else arrays)[key] = value
    return arrays, {k: v for k, v in options.items() if v is not None}


ARGUMENTS = [
    "axes",
    "boundary",
    "dt",
    "constants",
    "vectors",
    "inputs",
    "outputs",
    "names",
    "keys",
    "valid",
    "test",
    "splits",
    "seed",
]


def with_value(value: float, *place: int) -> np.ndarray:
    u = normal(4, 3, 5, 6)
    u[place] = value
    return u


U = normal(1, 3, 5, 6)
STEADY = {
    **{"u": normal(4, 5, 6), "p": normal(4, 5, 6, seed=1), "inputs": ["u"], "outputs": ["p"]},
    **{"axes": ["trajectory", "x", "y"], "dt": None},
}
CHANNELS = normal(4, 3, 5, 2)
OF_CHANNELS = {"axes": ["trajectory", "time", "x", "channel"], "names": ["a", "b", "c"]}
MISTAKES = [
    ({"u": normal(4, 5, 6)}, r"array u has 3 axes, shape \(4, 5, 6\); 4 are needed"),
    ({"axes": ["trajectory", "t", "x", "y"]}, "an axis must be one of .*time.* got 't'"),
    ({"axes": ["trajectory", "time", "x", "x"]}, "an axis twice"),
    ({"axes": ["trajectory", "time", "x", "z"]}, "the space axes are x, x and y"),
    ({"axes": ["trajectory", "x", "y"]}, "has no time; for a steady map"),
    ({"u": with_value(math.nan, 2, 1, 4, 3)}, "field u at trajectory 2, frame 1, x=4, y=3, and 0"),
    ({"u": with_value(1e300, 3, 0, 0, 0)}, "too large for float32: field u at trajectory 3"),
    ({"u": normal(4, 1, 5, 6), "p": normal(4, 1, 5, 6)}, "u has one frame: there is nothing"),
    ({"u": normal(4, 3, 5, 6) * 1j}, "complex128; give real and imaginary part as two fields"),
    ({"u": np.full((4, 3, 5, 6), "a")}, "array u must hold real numbers, its type is <U1"),
    ({"p": normal(4, 3, 5, 7)}, "p has 7 along y, u has 6"),
    ({"p": normal(3, 3, 5, 6)}, "p has 3 along trajectory, u has 4"),
    ({"boundary": "periodical"}, r"boundary must be one of wall, open, periodic.*'periodical'"),
    ({"boundary": ["wall"] * 3}, "3 boundaries for the axes x, y: one or all"),
    ({"u": normal(2, 3, 5, 6), "p": normal(2, 3, 5, 6)}, "2 trajectories.*give valid=FILE and"),
    ({"constants": ["q"]}, "constants: there is no array 'q'.*; the arrays are u, p"),
    ({"vectors": ["u"]}, "4 axes, .*5 are needed of a vector, whose components come last"),
    ({"v": normal(4, 3, 5, 6, 3), "vectors": ["v"]}, "vector v has 3 components, 2 are needed"),
    ({"names": ["a"]}, "1 names for 2 fields: u, p"),
    ({"names": ["a", "b/c"]}, "cannot be named 'b/c'"),
    ({"names": ["a", "a"]}, "two fields are named a"),
    ({"keys": ["w"]}, "keys: there is no array 'w'"),
    ({"p": np.ones((4, 3, 5, 6))}, "field p has one value everywhere"),
    ({"p": np.ones((4, 3, 1, 1)) * normal(5, 6)}, "field p never changes with time; name it among"),
    ({"dt": 0.0}, "dt must be"),
    ({"dt": None, "time": np.array([0.0, 2.0, 1.0])}, "array time must hold .* in order"),
    ({"dt": None, "time": np.array([0.0, 2.0])}, "2 coordinates, the axis has 3 points"),
    ({"splits": [1, 1]}, "splits are the shares of train, valid, test"),
    ({"valid": {"u": normal(1, 3, 5, 6)}}, "valid: there is no array 'p'"),
    ({"valid": {"u": normal(1, 3, 4, 6), "p": normal(1, 3, 4, 6)}}, "4 points along x"),
    (
        {"dt": None, "time": np.arange(3), "valid": {"u": U, "p": U}},
        r"train has an array time, valid has none; .* or dt=\.\.\.$",
    ),
    (
        {"test": {"u": U, "p": U, "x": np.arange(5)}},
        "test has an array x, train has none; give it to all splits or none$",
    ),
    (
        {"u": CHANNELS * [1, 0], "p": CHANNELS[..., :1], **OF_CHANNELS},
        "field b has one value everywhere; give the array u without it",
    ),
    (
        {"u": CHANNELS, "p": 0 * CHANNELS[..., :1], **OF_CHANNELS},
        "leave the array p out with keys=",
    ),
    ({"c": np.ones((5, 6)), "constants": ["c"]}, "leave it out of constants=.*others in keys="),
    ({**STEADY, "u": np.ones((4, 5, 6))}, r"u has one value everywhere; leave it out of inputs="),
    ({**STEADY, "p": np.ones((4, 5, 6))}, r"p has one value everywhere; leave it out of outputs="),
    (
        {**STEADY, "p": np.ones((4, 1, 1)) * normal(5, 6)},
        r"p is the same in all samples; leave it out of outputs=",
    ),
    ({"inputs": ["u"], "axes": AXES}, "steady map have no time axis"),
    ({"inputs": ["u"], "axes": ["trajectory", "x", "y"], "dt": None}, "has both inputs"),
    ({"inputs": ["u"], "outputs": ["p"], "axes": ["trajectory", "x", "y"]}, "dt is not read"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_mistakes_are_named_and_leave_nothing(tmp_path, changes, message):
    arrays, options = made(**changes)
    with pytest.raises(ValueError, match=message):
        from_arrays(arrays, tmp_path / "mine", **options)
    assert not [*tmp_path.iterdir()]


def test_a_set_is_replaced_on_request_and_nothing_else_is(tmp_path):
    arrays, options = made()
    folder = from_arrays(arrays, tmp_path / "mine", **options)
    before = WellData(path=folder).info.mean
    with pytest.raises(ValueError, match="mine exists; overwrite=true replaces it"):
        from_arrays(arrays, folder, **options)
    arrays["u"] = arrays["u"] + 1
    from_arrays(arrays, folder, **options, overwrite=True)
    assert (WellData(path=folder).info.mean - before).tolist() == pytest.approx([1, 0], abs=1e-5)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something other than a data set"):
        from_arrays(arrays, folder, **options, overwrite=True)
    assert (folder / "thesis.txt").is_file()


def test_kinds_of_files(tmp_path):
    u, x = normal(3, 2, 5).astype("f4"), np.linspace(0, 1, 5)
    np.save(tmp_path / "u.npy", u)
    np.savez(tmp_path / "a.npz", u=u, x=x)
    torch.save({"u": torch.from_numpy(u), "x": torch.from_numpy(x)}, tmp_path / "a.pt")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.update({"u": u, "x": x})
    for name in ("u.npy", "a.npz", "a.pt", "a.h5"):
        arrays = read_arrays(tmp_path / name)
        assert [*arrays] == (["u"] if name == "u.npy" else ["u", "x"])
        assert np.array_equal(arrays["u"][1], u[1])
        out = tmp_path / name.replace(".", "_")
        from_arrays(tmp_path / name, out, axes=["trajectory", "time", "x"], boundary="wall")
        assert check(out).problems == []


def test_arrays_in_groups_are_read(tmp_path):
    u, v, x = normal(3, 2, 5, 4), normal(3, 2, 5, 4, 2, seed=1), np.linspace(0, 2, 5)
    arrays = {"tensors/u": u, "tensors/deep/v": v, "grid/x": x}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.update(arrays)
    nested = {"tensors": {"u": u, "deep": {"v": v}}, "grid": {"x": x}}
    a, b, c = map(torch.from_numpy, (u, v, x))
    tensors = {"tensors": {"u": a, "deep": {"v": b}}, "grid": {"x": c}}
    torch.save(tensors, tmp_path / "a.pt")
    options: dict = {"axes": AXES, "boundary": "wall", "vectors": ["tensors/deep/v"]}
    for number, source in enumerate([tmp_path / "a.h5", tmp_path / "a.pt", nested]):
        folder = from_arrays(source, tmp_path / f"set{number}", **options)
        assert sorted(WellData(path=folder).info.fields) == ["u", "v_x", "v_y"]
        there = coordinates_of(folder / "data/train/train_000.hdf5")
        assert np.array_equal(there["x"], x.astype("f4"))
    options = options | {"keys": ["tensors/u"], "vectors": []}
    chosen = from_arrays(nested, tmp_path / "chosen", **options)
    assert WellData(path=chosen).info.fields == ("u",)


def test_arrays_of_groups_with_one_name_keep_their_groups(tmp_path):
    arrays = {"a": {"u": normal(3, 2, 5, 4)}, "b": {"u": normal(3, 2, 5, 4, seed=1)}}
    folder = from_arrays(arrays, tmp_path / "mine", axes=AXES, boundary="wall")
    assert WellData(path=folder).info.fields == ("a_u", "b_u")
    more = {**arrays, "c": {"x": np.arange(5.0)}, "d": {"x": np.arange(5.0)}}
    with pytest.raises(ValueError, match="several arrays hold coordinates of x: c/x, d/x"):
        from_arrays(more, tmp_path / "more", axes=AXES, boundary="wall")


def test_what_does_not_fit_is_refused_with_the_way_out(tmp_path):
    arrays = {"u": normal(3, 2, 5, 4), "t": np.arange(2.0)}
    options: dict = {"axes": AXES, "boundary": "wall"}
    with pytest.raises(ValueError, match=r"keys=u chooses the fields, .* times are called time"):
        from_arrays(arrays, tmp_path / "mine", **options)
    with pytest.raises(ValueError, match=r"names=\.\.\. names the 1 field.* order: u \[m"):
        from_arrays({"u [m/s]": arrays["u"]}, tmp_path / "mine", **options)


@pytest.mark.parametrize(("kind", "package"), [(".zarr", "zarr"), (".nc", "xarray")])
def test_kinds_of_files_with_a_package_of_their_own(tmp_path, kind, package):
    path, u = tmp_path / f"a{kind}", normal(3, 2, 5)
    try:
        library = __import__(package)
    except ImportError:
        path.mkdir()
        with pytest.raises(ValueError, match=f"without the package {package}"):
            read_arrays(path)
        return
    if package == "zarr":
        library.open_group(str(path), mode="w").create_array("u", data=u)
    else:
        coordinates = {"x": np.linspace(0, 1, 5)}
        axes = ("trajectory", "time", "x")
        library.Dataset({"u": (axes, u)}, coords=coordinates).to_netcdf(path)
    out = from_arrays(path, tmp_path / "a", axes=["trajectory", "time", "x"], boundary="wall")
    assert check(out).problems == []
    found = {tuple(s["fields"].flatten().tolist()) for s in read(out, "train")}
    assert found < {tuple(row.astype("f4").flatten().tolist()) for row in u}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"PK\3\4 broken", "cannot read .*a.npz"),
        ("a.h5", b"broken", "cannot read .*a.h5"),
        ("a.pt", b"broken", "cannot read .*a.pt"),
        ("a.npy", b"", "cannot read .*a.npy"),
        ("a.txt", b"1", "ends in none of .npy, .npz"),
        ("none.npy", None, "no such file"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_arrays(tmp_path / name)


def test_statistics_are_those_that_were_lacking(tmp_path):
    arrays, options = made()
    folder = from_arrays(arrays, tmp_path / "mine", **options)
    with pytest.raises(ValueError, match=r"stats.yaml exists; overwrite=true"):
        write_statistics(folder)
    written = yaml.safe_load((folder / "stats.yaml").read_text())
    (folder / "stats.yaml").unlink()
    with pytest.raises(ValueError, match="`adaptok data stats FOLDER` computes them"):
        _ = WellData(path=folder).info
    assert main(["data", "stats", str(folder)]) == 0
    again = yaml.safe_load((folder / "stats.yaml").read_text())
    assert again.keys() == written.keys()
    for table, fields in written.items():
        assert again[table] == pytest.approx(fields)
    assert check(folder).problems == []  # checksums too
    for file in (folder / "data/train").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"train_000\.hdf5: damaged"):
        write_statistics(folder, overwrite=True)
    with pytest.raises(ValueError, match="no training files"):
        write_statistics(tmp_path)


def test_a_field_with_a_space_in_its_name_has_statistics(tmp_path):
    arrays, options = made()
    folder = from_arrays(arrays, tmp_path / "mine", **options)
    for split in ("train", "valid", "test"):
        with h5py.File(folder / f"data/{split}/{split}_000.hdf5", "r+") as file:
            group: Any = file["t0_fields"]
            group.move("u", "u delta")
            group.attrs["field_names"] = ["u delta", "p"]
    write_statistics(folder, overwrite=True)
    assert WellData(path=folder).info.fields == ("u delta", "p")


def test_a_batch_is_at_most_the_training_set(tmp_path, capsys):
    arrays, options = made()
    folder = from_arrays(arrays, tmp_path / "mine", **options)
    data = WellData(path=folder, batch_size=100)
    data.setup("fit")
    assert capsys.readouterr().out == ""
    assert [len(batch["input"]) for batch in data.train_dataloader()] == [4]
    assert capsys.readouterr().out.splitlines() == [
        "batch_size=100 is larger than the training set: 4 samples, which make one batch"
    ]
    more = WellData(path=from_arrays(made()[0], tmp_path / "more", **options), batch_size=3)
    mixed = Mixture({"mine": WellData(path=folder, batch_size=3, train_samples=2), "more": more})
    mixed.setup("fit")
    sizes = [len(batch["input"]) for batch in mixed.train_dataloader()]
    assert sizes == [2] * 4
    assert "batch_size=3 is larger than the training set: 2 samples" in capsys.readouterr().out
    with pytest.raises(ValueError, match="4 training samples are too few for 5 processes"):
        data.train_sampler(5, 0)
