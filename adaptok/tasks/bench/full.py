"""Jobs of the Well's sets: what can be said of them before the first one starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adaptok.config.build import without_statistics
from adaptok.config.menu import compose, plain
from adaptok.data.well_files import find_folder
from adaptok.tasks.bench.job import Job
from adaptok.tasks.bench.sets import EIGHT, info_of
from adaptok.tasks.surrogate import objectives


def missing_sets(jobs: Sequence[Job]) -> dict[str, str]:
    """Finds the sets of the Well that are not there; returns how to get each, by its name."""
    missing = {}
    for about in {job.set: job for job in jobs}.values():
        config = plain(compose("train", [*about.config["words"], *about.places]))
        try:
            find_folder(about.set, config["data"]["base"], None, list(EIGHT))
        except ValueError as error:
            missing[about.set] = str(error)
    return missing


def dry(job: Job) -> int:
    """Composes a job of the Well's sets and builds its model without data and memory.

    Returns:
        The number of weights.

    Raises:
        ValueError: a key that nothing reads, or parts that do not fit.
    """
    config, info = plain(compose("train", list(job.config["words"]))), info_of(job.set)
    objectives(config)
    with torch.random.fork_rng(), torch.device("meta"):
        model = without_statistics(config, info)
    return sum(p.numel() for p in model.parameters())
