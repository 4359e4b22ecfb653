"""Several processes on the CPU (gloo): DDP and FSDP2 train like one process."""

from __future__ import annotations

from pathlib import Path

import test_parallel as tests
from reliability.rows import Row, Wrong, tried


def passes(test: object, *arguments: object) -> Wrong:
    """Runs a test, whose assertions become reasons."""
    test(*arguments)  # type: ignore[operator]
    return None


def run(folder: Path, quick: bool = False) -> list[Row]:
    """The tests of `tests/test_parallel.py`, which compare curves, weights and resumed bits."""
    single = tests.run(folder / "single", 4, gradient_clip_val=0.5)
    curves = tests.test_two_processes_give_the_curve_of_one
    fsdp = [("curve of one process", lambda: passes(curves, single, "fsdp", folder / "fsdp"))]
    rows = [
        tried(
            "DDP with 2 processes equals one",
            [("curve", lambda: passes(curves, single, "ddp", folder / "ddp"))],
            "curve to 1e-4, weights to 1e-5",
        )
    ]
    if not quick:
        resumed = tests.test_fsdp_goes_on_from_its_checkpoint_in_mid_epoch
        fsdp.append(("resumed in mid-epoch", lambda: passes(resumed, folder / "resumed")))
        sizes = tests.test_random_patch_sizes_under_fsdp_give_the_curve_of_one_process
        fsdp += [(name, lambda n=name: passes(sizes, n, folder / n)) for name in ("ckm", "csm")]
    note = "curve to 1e-4, weights to 1e-5; resumed: bits equal"
    return [*rows, tried("FSDP2 with 2 processes on the CPU", fsdp, note)]
