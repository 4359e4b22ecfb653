"""``adaptok data check PATH``: what is wrong with a file or a data set."""

from __future__ import annotations

import sys


def print_check(*paths: str) -> int:
    """Prints everything that is wrong, a line each; returns 1 if there is anything, else 0.

    Raises:
        ValueError: no path, or one with nothing to check.
    """
    from adaptok.data.check import check

    if not paths:
        raise ValueError("data check takes a file, a folder or a URL: adaptok data check PATH")
    bad = False
    for path in paths:
        report = check(path)
        for problem in report.problems:
            print(problem)
        count = f"{report.files} file{'s' if report.files != 1 else ''}"
        found = len(report.problems)
        verdict = f"{found} problem{'s' if found != 1 else ''}" if found else "nothing wrong"
        print(f"{path}: {count}, {verdict}", file=sys.stderr if found else sys.stdout)
        bad = bad or bool(found)
    return int(bad)
