"""What the axes of somebody's arrays mean, and their fields, one trajectory at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptok.data.array_files import chosen_keys
from adaptok.registry import choice

SPACE = ("x", "y", "z")
AXES = ("trajectory", "time", *SPACE, "channel")  # in the order in which fields are written
REAL = "fiub"  # kinds of types

Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """An array and what it holds.

    Attributes:
        key: its name among the arrays.
        array: anything with `shape`, `dtype` and indexing.
        axes: a name per axis; "channel" are components or fields.
        names: of its fields, one per channel if they are scalars.
        order: 1 if the channels are the components of a vector, else 0.
    """

    key: str
    array: Any
    axes: tuple[str, ...]
    names: tuple[str, ...]
    order: int

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each axis, without the channels."""
        return {a: int(n) for a, n in zip(self.axes, self.array.shape, strict=True) if a in SHARED}

    def read(self, trajectory: int) -> Values:
        """Reads a trajectory: name -> ([t], *space, [components]) in float32.

        Raises:
            ValueError: a value that is not finite in float32, naming its place.
        """
        index = tuple(trajectory if axis == "trajectory" else slice(None) for axis in self.axes)
        rest = [axis for axis in self.axes if axis != "trajectory"]
        order = sorted(range(len(rest)), key=lambda i: AXES.index(rest[i]))
        with np.errstate(over="ignore"):  # too large for float32: found below
            values = np.asarray(self.array[index]).astype(np.float32).transpose(order)
        bad = ~np.isfinite(values)
        if bad.any():
            self._refuse(bad, [rest[i] for i in order], trajectory)
        if self.order or "channel" not in rest:
            return {self.names[0]: values}
        return {name: values[..., i] for i, name in enumerate(self.names)}

    def _refuse(self, bad: np.ndarray, axes: Sequence[str], trajectory: int) -> None:
        place = dict(zip(axes, np.argwhere(bad)[0].tolist(), strict=True))
        channel = place.pop("channel", 0)
        name = f"component {channel} of {self.names[0]}" if self.order else self.names[channel]
        where = [] if "trajectory" not in self.axes else [f"trajectory {trajectory}"]
        where += [f"frame {place.pop('time')}"] if "time" in place else []
        where += [f"{axis}={index}" for axis, index in place.items()]
        raise ValueError(
            f"NaN, Inf or too large for float32: field {name} at {', '.join(where)}, and "
            f"{int(bad.sum()) - 1} further values of this trajectory"
        )


SHARED = AXES[:-1]  # axes that have one length in all arrays


@dataclass(frozen=True)
class Arrays:
    """The arrays of a file, checked against each other.

    Attributes:
        fields: they change with time, or are the outputs of a steady map.
        constants: they do not, or are its inputs.
        sizes: length of each axis.
        coordinates: of the axes that have some, each (n,).
    """

    fields: list[Source]
    constants: list[Source]
    sizes: dict[str, int]
    coordinates: dict[str, np.ndarray]

    @property
    def trajectories(self) -> int:
        """How many there are."""
        return self.sizes.get("trajectory", 1)

    @property
    def ndim(self) -> int:
        """Number of space axes."""
        return sum(axis in SPACE for axis in self.sizes)

    @property
    def orders(self) -> dict[str, int]:
        """Tensor order of each field and constant."""
        return {n: source.order for source in [*self.fields, *self.constants] for n in source.names}

    def components(self) -> Iterator[str]:
        """Yields the names of all channels, as readers of the Well's format make them."""
        for source in [*self.fields, *self.constants]:
            for name in source.names:
                axes = SPACE[: self.ndim] if source.order else ()
                yield from [f"{name}_{axis}" for axis in axes] or [name]

    def read(self, trajectory: int) -> tuple[Values, Values]:
        """Reads fields and constants of a trajectory, see :meth:`Source.read`."""
        fields, constants = (
            {name: value for source in sources for name, value in source.read(trajectory).items()}
            for sources in (self.fields, self.constants)
        )
        return fields, constants


