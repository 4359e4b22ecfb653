"""Malformed command lines end in one clear sentence: no traceback, no run, no hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import malformed
import pytest
import small_runs

from adaptok.cli import main

IN_PROCESS, AS_PROCESSES = 200, 20
LONGEST = 450  # characters of a sentence


def check(line: malformed.Line, status: int, errors: str) -> None:
    """Asserts that a line was refused in one sentence that names the key."""
    typed = f"{line.command} {line.words[-1]} ({line.kind}): status {status}, {errors}"
    sentences = [text for text in errors.splitlines() if text.strip()]
    assert status == 2, typed
    assert len(sentences) == 1, typed
    assert sentences[0].startswith("adaptok: error: "), typed
    assert line.is_named_in(sentences[0]), typed
    assert len(sentences[0]) < LONGEST, typed


@pytest.mark.slow
def test_lines_are_drawn_from_all_commands_and_kinds():
    drawn = malformed.lines(IN_PROCESS)
    assert drawn == malformed.lines(IN_PROCESS)
    assert len({(line.command, *line.words) for line in drawn}) == IN_PROCESS
    assert {line.command for line in drawn} == {command for command, _ in malformed.BASES.values()}
    kinds = {kind for wrong in malformed.WRONG.values() for kind in wrong} | {"key", "group"}
    assert {line.kind for line in drawn} == kinds


@pytest.fixture(scope="module")
def made() -> None:
    """The data set of the lines: making it shows a bar."""
    assert main(["data", *small_runs.data()]) == 0


@pytest.mark.slow
def test_malformed_lines_in_this_process(made, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in malformed.lines(IN_PROCESS):
        status = main([line.command, *line.words])
        check(line, status, capsys.readouterr().err)
    assert not [*tmp_path.rglob("metrics.json")]


@pytest.mark.slow
def test_malformed_lines_as_processes(made, tmp_path):
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for line in malformed.lines(AS_PROCESSES, seed=1):
        done = subprocess.run(
            [sys.executable, "-m", "adaptok", line.command, *line.words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        check(line, done.returncode, done.stderr)
