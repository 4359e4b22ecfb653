"""Several data sets in one training, lead times, and shares of the trajectories."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from small_runs import root
from torch.utils.data import TensorDataset

from adaptok.data import WellData
from adaptok.data.leads import Leads
from adaptok.data.mixture import Mixture, MixtureSampler
from adaptok.data.order import EpochSampler
from adaptok.data.synthetic import generate

SETS = {
    "acoustic_scattering_maze": {"nodes": 4, "train": 3},
    "gray_scott_reaction_diffusion": {"train": 5},
}


def folder(name: str):
    knobs = {"resolution": 16, "frames": 6, "valid": 1, "test": 1, **SETS[name]}
    return generate(name, root() / "mixture", progress=False, **knobs)


def sets(**options) -> dict[str, WellData]:
    return {n: WellData(path=folder(n), **{"batch_size": 2, **options}) for n in SETS}


def sampler(counts=(6, 10), seed=0, ranks=1, rank=0) -> MixtureSampler:
    parts = [
        EpochSampler(TensorDataset(torch.arange(n)), seed=seed, ranks=ranks, rank=rank)
        for n in counts
    ]
    return MixtureSampler(parts, batch_size=2, seed=seed)


def batches(of: MixtureSampler, epochs=1, first=0):
    out = []
    for epoch in range(first, first + epochs):
        of.set_epoch(epoch)
        drawn = list(of)
        assert len(drawn) == len(of)
        out += [drawn[i : i + 2] for i in range(0, len(drawn), 2)]
    return out


def test_each_round_has_a_batch_of_each_set_and_no_sample_twice_in_an_epoch_of_its_set():
    drawn = batches(sampler(), epochs=3)  # 15 rounds: 5 and 3 epochs of the two sets
    assert all(len({which for which, _ in batch}) == 1 for batch in drawn)
    order = [batch[0][0] for batch in drawn]
    assert all({*order[i : i + 2]} == {0, 1} for i in range(0, len(order), 2))
    assert 0 < sum(order[i] == 0 for i in range(0, len(order), 2)) < 15  # either may come first
    for which, size, epochs in ((0, 6, 5), (1, 10, 3)):
        own = [pair for batch in drawn for number, pair in batch if number == which]
        assert Counter(epoch for epoch, _ in own) == dict.fromkeys(range(epochs), size)
        for epoch in range(epochs):
            assert sorted(i for e, i in own if e == epoch) == list(range(size))


def test_the_order_depends_on_seed_and_step_alone():
    assert batches(sampler(), 3) == batches(sampler(), 3)
    assert batches(sampler(), 3)[20:] == batches(sampler(), 1, first=2)
    assert batches(sampler(), 3) != batches(sampler(seed=1), 3)
    whole, resumed = sampler(), sampler()
    resumed.start = 6
    resumed.set_epoch(1)
    rest = list(resumed)
    assert batches(whole, 2)[13:] == [rest[i : i + 2] for i in range(0, len(rest), 2)]


def test_ranks_see_the_same_set_and_other_samples():
    ranks = [batches(sampler((8, 12), ranks=2, rank=r), 2) for r in (0, 1)]
    for first, second in zip(*ranks, strict=True):
        assert {which for which, _ in first} == {which for which, _ in second}
        assert not {*first} & {*second}


@pytest.mark.slow
def test_batches_of_a_mixture():
    mixture = Mixture(sets(history=2))
    mixture.setup("fit")
    assert [len(info.fields) for info in mixture.infos.values()] == [3, 2]
    seen = Counter()
    for batch in mixture.train_dataloader():
        (name,) = set(batch["set"])
        seen[name] += 1
        info = mixture.infos[name]
        assert batch["input"].shape == (2, 2, len(info.fields), 16, 16)
        assert ("constants" in batch) == bool(info.constants)
    assert seen == dict.fromkeys(SETS, 10)  # 20 windows of the longer set
    for loader, name in zip(mixture.val_dataloader(), SETS, strict=True):
        assert {n for batch in loader for n in batch["set"]} == {name}


def test_a_loader_goes_on_in_mid_epoch():
    def loader(epoch):
        mixture = Mixture(sets())
        made = mixture.train_dataloader()
        made.sampler.set_epoch(epoch)
        return made

    straight, interrupted = loader(1), loader(1)
    iterator = iter(interrupted)
    head = [next(iterator) for _ in range(7)]
    again = loader(0)
    again.load_state_dict(interrupted.state_dict())
    for mine, its in zip([*head, *again], straight, strict=True):
        assert mine["set"] == its["set"]
        assert torch.equal(mine["input"], its["input"])


def test_mixtures_that_make_no_sense():
    with pytest.raises(ValueError, match="at least one data set"):
        Mixture({})
    different = {"a": WellData(path=".", batch_size=1), "b": WellData(path=".", batch_size=2)}
    with pytest.raises(ValueError, match="share one batch_size"):
        Mixture(different)
    mixture = Mixture(sets())
    for ndim, data in enumerate(mixture.sets.values()):
        data.info = dataclasses.replace(data.info, ndim=ndim + 1)
    with pytest.raises(ValueError, match="one number of dimensions"):
        _ = mixture.infos


# ---- lead times and shares


def test_lead_times_cover_their_range_and_are_a_function_of_the_epoch():
    data = WellData(path=folder("gray_scott_reaction_diffusion"), batch_size=2, max_lead=3)
    plain = WellData(path=folder("gray_scott_reaction_diffusion"), target_steps=3)
    windows = plain.loader("train").dataset
    samples = data.seeded_train_samples()
    assert len(samples) == len(windows)
    leads = [int(samples[0, i]["lead_time"]) for i in range(len(samples))]
    assert {*leads} == {1, 2, 3}
    assert leads == [int(samples[0, i]["lead_time"]) for i in range(len(samples))]
    assert leads != [int(samples[1, i]["lead_time"]) for i in range(len(samples))]
    for i, lead in enumerate(leads):
        torch.testing.assert_close(samples[0, i]["target"][0], windows[i]["target"][lead - 1])
        torch.testing.assert_close(samples[0, i]["time_step"], windows[i]["time_step"] * lead)
    assert "lead_time" not in data.loader("valid").dataset[0]


def test_leads_are_uniform():
    window = {"target": torch.arange(4.0)[:, None], "time_step": torch.tensor(0.5)}
    leads = Leads([window] * 4000, 4)
    counts = Counter(float(leads[i]["target"][0, 0]) for i in range(4000))
    assert all(850 < counts[value] < 1150 for value in (0.0, 1.0, 2.0, 3.0))


def test_a_share_of_the_trajectories():
    path = folder("gray_scott_reaction_diffusion")  # five trajectories of five windows

    def chosen(fraction, seed=0):
        data = WellData(path=path, train_fraction=fraction, seed=seed, batch_size=1)
        every = data.loader("train").dataset
        found = data._train_windows()
        inputs = [found[i]["input"] for i in range(len(found))]
        return {i // 5 for i in range(25) if any(torch.equal(every[i]["input"], x) for x in inputs)}

    shares = [chosen(fraction) for fraction in (0.01, 0.4, 0.6, 1.0)]
    assert [len(share) for share in shares] == [1, 2, 3, 5]
    assert all(a < b for a, b in itertools.pairwise(shares))
    assert len({frozenset(chosen(0.4, seed)) for seed in range(6)}) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_fraction": 0.0}, r"train_fraction must be a number above 0 .*, got 0.0"),
        ({"train_fraction": 1.5}, "train_fraction"),
        ({"max_lead": 0}, "max_lead must be a whole number of at least 1"),
        ({"max_lead": 2, "target_steps": 2}, "one target frame per sample, not target_steps=2"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        WellData(path=".", **options)
