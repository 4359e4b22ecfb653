"""The run-time type checker that conftest.py puts on every function of adaptok."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from beartype import beartype


def after_the_call(function: Callable) -> Callable:
    """Checks shapes and types once a call has returned, not before it.

    jaxtyping checks a function twice: its parameters before the call, then parameters and result
    after it, through stand-ins of which the second has one more parameter (``ret0``). Leaving out
    the first lets adaptok's own errors on bad input be seen, while a function that accepts
    something its annotations exclude, or returns it, still fails.
    """
    names = inspect.signature(function).parameters
    result_is_known = any(name.startswith("ret") and name[3:].isdigit() for name in names)
    return beartype(function) if result_is_known else function
