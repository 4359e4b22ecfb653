"""Tensors that depend on sizes alone, made once per device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable)


def constant_in_graphs(function: Function) -> Function:
    """Marks a function of plain values whose result a compiled graph may keep as a constant.

    As ``torch.compiler.assume_constant_result``, which would import the compiler (seconds) here.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def cached(maxsize: int = 256) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Caches a function of hashable arguments that makes tensors; pass their device as one of them.

    What is made while a program is traced (export, fake tensors) belongs to that trace and would
    break every later call, so it is never cached. What is made in inference mode can be saved for a
    backward pass later on, and what is made inside ``torch.func.grad`` and the like outlives them.
    """

    def wrap(make: Callable[..., Result]) -> Callable[..., Result]:
        @functools.lru_cache(maxsize)
        def kept(*args: Any) -> Result:
            with temporarily_clear_interpreter_stack(), torch.inference_mode(False):
                return make(*args)

        @functools.wraps(make)
        def call(*args: Any) -> Result:
            if torch.compiler.is_compiling() or _get_current_dispatch_mode_stack():
                return make(*args)
            return kept(*args)

        return call

    return wrap


def cached_constant(maxsize: int = 256) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """As `cached`, of tensors that a compiled graph keeps as constants."""
    return lambda make: constant_in_graphs(cached(maxsize)(make))


def drawn(draw: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor:
    """Draws numbers that a traced program holds: a generator in it would go on in each call."""
    with _disable_current_modes():
        numbers = draw().tolist()
    return torch.tensor(numbers, device=device)


@cached_constant()
def constant(
    values: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device
) -> torch.Tensor:
    """A float32 tensor of these numbers; no copy to the device after the first call."""
    return torch.tensor(values, dtype=torch.float32, device=device)
