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
from fsspec.registry import known_implementations
from fsspec.spec import AbstractFileSystem

from adaptok.registry import close_matches

HDF5 = (".h5", ".hdf5")


@dataclass(frozen=True)
class Location:
    """A file or folder.

    Attributes:
        url: as a person would write it.
        fs: what reads it.
        path: what `fs` calls it.
        options: keyword arguments of `fs`, for those who open the URL again.
    """

    url: str
    fs: AbstractFileSystem = field(repr=False)
    path: str = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __truediv__(self, name: str) -> Location:
        url = str(Path(self.url) / name) if self.is_local else posixpath.join(self.url, name)
        return Location(url, self.fs, posixpath.join(self.path, name), self.options)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's own disks."""
        protocol = self.fs.protocol  # one name, or several
        return protocol == "file" or "file" in protocol

    def is_folder(self) -> bool:
        """Whether it is a folder that is there."""
        with self._reached():
            return bool(self.fs.isdir(self.path))

    def is_file(self) -> bool:
        """Whether it is a file that is there."""
        with self._reached():
            return bool(self.fs.isfile(self.path))

    def members(self) -> list[Location]:
        """What is in the folder, sorted by name; hidden files and folders are left out."""
        with self._reached():
            found = self.fs.ls(self.path, detail=False) if self.fs.isdir(self.path) else []
        names = sorted(posixpath.basename(str(path).rstrip("/")) for path in found)
        return [self / name for name in names if name and not name.startswith(".")]

    def hdf5_files(self) -> list[Location]:
        """The HDF5 files in the folder, sorted by name."""
        return [file for file in self.members() if file.name.endswith(HDF5)]

    def text(self) -> str:
        """The content of a text file."""
        with self._reached():
            return bytes(self.fs.cat_file(self.path)).decode()  # type: ignore[arg-type]

    @contextmanager
    def hdf5(self) -> Iterator[h5py.File]:
        """The file, open for reading; raises ``OSError`` where it is damaged."""
        with self.fs.open(self.path, "rb") as raw, h5py.File(raw, "r") as file:
            yield file

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Any error on the way there, whatever its type, says what could not be reached."""
        try:
            yield
        except Exception as error:  # each file system raises what it likes
            raise ValueError(f"cannot read {self.url}: {type(error).__name__}: {error}") from error


def locate(where: str | Path, options: Mapping[str, Any] | None = None) -> Location:
    """The location of a path or URL; nothing is read yet.

    Args:
        where: a path, or ``protocol://...``.
        options: keyword arguments of the file system, such as ``{"anon": True}`` for s3.

    Raises:
        ValueError: for a protocol that nobody knows, or whose package is missing.
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
