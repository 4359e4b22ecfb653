"""Physical parameters and time steps in the batch, and augmentation as the Well does it."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from sampled import sampled

pytest.importorskip("lightning")
pytest.importorskip("the_well")

from adaptok.data import WellData
from adaptok.data.augment import Augmented
from adaptok.data.synthetic import generate
from adaptok.data.synthetic.solver import Trajectories
from adaptok.data.synthetic.store import Statistics, write_file

PATTERNS, MATTER, BLAST = (
    "gray_scott_reaction_diffusion",
    "active_matter",
    "supernova_explosion_64",
)
KINDS = ("flip", "permute", "roll", "rotate")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    tiny = {"resolution": 8, "frames": 5, "train": 6, "valid": 1, "test": 1}
    for name in (MATTER, BLAST):
        generate(name, root, progress=False, **tiny)
    generate(PATTERNS, root, progress=False, **tiny | {"start": 10.0})
    generate("rayleigh_benard", root, progress=False, **tiny | {"start": 0.0})
    return root


@pytest.fixture(scope="module")
def varied(tmp_path_factory) -> Path:
    """A set with everything that may vary: tensor constants, scalars and times."""
    root = tmp_path_factory.mktemp("varied")
    statistics = Statistics()
    for split in ("train", "valid", "test"):
        folder = root / "data" / split
        folder.mkdir(parents=True)
        data = Trajectories(
            time=torch.tensor([0.0, 0.1, 0.3, 0.6, 1.0]),
            coordinates={"x": torch.arange(6.0), "y": torch.arange(6.0)},
            fields={
                0: {"a": torch.randn(3, 5, 6, 6)},
                1: {"u": torch.randn(3, 5, 6, 6, 2)},
                2: {"D": torch.randn(3, 5, 6, 6, 2, 2)},
            },
            constants={
                0: {"rho": torch.randn(3, 6, 6)},
                1: {"g": torch.randn(3, 6, 6, 2)},
                2: {"K": torch.randn(3, 6, 6, 2, 2)},
            },
            scalars={"alpha": -1.5},
        )
        path = folder / "a.hdf5"
        write_file(path, data, name="varied", boundary=("PERIODIC", "WALL"), attributes={})
        with h5py.File(path, "a") as file:
            scalars = file["scalars"]
            scalars.attrs["field_names"] = ["force", "alpha", "beta"]
            force = scalars.create_dataset("force", data=np.arange(15.0).reshape(3, 5))
            force.attrs.update(time_varying=True, sample_varying=True)
            beta = scalars.create_dataset("beta", data=np.array([10.0, 20.0, 30.0]))
            beta.attrs.update(time_varying=False, sample_varying=True)
            del file["dimensions"]["time"]
            times = np.stack([np.cumsum([0.0, 1, 2, 3, 4]) * (b + 1) for b in range(3)])
            time = file["dimensions"].create_dataset("time", data=times)
            time.attrs.update(time_varying=True, sample_varying=True)
        if split == "train":
            statistics.add(data)
    statistics.write(root / "stats.yaml")
    return root


@pytest.mark.parametrize("cache", sampled([True, False], 2))
def test_parameters_and_time_steps_are_in_the_batch(root, cache):
    data = WellData(PATTERNS, root, stride=2, batch_size=1, cache=cache)
    assert data.info.scalars == ("F", "k")
    got = {tuple(b["scalars"][0].tolist()) for b in data.loader("train")}
    expected = [(0.014, 0.054), (0.098, 0.057), (0.029, 0.057), (0.058, 0.065), (0.018, 0.051)]
    assert {tuple(round(v, 6) for v in pair) for pair in got} == {*expected, (0.03, 0.062)}
    steps = torch.cat([b["time_step"] for b in data.loader("train")])
    torch.testing.assert_close(steps, torch.full((18,), 80.0))
    assert WellData(BLAST, root).info.scalars == ("gamma",)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(("history", "stride"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_what_varies_with_time_and_trajectory_is_read_where_it_is(varied, cache, history, stride):
    data = WellData(path=varied, history=history, stride=stride, batch_size=3, cache=cache)
    assert data.info.scalars == ("alpha", "beta", "force")
    dataset = data.loader("test").dataset
    samples = [dataset[i] for i in range(len(dataset))]
    windows = 5 - stride * history
    assert len(samples) == 3 * windows
    for number, sample in enumerate(samples):
        trajectory, first = divmod(number, windows)
        last = first + stride * (history - 1)
        torch.testing.assert_close(
            sample["scalars"],
            torch.tensor([-1.5, 10.0 * (trajectory + 1), 5.0 * trajectory + last]),
        )
        step = sum(range(last + 1, last + stride + 1)) * (trajectory + 1.0)
        assert sample["time_step"].item() == pytest.approx(step)


def test_memory_equals_files_with_everything_that_varies(varied):
    fast, slow = (WellData(path=varied, history=2, batch_size=4, cache=c) for c in (True, False))
    for one, other in zip(fast.loader("train"), slow.loader("train"), strict=True):
        assert one.keys() == other.keys()
        assert {"constants", "scalars"} < one.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert fast.info.constants == ("rho", "g_x", "g_y", "K_xx", "K_xy", "K_yx", "K_yy")
    assert fast._split("train").cached


def augmented_by_the_well(folder: Path, kinds, index: int) -> dict[str, torch.Tensor]:
    from the_well.data import WellDataset
    from the_well.data.augmentation import (
        Compose,
        RandomAxisFlip,
        RandomAxisPermute,
        RandomAxisRoll,
        RandomRotation90,
    )

    theirs = {
        "flip": RandomAxisFlip,
        "permute": RandomAxisPermute,
        "roll": RandomAxisRoll,
        "rotate": RandomRotation90,
    }
    dataset = WellDataset(
        path=str(folder / "data" / "train"),
        n_steps_input=2,
        transform=Compose(*(theirs[kind]() for kind in kinds)),
    )
    sample = dataset[index]
    axis = sample["input_fields"].ndim - 1 - dataset.n_spatial_dims
    first = lambda key: sample[key].movedim(-1, axis if "constant" not in key else 0)  # noqa: E731
    out = {"input": first("input_fields"), "target": first("output_fields")}
    if "constant_fields" in sample:
        out["constants"] = first("constant_fields")
    return {**out, "boundary": sample["boundary_conditions"].long()}


@pytest.mark.parametrize("kinds", sampled([KINDS, *((kind,) for kind in KINDS)], 3))
@pytest.mark.parametrize("name", ["varied", MATTER, BLAST])
def test_augmentation_is_the_wells(root, varied, name, kinds):
    folder = varied if name == "varied" else root / name
    data = WellData(path=folder, history=2)
    ours = Augmented(data._windows("train"), kinds, data._split("train").metadata)
    changed = 0
    for index in range(5):
        torch.manual_seed(index)
        np.random.seed(index)
        expected = augmented_by_the_well(folder, kinds, index)
        torch.manual_seed(index)
        np.random.seed(index)
        got = ours[index]
        for key, value in expected.items():
            assert torch.equal(got[key], value), key
        changed += not torch.equal(got["input"], data._windows("train")[index]["input"])
    assert changed or (kinds == ("roll",) and name == BLAST)  # nothing is periodic there
    assert ours[0]["input"].is_contiguous()
    assert set(ours[0]) == set(data._windows("train")[0])


def epoch(data: WellData, number: int) -> torch.Tensor:
    """The training samples of an epoch, in order."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return torch.cat([batch["input"] for batch in loader])


