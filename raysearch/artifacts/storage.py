"""Files in a folder that is local or in an object store, through one interface."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from pyarrow import ArrowException, memory_map
from pyarrow import fs as arrow_fs

from raysearch.artifacts.location import check_name, open_filesystem, read_location, redact
from raysearch.artifacts.outage import ask_again
from raysearch.errors import StorageError
from raysearch.temporary import is_abandoned, is_temporary, temporary_name

CHUNK_BYTES = 8 << 20

T = TypeVar("T")


class Storage:
    """A folder at a URI or a local path; names are relative to it, with `/` between their parts.

    Nothing is contacted before the first access: pyarrow looks up an S3 bucket's region as soon as its
    filesystem is made.

    Attributes:
        uri: the absolute local path, or the URI as given.
        is_local: whether it is on this machine's file system.
        patience_seconds: for how long an object store that fails is asked again, at growing intervals; a
            local disk never is. 0, for whoever only looks at a run, takes the first failure for an answer.

    Args:
        location: `runs`, `/data/runs`, `file:///data/runs`, `s3://bucket/runs`, `gs://bucket/runs`, or a
            URI that an installed fsspec knows.
        patience_seconds: see the attribute.

    Raises:
        StorageError: the scheme is unknown, or a file:// URI names another machine.
    """

    def __init__(self, location: str | os.PathLike[str], patience_seconds: float = 0.0) -> None:
        self._scheme, self.uri = read_location(location)
        self.is_local = self._scheme == "file"
        self.patience_seconds = patience_seconds

    def __repr__(self) -> str:
        return f"Storage({self.shown()!r})"

    def shown(self, name: str = "") -> str:
        """The location of a file as messages give it, without credentials."""
        base = redact(self.uri)
        return f"{base}/{name}" if name else base

    def child(self, name: str) -> Storage:
        """The folder `name` below this one."""
        # A URI's options stay at its end; in a local path a question mark is a letter like any other.
        if self.is_local:
            return Storage(f"{self.uri.rstrip('/')}/{check_name(name)}")
        address, question_mark, options = self.uri.partition("?")
        uri = f"{address.rstrip('/')}/{check_name(name)}{question_mark}{options}"
        return Storage(uri, self.patience_seconds)

    def impatient(self) -> Storage:
        """The same folder for what must not wait: nothing depends on a file that is written next time."""
        return Storage(self.uri)

    def local_path(self, name: str = "") -> Path:
        """The path of a file on this machine.

        Raises:
            StorageError: the storage is not local.
        """
        if not self.is_local:
            raise StorageError(
                f"{self.shown(name)} is not on this machine's disk, and a local path is needed. "
                "Copy it first, for example with `raysearch retrieve`."
            )
        return Path(self.uri, check_name(name)) if name else Path(self.uri)

    def read_bytes(self, name: str, most: int | None = None) -> bytes:
        """The whole content of a file.

        Args:
            name: of the file.
            most: bytes that it may have; none of a larger one are read.

        Raises:
            StorageError: it is missing, too large, or cannot be read.
        """

        def read() -> bytes:
            with self._filesystem.open_input_file(self._path(name)) as stream:
                if most is not None and stream.size() > most:
                    raise StorageError(
                        f"{self.shown(name)} has {stream.size():,} bytes, and raysearch writes {most:,} at "
                        "most: it is not read. Whoever wrote it, do not use this folder."
                    )
                return cast(bytes, stream.read())

        return self._done("read", name, read)

    def map_bytes(self, name: str) -> bytes | memoryview:
        """The content of a file; of a local one the pages of the disk's cache, and not a copy of them.

        Files are replaced and never changed, so what is mapped stays as it is.

        Raises:
            StorageError: it is missing or cannot be read.
        """
        if not self.is_local:
            return self.read_bytes(name)

        def read() -> bytes | memoryview:
            # Nothing cannot be mapped.
            if not os.path.getsize(self._path(name)):
                return b""
            with memory_map(self._path(name)) as stream:
                return memoryview(stream.read_buffer())

        return self._done("read", name, read)

    def read_chunks(self, name: str) -> Iterator[bytes]:
        """The content of a file piece by piece, for files that may be larger than memory.

        Raises:
            StorageError: it is missing or cannot be read.
        """
        offset = 0

        def read() -> bytes:
            # Opened for each piece, so that one that fails is all that is read again.
            with self._filesystem.open_input_file(self._path(name)) as stream:
                return cast(bytes, stream.read_at(CHUNK_BYTES, offset))

        while chunk := self._done("read", name, read):
            yield chunk
            offset += len(chunk)

    def write_bytes(self, name: str, data: bytes | memoryview, *, durable: bool = True) -> None:
        """Write a file whole: a reader sees the old content or the new one, never a part.

        Args:
            name: of the file.
            data: its content.
            durable: on a local disk, wait until content and name outlast a loss of power.

        Raises:
            StorageError: it cannot be written.
        """
        self._write(name, lambda: (data,), durable=durable)

    def write_file(self, name: str, source: Path) -> None:
        """Write a file whole, as `write_bytes` does, with the content of a local file.

        Raises:
            StorageError: it cannot be written, or the source cannot be read.
        """
        self._write(name, lambda: Storage(source.parent).read_chunks(source.name), durable=True)

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of this name.

        Raises:
            StorageError: the storage cannot be reached.
        """
        info = self._done("look up", name, lambda: self._filesystem.get_file_info(self._path(name)))
        return bool(info.type != arrow_fs.FileType.NotFound)

    def list(self, name: str = "") -> tuple[str, ...]:
        """Every file below a folder, at any depth, sorted; empty for a folder that does not exist.

        Names are relative to this storage. Files still being written are left out.

        Raises:
            StorageError: the storage cannot be reached.
        """
        base = self._path("").strip("/")
        selector = arrow_fs.FileSelector(self._path(name), recursive=True, allow_not_found=True)
        infos = self._done("list", name, lambda: self._filesystem.get_file_info(selector))
        paths = [info.path.strip("/") for info in infos if info.type == arrow_fs.FileType.File]
        names = [path[len(base) :].strip("/") for path in paths]
        return tuple(sorted(name for name in names if not is_temporary(PurePosixPath(name).name)))

    def folders(self) -> tuple[str, ...]:
        """Names of the folders directly below this one, sorted; none where there is no such folder.

        Raises:
            StorageError: the storage cannot be reached.
        """
        selector = arrow_fs.FileSelector(self._path(""), allow_not_found=True)
        infos = self._done("list", "", lambda: self._filesystem.get_file_info(selector))
        return tuple(sorted(info.base_name for info in infos if info.type == arrow_fs.FileType.Directory))

    def delete_dir(self, name: str) -> None:
        """Delete a folder below this one with all it holds; nothing happens when there is none.

        Raises:
            StorageError: it cannot be deleted.
        """
        if self.exists(check_name(name)):
            self._done("delete", name, lambda: self._filesystem.delete_dir(self._path(name)))

    def delete_file(self, name: str) -> None:
        """Delete one file below this folder.

        Raises:
            StorageError: it does not exist or cannot be deleted.
        """
        path = self._path(check_name(name))
        self._done("delete", name, lambda: self._filesystem.delete_file(path))

    def clear_abandoned(self, *, recursive: bool = True) -> None:
        """Delete the files in the middle of which a process was killed; what a living one writes stays.

        Args:
            recursive: whether in the folders below too.

        Raises:
            StorageError: the storage cannot be reached.
        """
        selector = arrow_fs.FileSelector(self._path(""), recursive=recursive, allow_not_found=True)
        for info in self._done("list", "", lambda: self._filesystem.get_file_info(selector)):
            is_file = info.type == arrow_fs.FileType.File
            # Some stores do not tell when a file was written.
            changed = info.mtime_ns / 1e9 if info.mtime_ns else math.inf
            if is_file and is_abandoned(info.base_name, changed):
                # Another process may have been quicker.
                with suppress(OSError):
                    self._filesystem.delete_file(info.path)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return open_filesystem(self._scheme, self.uri)

    @property
    def _filesystem(self) -> Any:
        return self._opened[0]

    def _path(self, name: str) -> str:
        base = self._opened[1].rstrip("/")
        return f"{base}/{check_name(name)}" if name else (base or "/")

    def _done(self, action: str, name: str, ask: Callable[[], T]) -> T:
        """What the file system answers; its failures are explained, and those of an outage waited out.

        Args:
            action: what is done, for messages.
            name: of the file.
            ask: does it, and may be called again.
        """
        seconds = 0.0 if self.is_local else self.patience_seconds
        try:
            return ask_again(ask, seconds, self.shown(name))
        except FileNotFoundError as error:
            raise StorageError(f"{self.shown(name)} does not exist.") from error
        except (OSError, ArrowException) as error:
            waited = f" (asked again for {seconds:.0f} seconds)" if seconds else ""
            reason = str(error).rstrip(".")
            # Client, driver and nodes are machines of their own, of which one may not reach it.
            advice = "" if self.is_local else f". Look whether {platform.node()} reaches it and has its keys."
            raise StorageError(f"cannot {action} {self.shown(name)}{waited}: {reason}{advice}") from error

    def _write(
        self, name: str, contents: Callable[[], Iterable[bytes | memoryview]], *, durable: bool
    ) -> None:
        """See `write_bytes`; `contents` gives the pieces, from the first one each time it is called."""
        path = self._path(check_name(name))
        folder, _, leaf = path.rpartition("/")
        # An object store shows a file only once its upload is complete, and cannot rename.
        written = f"{folder}/{temporary_name(leaf)}" if self.is_local else path

        def write() -> None:
            # Object stores have no folders.
            if self._scheme not in ("s3", "gs", "gcs"):
                self._filesystem.create_dir(folder, recursive=True)
            with self._filesystem.open_output_stream(written, compression=None) as stream:
                for piece in contents():
                    stream.write(piece)
            if written != path:
                # The content first, then its name: the other way about, a loss of power leaves an empty
                # file under the final name.
                if durable:
                    _sync(written)
                self._filesystem.move(written, path)
                if durable:
                    _sync(folder)

        try:
            self._done("write", name, write)
        except BaseException:
            # Whatever stopped the writing, an interrupt too, half a file is not left behind.
            if written != path:
                with suppress(OSError):
                    self._filesystem.delete_file(written)
            raise


def _sync(path: str) -> None:
    """Wait until the disk holds a file's content, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
