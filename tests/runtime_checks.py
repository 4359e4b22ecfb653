"""The run-time type checker that conftest.py puts on every function of adaptok."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception
from jaxtyping import jaxtyped
from jaxtyping._import_hook import _JaxtypingLoader

CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float, as type checkers have it
_WRAPPER = inspect.getsourcefile(jaxtyped)  # the file of every wrapper


def after_the_call(function: Callable) -> Callable:
    """Checks shapes and types once a call has returned, not before it.

    jaxtyping checks a function twice: its parameters before the call, then parameters and result
    after it, through stand-ins of which the second has one more parameter (``ret0``). Leaving out
    the first lets adaptok's own errors on bad input be seen, while a function that accepts
    something its annotations exclude, or returns it, still fails.
    """
    names = inspect.signature(function).parameters
    result_is_known = any(name.startswith("ret") and name[3:].isdigit() for name in names)
    if not result_is_known:
        return function
    checked: Callable | None = None

    def check(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:  # made when first called: most of adaptok is not, in most processes
            try:
                checked = beartype(conf=CONF)(function)
            except BeartypeDecorHintPep3119Exception:  # a Protocol without @runtime_checkable
                checked = function
        return checked(*args, **kwargs)

    return check


def keep_bytecode_apart() -> None:
    """Writes no bytecode with checks under the name of that without.

    jaxtyping exchanges the function that names the cache while a module is imported; if two threads
    import at once, one puts it back too early, and every later process that imports the module, a
    user's too, looks for a checker that it does not have.
    """
    loader, write = _JaxtypingLoader, _JaxtypingLoader._cache_bytecode

    def guarded(self: Any, source_path: str, bytecode_path: str, data: Any) -> None:
        if "opt-jaxtyping" in bytecode_path:
            write(self, source_path, bytecode_path, data)

    loader._cache_bytecode = guarded  # type: ignore[method-assign]


def unchecked(attribute: Any) -> Any:
    """A method or property of a class as it was written, without the checks."""
    match attribute:
        case property():
            return property(*map(unchecked, (attribute.fget, attribute.fset, attribute.fdel)))
        case classmethod() | staticmethod():
            return type(attribute)(unchecked(attribute.__func__))
        case FunctionType() if attribute.__code__.co_filename == _WRAPPER:
            # Not `__wrapped__`: on a decorator's own function that is what it decorates, whose
            # signature it is to show.
            function = inspect.getclosurevars(attribute).nonlocals["fn"]
            inside = attribute.__wrapped__
            return function if inside is function else functools.update_wrapper(function, inside)
        case _:
            return attribute


def classes_of(package: str) -> set[type]:
    """The classes that the loaded modules of a package define."""
    modules = [module for name, module in sys.modules.items() if name.startswith(package)]
    values = [value for module in modules for value in vars(module).values()]
    return {v for v in values if isinstance(v, type) and v.__module__.startswith(package)}
