"""Track T0: what the tilings of tokenizers hold of fields and of their next change."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adaptok.evaluation.bench.indicators import OnSet, tokenizers
from adaptok.evaluation.bench.timing import clock_of, paired
from adaptok.evaluation.changes import changes_of
from adaptok.evaluation.standings import Row
from adaptok.tasks.bench.job import Job, Price, least_memory
from adaptok.tasks.bench.own_code import code_of

SETS = {  # tokens per sample
    "acoustic_scattering_maze": 256,
    "euler_multi_quadrants_periodicBC": 256,
    "shear_flow": 512,
    "supernova_explosion_64": 4096,
}
SEEDS = (0, 1, 2)
SIZES = {"resolution": 64, "trajectories": 3}
SIDE = 4  # of the uniform cells that are as many as the tokens; half of it in 3D
SECONDS = {"supernova_explosion_64": 3.0}  # of a job; others take less than one
OVERHEAD = 0.5
NO_TREE = ("csm", "dart")  # cells that overlap, or are of any width


def jobs(quick: bool = False, own: Sequence[str] = ()) -> list[Job]:
    """Lists the jobs: every tokenizer whose cells a budget decides, and the references.

    Args:
        quick: two sets and one seed.
        own: tokenizers by name, in place of all that are registered.
    """
    sets, seeds = ([*SETS][:2], SEEDS[:1]) if quick else ([*SETS], SEEDS)
    named = own or [name for name in tokenizers() if name not in NO_TREE]
    methods = {name: code_of(name) for name in named}
    if not own:
        methods = {"optimal tree": {}, "oracle": {}} | methods
    # jobs of one set and seed, side by side, share the set
    return [
        _job(data, method, code, seed)
        for data in sets
        for seed in seeds
        for method, code in methods.items()
    ]


def _job(data: str, method: str, code: dict[str, str], seed: int) -> Job:
    config = {"set": data, "method": method, **SIZES, "side": SIDE, "seed": seed, **code}
    price = Price(SECONDS.get(data, OVERHEAD), least_memory() + 0.3e9)
    return Job("T0", data, method, "tokens", SETS[data], seed, config, price)


@functools.lru_cache(maxsize=1)
def _onset(data: str, seed: int) -> OnSet:
    return OnSet(changes_of(data, **SIZES, seed=seed), SIDE)


def measure(job: Job, work: Path) -> Row:
    """Measures one row; `work` is not used.

    Raises:
        ValueError: a tokenizer whose cells on this set are no tiling.
    """
    bench, seconds = _onset(job.set, job.seed), None
    assert bench.wanted == job.value
    if job.method == "optimal tree":
        found: dict[str, Any] | None = bench.optimal()
    elif job.method == "oracle":
        found = bench.oracle()
    else:
        torch.manual_seed(job.seed)  # of a gate that was not trained
        tokenizer = bench.build(job.method)
        cells = functools.partial(bench.cells, tokenizer)
        took = paired({"cells": cells}, repeats=3, clock=clock_of("cpu"))["cells"]
        seconds = {"cells": max(statistics.median(took), 1e-9) / len(bench.data.field)}
        found = bench.tokenizer(job.method, cells())
    if found is None:
        raise ValueError(f"{job.method}: its cells on {job.set} are no tiling")
    names = {"field 0": "field_0", "field 1": "field_1"}
    names |= {"change 0": "change_0", "change 1": "change_1"}
    metrics = {name: found[label] for label, name in names.items()}
    return job.row(tokens=float(found["tokens"]), metrics=metrics, seconds=seconds)
