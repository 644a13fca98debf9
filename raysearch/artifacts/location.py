"""Where a folder is: paths, URIs and the file systems behind them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from pyarrow import ArrowException
from pyarrow import fs as arrow_fs

from raysearch.errors import StorageError

DEFAULT_STORAGE = "runs"
"""The folder that holds runs where a user names none."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
ARROW_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Schemes that pyarrow opens itself; any other goes through fsspec."""


def is_uri(text: str) -> bool:
    """Whether a location starts with a scheme and `://`."""
    return _SCHEME.match(text) is not None


def check_name(name: str) -> str:
    """Return a name below a folder unchanged, or refuse one that would lead out of it.

    Raises:
        StorageError: the name is empty, absolute, or has a part such as `..`.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in parts[0] or "\0" in name:
        raise StorageError(
            f"'{name}' is no name of a file below a folder: it must be relative, with / between its parts "
            "and none of them empty, . or .. . Whoever wrote it, do not use this folder."
        )
    return name


def redact(uri: str) -> str:
    """A URI without user, password and options: fit for messages, logs and records."""
    match = _SCHEME.match(uri)
    if match is None:
        return uri
    without_options = uri[match.end() :].split("?")[0].split("#")[0]
    host, slash, path = without_options.partition("/")
    # User and password stand before the last @ of the host.
    bare_host = host.rsplit("@", 1)[-1]
    return f"{match.group(0)}{bare_host}{slash}{path.rstrip('/')}"


def has_keys(uri: str) -> bool:
    """Whether a URI carries a user or password.

    Example:
        >>> has_keys("s3://key:secret@bucket/runs"), has_keys("s3://bucket/runs?region=x")
        (True, False)
    """
    match = _SCHEME.match(uri)
    return match is not None and "@" in uri[match.end() :].split("/")[0]


def read_location(location: str | os.PathLike[str]) -> tuple[str, str]:
    """The scheme of a location, and its absolute path (local) or its URI as given (anything else).

    Raises:
        StorageError: the scheme is unknown, or a file:// URI names another machine.
    """
    text = os.fspath(location)
    check_text(text)
    match = _SCHEME.match(text)
    if match is None:
        return "file", os.path.abspath(os.path.expanduser(text))
    scheme = match.group(1).lower()
    if scheme == "file":
        return scheme, _file_path(text)
    _check_scheme(scheme, text)
    return scheme, text


def check_text(location: object) -> None:
    """Refuse what no storage takes as a name: bytes, a NUL, and what is no UTF-8.

    Raises:
        StorageError: it is such a name.
    """
    if isinstance(location, str) and "\0" not in location and _is_utf8(location):
        return
    raise StorageError(
        f"{location!r:.200} cannot name a folder: a location is text in UTF-8 without a NUL. Rename the "
        "folder, or give another."
    )


def _is_utf8(text: str) -> bool:
    # What cannot be written becomes question marks.
    return text.encode(errors="replace").decode() == text


def open_filesystem(scheme: str, uri: str) -> tuple[Any, str]:
    """The pyarrow file system of a location, and the path of its folder there.

    Raises:
        StorageError: the store cannot be reached, or the package it needs is not installed.
    """
    if scheme == "file":
        return arrow_fs.LocalFileSystem(), uri
    try:
        if scheme in ARROW_SCHEMES:
            return cast(tuple[Any, str], arrow_fs.FileSystem.from_uri(_in_few_requests(scheme, uri)))
        import fsspec  # type: ignore[import-untyped]

        system, path = fsspec.core.url_to_fs(uri)
        return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(system)), path
    except (OSError, ValueError, ImportError, ArrowException) as error:
        raise StorageError(
            f"{redact(uri)} cannot be opened: {error}. Check the bucket's name, the network, the "
            "credentials in this process's environment, and that the store's package is installed."
        ) from error


def _in_few_requests(scheme: str, uri: str) -> str:
    """The URI by which S3 takes one request for a small file instead of the three of a multipart upload."""
    if scheme != "s3" or "allow_delayed_open" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


def _file_path(uri: str) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise StorageError(f"'{uri}' is no URI: {error}; write it as file:///data/runs.") from error
    if not parts.path.strip("/") and not parts.netloc:
        raise StorageError(f"'{uri}' names no folder; write it as file:///data/runs.")
    if parts.netloc not in ("", "localhost"):
        raise StorageError(
            f"'{uri}' names the machine '{parts.netloc}'; a file:// URI has three slashes, as in "
            f"file:///{parts.netloc}{parts.path}."
        )
    return os.path.abspath(unquote(parts.path))


def _check_scheme(scheme: str, uri: str) -> None:
    schemes = set(ARROW_SCHEMES)
    # Without fsspec there are simply fewer schemes.
    with suppress(ImportError):
        import fsspec

        schemes.update(fsspec.available_protocols())
    if scheme not in schemes:
        choices = ", ".join(f"{name}://" for name in sorted(schemes))
        raise StorageError(
            f"'{redact(uri)}' has the unknown scheme '{scheme}'; known: a local path, {choices}. "
            "Other stores need an fsspec package that registers their scheme."
        )
