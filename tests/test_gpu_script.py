"""The script for a GPU, where there is none: its parts exist and fit into its time."""

from __future__ import annotations

from importlib.util import find_spec

from gpu.run import parts


def test_the_parts_exist_and_take_nine_minutes_at_most(tmp_path):
    found = parts(tmp_path)
    assert sum(limit for _, limit in found.values()) <= 9 * 60
    modules = [command[2] for command, _ in found.values()]
    assert [module for module in modules if find_spec(module) is None] == []
