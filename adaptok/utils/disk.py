"""Says in words why something could not be written, whichever library noticed it."""

from __future__ import annotations

import errno
import os

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the system allows no file of this size",
}


def why_full(error: BaseException | None) -> str | None:
    """Finds a full disk, or another limit of this kind, among an error and its causes.

    Returns:
        "the disk is full" or the like; None if something else is wrong.
    """
    while error is not None:
        for code, words in FULL.items():
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                return words
        error = error.__cause__ or error.__context__
    return None