def checked_axes(axes: Sequence[str], steady: bool) -> tuple[str, ...]:
    """Returns the names of the axes of an array.

    Args:
        axes: as typed.
        steady: the arrays are inputs and outputs of a map, without time.

    Raises:
        ValueError: an unknown or repeated name, or axes that do not make a set.
    """
    for axis in axes:
        choice("an axis", axis, AXES)
    given, space = ",".join(axes), sorted(set(axes) & set(SPACE))
    if len(set(axes)) < len(axes):
        raise ValueError(f"axes={given} has an axis twice")
    if not space or tuple(space) != SPACE[: len(space)]:
        raise ValueError(f"axes={given}: the space axes are x, x and y, or x, y and z")
    if steady and "time" in axes:
        raise ValueError(f"axes={given}: inputs and outputs of a steady map have no time axis")
    if not steady and "time" not in axes:
        raise ValueError(
            f"axes={given} has no time; for a steady map name its inputs=... and outputs=..."
        )
    return tuple(axes)


def describe(
    arrays: Mapping[str, Any],
    axes: tuple[str, ...],
    *,
    fields: Sequence[str],
    constants: Sequence[str],
    vectors: Sequence[str],
    names: Sequence[str] | None,
    timed: bool = True,
) -> Arrays:
    """Finds out what each array holds; reads no values but coordinates.

    Args:
        arrays: by key; a one-dimensional one with the name of an axis holds its coordinates.
        axes: of the fields, see `checked_axes`.
        fields: keys of what changes with time, or of the outputs of a steady map.
        constants: keys of what does not, or of its inputs.
        vectors: keys of vectors, the others are scalars.
        names: of all fields, in order; None: the keys.
        timed: the array "time", if there is one, holds the times.

    Raises:
        ValueError: arrays that do not fit the axes or each other, complex numbers, unknown keys.
    """
    _ = chosen_keys(arrays, vectors, "vectors")
    steady = "time" not in axes
    sources = [_field(key, arrays, axes, fields, vectors) for key in fields]
    for key in constants:
        vector = key in vectors
        # the channels of fields are not those of a mask
        dropped = {"time"} | (set() if steady or vector else {"channel"})
        mine = tuple(axis for axis in axes if axis not in dropped)
        count = len(mine) + (vector and "channel" not in mine)
        if not steady and "trajectory" in mine and len(arrays[key].shape) == count - 1:
            mine = tuple(axis for axis in mine if axis != "trajectory")  # one for all
        sources.append(_source(key, arrays[key], mine, vector))
    if not sources or not fields:
        raise ValueError(f"there is no field among the arrays {', '.join(arrays)}")
    sources = _named(sources, names)
    found = Arrays(
        sources[: len(fields)],
        sources[len(fields) :],
        sources[0].sizes,
        _coordinates(arrays, ("time", *SPACE) if timed else SPACE),
    )
    _check_together(found)
    return found


def _field(
    key: str,
    arrays: Mapping[str, Any],
    axes: tuple[str, ...],
    fields: Sequence[str],
    vectors: Sequence[str],
) -> Source:
    """Describes a field; one that does not fit is refused with the way to leave it out."""

    def has_axes(key: str) -> bool:
        more = key in vectors and "channel" not in axes
        return len(arrays[key].shape) == len(axes) + more

    try:
        return _source(key, arrays[key], axes, key in vectors)
    except ValueError as error:
        fitting = [key for key in fields if has_axes(key)]
        if not fitting or "time" not in axes:  # outputs are chosen by name
            raise
        hint = f"; keys={','.join(fitting)} chooses the fields" if key not in fitting else ""
        if len(arrays[key].shape) == 1:
            hint += ", and arrays of times are called time, of coordinates x, y, z"
        raise ValueError(f"{error}{hint}") from None


