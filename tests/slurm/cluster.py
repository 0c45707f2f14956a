"""A real Slurm for tests: a controller and two nodes on this host, in a scratch folder.

Nothing under /etc is read or written.

    with Slurm(folder) as slurm:
        slurm.command("sbatch", "--wrap", "hostname")

It needs root (slurmd starts jobs as their users) and Debian's packages; `unavailable` says what is missing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
NODES = ("n1", "n2")
CONFIG = """\
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=3
MinJobAge=3600
InactiveLimit=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory={memory}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory={memory}
PartitionName=low  Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=n1,n2 Default=NO  MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def unavailable() -> str | None:
    """Why no Slurm can be started here, or None."""
    if sys.platform != "linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root: slurmd starts jobs as their users"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed (apt-get install {' '.join(PACKAGES)})" if absent else None


def install() -> None:
    """Installs Debian's packages where that is possible and needed; whether it helped, `unavailable` says."""
    if unavailable() is None or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with contextlib.suppress(subprocess.TimeoutExpired):
        for words, seconds in ((["update"], 180), (["install", "-y", "--no-install-recommends", *PACKAGES], 300)):
            subprocess.run(["apt-get", *words], check=False, timeout=seconds, env=environment, capture_output=True)


class Slurm:
    """A running Slurm; leaving the context cancels every job and ends every daemon. Every call has a time limit."""

    def __init__(self, root: Path, cpus: int = 4, memory_mb: int = 20000) -> None:
        self.root, self.cpus, self.memory = root.absolute(), cpus, memory_mb
        self.daemons: list[Path] = []
        self.before: dict[str, str | None] = {}

    def __enter__(self) -> Self:
        for name in ("munge", "run", "state", "log", *(f"spool.{node}" for node in NODES)):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        conf = self.root / "slurm.conf"
        conf.write_text(
            CONFIG.format(
                root=self.root, host=socket.gethostname(), ports=free_ports(3), cpus=self.cpus, memory=self.memory
            )
        )
        self._set({"SLURM_CONF": str(conf), "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": None})
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *about: object) -> None:
        self._stop()

    def command(self, *words: str, seconds: float = 30, check: bool = True) -> str:
        """What a Slurm command prints. Raises where it fails or takes too long."""
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=seconds)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def queue(self) -> list[tuple[str, str, str, str]]:
        """(id, partition, state, name) of every job that waits or runs; an element of an array is a job."""
        lines = self.command("squeue", "--noheader", "--array", "--format=%i|%P|%T|%j").splitlines()
        return [tuple(line.split("|", 3)) for line in lines]  # type: ignore[misc]

    def log(self) -> str:
        """The controller's log."""
        return (self.root / "log" / "slurmctld.log").read_text(errors="replace")

    def _start(self) -> None:
        munge = self.root / "munge"
        key = munge / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        places = {
            "key-file": key,
            "socket": munge / "munge.sock",
            "pid-file": munge / "munged.pid",
            "log-file": munge / "log",
            "seed-file": munge / "seed",
        }
        self._daemon(munge / "munged.pid", "munged", *(f"--{name}={path}" for name, path in places.items()))
        self._daemon(self.root / "run" / "slurmctld.pid", "slurmctld")
        for node in NODES:
            self._daemon(self.root / "run" / f"slurmd.{node}.pid", "slurmd", "-N", node)
        wait(
            lambda: (
                self.command("sinfo", "--noheader", "--Node", "--format=%t", check=False).split().count("idle")
                >= 2 * len(NODES)
            ),
            60,
            "idle nodes",
        )

    def _daemon(self, pid_file: Path, *words: str) -> None:
        said = self.root / "log" / f"{pid_file.stem}.out"  # a file: a pipe would stay open as long as the daemon runs
        with said.open("w") as file:
            done = subprocess.run(words, check=False, timeout=30, stdout=file, stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError(f"{words[0]} does not start: {said.read_text().strip()}")
        self.daemons.append(pid_file)
        wait(pid_file.exists, 20, words[0])

    def _stop(self) -> None:
        with contextlib.suppress(Exception):  # a Slurm that does not answer is ended all the same
            self.command("scancel", "--user=root", check=False)
            wait(lambda: not self.queue(), 20, "the end of all jobs")
        for pid_file in reversed(self.daemons):
            end(pid_file)
        self.daemons.clear()
        self._set(self.before)

    def _set(self, wanted: dict[str, str | None]) -> None:
        self.before = {name: os.environ.get(name) for name in wanted}
        for name, value in wanted.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def end(pid_file: Path, patience: float = 15) -> None:
    """Ends a daemon by its pid file, in earnest where it does not listen."""
    try:
        pid = int(pid_file.read_text())
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.kill(pid, number)
            until = time.monotonic() + patience
            while time.monotonic() < until:
                os.kill(pid, 0)
                time.sleep(0.05)
    except (OSError, ValueError):  # it has gone
        return


def wait(until: object, seconds: float, what: str) -> None:
    """Polls until a condition holds. Raises TimeoutError that says what was waited for."""
    assert callable(until)
    end_at = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end_at:
            raise TimeoutError(f"no {what} within {seconds:.0f} s")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports of this host that nothing listens on just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
