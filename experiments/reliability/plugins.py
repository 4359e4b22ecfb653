"""Broken plug-ins of every kind: left out with a warning, the good ones stay."""

from __future__ import annotations

import sys
import threading
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

from reliability.rows import Row, Wrong, tried

from adaptok import registry

BROKEN = {  # source of a module -> what its attribute `part` should have been
    "raises ImportError": "raise ImportError('x')",
    "raises SystemExit": "raise SystemExit(3)",
    "sys.exit": "import sys; sys.exit()",
    "raises GeneratorExit": "raise GeneratorExit",
    "raises BaseException": "class E(BaseException): pass\nraise E('x')",
    "raises RecursionError": "def f(): f()\nf()",
    "raises MemoryError": "raise MemoryError",
    "raises OSError": "open('/no/such/file')",
    "raises StopIteration": "next(iter(()))",
    "raises an exception that cannot be shown":
        "class E(Exception):\n def __str__(self): raise RuntimeError('x')\nraise E",
    "syntax": "def part(:",
    "not UTF-8": "# \udcff",
    "no attribute": "x = 1",
    "None": "part = None",
    "a number": "part = 3.5",
    "text": "part = 'iap'",
    "a module": "import math as part",
    "no signature": "part = dict",
    "a signature that raises":
        "class P:\n __signature__ = 3\n def __call__(self): pass\npart = P()",
    "a property that raises":
        "class M(type):\n @property\n def __signature__(self): raise RuntimeError('x')\n"
        "class part(metaclass=M): pass",
    "getattr that raises": "def __getattr__(name): raise ZeroDivisionError(name)",
    "taken name": "from fractions import Fraction as part",  # entered as `good`
}  # fmt: skip
ODD = {  # odd, but a part
    "a lambda": "part = lambda: None",
    "a class": "class part: pass",
    "partial": "import functools\npart = functools.partial(print, '3')",
    "registers itself, too": "import adaptok\ndef part(): pass",
    "prints": "print('hello')\ndef part(): pass",
    "asks for the names": "import reliability.plugins as p\np.KIND.names()\ndef part(): pass",
}
KIND = registry.Registry("sweet")


def loaded(name: str, source: str, is_part: bool, folder: Path, threads: int = 1) -> Wrong:
    """Loads one plug-in between two good ones; says what is wrong."""
    global KIND
    folder.mkdir(parents=True)
    module = f"plugin_{abs(hash((name, threads)))}"
    (folder / f"{module}.py").write_bytes(source.encode("utf-8", "surrogateescape"))
    (folder / f"{module}_good.py").write_text("def part(): pass")
    own = "good" if name == "taken name" else "own"
    values = [
        ("good", f"{module}_good:part"),
        (own, f"{module}:part"),
        ("last", "fractions:Fraction"),
    ]
    KIND, original = registry.Registry("sweet"), registry.entry_points
    points = [EntryPoint(name=n, value=v, group=KIND.group) for n, v in values]
    sys.path.insert(0, str(folder))
    seen: list[list[str]] = []
    registry.entry_points = lambda group: points  # type: ignore[assignment]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            workers = [
                threading.Thread(target=lambda: seen.append(KIND.names())) for _ in range(threads)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
    finally:
        registry.entry_points = original
        sys.path.remove(str(folder))
    wanted = sorted({"good", "last", *(["own"] if is_part else [])})
    if seen != [wanted] * threads:
        return f"names {seen[:1]}, wanted {wanted}"
    said = [str(w.message) for w in caught if f"plug-in '{own}'" in str(w.message)]
    if len(said) != (not is_part):
        return f"{len(said)} warnings"
    return None


def run(folder: Path, quick: bool = False) -> list[Row]:
    """Each kind in one thread, and all in eight at once."""
    kinds = [(n, s, False) for n, s in BROKEN.items()] + [(n, s, True) for n, s in ODD.items()]
    tries = [
        (
            f"{name}, {threads} threads",
            lambda n=name, s=source, p=is_part, t=threads, f=folder / f"{k}-{threads}": loaded(
                n, s, p, f, t
            ),
        )
        for k, (name, source, is_part) in enumerate(kinds)
        for threads in (1, 8)
    ]
    return [tried("plug-ins, broken and odd", tries[::10] if quick else tries)]
