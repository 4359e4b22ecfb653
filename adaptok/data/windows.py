"""Samples of a few frames each, cut out of trajectories."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Trajectory(NamedTuple):
    """A trajectory, or some of its frames, in memory.

    Attributes:
        fields: (t, c, *space).
        constants: (cc, *space), or None.
        boundary: (ndim, 2).
        scalars: at each frame, (t, n), or None.
        times: of the frames, float64 (t,).
    """

    fields: Tensor
    constants: Tensor | None
    boundary: Tensor
    scalars: Tensor | None
    times: Tensor

    def cut(self, frames: slice) -> Trajectory:
        """Returns some of the frames, as views."""
        scalars = None if self.scalars is None else self.scalars[frames]
        fields, times = self.fields[frames], self.times[frames]
        return self._replace(fields=fields, scalars=scalars, times=times)


class Windows(Dataset):
    """Samples of `history` input frames and `target_steps` target frames, `stride` frames apart.

    A sample is a dict of "input" (t, c, *space), "target" (t_out, c, *space), "boundary"
    (ndim, 2), "time_step" (), the time from the last input frame to the first target, and, if the
    set has any, "constants" (cc, *space) and "scalars" (n,), those at the last input frame.

    Attributes:
        starts: index of the first sample of each trajectory.

    Args:
        steps: frames of each trajectory.
        history: input frames.
        target_steps: target frames.
        stride: frames between two frames of a sample.
    """

    def __init__(self, steps: Iterable[int], history: int, target_steps: int, stride: int):
        self.history, self.stride = history, stride
        self.span = span(history, target_steps, stride)
        # Trajectories of 5 and 4 frames in windows of 3 have 3 + 2 samples: _ends is [3, 5],
        # starts is [0, 3], and sample 4 is the window from frame 1 of the second trajectory.
        self._ends = [*accumulate(frames - self.span + 1 for frames in steps)]
        self.starts = [0, *self._ends[:-1]]

    def read(self, trajectory: int, frames: slice) -> Trajectory:
        """Returns the frames of one window of a trajectory."""
        raise NotImplementedError

    def time(self, trajectory: int, frame: int) -> float:
        """Returns the time of any frame of a trajectory, also of one that begins no window."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):  # also ends plain iteration
            raise IndexError(index)
        trajectory = bisect_right(self._ends, index)
        first = index - self.starts[trajectory]
        window = self.read(trajectory, slice(first, first + self.span, self.stride))
        last = self.history - 1  # input frame
        out = {
            "input": window.fields[: self.history],
            "target": window.fields[self.history :],
            "boundary": window.boundary,
            "time_step": (window.times[last + 1] - window.times[last]).float(),
        }
        if window.constants is not None:
            out["constants"] = window.constants
        if window.scalars is not None:
            out["scalars"] = window.scalars[last]
        return out


class ReadWindows(Windows):
    """Windows that a function (trajectory, frames) reads; other arguments: see :class:`Windows`."""

    def __init__(self, reader: Callable[[int, slice], Trajectory], *args: Any):
        super().__init__(*args)
        self.reader = reader

    def read(self, trajectory: int, frames: slice) -> Trajectory:
        """Returns the frames of one window of a trajectory."""
        return self.reader(trajectory, frames)

    def time(self, trajectory: int, frame: int) -> float:
        """Returns the time of any frame of a trajectory."""
        return float(self.reader(trajectory, slice(frame, frame + 1)).times[0])


def span(history: int, target_steps: int, stride: int) -> int:
    """Returns the number of frames from the first to the last one of a window."""
    return stride * (history + target_steps - 1) + 1


def increasing_times(values: Any, where: str) -> np.ndarray:
    """Returns times as float64, whatever type a file stores them in; the last axis is time.

    Raises:
        ValueError: they are not finite, or do not increase.
    """
    times = numbers(values, f"the times of {where}").astype(np.float64)
    if not np.isfinite(times).all() or not (np.diff(times, axis=-1) > 0).all():
        raise ValueError(f"the times of {where} must be finite and increase")
    return times


def numbers(values: Any, what: str) -> np.ndarray:
    """Returns an array that torch takes: real numbers in the machine's byte order.

    Raises:
        ValueError: other values, such as complex numbers or text.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{what} must be real numbers, got type {array.dtype}")
    if array.dtype.itemsize > 8:  # long double
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def finite_channels(
    value: Tensor, axis: int, names: Sequence[str], where: str, replace_nan: bool
) -> Tensor:
    """Moves the channels, which come last, to an axis, as float32.

    Raises:
        ValueError: a value that is not finite, naming its channel.
    """
    value = value.movedim(-1, axis).float()
    if replace_nan:
        value = torch.where(value.isnan(), 0.0, value)
    if not value.isfinite().all():
        broken = (~value.isfinite()).movedim(axis, 0).flatten(1).any(1).tolist()
        bad = [name for name, is_bad in zip(names, broken, strict=True) if is_bad]
        raise ValueError(f"NaN or Inf in channel {', '.join(bad)} of {where}")
    return value.contiguous()
