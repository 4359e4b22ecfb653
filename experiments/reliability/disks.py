"""A full disk, a read-only one and a limit on the size of files, then resumed with room.

Small file systems are mounted in a namespace of their own (``unshare``, Linux), which needs no
rights and leaves nothing behind.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    root = Path(__file__).parents[2]
    sys.path[:0] = [str(root / "experiments"), str(root / "tests")]

from reliability import kills
from reliability.rows import Row, Wrong, row, tried

SHARES = (0.15, 0.5, 0.8)  # of what a run needs
FILE_SIZES = (20_000, 200_000)  # bytes


def mount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def stopped(arguments: list[str]) -> Wrong:
    """Runs a command that must fail by one line."""
    code, errors = kills.finish(arguments)
    if code == 2 and "Traceback" not in errors and "adaptok: error:" in errors:
        return None
    return f"exit {code}: {errors[-300:]}"


def resumed(folder: Path, reference: kills.Reference) -> Wrong:
    code, errors = kills.finish(kills.command(folder, "single", reference.data))
    return kills.judged(code, errors, folder, reference)


def on_a_small_disk(place: Path, options: str, reference: kills.Reference) -> Wrong:
    """Trains on a disk that is too small or read-only, then on the same one with room."""
    place.mkdir(parents=True)
    mount(place, "size=100m")
    folder = place / "run"
    folder.mkdir()
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
    wrong = stopped(kills.command(folder, "single", reference.data))
    subprocess.run(["mount", "-o", "remount,rw,size=100m", str(place)], check=True)
    wrong = wrong or resumed(folder, reference)
    subprocess.run(["umount", str(place)], check=True)
    return wrong


@contextmanager
def file_size(limit: int) -> Iterator[None]:
    """Limits the size of files that this process and its children write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def with_small_files(folder: Path, limit: int, reference: kills.Reference) -> Wrong:
    with file_size(limit):
        wrong = stopped(kills.command(folder, "single", reference.data))
    return wrong or resumed(folder, reference)


def inside(folder: Path, quick: bool) -> list[Row]:
    """All tries; where mounting is allowed."""
    reference = kills.whole("single", folder)
    need = sum(f.stat().st_size for f in (folder / "whole").rglob("*") if f.is_file())
    full = [
        (
            f"{share:.0%} of what it needs",
            lambda s=share: on_a_small_disk(
                folder / f"full{s}", f"size={int(s * need) // 1024}k", reference
            ),
        )
        for share in (SHARES[1:2] if quick else SHARES)
    ]
    limits = [
        (f"{n} bytes", lambda n=n: with_small_files(folder / f"limit{n}" / "run", n, reference))
        for n in (FILE_SIZES[1:] if quick else FILE_SIZES)
    ]
    read_only = [("read-only", lambda: on_a_small_disk(folder / "ro", "ro", reference))]
    return [
        tried("full disk, resumed with room", full, "one line, then bits equal"),
        tried("read-only disk, resumed when it can be written", read_only, "the same"),
        tried("limited size of files (ulimit -f), resumed without", limits, "the same"),
    ]


def run(folder: Path, quick: bool = False) -> list[Row]:
    """Runs `inside` in a namespace of its own."""
    if shutil.which("unshare") is None:
        return [row("full disk, read-only disk, ulimit -f", [], "not tried: needs unshare")]
    words = ["unshare", "--map-root-user", "--mount", sys.executable, __file__, str(folder)]
    done = subprocess.run([*words, str(int(quick))], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return [Row(*fields) for fields in json.loads(done.stdout.splitlines()[-1])]


if __name__ == "__main__":
    print(json.dumps(inside(Path(sys.argv[1]), sys.argv[2] == "1")))
