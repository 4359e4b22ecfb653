"""Makes a data set in the Well's format of somebody's arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from adaptok.data.array_files import as_mapping, chosen_keys, read_arrays
from adaptok.data.array_layout import SPACE, Arrays, Values, checked_axes, describe, is_coordinate
from adaptok.data.synthetic.solver import Trajectories, cell_centers
from adaptok.data.synthetic.store import Statistics, write_file
from adaptok.data.well_format import SPLITS
from adaptok.registry import choice
from adaptok.utils.arguments import NonNegative, PositiveFloat, check_arguments
from adaptok.utils.atomic import replacing
from adaptok.utils.boundary import BOUNDARIES
from adaptok.utils.checksums import CHECKSUMS, write_checksums

FILE_BYTES = 2**28  # of the values in a file, unless one trajectory has more

Given = Any  # arrays by name, one array, or a file that `read_arrays` reads


class _Recipe(NamedTuple):
    """What the files of a set share: its name, types of the ends, time step, first frame."""

    name: str
    boundary: tuple[str, ...]
    dt: float | None
    mean: Values | None


def from_arrays(
    source: Given,
    out: str | Path,
    *,
    axes: Sequence[str],
    boundary: str | Sequence[str],
    dt: PositiveFloat | None = None,
    constants: Sequence[str] = (),
    vectors: Sequence[str] = (),
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    names: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    valid: Given | None = None,
    test: Given | None = None,
    splits: Sequence[PositiveFloat] = (8, 1, 1),
    seed: NonNegative = 0,
    overwrite: bool = False,
) -> Path:
    """Writes arrays as a data set in the Well's format, with splits, statistics and checksums.

    Values are stored in float32, axes as trajectory, time, x, y, z. A one-dimensional array named
    like an axis holds its coordinates, or the times; without one, space is the unit interval.

    A steady map (`inputs` to `outputs`) becomes trajectories of two frames with the inputs as
    constants: the first frame is the mean of the outputs over the training samples, the second one
    the output. So the change that a model learns is the deviation from the mean field, and the
    error of persistence is the error of predicting the mean field.

    Args:
        source: arrays by name, one array, or a file that `read_arrays` reads.
        out: folder of the new set; its last part is the name of the set.
        axes: of the arrays, of "trajectory", "time", "channel", "x", "y" and "z"; channels are
            fields, or the components of a vector.
        boundary: "wall", "open" or "periodic", one for all space axes or one for each, in the order
            of `axes`.
        dt: time between frames; None: that of the array "time", else 1.
        constants: arrays that do not change with time, with the axes without time and channel; they
            lack the trajectory too if all trajectories share them.
        vectors: arrays of vectors, their components along the channels, which come last if `axes`
            has none.
        inputs: arrays that a steady map takes, with all of `axes`.
        outputs: arrays that it returns; with `inputs`, `axes` has no time.
        names: of the fields, outputs before inputs and constants last; None: the names of the
            arrays, without groups if they differ, numbered if one has several channels.
        keys: arrays to take, such as "density", in a group "tensors/density"; None: all.
        valid: further arrays, of the validation split.
        test: further arrays, of the test split.
        splits: shares of the training, validation and test split among the trajectories of
            `source`, at least one each; a split that is given has no part in it.
        seed: of the random choice of trajectories.
        overwrite: replace the data set that is there.

    Returns:
        The folder of the set.

    Raises:
        ValueError: arrays, axes, names or values that do not make a set; says which.
    """
    arguments = {"dt": dt, "splits": splits, "seed": seed, "overwrite": overwrite}
    check_arguments(from_arrays, arguments, "")
    out, steady = Path(out), bool(inputs or outputs)
    _check_place(out, overwrite)
    axes, arrays = checked_axes(axes, steady), _arrays(source, out.name)
    kinds = _boundaries(boundary, axes)
    if steady:
        _check_steady(inputs, outputs, dt=dt, constants=constants, keys=keys)
        fields, constants = chosen_keys(arrays, outputs, "outputs"), inputs
    else:
        if keys is None:
            keys = [key for key in arrays if not is_coordinate(key, arrays[key])]
        fields = [key for key in chosen_keys(arrays, keys, "keys") if key not in constants]
    chosen_keys(arrays, constants, "inputs" if steady else "constants")
    what: dict[str, Any] = {"fields": fields, "constants": constants}
    what |= {"vectors": vectors, "names": names, "timed": dt is None}
    found = describe(arrays, axes, **what)
    parts = {"train": found}
    for split, given in (("valid", valid), ("test", test)):
        if given is not None:
            more, needed = _arrays(given, out.name), [*fields, *constants]
            if len(more) == len(needed) == 1:  # of a .npy, whose name is that of the file
                more = dict(zip(needed, more.values(), strict=True))
            chosen_keys(more, needed, split)
            parts[split] = describe(more, axes, **what)
            _check_alike(parts[split], found, split)
    rows = _rows(parts, splits, seed)
    if steady and len(rows["train"]) < 2:
        raise ValueError("a steady map needs at least 2 training samples")
    mean = _mean(found, rows["train"]) if steady else None
    recipe = _Recipe(out.name, kinds, dt, mean)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as folder:
        statistics = _TrainingSplit()
        for split in SPLITS:
            place = folder / "data" / split
            for data in _write_split(place, parts.get(split, found), rows[split], recipe):
                if split == "train":
                    statistics.add(data)
        statistics.check(found)
        statistics.write(folder / "stats.yaml")
        write_checksums(folder)
    return out


def _check_place(out: Path, overwrite: bool) -> None:
    if not out.name:
        raise ValueError(f"out={out} has no name; the last part of the folder names the set")
    if not out.exists():
        return
    there = {entry.name for entry in out.iterdir()} if out.is_dir() else {"a file"}
    foreign = there - {"data", "stats.yaml", CHECKSUMS}
    if foreign:
        raise ValueError(
            f"{out} holds something other than a data set ({min(foreign)}); choose another folder"
        )
    if there and not overwrite:
        raise ValueError(f"{out} exists; overwrite=true replaces it")


def _arrays(source: Given, name: str) -> dict[str, Any]:
    if isinstance(source, (str, Path)):
        return read_arrays(source)
    arrays = as_mapping(source, name)
    if not arrays:
        raise ValueError("there are no arrays")
    return arrays


def _check_steady(inputs: Sequence[str], outputs: Sequence[str], **others: Any) -> None:
    if not inputs or not outputs:
        raise ValueError("a steady map has both inputs=... and outputs=...")
    for name, value in others.items():
        if value:
            raise ValueError(f"{name} is not read: a steady map has inputs and outputs, no time")


def _check_alike(part: Arrays, first: Arrays, split: str) -> None:
    for axis in SPACE[: first.ndim]:
        if part.sizes[axis] != first.sizes[axis]:
            raise ValueError(
                f"the arrays of {split} have {part.sizes[axis]} points along {axis}, those of "
                f"train {first.sizes[axis]}"
            )
    names, wanted = [*part.components()], [*first.components()]
    if names != wanted:
        raise ValueError(f"{split} has the fields {', '.join(names)}, train {', '.join(wanted)}")
    for axis in first.sizes:
        here, there = axis in part.coordinates, axis in first.coordinates
        if here != there:  # which would be made up for one of them
            has, lacks = (split, "train") if here else ("train", split)
            hint = ", or dt=..." if axis == "time" else ""
            raise ValueError(
                f"{has} has an array {axis}, {lacks} has none; give it to all splits or none{hint}"
            )


def _boundaries(boundary: str | Sequence[str], axes: Sequence[str]) -> tuple[str, ...]:
    """Returns the types of the ends in the order x, y, z."""
    space = [axis for axis in axes if axis in SPACE]
    kinds = [boundary] if isinstance(boundary, str) else list(boundary)
    accepted = [kind.lower() for kind in BOUNDARIES]
    for kind in kinds:
        choice("boundary", kind, accepted)
    if len(kinds) not in (1, len(space)):
        raise ValueError(f"{len(kinds)} boundaries for the axes {', '.join(space)}: one or all")
    of = dict(zip(space, kinds * len(space) if len(kinds) == 1 else kinds, strict=False))
    return tuple(of[axis].upper() for axis in sorted(space))


def _rows(parts: Mapping[str, Arrays], shares: Sequence[float], seed: int) -> dict[str, list[int]]:
    """Chooses the trajectories of each split, in order."""
    if len(shares) != len(SPLITS):
        raise ValueError(f"splits are the shares of {', '.join(SPLITS)}, got {list(shares)}")
    total = parts["train"].trajectories
    made = [split for split in SPLITS if split == "train" or split not in parts]
    if total < len(made):
        raise ValueError(
            f"{total} trajectories cannot be shared among {', '.join(made)}; give valid=FILE and "
            "test=FILE, arrays of their own (they may be later parts of one trajectory)"
        )
    weights = np.array([shares[SPLITS.index(split)] for split in made], dtype=float)
    wanted, counts = total * weights / weights.sum(), np.ones(len(made), dtype=int)
    for _ in range(total - len(made)):  # the split that lacks most gets the next one
        counts[np.argmax(wanted - counts)] += 1
    order = np.random.default_rng(seed).permutation(total)
    drawn = np.split(order, np.cumsum(counts)[:-1])
    rows = {split: sorted(part.tolist()) for split, part in zip(made, drawn, strict=True)}
    return {s: rows[s] if s in rows else [*range(parts[s].trajectories)] for s in SPLITS}


def _mean(arrays: Arrays, rows: Sequence[int]) -> Values:
    """Averages the outputs over training samples."""
    sums: dict[str, np.ndarray] = {}
    for row in rows:
        for name, value in arrays.read(row)[0].items():
            sums[name] = sums.get(name, 0.0) + value.astype(np.float64)
    return {name: (total / len(rows)).astype(np.float32) for name, total in sums.items()}


def _write_split(
    place: Path, arrays: Arrays, rows: Sequence[int], recipe: _Recipe
) -> Iterator[Trajectories]:
    """Writes the files of a split, and yields what is in each."""
    place.mkdir(parents=True)
    points = int(np.prod([arrays.sizes[axis] for axis in SPACE[: arrays.ndim]]))
    size = 4 * points * arrays.sizes.get("time", 2) * len([*arrays.components()])
    batch = max(1, FILE_BYTES // size)
    for number, first in enumerate(range(0, len(rows), batch)):
        data = _trajectories(arrays, rows[first : first + batch], recipe)
        file = place / f"{place.name}_{number:03d}.hdf5"
        write_file(file, data, name=recipe.name, boundary=recipe.boundary, attributes={})
        yield data


def _trajectories(arrays: Arrays, rows: Sequence[int], recipe: _Recipe) -> Trajectories:
    read, mean = [arrays.read(row) for row in rows], recipe.mean
    if mean is not None:
        read = [({n: np.stack([mean[n], v]) for n, v in f.items()}, c) for f, c in read]
    fields, constants = (_stacked(parts) for parts in zip(*read, strict=True))
    return Trajectories(
        time=_times(arrays, recipe.dt),
        coordinates={axis: _points(arrays, axis) for axis in SPACE[: arrays.ndim]},
        fields=_by_order(fields, arrays.orders),
        constants=_by_order(constants, arrays.orders),
    )


def _stacked(rows: Sequence[Values]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def _times(arrays: Arrays, dt: float | None) -> torch.Tensor:
    if "time" in arrays.coordinates and "time" in arrays.sizes:
        return torch.from_numpy(arrays.coordinates["time"].astype(np.float32))
    return (1.0 if dt is None else dt) * torch.arange(arrays.sizes.get("time", 2)).float()


def _points(arrays: Arrays, axis: str) -> torch.Tensor:
    if axis in arrays.coordinates:
        return torch.from_numpy(arrays.coordinates[axis].astype(np.float32))
    return cell_centers(arrays.sizes[axis], 0.0, 1.0)


def _by_order(
    values: Mapping[str, torch.Tensor], orders: Mapping[str, int]
) -> dict[int, dict[str, torch.Tensor]]:
    return {order: {n: v for n, v in values.items() if orders[n] == order} for order in (0, 1)}


class _TrainingSplit(Statistics):
    """Statistics that know, without rounding, which components never differ."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, torch.Tensor] = {}
        self._varies: dict[tuple[str, bool], torch.Tensor] = {}  # (field, with time)

    def accumulate(self, key: str, order: int, varying: bool, value: Any) -> None:
        """Adds one trajectory, see :class:`Statistics`."""
        super().accumulate(key, order, varying, value)
        value = torch.as_tensor(value)
        flat = value.flatten(0, value.ndim - order - 1)
        first = self._first.setdefault(key, flat[0].clone())
        differs = {(key, False): (flat != first).any(0)}
        if varying:
            differs[key, True] = (value[1:] != value[:-1]).flatten(0, -order - 1).any(0)
        for name, there in differs.items():
            self._varies[name] = self._varies.get(name, torch.zeros_like(there)) | there

    def check(self, arrays: Arrays) -> None:
        """Looks for components that no model can be normalised with.

        Args:
            arrays: that the fields are of.

        Raises:
            ValueError: there is one; says what to do about it.
        """
        for (field, in_time), varies in self._varies.items():
            if not bool(varies.all()):
                at = "" if varies.ndim == 0 else f", component {int(varies.int().argmin())}"
                what = _unvaried(arrays, field, (field, True) not in self._varies, in_time)
                raise ValueError(f"in the training split, field {field}{at} {what}")


def _unvaried(arrays: Arrays, field: str, constant: bool, in_time: bool) -> str:
    """Says in what a field never differs, and how to do without it."""
    source = next(s for s in [*arrays.fields, *arrays.constants] if field in s.names)
    steady, what = "time" not in arrays.sizes, "has one value everywhere"
    if in_time:
        what = "is the same in all samples" if steady else "never changes with time"
    if len(source.names) > 1:
        return f"{what}; give the array {source.key} without it"
    key = "it" if source.key == field else f"the array {source.key}"
    if steady:
        return f"{what}; leave {key} out of {'inputs' if constant else 'outputs'}=..."
    if in_time:
        return f"{what}; name {key} among constants=..., without its time axis"
    if constant:
        return f"{what}; leave {key} out of constants=..., and name the others in keys=..."
    return f"{what}; leave {key} out with keys=..."
