"""Rows of the reference benchmark: what one says, which a track must have, and who is ahead."""

from adaptok.evaluation.standings.anchors import anchors
from adaptok.evaluation.standings.checking import row_of
from adaptok.evaluation.standings.origins import short_commit
from adaptok.evaluation.standings.reading import (
    Folder,
    printable,
    read_folders,
    read_rows,
    write_row,
)
from adaptok.evaluation.standings.row import MEASURES, SCHEMA, TRACKS, Row, key_of
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
    "printable",
    "read_folders",
    "read_rows",
    "row_of",
    "short_commit",
    "standings",
    "write_row",
]
