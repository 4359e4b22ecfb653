"""Malformed command lines end in one clear sentence: no traceback, no run, no hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import malformed
import pytest
import small_runs

from adaptok.cli import main

IN_PROCESS, AS_PROCESSES = 100, 10
LONGEST = 500  # characters of a sentence: one lists all data sets


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


FORKS = """
import json, os, signal, sys
from adaptok.cli import commands, main
main(["data", "no_such_key=1"])  # loads the plug-ins of Hydra
for line in sys.stdin:
    if os.fork() == 0:
        os.dup2(os.open(sys.argv[1], os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
        signal.alarm(60)
        os._exit(main(json.loads(line)))
    status = os.waitstatus_to_exitcode(os.wait()[1])
    print(json.dumps([status, open(sys.argv[1]).read()]), flush=True)
"""  # a process per line, each the child of one that has imported everything


@pytest.mark.slow
def test_malformed_lines_as_processes(made, tmp_path):
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    lines = malformed.lines(AS_PROCESSES, seed=1)
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path / "errors")],
        input="".join(json.dumps([line.command, *line.words]) + "\n" for line in lines),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    ends = [json.loads(text) for text in done.stdout.splitlines()]
    for line, (status, errors) in zip(lines, ends, strict=True):
        check(line, status, errors)
