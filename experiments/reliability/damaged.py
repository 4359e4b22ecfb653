"""Flipped bits, cut and zeroed files: found, or nothing is different."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import small_runs
import torch
from reliability.rows import Row, Wrong, attempt, row

import adaptok
from adaptok.cli import main
from adaptok.data import WellData
from adaptok.data.check import check
from adaptok.data.synthetic import generate
from adaptok.training.checkpoints import read_checkpoint

KNOBS = {"resolution": 16, "frames": 4, "nodes": 4, "train": 2, "valid": 1, "test": 1}
Damage = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, draw: random.Random) -> bytes:
    """Flips one bit."""
    damaged = bytearray(content)
    damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def cut(content: bytes, draw: random.Random) -> bytes:
    """Cuts the end off."""
    return content[: draw.randrange(len(content))]


def zero(content: bytes, draw: random.Random) -> bytes:
    """Zeroes 64 bytes, as of a lost sector, where not all are zero."""
    while True:
        at = draw.randrange(len(content))
        if any(content[at : at + 64]):
            return content[:at] + bytes(len(content[at : at + 64])) + content[at + 64 :]


def equal(a: Any, b: Any) -> bool:
    """Compares nested values with tensors."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def judged(path: Path, read: Callable[[], Any], wanted: Any, name: str) -> tuple[bool, Wrong]:
    """Reads a damaged file; says whether the damage was found, and what is wrong."""
    try:
        value = read()
    except ValueError as error:
        return True, None if path.name in str(error) else f"{name}: no name: {error}"
    except Exception as error:
        return True, f"{name}: {type(error).__name__}: {error}"
    return False, None if equal(value, wanted) else f"{name}: silently different"


def attacked(
    what: str, path: Path, read: Callable[[], Any], tries: dict[Damage, int], *, always: bool
) -> Row:
    """Damages a file again and again, and restores it.

    Args:
        always: damage that changes nothing must be found, too.
    """
    good, wanted, draw = path.read_bytes(), read(), random.Random(what)
    wrong: list[Wrong] = []
    found = 0
    for damage, count in tries.items():
        for number in range(count):
            path.write_bytes(damage(good, draw))
            seen, reason = judged(path, read, wanted, f"{damage.__name__} {number}")
            found += seen
            if always and not seen:
                reason = f"{damage.__name__} {number}: not found"
            wrong.append(reason)
    path.write_bytes(good)
    return row(what, wrong, f"found in {found} of {len(wrong)}, the others change nothing")


def run(folder: Path, quick: bool = False) -> list[Row]:
    """A hundred flips of each kind of file; `quick`: ten."""
    flips, others = (10, 3) if quick else (100, 20)
    tries: dict[Damage, int] = {flip: flips, cut: others, zero: others}
    model = folder / "model"
    make: dict[str, Any] = {"ndim": 2, "in_channels": 1, "dim": 24, "depth": 1, "heads": 2}
    surrogate = adaptok.create_surrogate(**make, tokenizer={"name": "iap", "max_size": 8})
    adaptok.save_pretrained(surrogate, model)

    def state() -> Any:
        loaded = adaptok.from_pretrained(model)
        return {**loaded.state_dict(), "text": str(loaded)}

    rows = []
    for name in ("model.safetensors", "config.json"):
        what = f"damaged {name}, from_pretrained"
        rows.append(attacked(what, model / name, state, tries, always=True))
    trained = folder / "trained"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["train", *small_runs.train(), f"hydra.run.dir={trained}"]) == 0
    last = trained / "checkpoints" / "last.ckpt"
    what = "damaged checkpoint, read_checkpoint"
    rows.append(attacked(what, last, lambda: read_checkpoint(last), tries, always=False))
    return rows + data_sets(folder, tries)


def data_sets(folder: Path, tries: dict[Damage, int]) -> list[Row]:
    """A generated set: by training's reader, by `data check`, and by flips in the fields alone."""
    made = generate("acoustic_scattering_maze", folder, **KNOBS, progress=False)
    (path,) = (made / "data" / "train").glob("*.hdf5")

    def batches() -> Any:
        data = WellData(path=made, batch_size=2)
        data.setup("fit")
        return [data.loader("train").dataset[i] for i in range(2)]

    rows = [attacked("damaged HDF5, training", path, batches, tries, always=False)]

    def checked() -> None:
        problems = check(made).problems
        if problems:
            raise ValueError("; ".join(map(str, problems)))

    rows.append(attacked("damaged HDF5, adaptok data check", path, checked, tries, always=True))
    good, draw, wrong = path.read_bytes(), random.Random(0), []
    with h5py.File(path) as file:
        fields = [file["t0_fields/pressure"], file["t1_fields/velocity"]]
        chunks = [f.id.get_chunk_info(i) for f in fields for i in range(f.id.get_num_chunks())]
    for number in range(next(iter(tries.values()))):
        chunk, content = draw.choice(chunks), bytearray(good)
        content[chunk.byte_offset + draw.randrange(chunk.size)] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(content))
        wrong.append(attempt(f"{number}", lambda: _found(batches)))
    path.write_bytes(good)
    shutil.rmtree(made)
    return [*rows, row("flipped bits in the fields of an HDF5 file, training", wrong, "all found")]


def _found(read: Callable[[], Any]) -> Wrong:
    try:
        read()
    except ValueError:
        return None
    return "not found"
