"""What every solver provides: knobs, a seeded initial state, and its evolution in time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise, product
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Interval, Len
from torch import Tensor

from adaptok.data.well_format import SPLITS
from adaptok.registry import Registry
from adaptok.utils.arguments import NonNegativeFloat, Positive, PositiveFloat, check_fields

Resolution = Annotated[int, Interval(ge=8, le=2**14)]
Frames = Annotated[int, Interval(ge=2, le=2**20)]
Parameters = Annotated[Sequence[PositiveFloat], Len(1)]

SOLVERS = Registry("solver")

OnFrame = Callable[[], None]
State = dict[str, Tensor]
Setting = Mapping[str, float]
Fields = Mapping[int, Mapping[str, Tensor]]  # tensor order -> name -> values


@dataclass(frozen=True)
class Trajectories:
    """Simulated trajectories, arranged as in the Well: channels last, split by tensor order.

    Attributes:
        time: recorded times, (t,).
        coordinates: cell centers per axis, each (n,).
        fields: order -> name -> (b, t, *space) + (ndim,) * order.
        constants: order -> name -> (b, *space) + (ndim,) * order.
        scalars: physical parameters shared by all trajectories.
    """

    time: Tensor
    coordinates: Mapping[str, Tensor]
    fields: Fields
    constants: Fields = field(default_factory=dict)
    scalars: Setting = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Base of the generators; the dataclass fields of a subclass are its knobs.

    Args:
        resolution: grid points along each space axis.
        frames: recorded frames per trajectory.
        start: time of the first recorded frame; the initial state itself is at rest, so that some
            fields have no variance there and VRMSE means nothing.
        frame_dt: time between recorded frames.
        train: trajectories of the training split.
        valid: trajectories of the validation split.
        test: trajectories of the test split.
    """

    resolution: Resolution = 64
    frames: Frames = 16
    start: NonNegativeFloat
    frame_dt: PositiveFloat
    train: Positive = 24
    valid: Positive = 4
    test: Positive = 4

    field_names: ClassVar[tuple[str, ...]] = ()  # channels of the set, components one by one
    constant_names: ClassVar[tuple[str, ...]] = ()  # those that do not change with time
    boundary: ClassVar[tuple[str, ...]]  # "WALL", "OPEN" or "PERIODIC" per axis
    aspect: ClassVar[tuple[int, ...]] = (1, 1)  # grid points per axis, in multiples of `resolution`
    box: ClassVar[Sequence[tuple[float, float]]] = ((0.0, 1.0),) * 3  # low and high end per axis
    lists: ClassVar[Mapping[str, str]] = {}  # parameter in the files -> knob that lists its values
    version: ClassVar[int] = 1  # raise it whenever the numbers change: sets in a cache are compared
    batch: ClassVar[int] = 8  # trajectories simulated together, and stored in one file

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def knobs(self) -> dict[str, Any]:
        """Every knob with its value."""
        return asdict(self)

    @property
    def times(self) -> Tensor:
        """Recorded times, (t,)."""
        return self.start + self.frame_dt * torch.arange(self.frames, dtype=torch.float32)

    @property
    def durations(self) -> list[float]:
        """Time from the initial state to the first frame, then from each frame to the next."""
        times = [0.0, *(self.start + self.frame_dt * k for k in range(self.frames))]
        return [later - earlier for earlier, later in pairwise(times)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Grid points per axis."""
        return tuple(self.resolution * factor for factor in self.aspect)

    @property
    def coordinates(self) -> dict[str, Tensor]:
        """Cell centers per axis, each (n,)."""
        axes = zip("xyz", self.shape, self.box, strict=False)
        return {axis: cell_centers(n, *ends) for axis, n, ends in axes}

    @property
    def settings(self) -> Sequence[Setting]:
        """Physical parameters; trajectory i of a split has entry ``i % len(settings)``.

        As in the Well, the trajectories of one file share theirs. Every combination of `lists`.
        """
        combinations = product(*(getattr(self, knob) for knob in self.lists.values()))
        return [dict(zip(self.lists, map(float, c), strict=True)) for c in combinations]

    @abstractmethod
    def initial(self, generator: torch.Generator) -> State:
        """Draws the initial state of one trajectory, on the CPU."""

    @abstractmethod
    def evolve(self, state: State, setting: Setting) -> Iterator[Fields]:
        """Yields the fields (b, *space) + (ndim,) * order of a batch after each of `durations`.

        Args:
            state: what :meth:`initial` returns, stacked: (b, ...).
            setting: the entry of :attr:`settings` that all of them have.
        """

    def constants(self, state: State) -> Fields:
        """Returns the fields that do not change with time, (b, *space) + (ndim,) * order."""
        return {}

    def simulate(
        self, state: State, setting: Setting, on_frame: OnFrame = lambda: None
    ) -> Trajectories:
        """Integrates a batch of initial states on their device, see `evolve`.

        Args:
            state: what :meth:`initial` returns, stacked: (b, ...).
            setting: the entry of :attr:`settings` that all of them have.
            on_frame: called once per recorded frame.
        """
        frames: list[Fields] = []
        for frame in self.evolve(state, setting):
            frames.append(frame)
            on_frame()
        fields = {
            order: {name: torch.stack([f[order][name] for f in frames], 1) for name in members}
            for order, members in frames[0].items()
        }
        return Trajectories(self.times, self.coordinates, fields, self.constants(state), setting)

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


def cell_centers(n: int, low: float, high: float) -> Tensor:
    """Returns the centers of `n` equal cells on [low, high], (n,)."""
    return low + (high - low) * (torch.arange(n, dtype=torch.float32) + 0.5) / n
