"""Tokenizers that are not adaptok's: their code decides numbers, and so does their name."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from adaptok.evaluation.standings import MANDATORY
from adaptok.evaluation.standings.checking import NAME
from adaptok.registry import TOKENIZERS
from adaptok.tasks.bench.methods import METHODS

REFERENCES = {*METHODS, *(name for track in MANDATORY.values() for name in track)}


def code_of(name: str) -> dict[str, str]:
    """Tells the code of a tokenizer from that of another of its name, and from earlier code: a hash
    of all Python files of its package. Nothing for tokenizers of this project, which the commit
    tells apart.

    Args:
        name: of a registered tokenizer.

    Raises:
        ValueError: it has the name of a reference of the benchmark, one that rows cannot have, or
            no file of code.
    """
    factory: Any = TOKENIZERS.get(name)
    arguments = []
    while isinstance(factory, functools.partial):
        arguments.append(re.sub(r" at 0x\w+", "", repr((factory.args, factory.keywords))))
        factory = factory.func
    module = inspect.getmodule(factory)
    package = module and module.__name__.partition(".")[0]
    if package == "adaptok" and not arguments:
        return {}
    if re.sub(r"\W", "_", name) in {re.sub(r"\W", "_", other) for other in REFERENCES}:
        raise ValueError(
            f"{name!r} is a reference of the benchmark: give your tokenizer another name"
        )
    if not NAME.fullmatch(name):
        raise ValueError(f"rows are named after the tokenizer, and {name!r} cannot be used")
    files = _files(sys.modules[package]) if package else []
    if not files:
        raise ValueError(f"the code of {name!r} is in no file: put it into a module")
    found = hashlib.sha256("".join(arguments).encode())
    for file in files:
        found.update(file.name.encode() + file.read_bytes())
    assert module is not None
    return {"code": f"{module.__name__}:{name}", "sha256": found.hexdigest()}


def _files(package: Any) -> list[Path]:
    """The Python files of a package, or of a module that is alone."""
    if hasattr(package, "__path__"):
        return sorted(file for folder in package.__path__ for file in Path(folder).rglob("*.py"))
    file = getattr(package, "__file__", None)
    return [Path(file)] if file else []
