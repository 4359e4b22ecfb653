"""Files that several processes write, that are damaged, or that somebody else wrote."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
from importlib.metadata import EntryPoint
from pathlib import Path

import h5py
import numpy as np
import pytest
import small_runs
import torch
import yaml
from PIL import Image

import adaptok
from adaptok.cli import main
from adaptok.data import PDEBench, WellData
from adaptok.data.check import check
from adaptok.data.synthetic import generate
from adaptok.registry import Registry
from adaptok.training.checkpoints import (
    check_resumable,
    find_resume,
    load_surrogate,
    read_checkpoint,
)
from adaptok.utils.atomic import replacing
from adaptok.utils.locks import InUseError, only_writer

FORK = multiprocessing.get_context("fork")
PART = {"ndim": 2, "in_channels": 1, "dim": 8}
KNOBS = {"resolution": 16, "frames": 4, "nodes": 4, "train": 2, "valid": 1, "test": 1}


# Several writers. Searched for write_text, write_bytes, open("w"), savefig, to_csv, json.dump and
# torch.save: what a run or a report writes goes through `replacing`.


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_several_writers_of_one_path_leave_one_whole_result(kind, tmp_path):
    path, writes = tmp_path / "x", 40

    def write(tag: int) -> None:
        for _ in range(writes):
            with replacing(path) as temporary:
                if kind == "folder":
                    temporary.mkdir()
                    for name in "abc":
                        (temporary / name).write_bytes(bytes([tag]) * 5000)
                else:
                    temporary.write_bytes(bytes([tag]) * 200_000)

    writers = [FORK.Process(target=write, args=(tag,)) for tag in (1, 2, 3)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers) or not reads:
        try:
            content = path.read_bytes() if kind == "file" else (path / "a").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        assert len({*content}) == 1
        assert len(content) in (200_000, 5000)
        reads += 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["x"]
    if kind == "folder":
        assert len({(path / name).read_bytes() for name in "abc"}) == 1


def test_what_a_killed_writer_left_is_removed_and_a_living_one_keeps_its_file(tmp_path):
    path = tmp_path / "x"

    def die() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            os._exit(1)

    killed = FORK.Process(target=die)
    killed.start()
    killed.join()
    assert len(os.listdir(tmp_path)) == 1
    with replacing(path) as outer:
        outer.write_text("first")
        with replacing(path) as inner:
            inner.write_text("second")
        assert outer.exists()
    assert os.listdir(tmp_path) == ["x"]
    assert path.read_text() == "first"


def test_the_second_writer_of_a_run_folder_is_told_who_has_it(tmp_path, capsys):
    with only_writer(tmp_path / "run"):
        with (
            pytest.raises(InUseError, match=f"process {os.getpid()} on "),
            only_writer(tmp_path / "run"),
        ):
            pass
        command = ["train", *small_runs.train(), f"hydra.run.dir={tmp_path / 'run'}"]
        assert main(command) == 2
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
        assert not (tmp_path / "run" / ".hydra").exists()
    with only_writer(tmp_path / "run"):
        pass


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_the_processes_of_one_run_share_its_lock(name, tmp_path, monkeypatch):
    with only_writer(tmp_path):
        monkeypatch.setenv(name, "1")
        with only_writer(tmp_path):
            pass


# One bad neighbour. Searched for loops over files or folders that others wrote: resume=auto, the
# report's runs, curves and pictures, plug-ins, the records of sweeps.


# A kilobyte that stands for 9 ** 11 values.
ALIASES = "a0: &a0 [1, 1]\n" + "\n".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    ["", "a: [", "just text", "a: &a [*a]", "\x00", "- 1", pytest.param(ALIASES, id="aliases")],
)
def test_a_damaged_neighbour_does_not_stop_resume_auto(text, tmp_path, capsys):
    for name, content in (("bad", text), ("good", yaml.safe_dump({"history": 1}))):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
        (tmp_path / name / "config.yaml").write_text(content)
    os.utime(tmp_path / "good" / "checkpoints" / "last.ckpt", (1, 1))  # the bad one comes first
    found = find_resume("auto", tmp_path / "new", tmp_path, {"history": 1})
    assert found == tmp_path / "good" / "checkpoints" / "last.ckpt"
    assert str(tmp_path / "bad") in capsys.readouterr().out


@pytest.mark.slow
def test_a_report_leaves_out_bombs_and_shortens_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    good, bomb = tmp_path / "good", tmp_path / "bomb"
    for folder in (good, bomb):
        (folder / "pictures").mkdir(parents=True)
    (good / "config.yaml").write_text("name: good\n")
    (good / "failed.json").write_text(json.dumps({"error": "x" * 10_000_000}))
    Image.new("RGB", (100, 100)).save(good / "pictures" / "cells.png")
    (good / "metrics.json").write_text(json.dumps({"settings": [{"vrmse": {"mean": 0.5}}]}))
    (bomb / "config.yaml").write_text(ALIASES)
    assert main(["report", str(tmp_path), f"out={tmp_path / 'out'}"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "picture cannot be read" in page
    assert "config.yaml is damaged" in page
    assert "x" * 1000 in page
    assert "x" * 3000 not in page


def test_threads_that_ask_at_once_all_see_the_plugins(monkeypatch):
    registry = Registry("sweet")

    class Slow(EntryPoint):
        def load(self):
            threading.Event().wait(0.05)
            assert registry.names() == []  # a plug-in that asks
            return lambda: None

    point = Slow(name="slow", value="slow:thing", group=registry.group)
    monkeypatch.setattr("adaptok.registry.entry_points", lambda group: [point])
    seen: list[list[str]] = []
    threads = [threading.Thread(target=lambda: seen.append(registry.names())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [["slow"]] * 8


# Foreign and damaged files. Searched for torch.load, safetensors, json.loads, yaml.safe_load,
# DictConfig and h5py.File.


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *small_runs.train(), f"hydra.run.dir={folder}"]) == 0
    return folder


def flipped(path: Path, position: int, target: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << (position % 8)
    target.write_bytes(content)
    return target


def test_a_flipped_bit_in_saved_weights_is_found(tmp_path):
    model = adaptok.create_tokenizer("iap", **PART)
    adaptok.save_pretrained(model, tmp_path)
    path, rng = tmp_path / "model.safetensors", np.random.default_rng(0)
    good = path.read_bytes()
    for position in rng.integers(0, len(good), 100).tolist():
        flipped(path, position, path)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            adaptok.from_pretrained(tmp_path)
        path.write_bytes(good)
    adaptok.from_pretrained(tmp_path)


@pytest.mark.slow
def test_a_flipped_bit_in_a_checkpoint_is_found_or_changes_nothing(trained, tmp_path):
    path, rng = trained / "checkpoints" / "last.ckpt", np.random.default_rng(0)
    want, found = read_checkpoint(path)["state_dict"], 0
    for position in rng.integers(0, path.stat().st_size, 60).tolist():
        bad = flipped(path, position, tmp_path / "bad.ckpt")
        try:
            state = read_checkpoint(bad)["state_dict"]
        except ValueError as error:
            found += "bad.ckpt" in str(error)
            continue
        assert all(torch.equal(state[name], want[name]) for name in want)
    assert found > 30


def test_a_flipped_bit_in_a_generated_set_is_found(tmp_path):
    folder = generate("acoustic_scattering_maze", tmp_path, **KNOBS, progress=False)
    assert not check(folder).problems
    (path,) = (folder / "data" / "train").glob("*.hdf5")
    good, rng = path.read_bytes(), np.random.default_rng(0)
    with h5py.File(path) as file:
        offset = file["t0_fields/pressure"].id.get_chunk_info(3).byte_offset
        assert all(file["t0_fields"][name].fletcher32 for name in file["t0_fields"])
    flipped(path, offset + 100, path)
    data = WellData(path=folder, batch_size=2)
    with pytest.raises(ValueError, match=path.name):
        data.setup()
    for position in rng.integers(0, len(good), 10).tolist():
        path.write_bytes(good)
        flipped(path, position, path)
        assert any(path.name in str(problem) for problem in check(folder).problems)


ONE = [1, 1]
for _ in range(20):
    ONE = [ONE] * 9
FOREIGN = {
    "configuration of billions of values": {"adaptok_config": {"a": ONE}},
    "state of strings": {"state_dict": {"a": "text"}},
    "state is a list": {"state_dict": [torch.zeros(2)]},
    "average is nothing": {"averaged_state_dict": None},
    "model of an unknown kind": {"adaptok_model": {"kind": "nope"}},
    "model without a kind": {"adaptok_model": {"name": "iap"}},
    "model with another key": {"adaptok_model": {"kind": "surrogate", "zz": 1}},
    "model is text": {"adaptok_model": "text"},
    "configuration is text": {"adaptok_config": "x"},
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_checkpoint_is_refused_by_its_name(change, trained, tmp_path):
    checkpoint = read_checkpoint(trained)
    torch.save({**checkpoint, **change}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"foreign\.ckpt"):
        load_surrogate(tmp_path / "foreign.ckpt")


@pytest.mark.parametrize("key", ["optimizer_states", "loops", "pytorch-lightning_version"])
@pytest.mark.parametrize("value", [None, "empty"])
def test_weights_alone_are_no_training_to_resume(key, value, trained):
    checkpoint = read_checkpoint(trained)
    check_resumable(checkpoint, trained)
    changed = {k: v for k, v in checkpoint.items() if k != key}
    if value == "empty":
        changed[key] = type(checkpoint[key])()
    with pytest.raises(ValueError, match=key):
        check_resumable(changed, trained)


@pytest.mark.slow
def test_eval_of_a_foreign_checkpoint_reads_no_variable_and_writes_only_here(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    monkeypatch.setenv("ADAPTOK_DATA", str(small_runs.root()))
    checkpoint = read_checkpoint(trained)
    checkpoint["adaptok_config"]["note"] = "${oc.env:MY_SECRET}"
    checkpoint["adaptok_config"]["data"]["base"] = str(tmp_path / "theirs")
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    run = tmp_path / "run"
    assert main(["eval", f"ckpt={tmp_path}/foreign.ckpt", "steps=1", f"hydra.run.dir={run}"]) == 0
    assert not (tmp_path / "theirs").exists()
    written = [(run / name).read_text() for name in ("config.yaml", "metrics.json")]
    assert "hunter2" not in "".join(written)


@pytest.mark.parametrize("key", ["base", "path"])
def test_eval_of_a_foreign_checkpoint_opens_no_url(key, trained, tmp_path, capsys):
    checkpoint = read_checkpoint(trained)
    checkpoint["adaptok_config"]["data"] |= {"generate": None, key: "http://127.0.0.1:9/x"}
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    assert main(["eval", f"ckpt={tmp_path}/foreign.ckpt", f"hydra.run.dir={tmp_path}/run"]) == 2
    assert f"data.{key}=http://127.0.0.1:9/x" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"kind": "vision", "model": "hf-hub:a/b"}'])
def test_a_foreign_configuration_is_refused_by_its_name(text, tmp_path):
    adaptok.save_pretrained(adaptok.create_tokenizer("iap", **PART), tmp_path)
    if text.startswith('{"'):
        text = json.dumps({"format": 1, "made": {}, "options": {}, **json.loads(text)})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        adaptok.from_pretrained(tmp_path)


def test_a_path_is_no_pattern(tmp_path):
    folder = generate("acoustic_scattering_maze", tmp_path / "[a]*?", **KNOBS, progress=False)
    data = WellData(path=folder, batch_size=2, cache=False)
    data.setup()
    assert len(data.loader("train").dataset) == 6


def write_trajectories(path: Path, steps: list[int], **changes: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for number, count in enumerate(steps):
            group = file.create_group(f"{number:04d}")
            fields = np.random.default_rng(number).normal(size=(count, 8, 8, 1))
            group["data"] = changes.get("data", fields.astype("f4"))
            group["grid/t"] = changes.get("t", np.linspace(0, 1, count))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("short", [0, 3, 9])
def test_trajectories_of_different_length(short, cache, tmp_path):
    steps = [5 if i == short else 7 for i in range(10)]
    write_trajectories(tmp_path / "x.h5", steps)
    data = PDEBench(path=tmp_path / "x.h5", history=2, batch_size=2, cache=cache)
    data.setup()
    windows = data.loader("train").dataset
    assert len(windows) == sum(n - 2 for n in steps[:8])
    for i in range(len(windows)):
        assert windows[i]["input"].isfinite().all()
    rollouts = data.rollout_loader("test").dataset
    assert len(rollouts) == 1
    assert len(rollouts[0]["target"]) == steps[9] - 2


@pytest.mark.parametrize("kind", [">f4", ">f8", "f2", "i4", "bool", ">i2", np.longdouble])
def test_any_type_and_byte_order(kind, tmp_path):
    truth = np.random.default_rng(0).integers(0, 2, (5, 8, 8, 1))
    times = np.arange(5).astype(kind if kind != "bool" else "i8")
    write_trajectories(tmp_path / "x.h5", [5] * 10, data=truth.astype(kind), t=times)
    data = PDEBench(path=tmp_path / "x.h5", history=1, batch_size=2)
    data.setup()
    sample = data.loader("train").dataset[1]
    assert torch.equal(sample["input"][0, 0], torch.from_numpy(truth[1, ..., 0]).float())
    assert sample["time_step"] == 1


BAD_TIMES = {"fall": np.arange(5.0)[::-1].copy(), "stand": np.zeros(5), "are NaN": [np.nan] * 5}


@pytest.mark.parametrize("times", BAD_TIMES.values(), ids=BAD_TIMES)
def test_times_that_do_not_increase_are_refused(times, tmp_path):
    write_trajectories(tmp_path / "x.h5", [5] * 10, t=np.asarray(times))
    with pytest.raises(ValueError, match=r"times of .*x\.h5"):
        PDEBench(path=tmp_path / "x.h5", history=1, batch_size=2).setup()
    folder = generated_copy(tmp_path)
    with h5py.File(next((folder / "data" / "train").iterdir()), "r+") as file:
        time = file["dimensions/time"]
        time[...] = np.resize(np.asarray(times), time.shape)
    with pytest.raises(ValueError, match=r"times of .*train"):
        WellData(path=folder, batch_size=2).setup()


def generated_copy(root: Path) -> Path:
    return generate("acoustic_scattering_maze", root, **KNOBS, progress=False)


@pytest.mark.parametrize("kind", [">f4", "c8", "S3"])
def test_a_field_of_a_type_that_cannot_be_read_is_named(kind, tmp_path):
    folder = generated_copy(tmp_path)
    path = next((folder / "data" / "train").iterdir())
    with h5py.File(path, "r+") as file:
        group = file["t0_fields"]
        shape, attributes = group["pressure"].shape, dict(group["pressure"].attrs)
        del group["pressure"]
        group.create_dataset("pressure", shape, dtype=kind).attrs.update(attributes)
    with pytest.raises(ValueError, match=rf"{path.name}: field pressure has type"):
        WellData(path=folder, batch_size=2).setup()


def test_names_in_bytes_are_one_problem(tmp_path):
    folder = generated_copy(tmp_path)
    path = next((folder / "data" / "train").iterdir())
    with h5py.File(path, "r+") as file:
        names = [name.encode() for name in file["t0_fields"].attrs["field_names"]]
        file["t0_fields"].attrs["field_names"] = np.array(names)
    with pytest.raises(ValueError, match=rf"{path.name}: field_names of /t0_fields are bytes"):
        WellData(path=folder, batch_size=2).setup()
    assert sum("bytes" in str(problem) for problem in check(path).problems) == 1


def test_a_file_of_another_kind_is_not_called_missing(tmp_path):
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match="is not an HDF5 file"):
        check(tmp_path / "x.txt")
    with pytest.raises(ValueError, match="no such file or folder"):
        check(tmp_path / "y")


# Data replaced during a run. Searched for every open of a file of data: `Location.hdf5`, the Well's
# reader and `Location.text`. Images are read from a list of paths and are not watched.


def changed_by(how: str, folder: Path, root: Path, knobs: dict[str, int] = KNOBS) -> None:
    """Makes a set another one: deleted and rebuilt, a file replaced, changed in place, removed."""
    path = next((folder / "data" / "train").iterdir())
    if how == "rebuilt":
        shutil.rmtree(folder)
        generate(folder.name, root, **knobs | {"seed": 9}, progress=False)
    elif how == "replaced":
        with replacing(path) as temporary:
            shutil.copyfile(path, temporary)
    elif how == "removed":
        path.unlink()
    else:
        with h5py.File(path, "r+") as file:
            file["t0_fields/pressure"][...] = 7.0


@pytest.mark.parametrize(
    ("how", "cache"),
    [(how, False) for how in ("rebuilt", "replaced", "in place", "removed")] + [("rebuilt", True)],
)
def test_data_that_is_replaced_during_a_run_is_never_mixed(how, cache, tmp_path):
    folder = generated_copy(tmp_path)
    data = WellData(path=folder, batch_size=2, cache=cache)
    data.setup("fit")
    windows = data.loader("train").dataset
    before = [windows[i]["input"] for i in range(len(windows))]
    changed_by(how, folder, tmp_path)
    if cache:  # it goes on with what it has read
        assert all(torch.equal(windows[i]["input"], x) for i, x in enumerate(before))
    else:
        with pytest.raises(ValueError, match=r"train.*was replaced, changed or removed while"):
            windows[0]
    with pytest.raises(ValueError, match="data set was changed while in use"):
        data.loader("test")


@pytest.mark.parametrize("cache", [True, False])
def test_a_file_of_pdebench_that_is_replaced_is_never_mixed(cache, tmp_path):
    write_trajectories(tmp_path / "x.h5", [5] * 10)
    data = PDEBench(path=tmp_path / "x.h5", history=1, batch_size=2, cache=cache)
    data.setup("fit")
    windows = data.loader("train").dataset
    before = windows[0]["input"]
    write_trajectories(tmp_path / "x.h5", [5] * 10, data=np.ones((5, 8, 8, 1), "f4"))
    if cache:
        assert torch.equal(windows[0]["input"], before)
    else:
        with pytest.raises(ValueError, match=r"x\.h5 was replaced"):
            windows[0]
    with pytest.raises(ValueError, match="data set was changed while in use"):
        data.loader("test")
