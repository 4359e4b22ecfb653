"""The data module: batches, order, statistics, rollouts, and errors that say what is wrong."""

import shutil
import warnings
from pathlib import Path

import h5py
import pytest
import torch
import yaml

pytest.importorskip("lightning")
pytest.importorskip("the_well")

import adaptok.data
from adaptok.data import FieldInfo, WellData
from adaptok.data.synthetic import SOLVERS, generate
from adaptok.evaluation.evaluate import persistence
from adaptok.plots.pictures import _times
from adaptok.plots.samples import sample_of

MAZE, BLAST = "acoustic_scattering_maze", "supernova_explosion_64"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Both sets, tiny: the maze has 9 training trajectories in two files, 6 frames each."""
    root = tmp_path_factory.mktemp("sets")
    maze = {"resolution": 16, "nodes": 4, "frames": 6, "train": 9, "valid": 2, "test": 3}
    generate(MAZE, root, progress=False, **maze)
    blast = {"resolution": 8, "frames": 4, "train": 3, "valid": 1, "test": 1}
    generate(BLAST, root, progress=False, **blast)
    return root


@pytest.fixture
def copy(root, tmp_path) -> Path:
    """A copy of the maze that may be damaged."""
    shutil.copytree(root / MAZE, tmp_path / MAZE)
    return tmp_path


def read(root: Path, split: str, field: str, order: int = 0, name: str = MAZE) -> torch.Tensor:
    """A field as stored, all files of a split, (b, t, ...)."""
    parts = []
    for path in sorted((root / name / "data" / split).iterdir()):
        with h5py.File(path) as file:
            parts.append(torch.from_numpy(file[f"t{order}_fields"][field][:]))
    return torch.cat(parts)


def order_of(loader) -> torch.Tensor:
    """A fingerprint per sample, in the order of the loader."""
    return torch.cat([batch["input"].double().flatten(1).sum(1) for batch in loader])


def test_a_batch_has_the_layout_that_models_expect(root):
    data = WellData(MAZE, root, history=2, target_steps=3, batch_size=4)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "input": (4, 2, 3, 16, 16),
        "target": (4, 3, 3, 16, 16),
        "boundary": (4, 2, 2),
        "constants": (4, 2, 16, 16),
        "time_step": (4,),
    }
    assert batch["boundary"].dtype == torch.int64
    assert batch["boundary"][0].tolist() == [[0, 0], [1, 1]]
    assert all(batch[k].dtype == torch.float32 for k in ("input", "target", "constants"))


@pytest.mark.parametrize("cache", [True, False])
def test_windows_hold_the_stored_values_in_order(root, cache):
    data = WellData(MAZE, root, history=2, stride=2, cache=cache, batch_size=3)
    loader = data.val_dataloader()
    pressure, velocity = read(root, "valid", "pressure"), read(root, "valid", "velocity", 1)
    density = read(root, "valid", "density")
    got = [{k: v[i] for k, v in b.items()} for b in loader for i in range(len(b["input"]))]
    starts = [(b, t) for b in range(2) for t in range(2)]  # 6 frames, a window spans 5
    assert len(got) == len(starts)
    for sample, (b, t) in zip(got, starts, strict=True):
        assert torch.equal(sample["input"][:, 0], pressure[b, [t, t + 2]])
        assert torch.equal(sample["target"][0, 0], pressure[b, t + 4])
        assert torch.equal(sample["target"][0, 1:], velocity[b, t + 4].movedim(-1, 0))
        assert torch.equal(sample["constants"][0], density[b])


@pytest.mark.parametrize("name", [MAZE, BLAST])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_reading_from_memory_equals_reading_from_files(root, name, split):
    fast, slow = (WellData(name, root, cache=c, batch_size=2) for c in (True, False))
    pairs = list(zip(fast.loader(split), slow.loader(split), strict=True))
    assert pairs
    for one, other in pairs:
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key])
    assert ("constants" in pairs[0][0]) == (name == MAZE)


def test_a_set_above_the_limit_is_not_kept_in_memory(root):
    frames, channels = 9 * 6, 3 * 16 * 16
    needed = 4 * frames * channels / 1e9
    assert WellData(MAZE, root, cache_limit=1.01 * needed)._split("train").cached
    assert not WellData(MAZE, root, cache_limit=0.99 * needed)._split("train").cached


def test_evaluation_sees_every_sample_in_order_and_training_only_whole_batches(root):
    data = WellData(MAZE, root, batch_size=4)
    data.setup()
    assert len(data.train_dataloader()) == 9 * 5 // 4
    assert sum(len(b["input"]) for b in data.train_dataloader()) == 44
    test = data.test_dataloader()
    assert [len(b["input"]) for b in test] == [4, 4, 4, 3]
    assert torch.equal(order_of(test), order_of(test))


def test_the_order_of_training_depends_on_seed_and_epoch_only(root):
    def order(seed: int, epoch: int, **options) -> torch.Tensor:
        data = WellData(MAZE, root, seed=seed, batch_size=4, **options)
        loader = data.train_dataloader()
        torch.rand(epoch + 1)  # the global random numbers play no part
        loader.sampler.set_epoch(epoch)
        before = torch.get_rng_state()
        result = order_of(loader)
        assert torch.equal(torch.get_rng_state(), before)
        return result

    first = order(0, 0)
    assert torch.equal(order(0, 0), first)
    assert torch.equal(order(0, 0, cache=False), first)
    assert not torch.equal(order(0, 1), first)
    assert not torch.equal(order(1, 0), first)
    assert not torch.equal(order(1, 0), order(0, 1))


def test_workers_do_not_change_the_batches(root):
    one, two = (WellData(BLAST, root, batch_size=4, num_workers=n) for n in (0, 2))
    assert torch.equal(order_of(one.train_dataloader()), order_of(two.train_dataloader()))


def test_lightning_advances_the_epoch(root):
    import lightning

    class Recorder(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen: list[torch.Tensor] = []

        def training_step(self, batch):
            self.seen.append(batch["input"].double().flatten(1).sum(1))
            return self.weight.square()

        def validation_step(self, batch):
            return None

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data, recorder = WellData(MAZE, root, seed=5, batch_size=4), Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(recorder, datamodule=data)
    alone = WellData(MAZE, root, seed=5, batch_size=4).train_dataloader()
    expected = [order_of(alone)]
    alone.sampler.set_epoch(1)
    expected.append(order_of(alone))
    assert torch.equal(torch.cat(recorder.seen), torch.cat(expected))


def test_info_describes_the_channels(root):
    info = WellData(MAZE, root).info
    stats = yaml.safe_load((root / MAZE / "stats.yaml").read_text())
    assert isinstance(info, FieldInfo)
    assert (info.name, info.ndim, info.shape) == (MAZE, 2, (16, 16))
    assert info.fields == ("pressure", "velocity_x", "velocity_y")
    assert info.constants == ("density", "speed_of_sound")
    assert info.boundary.tolist() == [[0, 0], [1, 1]]
    for got, table in (
        (info.mean, "mean"),
        (info.std, "std"),
        (info.delta_mean, "mean_delta"),
        (info.delta_std, "std_delta"),
    ):
        expected = [stats[table]["pressure"], *stats[table]["velocity"]]
        torch.testing.assert_close(got, torch.tensor(expected))
    torch.testing.assert_close(
        info.constant_std, torch.tensor([stats["std"]["density"], stats["std"]["speed_of_sound"]])
    )
    blast = WellData(BLAST, root).info
    assert blast.constants == ()
    assert blast.constant_mean.shape == (0,)
    assert len(blast.mean) == len(blast.fields) == 6


def test_the_change_over_a_stride_is_measured(root):
    info = WellData(MAZE, root, stride=2).info
    velocity = read(root, "train", "velocity", 1)
    change = (velocity[:, 2:] - velocity[:, :-2]).double().flatten(0, -2)
    torch.testing.assert_close(info.delta_std[1:].double(), change.std(0, correction=0))
    torch.testing.assert_close(info.delta_mean[1:].double(), change.mean(0), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("cache", [True, False])
def test_rollouts_start_each_trajectory(root, cache):
    data = WellData(MAZE, root, history=2, batch_size=2, cache=cache)
    pressure = read(root, "test", "pressure")
    whole = list(data.rollout_loader("test"))
    assert [len(b["input"]) for b in whole] == [2, 1]
    assert torch.equal(torch.cat([b["input"] for b in whole])[:, :, 0], pressure[:, :2])
    assert torch.equal(torch.cat([b["target"] for b in whole])[:, :, 0], pressure[:, 2:])
    short = torch.cat([b["target"] for b in data.rollout_loader("test", 3)])
    assert torch.equal(short[:, :, 0], pressure[:, 2:5])
    with pytest.raises(ValueError, match=r"and 5 steps ahead.* need 7 frames.*has 6"):
        data.rollout_loader("test", 5)


@pytest.mark.parametrize("cache", [True, False])
def test_pictures_know_the_time_of_a_frame_that_begins_no_window(root, cache):
    data = WellData(MAZE, root, history=5, cache=cache)
    with h5py.File(next((root / MAZE / "data" / "test").iterdir())) as file:
        time = f"t = {file['dimensions/time'][4]:.4g}"
    assert sample_of(data, "test", 2).caption.endswith(f"trajectory 2, frame 4, {time}")
    assert _times(data, "test", 1).startswith(f"from {time} in steps of")


def test_a_stride_leaves_fewer_rollout_steps(root):
    data = WellData(MAZE, root, stride=2, batch_size=3)
    target = next(iter(data.rollout_loader("test")))["target"]
    assert torch.equal(target[:, :, 0], read(root, "test", "pressure")[:, [2, 4]])


def test_fewer_training_samples_are_nested(root):
    def chosen(count: int, seed: int = 0) -> set[float]:
        data = WellData(MAZE, root, train_samples=count, seed=seed, batch_size=1)
        return set(order_of(data.train_dataloader()).tolist())

    small, large = chosen(5), chosen(12)
    assert len(small) == 5
    assert small < large
    assert chosen(5, seed=1) != small


def test_a_folder_of_any_name_is_read_by_path(copy):
    folder = copy / "my own set"
    (copy / MAZE).rename(folder)
    by_path = WellData(path=folder)
    assert len(by_path.test_dataloader().dataset) == 15
    assert WellData("my own set", copy).info.shape == (16, 16)


def test_persistence_equals_the_wells_metric(root):
    from types import SimpleNamespace

    from the_well.benchmark.metrics import VRMSE

    data = WellData(MAZE, root, batch_size=4)
    data.setup("test")
    result = persistence(data).vrmse
    values = []
    for batch in data.test_dataloader():
        prediction, target = (batch[k].movedim(2, -1) for k in ("input", "target"))
        values.append(VRMSE()(prediction, target, SimpleNamespace(n_spatial_dims=2)))
    values = torch.cat(values).flatten(0, 1)
    assert result.mean == pytest.approx(values.mean().item(), rel=1e-5)
    assert result.median == pytest.approx(values.mean(1).quantile(0.5).item(), rel=1e-5)
    assert list(result.fields) == list(data.info.fields)
    for field, expected in zip(result.fields.values(), values.T, strict=True):
        assert field.mean == pytest.approx(expected.mean().item(), rel=1e-5)
        assert field.median == pytest.approx(expected.quantile(0.5).item(), rel=1e-5)


def check_default_set(name: str, folder: Path) -> None:
    """Neither trivial nor chaotic: a copy of the last frame is wrong by a tenth to a half.

    Of a few trajectories, each as long and as fine as by default.
    """
    generate(name, folder, train=6, valid=1, test=3, progress=False)
    data = WellData(name, folder)
    result = persistence(data).vrmse
    assert 0.1 <= result.mean <= 0.6
    assert max(field.mean for field in result.fields.values()) < 1
    assert min(data.info.std.min(), data.info.delta_std.min()) > 1e-4  # the Well's own condition


def test_persistence_of_the_default_maze(tmp_path):
    check_default_set(MAZE, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SOLVERS.names() if name != MAZE])
def test_persistence_of_the_default_sets(name, tmp_path):
    check_default_set(name, tmp_path)


def test_missing_things_are_named_with_what_to_do(root, copy):
    with pytest.raises(ValueError, match=r"unknown data set 'acoustic_scattering_mase'.*did you"):
        WellData("acoustic_scattering_mase", root).setup()
    with pytest.raises(ValueError, match=r"the-well-download .*`adaptok data data=supernova"):
        WellData(BLAST, copy).setup()
    with pytest.raises(ValueError, match=r"no data set at .*the-well-download .*planetswe"):
        WellData("planetswe", root).setup()
    with pytest.raises(ValueError, match="no such folder"):
        WellData(path=root / "nowhere").setup()
    for wrong in ({}, {"name": MAZE}, {"base": "."}, {"name": MAZE, "base": ".", "path": "."}):
        with pytest.raises(ValueError, match="give either path, or name and base"):
            WellData(**wrong).setup()
    (copy / MAZE / "stats.yaml").unlink()
    with pytest.raises(ValueError, match=r"stats\.yaml is missing"):
        WellData(MAZE, copy).setup()


def test_missing_splits_are_named(copy):
    shutil.rmtree(copy / MAZE / "data" / "valid")
    data = WellData(MAZE, copy)
    with pytest.raises(ValueError, match=r"split 'valid' of .* is missing"):
        data.setup("fit")
    with pytest.raises(ValueError, match="one of train, valid, test, got 'val'"):
        data.loader("val")


def test_damage_that_only_the_readers_constructor_meets_is_named(copy, monkeypatch):
    def broken(**_):
        raise RuntimeError("Link iteration failed (bad heap free list)")

    monkeypatch.setattr("adaptok.data.split.WellDataset", broken)
    data = WellData(MAZE, copy)
    with pytest.raises(ValueError, match=r"cannot read .*\.hdf5 .*Link iteration failed"):
        data.setup("fit")


@pytest.mark.parametrize("cache", [True, False])
def test_damaged_files_are_named(copy, cache):
    path = copy / MAZE / "data" / "train" / "train_001.hdf5"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"damaged or truncated HDF5.*train_001\.hdf5"):
        WellData(MAZE, copy, cache=cache).setup()
    path.write_bytes(b"not HDF5 at all" * 100)
    with pytest.raises(ValueError, match=r"damaged or truncated HDF5.*train_001\.hdf5"):
        WellData(MAZE, copy, cache=cache).setup()
    path.write_bytes(content)
    with h5py.File(path, "a") as file:
        del file["scalars"]
    with pytest.raises(ValueError, match=r"train_001\.hdf5 lacks scalars"):
        WellData(MAZE, copy, cache=cache).setup()


@pytest.mark.parametrize("cache", [True, False])
def test_a_missing_field_is_noticed(copy, cache):
    path = copy / MAZE / "data" / "train" / "train_001.hdf5"
    with h5py.File(path, "a") as file:
        del file["t0_fields"]["pressure"]
    data = WellData(MAZE, copy, cache=cache)
    with pytest.raises(ValueError, match=r"train_001\.hdf5|data/train"):
        order_of(data.loader("train"))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_located(copy, cache, value):
    path = copy / MAZE / "data" / "train" / "train_001.hdf5"
    with h5py.File(path, "a") as file:  # the ninth trajectory is the first of the second file
        file["t1_fields"]["velocity"][0, 3, 2, 2, 1] = value
    data = WellData(MAZE, copy, cache=cache)
    with pytest.raises(
        ValueError, match=r"NaN or Inf in channel velocity_y of .*train_001\.hdf5, trajectory 0$"
    ):
        order_of(data.loader("train"))


def test_nan_can_be_replaced_but_inf_cannot(copy):
    path = copy / MAZE / "data" / "test" / "test_000.hdf5"
    with h5py.File(path, "a") as file:
        file["t0_fields"]["pressure"][0, 0, 2, 2] = float("nan")
    batch = next(iter(WellData(MAZE, copy, replace_nan=True).test_dataloader()))
    assert batch["input"][0, 0, 0, 2, 2] == 0
    assert batch["input"].isfinite().all()
    with h5py.File(path, "a") as file:
        file["t0_fields"]["pressure"][0, 0, 2, 2] = float("inf")
    with pytest.raises(ValueError, match="NaN or Inf in channel pressure"):
        WellData(MAZE, copy, replace_nan=True).test_dataloader()


def test_statistics_that_do_not_fit_are_refused(copy):
    path = copy / MAZE / "stats.yaml"
    stats = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**stats, "std": {**stats["std"], "velocity": [1.0]}}))
    with pytest.raises(ValueError, match=r"stats\.yaml \[std\] must have 3 finite numbers"):
        _ = WellData(MAZE, copy).info
    del stats["mean"]["pressure"]
    path.write_text(yaml.safe_dump(stats))
    with pytest.raises(ValueError, match=r"\[mean\] has no statistics of pressure"):
        _ = WellData(MAZE, copy).info
    path.write_text("mean: [")
    with pytest.raises(ValueError, match=r"stats\.yaml is not valid YAML"):
        _ = WellData(MAZE, copy).info


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"train_samples": 46}, "train_samples=46, but there are only 45"),
        ({"history": 6}, r"history=6 and 1 steps ahead .* need 7 frames.*has 6"),
        ({"history": 0}, "history must be a whole number of at least 1, got 0"),
        ({"stride": 1.5}, "stride must be a whole number"),
        ({"num_workers": -1}, "num_workers must be a whole number of at least 0"),
    ],
)
def test_knobs_that_cannot_be_are_refused(root, knobs, message):
    with pytest.raises(ValueError, match=message):
        WellData(MAZE, root, **knobs).setup("fit")


def test_evaluation_does_without_the_training_files(copy):
    shutil.rmtree(copy / MAZE / "data" / "train")
    data = WellData(MAZE, copy)
    data.setup("test")
    assert data.info.fields == ("pressure", "velocity_x", "velocity_y")
    assert persistence(data).vrmse.mean > 0


def test_an_unknown_attribute_of_the_package_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = adaptok.data.nonsense
