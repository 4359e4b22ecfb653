"""The data path against the training step that it has to feed.

Run ``python -m benchmarks.loading [folder] [folder of data sets]``; missing sets are generated, in
a temporary folder by default.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import torch

from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.data import WellData
from adaptok.evaluation.bench.timing import TARGET, median_ratio, paired, write_results

SETS = ("acoustic_scattering_maze", "active_matter", "supernova_explosion_64")
BATCHES = 6  # per timed function: one is too short
# 64 tokens: a model faster than any that one would train
MODEL = ("size=tiny", "tokenizer=uniform", "tokenizer.size=8", "data.batch_size=8")
NOTE = (
    "Samples per second of the data loader, with all that a training batch needs (shuffling, "
    "seeding, collating), beside the training step (forward, backward, AdamW) of the smallest "
    "model: `size=tiny`, fixed patches of 8, 64 tokens a sample, batches of 8. `memory`: the split "
    "is cached, the default for sets below 2 GB; `augmented`: cached, with flip, rotate and (where "
    "periodic) roll; `files`: every sample is read from HDF5; `files, 2 workers`: in two processes "
    "beside the training; `URL`: read through fsspec's in-memory file system. Medians of "
    "paired runs; a ratio above 1 means that the loader keeps ahead. Generating the sets, reading "
    "a split into memory and starting workers are not timed."
)


def stepper(config: dict[str, Any], data: WellData) -> Callable[[], None]:
    """Returns a function of training steps on one batch."""
    model = build_surrogate(config, data.info)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = next(iter(data.train_dataloader()))
    known = {key: batch.get(key) for key in ("boundary", "constants")}

    def run() -> None:
        for _ in range(BATCHES):
            optimizer.zero_grad()
            prediction = model(batch["input"], **known)
            (prediction - batch["target"]).square().mean().backward()
            optimizer.step()

    return run


def reader(data: WellData) -> Callable[[], None]:
    """Returns a function that reads batches, epoch after epoch."""
    loader, batches = data.train_dataloader(), iter(())

    def run() -> None:
        nonlocal batches
        count = 0
        while count < BATCHES:
            found = len(list(islice(batches, BATCHES - count)))
            count += found
            if not found:
                batches = iter(loader)

    return run


def measure(name: str, base: Path, repeats: int = 7) -> dict[str, object]:
    """Samples per second of the loaders and of the model on one set."""
    config = plain(compose("train", [f"data={name}", *MODEL, f"data.base={base}"]))
    data = build_data(config)
    folder, batch = data.folder, data.batch_size
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", f"/{name}", recursive=True)
    options: dict[str, Any] = {"history": config["history"], "batch_size": batch}
    turns = ["flip", "rotate", "roll"]
    functions = {
        "training": stepper(config, data),
        "memory": reader(data),
        "augmented": reader(WellData(path=str(folder), augment=turns, **options)),
        "files": reader(WellData(path=str(folder), cache=False, **options)),
        "files, 2 workers": reader(
            WellData(path=str(folder), cache=False, num_workers=2, **options)
        ),
        "URL": reader(WellData(path=f"memory://{name}", cache=False, **options)),
    }
    seconds = paired(functions, repeats=repeats)
    memory.rm(f"/{name}", recursive=True)
    speeds = {
        key: round(BATCHES * batch / statistics.median(values)) for key, values in seconds.items()
    }
    row: dict[str, object] = {"set": name, **{f"{k} /s": v for k, v in speeds.items()}}
    for key in ("memory", "augmented", "files"):
        ratio = median_ratio(seconds["training"], seconds[key])
        row[f"{key} / training"] = round(ratio, 1)
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=TARGET, help="of the results")
    parser.add_argument("sets", nargs="?", type=Path, help="folder of data sets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        sets = options.sets or Path(temporary)
        rows = [measure(name, sets) for name in SETS]
    print(write_results(options.folder, "loading", rows, NOTE).read_text())
