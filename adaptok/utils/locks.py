"""One process at a time in a run folder."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from adaptok.utils.atomic import replacing

LOCK, OWNER = ".lock", ".owner.json"


class InUseError(ValueError):
    """Another process writes into the folder; the message says which."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the lock of a run folder, which ends with the process, however that ends.

    The processes that a launcher starts for one run share the lock of the first one. On a file
    system without locks there is none.

    Raises:
        InUseError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    if is_first():
        try:
            lock.acquire(blocking=False)
            with replacing(folder / OWNER) as temporary:
                temporary.write_text(json.dumps(_this_process()))
        except Timeout:
            raise InUseError(
                f"{folder} is in use by {_owner(folder)}; wait, or choose another"
            ) from None
        except (OSError, NotImplementedError):  # a file system without locks
            pass
    try:
        yield
    finally:
        lock.release()


def is_first() -> bool:
    """Tells whether this is the first of the processes that a launcher started for one run."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # of torchrun, Lightning, SLURM
    return all(os.environ.get(name, "0") == "0" for name in names)


def _this_process() -> dict[str, str]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"process": str(os.getpid()), "machine": socket.gethostname(), "command": command}


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text())
        return f"process {owner['process']} on {owner['machine']} ({owner['command']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has not said so yet
        return "another process"
