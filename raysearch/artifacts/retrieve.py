"""A finished run copied to this machine, every model file checked against its hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from raysearch.artifacts import codecs
from raysearch.artifacts.codecs import Codec
from raysearch.artifacts.location import check_name
from raysearch.artifacts.run_store import RUN_FILE, RunStore, resolve_run
from raysearch.artifacts.seals import MOST_SEALS_BYTES, SEALS_FILE
from raysearch.errors import StorageError
from raysearch.records import ExportedFile, RunStatus
from raysearch.temporary import temporary_name

MANIFEST = codecs.MANIFEST.files[0]


def retrieve(
    run: str | os.PathLike[str], storage: str | os.PathLike[str] | None, to: str | os.PathLike[str]
) -> Path:
    """Copy a finished run's records and model to a local folder and verify them.

    Each model file is checked while it is copied and appears only when its size and SHA-256 are those of
    `model/manifest.json`. Files already there are checked too and not copied again, so an interrupted
    retrieve is finished by the same call. Training checkpoints and units of work stay behind.

    Args:
        run: a run id, or the path or URI of a run's folder.
        storage: where runs are; needed for a bare run id.
        to: a folder that is empty, does not exist yet, or holds this same run.

    Returns:
        The absolute path of the folder.

    Raises:
        StorageError: there is no such run, it is not done, a file differs from the manifest, or the
            target holds something else.
    """
    return copy_run(resolve_run(run, storage), to)


def copy_run(store: RunStore, to: str | os.PathLike[str]) -> Path:
    """See `retrieve`, of a run that is open already."""
    _check_done(store)
    manifest = store.load(codecs.MANIFEST)
    for file in manifest.files:
        _check_listed(file.path)
    target = Path(to).expanduser().absolute()
    _claim(target, store)
    if store.has(SEALS_FILE):
        _write(target, SEALS_FILE, store.storage.read_bytes(SEALS_FILE, MOST_SEALS_BYTES))
    for file in manifest.files:
        _fetch(store, target, file)
    # result.json comes last, as in the run itself: where it is, everything else is.
    for record in codecs.RECORDS:
        if store.has(record):
            for name, data in _whole_files(store, record):
                _write(target, name, data)
    return target


def _whole_files(store: RunStore, record: Codec[Any]) -> list[tuple[str, bytes | memoryview]]:
    """The files of a record that can be read: what was damaged is not handed out."""
    files = store.read_files(record)
    store.understand(record, files)
    return [(name, file.data) for name, file in zip(record.files, files, strict=True)]


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a local file, in hexadecimal digits."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check_done(store: RunStore) -> None:
    status = RunStatus(store.run_id, "unknown")
    if store.has(codecs.STATUS):
        status = store.load(codecs.STATUS)
    if status.state == "done" and store.has(codecs.RESULT) and store.has(codecs.MANIFEST):
        return
    advice = {
        "running": f"It is in the stage '{status.stage}'; `raysearch status {store.run_id}` tells how far.",
        "failed": f"It failed in '{status.stage}': {status.message} Mend that and go on with --resume.",
        "cancelled": "Go on with it with `raysearch run --resume`.",
        "done": "Its result.json or model/manifest.json is missing: the copy is incomplete.",
    }.get(status.state, "Its status.json is missing: start it again with --resume.")
    raise StorageError(
        f"the run '{store.run_id}' at {store.uri} is '{status.state}'; only a run that is 'done' with all "
        f"its files can be retrieved. {advice}"
    )


def _check_listed(path: str) -> None:
    try:
        check_name(path)
    except StorageError as error:
        raise StorageError(
            f"{MANIFEST} lists '{path}', which is no path below the model folder. The manifest was not "
            "written by raysearch, or was changed: do not use this run."
        ) from error


def _claim(target: Path, store: RunStore) -> None:
    """Make sure the target is this run's: empty, or begun by an earlier retrieve of it."""
    record = store.storage.read_bytes(RUN_FILE)
    if target.exists() and not target.is_dir():
        raise StorageError(f"{target} is a file; give a folder that is empty or does not exist yet.")
    if target.is_dir() and any(target.iterdir()):
        earlier = target / RUN_FILE
        if not earlier.is_file() or earlier.read_bytes() != record:
            raise StorageError(
                f"{target} is not empty and does not hold the run '{store.run_id}'. Give another folder, or "
                "empty this one."
            )
    else:
        _write(target, RUN_FILE, record)


def _inside(target: Path, name: str) -> Path:
    """The path of a file below the target, its parent made; links must not lead elsewhere."""
    path = target / check_name(name)
    if not path.parent.resolve().is_relative_to(target.resolve()):
        raise StorageError(
            f"{path.parent} leads out of {target}: a folder in it is a link. Remove the link, or give "
            "another folder."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(target: Path, name: str, data: bytes | memoryview) -> None:
    path = _inside(target, name)
    partial = path.with_name(temporary_name(path.name))
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _fetch(store: RunStore, target: Path, file: ExportedFile) -> None:
    """Copy one file of the model, which appears under its name only when size and hash are as listed."""
    name = f"model/{file.path}"
    path = _inside(target, name)
    if path.is_file() and path.stat().st_size == file.size_bytes and hash_file(path) == file.sha256:
        return
    if not store.has(name):
        raise StorageError(
            f"{store.storage.shown(name)} is listed in {MANIFEST} and missing. Export the model again with "
            f"`raysearch export {store.run_id}`."
        )
    partial = path.with_name(temporary_name(path.name))
    digest = hashlib.sha256()
    size = 0
    try:
        with open(partial, "wb") as sink:
            for chunk in store.storage.read_chunks(name):
                digest.update(chunk)
                size += sink.write(chunk)
                # One that goes on and on must not fill the disk.
                if size > file.size_bytes:
                    break
        if size != file.size_bytes:
            raise _differs(store, name, "size", f"{size} bytes", f"{file.size_bytes} bytes")
        if digest.hexdigest() != file.sha256:
            raise _differs(store, name, "SHA-256", digest.hexdigest(), file.sha256)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _differs(store: RunStore, name: str, what: str, actual: str, listed: str) -> StorageError:
    return StorageError(
        f"{store.storage.shown(name)} differs from {MANIFEST}: its {what} is {actual}, the manifest says "
        f"{listed}. The file was changed or cut off after the export; do not use it. Export again with "
        f"`raysearch export {store.run_id}`."
    )
