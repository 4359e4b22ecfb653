"""The run-time type checker that conftest.py puts on every function of adaptok."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep3119Exception


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
    try:
        return beartype(function)
    except BeartypeDecorHintPep3119Exception:  # a Protocol without @runtime_checkable
        return function
