"""Plugin of pytest: shows a failure when it happens, since a time limit may end the tests before
their summary.
"""

from __future__ import annotations

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Prints what failed and why."""
    if report.failed:
        print(f"\nFAILED {report.nodeid}\n{report.longreprtext}", flush=True)
