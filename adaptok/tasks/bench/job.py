"""A job: what one row of the benchmark measures, and what that costs."""

from __future__ import annotations

import functools
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from adaptok.evaluation.bench.timing import machine
from adaptok.evaluation.cost import environment
from adaptok.evaluation.standings import SCHEMA, Row, key_of
from adaptok.evaluation.standings.row import stem_of


class Price(NamedTuple):
    """What a job is expected to take.

    Attributes:
        seconds: of one core, or of the GPU.
        memory: bytes, all of the process.
        shared: further seconds, once for all jobs of a set: generating it.
    """

    seconds: float
    memory: float
    shared: float = 0.0


@dataclass(frozen=True)
class Job:
    """One row to measure.

    Attributes:
        track: "T0", "T1" or "T2".
        set: of fields or images.
        method: its name in the track.
        kind: what is equal, see `adaptok.evaluation.standings.Row`.
        value: tokens per sample that the budget is named after; None for methods without.
        seed: of data (T0) or of weights and order.
        config: plain, all that decides the numbers.
        price: estimate.
        places: overrides that say where files are, which decides nothing.
    """

    track: str
    set: str
    method: str
    kind: str
    value: int | None
    seed: int
    config: Mapping[str, Any] = field(hash=False)
    price: Price = field(compare=False)
    places: tuple[str, ...] = field(default=(), compare=False)

    @property
    def budget(self) -> dict[str, Any]:
        """The budget as it stands in the row."""
        return {"kind": self.kind, "value": self.value}

    @property
    def key(self) -> str:
        """Hash of the configuration."""
        return key_of(self.config)

    @property
    def stem(self) -> str:
        """Name of the row's file, without the ending."""
        return stem_of(self.track, self.set, self.method, self.budget, self.seed)

    def row(self, device: torch.device | str = "cpu", **found: Any) -> Row:
        """Makes the row of what was measured, now and here.

        Args:
            device: that it was measured on.
            found: fields of `Row` that a measurement decides; None for those that are left out.
        """
        about = _machine(str(torch.device(device).type))
        blank = ("tokens", "flops", "parameters", "seconds", "memory", "rollout")
        return Row(
            schema=SCHEMA,
            track=self.track,
            set=self.set,
            method=self.method,
            budget=self.budget,
            seed=self.seed,
            measured=True,
            source="",
            key=self.key,
            config=dict(self.config),
            commit=about["commit"],
            versions={
                "adaptok": about["adaptok"],
                "torch": about["torch"],
                "python": platform.python_version(),
            },
            hardware=f"{about['device']}, {about['hardware']}",
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            **{**dict.fromkeys(blank), **found},
        )


@functools.cache
def _machine(device: str) -> dict[str, Any]:
    return machine() | environment(torch.device(device))


def checkpoint_in(folder: Path) -> Path | None:
    """Finds the last checkpoint of a run that was interrupted; None if there is none, or only a
    part of one, which a full disk leaves.
    """
    last = folder / "checkpoints" / "last.ckpt"
    return last if last.is_file() and zipfile.is_zipfile(last) else None


def least_memory() -> float:
    """Bytes of a process before it holds data or a model."""
    return 0.7e9 if not torch.cuda.is_available() else 3e9
