"""The command `adaptok`, which a hook kills: `HOOK=os.replace:after:3 python hooked.py train ...`.

Before or after call number 3 of the function, the whole process group gets SIGKILL. With a fourth
word, as in `os.replace:after:3:SIGHUP`, this process alone gets that signal.
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
    name, when, number, *alone = hook.split(":")
    place, _, attribute = name.rpartition(".")
    module: Any = importlib.import_module(place)
    original, calls = getattr(module, attribute), [0]

    def kill() -> None:
        if alone:
            os.kill(os.getpid(), signal.Signals[alone[0]])
        else:
            os.killpg(0, signal.SIGKILL)

    @functools.wraps(original)
    def killing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == int(number) and when == "before":
            kill()
        result = original(*args, **kwargs)
        if calls[0] == int(number) and when == "after":
            kill()
        return result

    setattr(module, attribute, killing)


if __name__ == "__main__":
    # Those of a terminal: a shell starts what it runs in the background without them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if os.environ.get("HOOK"):
        install(os.environ["HOOK"])
    from adaptok.cli import main

    sys.exit(main())
