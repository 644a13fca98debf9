"""A real cluster on this machine, as a user's cluster is: other processes, a token."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from raysearch.cluster.jobs import JobsClient
from raysearch.errors import JobError
from tests.support import object_store
from tests.support.patience import wait_until


@dataclass(frozen=True)
class Head:
    port: int
    dashboard_port: int
    folder: Path

    @property
    def address(self):
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def token_file(self):
        return self.folder / "token"


def free_ports(count):
    """Ports that stay free until they are used.

    They lie above those of Ray's workers and below those that the system gives to outgoing connections, of
    which other clusters open many meanwhile.
    """
    ports = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(f"fewer than {count} free ports between 20,000 and 32,000")


def processes_of(folder, told_by="cmdline"):
    """Numbers of processes whose command, or with `told_by="environ"` whose environment, names a folder."""
    pids = []
    for path in Path("/proc").glob(f"[0-9]*/{told_by}"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                pids.append(int(path.parent.name))
    return pids


def _parents():
    """The parent of every process, by their numbers."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return parents


def ray_start(head, arguments, options, log):
    """`ray start` as operators call it: the nodes have the token and the keys of the bucket."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    command += [*arguments, *(f"--{name}={value}" for name, value in options.items())]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment |= object_store.KEYS
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token_file)}
    with log.open("w") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


@contextlib.contextmanager
def second_node(head):
    """A node with two CPUs beside the head's; what is yielded ends it as a power cut does."""
    (agent_port,) = free_ports(1)
    options = {
        "address": f"127.0.0.1:{head.port}",
        "node-ip-address": "127.0.0.1",
        "dashboard-agent-listen-port": agent_port,
        "num-cpus": 2,
        "object-store-memory": 80 << 20,
    }
    log = head.folder / "second"
    process = ray_start(head, [], options, log)

    def is_up():
        assert process.poll() is None, log.read_text()
        return "Ray runtime started" in log.read_text()

    def lose():
        # What `ray start` started is a raylet, and what that started are its workers and agents. An agent
        # that outlives its raylet computes for a minute.
        parents = _parents()
        raylets = [pid for pid, parent in parents.items() if parent == process.pid]
        for pid in (*raylets, *(pid for pid, parent in parents.items() if parent in raylets)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    try:
        wait_until(is_up)
        yield lose
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def started_head():
    """A cluster of one node that wants a token; `python` there is the one that runs the tests.

    Ray takes a node's word for its GPU, so that its bookkeeping can be seen without one.
    """
    port, dashboard_port, agent_port, client_port = free_ports(4)
    folder = Path(tempfile.mkdtemp(prefix="rj-", dir="/tmp"))
    head = Head(port, dashboard_port, folder)
    head.token_file.write_text("0123456789abcdef" * 4)
    options = {
        "node-ip-address": "127.0.0.1",
        "port": port,
        "dashboard-port": dashboard_port,
        "dashboard-agent-listen-port": agent_port,
        "ray-client-server-port": client_port,
        "num-cpus": 3,
        "num-gpus": 1,
        "object-store-memory": 80 << 20,
        "temp-dir": folder / "ray",
    }
    process = ray_start(head, ["--head"], options, folder / "log")

    def is_up():
        assert process.poll() is None, (folder / "log").read_text()
        try:
            JobsClient(head.address, head.token_file).state("none")
        except JobError as error:
            return "none does not exist" in str(error)

    try:
        wait_until(is_up)
        yield head
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        # A process of Ray's may have a title in place of its command.
        for pid in {*processes_of(folder), *processes_of(folder, "environ")}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
