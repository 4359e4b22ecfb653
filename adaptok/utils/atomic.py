"""Writes files and folders that are complete or absent, whenever a process is killed."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROUNDS = 100  # of two writers that replace one folder at the same time


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; it replaces `path` once everything is on the disk.

    What is made there may be a file or a folder. If writing fails, it is removed and `path` is
    unchanged. The name is this writer's alone, so that of several writers the last one wins with
    everything it wrote; it starts with a dot and ends in ``.tmp``, so that no search for
    checkpoints, data or models finds it. What killed processes of this machine left is removed.
    """
    _remove_leftovers(path)
    temporary = _unique(path)
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*")]:
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        if temporary.is_dir():
            _replace_folder(temporary, path)
        else:
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def _unique(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def _machine() -> str:
    return "".join(c if c.isalnum() else "_" for c in socket.gethostname())


def _replace_folder(new: Path, path: Path) -> None:
    """Moves a folder to a name that may be taken: only files are replaced in one step."""
    for _ in range(ROUNDS):
        old = _unique(path)
        with suppress(FileNotFoundError):
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError as error:  # another writer was faster
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            continue
        finally:
            _remove(old)
        return
    raise OSError(errno.EBUSY, "others write it all the time", str(path))


def _remove_leftovers(path: Path) -> None:
    """Removes what processes of this machine that have ended left beside `path`."""
    start = f".{path.name}.{_machine()}-"
    for leftover in path.parent.glob(f"{glob.escape(start)}*.tmp"):
        process = leftover.name.removeprefix(start).partition("-")[0]
        if process.isdigit() and not _is_running(int(process)):
            _remove(leftover)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power failure, if the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