def _source(key: str, array: Any, axes: tuple[str, ...], vector: bool) -> Source:
    kind = np.dtype(array.dtype).kind
    if kind not in REAL:
        hint = "; give real and imaginary part as two fields" if kind == "c" else ""
        raise ValueError(f"array {key} must hold real numbers, its type is {array.dtype}{hint}")
    if vector and "channel" not in axes:
        axes = (*axes, "channel")
    shape = tuple(array.shape)
    if len(shape) != len(axes):
        what = " of a vector, whose components come last" if vector else ""
        raise ValueError(
            f"array {key} has {len(shape)} axes, shape {shape}; {len(axes)} are needed{what}: "
            f"{', '.join(axes)}"
        )
    ndim = sum(axis in SPACE for axis in axes)
    channels = shape[axes.index("channel")] if "channel" in axes else 1
    if vector and channels != ndim:
        raise ValueError(f"vector {key} has {channels} components, {ndim} are needed in {ndim}D")
    several = not vector and "channel" in axes and channels > 1
    names = tuple(f"{key}_{i}" for i in range(channels)) if several else (key,)
    return Source(key, array, axes, names, int(vector))


def _named(sources: list[Source], names: Sequence[str] | None) -> list[Source]:
    keys = [name for source in sources for name in source.names]
    names = _last_parts(keys) if names is None else list(names)
    if len(names) != len(keys):
        raise ValueError(f"{len(names)} names for {len(keys)} fields: {', '.join(keys)}")
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"a field cannot be named {name!r}: use letters, digits, _, . and -; "
                f"names=... names the {len(names)} field(s) in this order: {', '.join(keys)}"
            )
    out, rest = [], iter(names)
    for source in sources:
        mine = tuple(next(rest) for _ in source.names)
        out.append(Source(source.key, source.array, source.axes, mine, source.order))
    return out


def _last_parts(keys: Sequence[str]) -> list[str]:
    """Names arrays of groups without their groups, or with these where the names would be one."""
    last = [key.rpartition("/")[2] for key in keys]
    return [
        name if last.count(name) == 1 else key.replace("/", "_")
        for key, name in zip(keys, last, strict=True)
    ]


def _coordinates(arrays: Mapping[str, Any], axes: Sequence[str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for axis in axes:
        keys = [k for k in arrays if k.rpartition("/")[2] == axis and is_coordinate(k, arrays[k])]
        if len(keys) > 1 and axis not in keys:
            raise ValueError(f"several arrays hold coordinates of {axis}: {', '.join(keys)}")
        if keys:
            found[axis] = np.asarray(arrays[axis if axis in keys else keys[0]])
    return found


def is_coordinate(key: str, array: Any) -> bool:
    """Tells whether an array holds the coordinates along an axis, or the times."""
    return key.rpartition("/")[2] in ("time", *SPACE) and len(array.shape) == 1


def _check_together(found: Arrays) -> None:
    first = found.fields[0]
    for source in [*found.fields, *found.constants]:
        for axis, size in source.sizes.items():
            if size != first.sizes[axis]:
                raise ValueError(
                    f"arrays differ: {source.key} has {size} along {axis}, {first.key} has "
                    f"{first.sizes[axis]}"
                )
    for axis, size in found.sizes.items():
        if size < (2 if axis in SPACE else 1):
            raise ValueError(f"axis {axis} of {first.key} has only {size}")
    if found.sizes.get("time", 2) < 2:
        raise ValueError(
            f"{first.key} has one frame: there is nothing to predict; for a steady map leave time "
            "out of axes, and name inputs=... and outputs=..."
        )
    for axis, values in found.coordinates.items():
        if axis in found.sizes:
            _check_coordinates(axis, values, found.sizes[axis])
    names = list(found.components())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two fields are named {', '.join(twice)}")


def _check_coordinates(axis: str, values: np.ndarray, size: int) -> None:
    if len(values) != size:
        raise ValueError(f"array {axis} has {len(values)} coordinates, the axis has {size} points")
    real = values.dtype.kind in REAL
    steps = np.diff(values.astype(np.float32)) if real else np.zeros(1)  # as they are written
    down = axis != "time" and bool((steps < 0).all())
    if not real or not ((steps > 0).all() or down):
        hint = "; give dt=..." if axis == "time" else ""
        raise ValueError(
            f"array {axis} must hold real numbers in order, all different in float32{hint}"
        )
