"""The table of figures: a line per kind of attack."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

Wrong = str | None  # what is wrong with a try; empty or None if nothing is
SHOWN = 3  # reasons in a line


class Row(NamedTuple):
    """A line of the table of figures."""

    what: str
    tried: int
    failed: int
    note: str = ""


def row(what: str, wrong: Sequence[Wrong], note: str = "") -> Row:
    """Makes a line of the outcomes of all tries."""
    failed = [reason for reason in wrong if reason]
    shown = [reason[:200].replace("|", "/") for reason in failed[:SHOWN]]
    return Row(what, len(wrong), len(failed), "; ".join([*shown, note] if note else shown))


def attempt(name: str, call: Callable[[], Wrong]) -> Wrong:
    """Runs a try, whose exceptions are failures; names it in what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reason = call()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    return f"{name}: {reason}" if reason else None


def refusal(call: Callable[[], object], *words: str) -> Wrong:
    """Says what is wrong with a call that must raise a ValueError (or OSError) with the words."""
    try:
        call()
    except (ValueError, OSError) as error:
        missing = [word for word in words if word not in str(error)]
        return f"does not say {missing[0]}: {error}" if missing else None
    return "accepted"


def tried(what: str, tries: Iterable[tuple[str, Callable[[], Wrong]]], note: str = "") -> Row:
    """Runs named tries and makes a line of their outcomes."""
    return row(what, [attempt(name, call) for name, call in tries], note)
