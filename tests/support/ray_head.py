"""A real cluster of one node on this machine, as a user's cluster is: another process, a token."""

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


def processes_of(folder):
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder) in path.read_text():
                pids.append(int(path.parent.name))
    return pids


@contextlib.contextmanager
def started_head():
    """A cluster of one node that wants a token; `python` there is the one that runs the tests."""
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
        "num-cpus": 2,
        "object-store-memory": 80 << 20,
        "temp-dir": folder / "ray",
    }
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
    ]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    # As operators do it: the nodes have the keys of the bucket, and no run carries them.
    environment |= object_store.KEYS
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token_file)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

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
        for pid in processes_of(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
