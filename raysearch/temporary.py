"""Files and folders for a while: their names say which process made them, so another can clear them away."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

ABANDONED_SECONDS = 600.0
"""After how long without a change something counts as left behind whose process cannot be looked up."""

PREFIXES = ("raysearch", "rs")
"""Of folders below the system's temporary one; Ray's sockets leave room for a short name only."""

_MAKER = r"([0-9a-f]{6})-([0-9a-f]+)-([0-9a-f]+)-[0-9a-f]+"
_FILE = re.compile(rf"\..+\.{_MAKER}\.tmp", re.DOTALL)
_EARLIER = re.compile(r"\.(?:.+\.[0-9a-f]{8}|preflight-[0-9a-f]{16})\.tmp", re.DOTALL)
"""As raysearch named them before names said the process."""

_FOLDER = re.compile(rf"(?:{'|'.join(PREFIXES)})-{_MAKER}")


def machine() -> str:
    """What tells whether a process number is of this machine: its last start and its namespace of processes.

    "" where the system does not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_ticks(pid: int) -> int:
    """When a process started; 0 where there is none, or where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The second field is the program's name in brackets, which may hold anything.
    fields = stat.rpartition(")")[2].split()
    is_zombie = fields[0] == "Z"
    return 0 if is_zombie else int(fields[19])


def temporary_name(name: str) -> str:
    """The name under which this process writes a file before it gets its own."""
    return f".{name}.{_maker()}-{secrets.token_hex(4)}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file, by its last name, is one that is being written."""
    return name.startswith(".") and name.endswith(".tmp")


def is_abandoned(name: str, changed: float) -> bool:
    """Whether a file is left behind that was being written: nobody writes it any more.

    On its own machine its process is looked up. Elsewhere, and of a name that says no process, the time of
    its last change decides.

    Args:
        name: its last name.
        changed: Unix time of its last change.
    """
    match = _FILE.fullmatch(name)
    if match is not None and match[1] == _machine_digest():
        return _is_dead(match)
    # Whatever another program calls temporary is not ours to delete.
    is_ours = match is not None or _EARLIER.fullmatch(name) is not None
    return is_ours and time.time() - changed > ABANDONED_SECONDS


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder below the system's temporary one, for a while; what killed processes left goes first."""
    with _folder(Path(tempfile.gettempdir()), PREFIXES[0], secrets.token_hex(4)) as folder:
        yield folder


@contextmanager
def short_folder() -> Iterator[Path]:
    """The same with a short path.

    Ray puts unix sockets deep inside it, and their paths must stay below 107 characters.
    """
    parent = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
    with _folder(Path(parent), PREFIXES[1], secrets.token_hex(2)) as folder:
        yield folder


@contextmanager
def _folder(parent: Path, prefix: str, drawn: str) -> Iterator[Path]:
    _clear_folders(parent)
    folder = parent / f"{prefix}-{_maker()}-{drawn}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        # Processes that were started in it may still be writing their last lines.
        shutil.rmtree(folder, ignore_errors=True)


def _clear_folders(parent: Path) -> None:
    """Delete what dead processes of this machine left; another user's cannot be deleted."""
    with suppress(OSError):
        for name in os.listdir(parent):
            match = _FOLDER.fullmatch(name)
            if match is not None and match[1] == _machine_digest() and _is_dead(match):
                shutil.rmtree(parent / name, ignore_errors=True)


def _is_dead(maker: re.Match[str]) -> bool:
    return start_ticks(int(maker[2], 16)) != int(maker[3], 16)


def _maker() -> str:
    """This process: asked for each time, since a fork is another."""
    pid = os.getpid()
    return f"{_machine_digest()}-{pid:x}-{start_ticks(pid):x}"


def _machine_digest() -> str:
    name = machine()
    # Where the system does not tell, no other process must take a file for its own machine's.
    return blake2b(name.encode(), digest_size=3).hexdigest() if name else secrets.token_hex(3)
