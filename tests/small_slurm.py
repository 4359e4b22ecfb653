"""A SLURM of one node on this machine, with state in a folder and ports of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "sinfo")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES State=UP
"""
# Without a database there is no sacct, by which submitit learns what has become of a job.
SACCT = """\
#!/bin/sh
echo 'JobID|State|NodeList'
for word in "$@"; do
  case "$word" in [0-9]*)
    scontrol -o show job "${word%%_*}" 2>/dev/null | awk '{
      for (i = 1; i <= NF; i++) { n = index($i, "="); f[substr($i, 1, n - 1)] = substr($i, n + 1) }
      name = "ArrayTaskId" in f ? f["ArrayJobId"] "_" f["ArrayTaskId"] : f["JobId"]
      print name "|" f["JobState"] "|" f["NodeList"]; delete f
    }'
  esac
done
"""


def why_not() -> str | None:
    """Tells why SLURM cannot run here; None if it can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"{', '.join(missing)} missing (Debian: slurm-wlm, munge)"
    return None if os.geteuid() == 0 else "its daemons are started as root here"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Runs the daemons; gives the environment in which its commands find them."""
    host, key = socket.gethostname().partition(".")[0], folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    config, sacct = folder / "slurm.conf", folder / "bin" / "sacct"
    config.write_text(CONFIG.format(host=host, user="root", folder=folder, ports=_free_ports(2)))
    sacct.parent.mkdir()
    sacct.write_text(SACCT)
    sacct.chmod(0o755)
    environment = os.environ | {
        "SLURM_CONF": str(config),
        "PATH": f"{sacct.parent}:{os.environ['PATH']}:/usr/sbin",
    }
    munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
    for name in ("socket", "pid-file", "log-file", "seed-file"):
        munge.append(f"--{name}={folder}/munge.{name.partition('-')[0]}")
    daemons = [
        subprocess.Popen(
            words,
            env=environment,
            stdout=(folder / f"{words[0]}.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for words in (munge, ["slurmctld", "-D"], ["slurmd", "-D"])
        if not time.sleep(1)  # each needs the one before
    ]
    try:
        deadline = time.monotonic() + 60
        while "idle" not in _output(["sinfo", "-h", "-o", "%T"], environment):
            if time.monotonic() > deadline:
                logs = "\n".join(p.read_text()[-600:] for p in folder.glob("*.log"))
                raise RuntimeError(f"SLURM does not come up: {logs}")
            time.sleep(0.5)
        yield environment
    finally:
        _output(["scancel", "--user", "root", "--signal=KILL", "--full"], environment)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def _output(words: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    return done.stdout
