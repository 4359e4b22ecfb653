"""Keeps what a run prints in a file of its folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from adaptok.utils.locks import is_first

LOG = "adaptok.log"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours and moves of the cursor
_files: list[IO[str]] = []  # of the runs that are being kept, the innermost last


class _Kept:
    """A stream whose whole lines are written to a file too; of a bar, what it shows in the end."""

    def __init__(self, stream: Any, file: IO[str]):
        self._stream, self._file, self._line = stream, file, ""

    def write(self, text: str) -> int:
        *lines, rest = (self._line + text).split("\n")
        for line in lines:
            self._file.write(f"{CONTROL.sub('', _seen(line)).rstrip()}\n")
        self._line = _seen(rest)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _seen(line: str) -> str:
    """Drops what a carriage return has overwritten."""
    return line.rstrip("\r").rpartition("\r")[2]


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Writes what is printed inside to ``adaptok.log`` of a run folder as well, in the first of
    several processes."""
    if not is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    out, err = sys.stdout, sys.stderr
    with (folder / LOG).open("a", encoding="utf-8", buffering=1) as file:
        sys.stdout, sys.stderr = _Kept(out, file), _Kept(err, file)  # type: ignore[assignment]
        _files.append(file)
        try:
            yield
        finally:
            _files.pop()
            sys.stdout, sys.stderr = out, err


def note(line: str) -> None:
    """Writes a line to the file of the run alone, if there is one."""
    if _files:
        _files[-1].write(f"{line}\n")


def span(seconds: float) -> str:
    """Says a time in words: "40 s", "12 min", "3 h 05 min", "2 d 3 h"."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def size(count: float) -> str:
    """Says a number of bytes in words: "1.3 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
