"""A data set and a model so small that a whole run takes a second; shared by several test files."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

SIZE = ["size.dim=24", "size.depth=1", "size.heads=2", "size.mlp_ratio=1"]
TOKENIZER = ["tokenizer=iap", "tokenizer.budget=22", "tokenizer.max_size=8"]
RUN = ["trainer=debug", "optim.warmup_steps=1", "test.steps=2"]


@functools.cache
def root() -> Path:
    """Folder of generated sets, made once per test session and removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="adaptok-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def data() -> list[str]:
    """Overrides that choose a 16 x 16 maze with 2, 1 and 2 trajectories of 6 frames."""
    knobs = {"resolution": 16, "frames": 6, "nodes": 4, "train": 2, "valid": 1, "test": 2}
    chosen = [f"data.generate.{name}={value}" for name, value in knobs.items()]
    return [*chosen, f"data.base={root()}", "data.batch_size=2"]


def train() -> list[str]:
    """Overrides of a training run of three steps."""
    return [*data(), *SIZE, *TOKENIZER, *RUN]
