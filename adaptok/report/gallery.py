"""Pictures that runs left behind, as they go into a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adaptok.report.grouping import Group
from adaptok.report.records import Problem, Run

# Names that training, evaluation and `adaptok tokenize` write, with what they show.
CAPTIONS = {
    "cells": "cells over a field of the test split",
    "prediction": "truth, prediction and error one step ahead",
    "error_maps": "error at several rollout steps",
}
WIDTH = 1100  # pixels; more is not seen in a page
MOST = 60  # pictures in a page


class Picture(NamedTuple):
    """A picture as a data URI."""

    run: Run
    label: str
    caption: str
    uri: str
    width: int
    height: int


def pictures_of(groups: Sequence[Group], problems: list[Problem]) -> list[Picture]:
    """Pictures of one run of every group, the one with the lowest seed.

    Args:
        problems: where pictures that cannot be read are added.
    """
    found = []
    for group in groups:
        for run in (*group.runs, *group.pending):
            own = _of_run(run, group.label, problems)
            if own:
                found += own
                break
    first = list(CAPTIONS)
    return sorted(found, key=lambda picture: _place(picture, first))[:MOST]


def _place(picture: Picture, order: list[str]) -> int:
    return next((i for i, name in enumerate(order) if CAPTIONS[name] in picture.caption), 99)


def _of_run(run: Run, label: str, problems: list[Problem]) -> list[Picture]:
    pictures = []
    for path in _files(run.folder):
        stem = next(name for name in CAPTIONS if path.stem.startswith(name))
        field = path.stem.removeprefix(stem).strip("_")
        caption = CAPTIONS[stem] + (f": {field}" if field else "")
        try:
            uri, width, height = embedded(path)
        except (OSError, ValueError) as error:  # half-written, or no picture at all
            problems.append(Problem(path, f"picture cannot be read: {error}"))
            continue
        pictures.append(Picture(run, label, caption, uri, width, height))
    return pictures


def _files(folder: Path) -> list[Path]:
    files = [*sorted((folder / "pictures").glob("*.png")), *sorted(folder.glob("*.png"))]
    return [file for file in files if any(file.stem.startswith(name) for name in CAPTIONS)]


def embedded(path: Path) -> tuple[str, int, int]:
    """A picture of at most `WIDTH` pixels: data URI, width and height."""
    from PIL import Image

    with Image.open(path) as image:
        picture = image.convert("RGB")
    if picture.width > WIDTH:
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "webp", quality=85)  # a quarter of a PNG
    text = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/webp;base64,{text}", picture.width, picture.height
