"""Folders on this machine or behind any URL that fsspec knows (``hf://``, ``s3://``, ...)."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import h5py
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations
from fsspec.spec import AbstractFileSystem

from adaptok.data.well_format import HDF5
from adaptok.registry import close_matches

DAMAGE = (OSError, KeyError, RuntimeError, IndexError)  # what h5py raises for a damaged file


@dataclass(frozen=True)
class Location:
    """A file or folder, which need not exist.

    Attributes:
        url: as a person would write it.
        fs: the file system that reads it.
        path: its name in `fs`.
        options: keyword arguments of `fs`, for code that opens the URL again.
    """

    url: str
    fs: AbstractFileSystem = field(repr=False)
    path: str = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __truediv__(self, name: str) -> Location:
        url = posixpath.join(self.url, name).removeprefix("./")
        return Location(url, self.fs, posixpath.join(self.path, name), self.options)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    def is_folder(self) -> bool:
        """Whether a folder exists here."""
        return bool(self._ask("isdir"))

    def is_file(self) -> bool:
        """Whether a file exists here."""
        return bool(self._ask("isfile"))

    def members(self) -> list[Location]:
        """Lists the folder, sorted by name, without hidden files and folders."""
        found = self._ask("ls", detail=False) if self.is_folder() else []
        names = sorted(posixpath.basename(str(path).rstrip("/")) for path in found)
        return [self / name for name in names if name and not name.startswith(".")]

    def hdf5_files(self) -> list[Location]:
        """Lists the HDF5 files in the folder, sorted by name."""
        return [file for file in self.members() if file.name.endswith(HDF5)]

    def version(self) -> tuple[int, int] | None:
        """Returns what tells a file from one that replaces it: its size and time, in nanoseconds.

        None for URLs, which would be asked over the network, and for what does not exist.
        """
        if not isinstance(self.fs, LocalFileSystem):
            return None
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def check_version(self, version: tuple[int, int] | None) -> None:
        """Raises ``ValueError`` if the file has been replaced, changed or removed since."""
        if self.version() != version:
            raise ValueError(
                f"{self} was replaced, changed or removed while in use, so what is read from "
                "now on would not match what was read before: start again"
            )

    def text(self) -> str:
        """Returns the content of a text file."""
        return bytes(self._ask("cat_file")).decode()

    @contextmanager
    def hdf5(self, more: str = "") -> Iterator[Any]:
        """Opens the file as `h5py.File` for reading.

        Typed as Any, because h5py's types cannot say which members are groups.

        Args:
            more: what is read, for messages.

        Raises:
            ValueError: if it is damaged, also while the caller reads from it.
        """
        try:
            with self.fs.open(self.path, "rb") as raw, h5py.File(raw, "r") as file:
                yield file
        except DAMAGE as error:
            raise ValueError(f"damaged or truncated HDF5 file {self}{more}: {error}") from error

    def _ask(self, method: str, **options: Any) -> Any:
        """Calls a method of the file system; any error says what could not be read."""
        try:
            return getattr(self.fs, method)(self.path, **options)
        except Exception as error:  # each file system raises what it likes
            raise ValueError(f"cannot read {self.url}: {type(error).__name__}: {error}") from error


def locate(where: str | Path, options: Mapping[str, Any] | None = None) -> Location:
    """Returns the location of a path or URL without reading anything.

    Args:
        where: a path, or ``protocol://...``.
        options: keyword arguments of the file system, such as ``{"anon": True}`` for s3.

    Raises:
        ValueError: for an unknown protocol, or one whose package is missing.
    """
    text, options = str(where), dict(options or {})
    protocol, separator, _ = text.partition("://")
    try:
        fs, path = fsspec.url_to_fs(text, **options)
    except ImportError as error:
        known = known_implementations.get(protocol, {}).get("err", str(error))
        raise ValueError(f"cannot open {text}, its driver is missing: {known}") from error
    except Exception as error:  # each file system raises what it likes
        if separator and protocol not in known_implementations:
            raise ValueError(
                f"unknown protocol {protocol!r} in {text}"
                f"{close_matches(protocol, known_implementations)}"
            ) from error
        raise ValueError(f"cannot open {text} with options {options}: {error}") from error
    url = text.rstrip("/") if separator else os.path.normpath(text)
    return Location(url, fs, str(path).rstrip("/") or "/", options)
