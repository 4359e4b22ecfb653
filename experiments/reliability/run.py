"""Measures how reliable training is: `python experiments/reliability/run.py [PART ...] [--quick]`.

A part is a module of this folder with ``run(folder, quick) -> list[Row]``. The table is printed and
with ``--out FILE`` written as markdown.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "experiments")]
PARTS = (
    *("combinations", "arguments", "units", "kills", "signals", "disks", "shared", "foreign"),
    *("damaged", "pages", "plugins", "load", "compiled", "parallel", "replaced"),
)


def main() -> int:
    """Runs the chosen parts; returns 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; parts: {', '.join(PARTS)}")
    lines, failed = ["| what | tried | failed | note |", "| --- | ---: | ---: | --- |"], 0
    for name in options.parts or PARTS:
        begin, used = time.monotonic(), sum(os.times()[:4])
        with tempfile.TemporaryDirectory(prefix=f"adaptok-{name}-") as folder:
            for row in importlib.import_module(f"reliability.{name}").run(
                Path(folder), options.quick
            ):
                lines.append("| " + " | ".join(map(str, row)).replace("\n", " ") + " |")
                failed += row.failed
                print(lines[-1], flush=True)
        seconds = (
            f"{time.monotonic() - begin:.0f} s, {sum(os.times()[:4]) - used:.0f} s of one core"
        )
        print(f"{name}: {seconds}", file=sys.stderr)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
