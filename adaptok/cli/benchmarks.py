"""``adaptok bench``: runs a module of `adaptok.evaluation.bench`."""

from __future__ import annotations

import pkgutil
import runpy
import sys

from adaptok.cli import restored
from adaptok.evaluation import bench
from adaptok.registry import choice


def names() -> list[str]:
    """Lists the benchmarks: all modules but the one that they share."""
    return [m.name for m in pkgutil.iter_modules(bench.__path__) if m.name != "timing"]


def run_benchmark(name: str = "", *args: str) -> None:
    """Runs ``python -m adaptok.evaluation.bench.<name> <args>``; without a name, lists them.

    Raises:
        ValueError: an unknown name.
    """
    if not name:
        print("\n".join(names()))
        return
    choice("benchmark", name, names())
    with restored():
        sys.argv = [f"adaptok bench {name}", *args]
        runpy.run_module(f"adaptok.evaluation.bench.{name}", run_name="__main__")
