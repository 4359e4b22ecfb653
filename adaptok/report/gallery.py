"""Pictures that runs saved, as data URIs for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adaptok.report.grouping import Group
from adaptok.report.runs import LeftOut, RunRecord

# Names that training, evaluation and `adaptok tokenize` write -> what the pictures show.
CAPTIONS = {
    "cells": "cells over a field of the test split",
    "prediction": "truth, prediction and error one step ahead",
    "rollout_fields": "truth, prediction and error over time",
    "error_maps": "error at several rollout steps",
}
WIDTH = 1100  # pixels; a page does not show more
MOST = 60  # pictures in a page


class Picture(NamedTuple):
    """A picture as a data URI."""

    run: RunRecord
    label: str
    caption: str
    uri: str
    width: int
    height: int


def pictures_of(groups: Sequence[Group], problems: list[LeftOut]) -> list[Picture]:
    """Collects the pictures of one run per group, the one with the lowest seed.

    Args:
        problems: list that pictures that cannot be read are added to.
    """
    found = []
    for group in groups:
        each = (_of_run(run, group.label, problems) for run in (*group.runs, *group.pending))
        found += next(filter(None, each), [])
    order = list(CAPTIONS.values())
    return sorted(found, key=lambda p: order.index(p.caption.partition(": ")[0]))[:MOST]


def _of_run(run: RunRecord, label: str, problems: list[LeftOut]) -> list[Picture]:
    pictures = []
    files = [*sorted((run.folder / "pictures").glob("*.png")), *sorted(run.folder.glob("*.png"))]
    for path in files:
        stem = next((name for name in CAPTIONS if path.stem.startswith(name)), None)
        if stem is None:
            continue
        field = path.stem.removeprefix(stem).strip("_")
        caption = CAPTIONS[stem] + (f": {field}" if field else "")
        try:
            pictures.append(Picture(run, label, caption, *embedded(path)))
        except Exception as error:  # half-written, no picture at all, or far too large
            problems.append(LeftOut(path, f"picture cannot be read: {error}"))
    return pictures


def embedded(path: Path) -> tuple[str, int, int]:
    """Shrinks a picture to at most `WIDTH` pixels; returns data URI, width and height."""
    from PIL import Image

    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((WIDTH, picture.height), Image.Resampling.LANCZOS, reducing_gap=None)
    stream = io.BytesIO()
    picture.save(stream, "webp", quality=85)  # a quarter of a PNG
    text = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/webp;base64,{text}", picture.width, picture.height
