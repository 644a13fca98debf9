"""Names of runs, and the way from what a user types to a run's folder."""

from __future__ import annotations

import os
import re
import secrets
from datetime import UTC, datetime

from raysearch.artifacts.location import check_text, is_uri
from raysearch.errors import StorageError

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def new_run_id() -> str:
    """A name that sorts by time and that two runs started in the same second do not share.

    Example:
        >>> len(new_run_id())
        20
    """
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def valid_run_id(run_id: str) -> str:
    """Return a run id unchanged, or refuse one that cannot name a folder everywhere.

    Raises:
        StorageError: it has other characters than letters, digits, `.`, `_` and `-`, starts with `.` or
            `-`, or is longer than 128.
    """
    if _RUN_ID.fullmatch(run_id) is None:
        raise StorageError(
            f"'{run_id}' is no run id; allowed: up to 128 letters, digits, '.', '_' and '-', the first one a "
            "letter, a digit or '_'. Choose another with --run-id, or leave it out to have one made."
        )
    return run_id


def split_run(run: str | os.PathLike[str], storage: str | os.PathLike[str] | None) -> tuple[str, str]:
    """The storage and the run id that a run's name, path or URI stands for.

    Args:
        run: a run id, or the path or URI of a run's folder.
        storage: where runs are; needed for a bare run id, ignored for a path or URI.

    Raises:
        StorageError: a bare run id comes without a storage, or the folder's name is no run id.
    """
    text = os.fspath(run)
    check_text(text)
    if is_uri(text):
        address, question_mark, options = text.partition("?")
        parent, _, name = address.rstrip("/").rpartition("/")
        return f"{parent}{question_mark}{options}", valid_run_id(name)
    is_path = isinstance(run, os.PathLike) or "/" in text or os.sep in text or text.startswith((".", "~"))
    if not is_path and storage is not None:
        return os.fspath(storage), valid_run_id(text)
    if not is_path and not os.path.isdir(text):
        raise StorageError(
            f"'{text}' is a run id, and no storage says where its folder is. Give --storage, or the path or "
            "URI of the run's folder instead of its id."
        )
    parent, name = os.path.split(os.path.abspath(os.path.expanduser(text)))
    return parent, valid_run_id(name)
