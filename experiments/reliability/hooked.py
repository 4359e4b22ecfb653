"""The command `adaptok`, which a hook kills: `HOOK=os.replace:after:3 python hooked.py train ...`.

Before or after call number 3 of the function, the whole process group gets SIGKILL.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from typing import Any


def install(hook: str) -> None:
    """Replaces the function of the hook by one that kills."""
    name, when, number = hook.split(":")
    place, _, attribute = name.rpartition(".")
    module: Any = importlib.import_module(place)
    original, calls = getattr(module, attribute), [0]

    @functools.wraps(original)
    def killing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == int(number) and when == "before":
            os.killpg(0, signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls[0] == int(number):
            os.killpg(0, signal.SIGKILL)
        return result

    setattr(module, attribute, killing)


if __name__ == "__main__":
    if os.environ.get("HOOK"):
        install(os.environ["HOOK"])
    from adaptok.cli import main

    sys.exit(main())
