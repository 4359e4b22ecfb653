"""Rows of the reference benchmark: what one says, which a track must have, and who is ahead."""

from adaptok.evaluation.standings.anchors import anchors
from adaptok.evaluation.standings.reading import Folder, read_rows, write_row
from adaptok.evaluation.standings.row import MEASURES, SCHEMA, TRACKS, Row, key_of, row_of
from adaptok.evaluation.standings.table import MANDATORY, Standing, missing, standings

__all__ = [
    "MANDATORY",
    "MEASURES",
    "SCHEMA",
    "TRACKS",
    "Folder",
    "Row",
    "Standing",
    "anchors",
    "key_of",
    "missing",
    "read_rows",
    "row_of",
    "standings",
    "write_row",
]
