"""Kill and resume, bit for bit: six of the kills that `experiments/reliability` measures."""

from __future__ import annotations

import pytest
from reliability import kills, signals

REFERENCES: dict[str, kills.Reference] = {}


@pytest.fixture
def reference(request, tmp_path_factory):
    """An uninterrupted run of the mode, made once."""
    mode = request.node.callspec.params["mode"]
    if mode not in REFERENCES:
        REFERENCES[mode] = kills.whole(mode, tmp_path_factory.mktemp(mode))
    return REFERENCES[mode]


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(kills.MODES))
def test_killed_at_a_hook(reference, mode, tmp_path):
    hook = kills.HOOKS[list(kills.MODES).index(mode)]
    assert not kills.killed_by_hook(hook, mode, tmp_path / "run", reference)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(kills.MODES))
def test_killed_at_random(reference, mode, tmp_path):
    done, wrong = kills.killed_at_random(1, mode, tmp_path / "run", reference)
    assert not wrong
    assert done <= 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp"])
def test_a_signal_to_one_of_two_processes_ends_both(reference, mode, tmp_path):
    """Lightning's own handler leaves them waiting for each other."""
    hook = signals.HOOKS[0]
    assert not signals.ended(hook, "SIGTERM", mode, tmp_path / "run", reference)
