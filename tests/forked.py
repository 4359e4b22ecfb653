"""Python commands as processes that start in no time: forks of one that has imported it all.

Importing Lightning takes ten seconds of a core, more than the run of a test. A server imports once
per session of tests; a command gets a group, an environment, streams and a `__main__` of its own.
Pictures are blank. What is said about starting, `python -m adaptok` itself, is tested elsewhere.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import composing  # noqa: F401 (in the fork, which imports this module)
import pytest
from drawing import blank

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["adaptok.cli.commands", "adaptok.tasks.surrogate", "hydra.main", "matplotlib.pyplot"]
)


def _become(words: Sequence[str], streams: str, cwd: str, env: dict[str, str]) -> None:
    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(streams, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    module = words[1] if words[0] == "-m" else None
    sys.argv = list(words[1:] if module else words)
    try:
        with blank():
            if module:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()


class Forked:
    """As `subprocess.Popen([sys.executable, *words], start_new_session=True)` with both streams."""

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._streams = tempfile.TemporaryDirectory(prefix="adaptok-forked-")
        whole = dict(os.environ if env is None else env)
        arguments = (tuple(map(str, words)), self._streams.name, str(cwd or Path.cwd()), whole)
        self._process = SERVER.Process(target=_become, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.args, self.pid = words, self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status once it has ended, negative if a signal ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(list(self.args), timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits; returns what it wrote to its two streams."""
        self.wait(timeout)
        files = [Path(self._streams.name, name) for name in ("stdout", "stderr")]
        out, err = (file.read_text() if file.exists() else "" for file in files)
        return out, err

    def kill(self) -> None:
        """Kills the process alone."""
        self._process.kill()


def run_forked(
    words: Sequence[str], env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of Python with both streams."""
    process = Forked(words, env=env)
    out, err = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def fork_in_place_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `subprocess.run` of other modules fork what starts with this Python."""
    original = subprocess.run

    def run(words: Sequence[str], *, check: bool = False, **options: Any) -> Any:
        if words[0] != sys.executable:
            return original(words, check=check, **options)
        done = run_forked(words[1:], os.environ, timeout=600)
        sys.stderr.write(done.stderr)
        if check:
            done.check_returncode()
        return done

    monkeypatch.setattr(subprocess, "run", run)