def test_training_samples_are_a_function_of_seed_epoch_and_index(root):
    def data(**options) -> WellData:
        return WellData(MATTER, root, batch_size=4, augment=["flip", "rotate", "roll"], **options)

    first = epoch(data(), 0)
    torch.rand(7)  # the global random numbers play no part
    np.random.rand(7)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert torch.equal(epoch(data(), 0), first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(epoch(data(num_workers=2), 0), first)
    assert torch.equal(epoch(data(cache=False), 0), first)
    assert not torch.equal(epoch(data(), 1), first)
    plain = [epoch(WellData(MATTER, root, batch_size=4), number) for number in (0, 1)]
    assert not torch.equal(first, plain[0])
    # the same samples, differently transformed: sums of squares of a scalar field survive all of it
    assert_same_samples(first, plain[0])
    assert_same_samples(epoch(data(), 1), plain[1])
    looks = [data().train_dataloader().dataset[number, 3]["input"] for number in range(4)]
    assert not all(torch.equal(looks[0], other) for other in looks[1:])


def assert_same_samples(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(*(x[:, :, 0].square().sum((1, 2, 3)) for x in (one, other)))


def test_evaluation_is_not_augmented(root):
    plain, augmented = (WellData(MATTER, root, augment=a) for a in ([], ["flip", "roll"]))
    for one, other in zip(plain.test_dataloader(), augmented.test_dataloader(), strict=True):
        assert torch.equal(one["input"], other["input"])


def test_the_physics_survives_augmentation(root):
    """E is the symmetric gradient of the velocity, also of a turned and mirrored one."""
    data = WellData(MATTER, root, augment=["flip", "rotate", "roll"], batch_size=1)
    n, side = 8, 10.0
    for batch in data.train_dataloader():
        frame = batch["input"][0, 0]
        k = torch.fft.fftfreq(n, side / n) * 2 * torch.pi
        k[n // 2] = 0
        u, v = (torch.fft.fft2(frame[i]) for i in (1, 2))
        dx, dy = 1j * k[:, None], 1j * k[None, :]
        expected = [dx * u, (dy * u + dx * v) / 2, (dy * u + dx * v) / 2, dy * v]
        for channel, modes in zip(frame[7:], expected, strict=True):
            torch.testing.assert_close(channel, torch.fft.ifft2(modes).real, rtol=0, atol=1e-4)


def test_augmentations_that_cannot_be_are_refused(root):
    with pytest.raises(ValueError, match=r"one of flip, .*got 'flipp' \(did you mean 'flip'"):
        WellData(MATTER, root, augment=["flipp"]).setup("fit")
    with pytest.raises(ValueError, match=r"augment=rotate exchanges axes: .* not 32 x 8"):
        WellData("rayleigh_benard", root, augment="rotate").setup("fit")
    WellData("rayleigh_benard", root, augment="roll", batch_size=4).setup("fit")
