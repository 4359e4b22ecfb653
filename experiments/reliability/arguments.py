"""Hostile values for every knob and argument, as `tests/hostile.py` lists them."""

from __future__ import annotations

import zlib
from pathlib import Path

import hostile
from reliability.rows import Row, row


def run(folder: Path, quick: bool = False) -> list[Row]:
    """Puts each value into each argument; a hundredth of them if `quick`."""
    every, wrong = 100 if quick else 1, []
    with hostile.little_memory():
        for case in hostile.all_cases():
            for name, make in hostile.VALUES.items():
                key = f"{case.where} {case.argument} {name}"
                if zlib.crc32(key.encode()) % every == 0:
                    said = hostile.outcome(case, make())
                    wrong.append(said and f"{key}: {said}")
    return [row(f"hostile arguments ({len(hostile.VALUES)} values)", wrong)]
