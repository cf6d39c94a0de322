"""A throw-away SLURM cluster of two nodes on this machine: no root, no slurmdbd, up in a second."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import psutil

from tests.sweeps import wait_until

TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
NODES = ("n1", "n2")
DAEMONS = ("slurmctld", *NODES)
PATH = f"{os.environ['PATH']}:/usr/sbin"
MISSING = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
PACKAGES = "Debian: slurmctld slurmd slurm-client"

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
Prolog={folder}/prolog
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
MpiDefault=none
KillWait=1
SlurmdTimeout={patience}
MaxArraySize={array}
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=8000
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """The daemons of one cluster; `with` starts them and stops them at its end.

    Args:
        array: MaxArraySize; an array has at most so many tasks.
        patience: seconds after which a node that does not answer is down, and its jobs are lost;
            by a third of it the controller asks the nodes what they run.
    """

    def __init__(self, folder: Path, array: int = 1001, patience: int = 300) -> None:
        self.folder = folder
        self.array = array
        self.patience = patience
        self.conf = folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What finds the cluster and its programs."""
        return {"SLURM_CONF": str(self.conf), "PATH": PATH}

    def __enter__(self) -> "Cluster":
        for attempt in (1, 2, 3):  # a port that was free may be taken before its daemon has it
            self._configure()
            for name in DAEMONS:
                self.start(name)
            try:
                wait_until(self._up, f"the cluster does not start: {self.folder}", 30)
            except BaseException as error:
                self._stop()
                if attempt == 3 or not isinstance(error, TimeoutError):
                    raise
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        for name in DAEMONS:
            if name not in self.daemons:
                self.start(name)  # what a test killed: nobody else ends the jobs
        try:
            self.ask("scancel", "--me")
            wait_until(lambda: not self.ask("squeue", "--noheader", "--me"), "jobs do not end", 60)
        finally:
            self._stop()

    def start(self, name: str) -> None:
        """Start a daemon: slurmctld, or that of a node."""
        node = ["slurmd", "-D", "-N", name] if name in NODES else ["slurmctld", "-D", "-i"]
        self.daemons[name] = subprocess.Popen(
            [*node, "-f", str(self.conf)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )

    def kill(self, name: str) -> None:
        """Kill a daemon at once; `start` brings it back."""
        process = self.daemons.pop(name)
        process.kill()
        process.wait()

    def break_nodes(self) -> None:
        """From now on each node fails before a job's start: SLURM drains it and holds the job."""
        (self.folder / "prolog").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")

    def mend_nodes(self) -> None:
        """Nodes start jobs again, also those that SLURM has drained."""
        (self.folder / "prolog").write_text("#!/bin/sh\n", encoding="utf-8")
        for node in NODES:
            if "drain" in self.ask("sinfo", "--noheader", f"--nodes={node}", "--format=%t"):
                self.ask("scontrol", "update", f"nodename={node}", "state=resume")

    def ask(self, *command: str) -> str:
        """The output of one of SLURM's commands."""
        return subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **self.environment},
        ).stdout

    def _configure(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(parents=True)
        (self.folder / "prolog").write_text("#!/bin/sh\n", encoding="utf-8")
        (self.folder / "prolog").chmod(0o755)
        values = {
            "host": socket.gethostname().partition(".")[0],
            "user": getpass.getuser(),
            "ports": _free_ports(3),
            "array": self.array,
            "patience": self.patience,
        }
        self.conf.write_text(CONF.format(folder=self.folder, **values), encoding="utf-8")

    def _up(self) -> bool:
        try:
            shown = self.ask("sinfo", "--noheader", "--Node", "--format=%N %t")
        except subprocess.SubprocessError:
            return False
        return shown.split() == ["n1", "idle", "n2", "idle"]

    def _stop(self) -> None:
        for process in reversed(self.daemons.values()):
            process.terminate()
        for process in self.daemons.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        self.daemons.clear()
        for one in psutil.process_iter():  # these outlive their daemon, and try to reach it
            with contextlib.suppress(psutil.Error):
                ours = one.environ().get("SLURM_CONF") == str(self.conf)
                if ours and one.name() == "slurmstepd":
                    one.kill()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
