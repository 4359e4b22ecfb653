"""``adaptok data from-arrays`` and ``adaptok data stats``: from somebody's arrays to a data set."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptok.registry import close_matches
from adaptok.utils.keys import quoted

LISTS = ("axes", "boundary", "constants", "vectors", "inputs", "outputs", "names", "keys", "splits")
WORDS = {"true": True, "false": False}
STEPS = 8  # of the test's rollouts by default, as in conf/task/surrogate.yaml


def print_from_arrays(*words: str) -> None:
    """Makes a data set of a file of arrays, and says what is in it and how to train on it.

    Args:
        words: the file, and arguments of `adaptok.data.from_arrays` as ``key=value``.

    Raises:
        ValueError: no file or several, an unknown or missing key, or what `from_arrays` refuses.
    """
    from adaptok.data import WellData, from_arrays
    from adaptok.data.well_files import find_well_files
    from adaptok.data.well_format import SPLITS

    source, options = _parsed(
        from_arrays, words, "from-arrays FILE out=FOLDER axes=... boundary=..."
    )
    folder = from_arrays(source, **options)
    data = WellData(path=folder)
    info, steady = data.info, bool(options.get("inputs"))
    files = {split: find_well_files(data.folder, split) for split in SPLITS}
    counts = [f"{sum(file.trajectories for file in files[s])} {s}" for s in SPLITS]
    what = "samples" if steady else "trajectories"
    print(f"{info.name}: {info.ndim}D, grid {' x '.join(map(str, info.shape))}")
    print(f"{what}  {', '.join(counts)}")
    print(f"fields  {', '.join(info.fields)}")
    print(f"constants  {', '.join(info.constants) or 'none'}")
    most = 1 if steady else min(file.steps for file in files["test"]) - 1  # frames to predict
    more = f" test.steps={most}" if most < STEPS else ""
    more += " 'tokenizer.ignore=[]'" if steady else ""
    place = _typed("data.path", folder)
    print(f"next: adaptok train data=well {place} size=tiny trainer.max_steps=450{more}")


def _typed(key: str, path: Path) -> str:
    """Writes an override as it is typed in a shell, with quotes if it needs them."""
    if re.fullmatch(r"[a-zA-Z_./][\w./-]*", str(path), re.ASCII):
        return f"{key}={path}"
    return shlex.quote(quoted(key, path))


def print_stats(*words: str) -> None:
    """Writes stats.yaml of a data set that lacks it.

    Args:
        words: the folder, and ``overwrite=true`` to replace one that is there.

    Raises:
        ValueError: no folder or several, an unknown key, or what `write_statistics` refuses.
    """
    from adaptok.data import write_statistics

    folder, options = _parsed(write_statistics, words, "stats FOLDER")
    print(f"written: {write_statistics(folder, **options)}")


def _parsed(
    function: Callable[..., Any], words: Sequence[str], usage: str
) -> tuple[str, dict[str, Any]]:
    """Splits words into the first argument of a function and its keyword arguments."""
    # Paths may have a "=", too: sweeps name folders seed=0.
    places = [word for word in words if not re.match(r"\w+=", word)]
    if len(places) != 1:
        got = " ".join(places) or "none"
        raise ValueError(f"one path is needed, got {got}: adaptok data {usage}")
    parameters = [*inspect.signature(function).parameters.values()][1:]
    known = [parameter.name for parameter in parameters]
    options: dict[str, Any] = {}
    for key, _, text in [word.partition("=") for word in words if word not in places]:
        if key not in known:
            raise ValueError(
                f"unknown key {key!r}{close_matches(key, known)}; valid: {', '.join(known)}"
            )
        options[key] = _value(key, text)
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise ValueError(f"{parameter.name}=... must be given: adaptok data {usage}")
    return places[0], options


def _value(key: str, text: str) -> Any:
    if key in LISTS:
        items = [item.strip() for item in text.strip("[]").split(",") if item.strip()]
        return [_number(key, item) for item in items] if key == "splits" else items
    if key == "overwrite":
        return WORDS.get(text.lower(), text)
    if key in ("dt", "seed"):
        return _number(key, text)
    return Path(text)


def _number(key: str, text: str) -> float | int:
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        raise ValueError(f"{key} must be made of numbers, got {text!r}") from None
