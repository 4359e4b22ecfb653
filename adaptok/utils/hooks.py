"""Whether a module is what its weights say."""

from __future__ import annotations

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of this very class, without hooks and with its own forward pass, so that
    calling it does nothing but what follows from its weights.
    """
    hooked = any(len(getattr(module, name)) for name in _HOOKS)
    return type(module) is kind and not hooked and "forward" not in vars(module)
