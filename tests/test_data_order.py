"""The order of training samples and their random numbers: functions of (seed, epoch, sample)."""

from __future__ import annotations

import random

import numpy as np
import pytest
import small_runs
import torch
from torch.utils.data import Dataset

from adaptok.config.build import build_data
from adaptok.config.menu import compose, plain
from adaptok.data.order import EpochSampler, ResumableLoader, Seeded


class Noisy(Dataset):
    """Samples whose augmentation reads all three global generators."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        draws = [torch.rand(()).item(), np.random.rand(), random.random()]
        return torch.tensor([float(index), *draws], dtype=torch.float64)


def loader(ranks=1, rank=0, batch_size=2, **options):
    sampler = EpochSampler(Noisy(), seed=3, ranks=ranks, rank=rank)
    return ResumableLoader(
        Seeded(Noisy(), 3), batch_size=batch_size, sampler=sampler, drop_last=True, **options
    )


def epochs(load, numbers):
    out = []
    for epoch in numbers:
        load.sampler.set_epoch(epoch)
        out += list(load)
    return torch.stack(out)


def test_a_sample_draws_the_same_numbers_whatever_came_before():
    torch.manual_seed(1)
    first = epochs(loader(), [0, 1])
    torch.manual_seed(2)
    np.random.seed(5)
    assert torch.equal(epochs(loader(), [0, 1]), first)
    assert len(first[..., 1].unique()) == first[..., 1].numel()  # each its own, in each epoch too


def test_the_global_generators_are_left_as_they_were():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    _ = Seeded(Noisy(), 0)[(0, 1)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


@pytest.mark.slow
def test_worker_processes_draw_the_same_numbers():
    ours = epochs(loader(num_workers=2, persistent_workers=True), [0, 1])
    assert torch.equal(ours, epochs(loader(), [0, 1]))


@pytest.mark.parametrize("done", [0, 1, 4, 5, 7])
def test_a_loaded_state_goes_on_with_the_next_batch(done):
    whole = epochs(loader(), [0, 1])
    first, seen = loader(), 0
    for epoch in (0, 1):
        first.sampler.set_epoch(epoch)
        for _ in first:
            seen += 1
            if seen == done:
                break
        if seen >= done:
            break
    second = loader()
    second.load_state_dict(first.state_dict() if done else {"epoch": 0, "batches": 0})
    rest = list(second)
    if second.sampler.epoch == 0:
        second.sampler.set_epoch(1)
        rest += list(second)
    assert torch.equal(torch.stack(rest), whole[done:])


def test_ranks_share_each_global_batch():
    alone = epochs(loader(batch_size=4), [0])[..., 0]
    ranks = [epochs(loader(ranks=2, rank=r), [0])[..., 0] for r in (0, 1)]
    for together, *parts in zip(alone, *ranks, strict=False):
        assert set(together.tolist()) == {x for part in parts for x in part.tolist()}


def test_more_processes_than_samples():
    data = build_data(plain(compose("train", [*small_runs.train(), "data.train_samples=3"])))

    class Trainer:
        world_size, global_rank = 4, 0

    data.trainer = Trainer()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="3 training samples are too few for 4 processes"):
        data.train_dataloader()
