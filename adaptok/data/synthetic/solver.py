"""What every solver provides: knobs, a seeded initial state, and a batched simulation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from adaptok.registry import Registry

SOLVERS = Registry("solver")

SPLITS = ("train", "valid", "test")

OnFrame = Callable[[], None]


@dataclass(frozen=True)
class Trajectories:
    """Simulated trajectories, in the layout of the Well: channels last, split by tensor order.

    Attributes:
        time: recorded times, (t,).
        coordinates: cell centres per axis, each (n,).
        fields: order -> name -> (b, t, *space) + (ndim,) * order.
        constants: order -> name -> (b, *space) + (ndim,) * order.
        scalars: physical parameters shared by all trajectories.
    """

    time: Tensor
    coordinates: Mapping[str, Tensor]
    fields: Mapping[int, Mapping[str, Tensor]]
    constants: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Base of the generators; the dataclass fields of a subclass are its knobs.

    Args:
        resolution: grid points along each space axis.
        frames: recorded frames per trajectory.
        start: time of the first recorded frame; the initial state itself is at rest, where some
            fields have no variance and VRMSE means nothing.
        frame_dt: time between recorded frames.
        train: trajectories of the training split.
        valid: trajectories of the validation split.
        test: trajectories of the test split.
    """

    resolution: int
    frames: int
    start: float
    frame_dt: float
    train: int
    valid: int
    test: int

    ndim: ClassVar[int]
    version: ClassVar[int]  # raise it whenever the numbers change: sets in a cache are compared
    boundary: ClassVar[tuple[str, ...]]  # one of the Well's types per axis
    batch: ClassVar[int]  # trajectories simulated together, and stored in one file

    def __post_init__(self) -> None:
        low = {"resolution": 8, "frames": 2, "train": 1, "valid": 1, "test": 1}
        for knob, least in low.items():
            value = getattr(self, knob)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{knob} must be an integer of at least {least}, got {value!r}")
        real = all(isinstance(v, (int, float)) for v in (self.start, self.frame_dt))
        if not real or not 0 < self.frame_dt < math.inf or not 0 <= self.start < math.inf:
            raise ValueError(
                "frame_dt must be a positive number and start one that is not negative, "
                f"got frame_dt={self.frame_dt!r}, start={self.start!r}"
            )

    @property
    def knobs(self) -> dict[str, Any]:
        """Every knob with its value."""
        return asdict(self)

    @property
    def times(self) -> Tensor:
        """Recorded times, (t,)."""
        return self.start + self.frame_dt * torch.arange(self.frames, dtype=torch.float32)

    @property
    def settings(self) -> Sequence[Mapping[str, float]]:
        """Physical parameters; trajectory i of a split has entry ``i % len(settings)``.

        As in the Well, the trajectories of one file share theirs.
        """
        return ({},)

    @abstractmethod
    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The random initial state of one trajectory, on the CPU."""

    @abstractmethod
    def simulate(
        self,
        state: dict[str, Tensor],
        setting: Mapping[str, float],
        on_frame: OnFrame = lambda: None,
    ) -> Trajectories:
        """Integrates a batch of initial states (b, ...) on the device where they are.

        Args:
            state: what :meth:`initial` returns, stacked.
            setting: the entry of :attr:`settings` that all of them have.
            on_frame: called once per recorded frame.
        """

    def run(
        self,
        seed: int,
        split: str,
        indices: range,
        *,
        device: torch.device | str = "cpu",
        on_frame: OnFrame = lambda: None,
    ) -> Trajectories:
        """Simulates trajectories `indices` of a split, which must have the same setting.

        A trajectory depends on (seed, split, index) only, never on what it is batched with.
        """
        settings = self.settings
        if len({index % len(settings) for index in indices}) != 1:
            raise ValueError(
                f"trajectories simulated together have one setting, so their numbers differ by "
                f"multiples of {len(settings)}; got {list(indices)}"
            )
        states = [self.initial(_generator(seed, split, index)) for index in indices]
        batch = {k: torch.stack([s[k] for s in states]).to(device) for k in states[0]}
        data = self.simulate(batch, settings[indices[0] % len(settings)], on_frame)
        for members in data.fields.values():
            for name, value in members.items():
                if not value.isfinite().all():
                    raise ValueError(
                        f"the simulation of {name} blew up with the knobs {self.knobs}"
                    )
        return data


def _generator(seed: int, split: str, index: int) -> torch.Generator:
    words = np.random.SeedSequence([seed, SPLITS.index(split), index]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def cell_centres(n: int, low: float, high: float) -> Tensor:
    """Centres of `n` equal cells on [low, high], (n,)."""
    return low + (high - low) * (torch.arange(n, dtype=torch.float32) + 0.5) / n
