"""An object store that fails for a while: what it is asked is asked again, at growing intervals."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

_log = logging.getLogger(__name__)

OUTAGE_SECONDS = 300.0
"""For how long the driver of a run waits for a store before it stops."""

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0

_FINAL_TYPES = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_CODES = (
    "ACCESS_DENIED",
    "EXPIRED_TOKEN",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "INVALID_SIGNATURE",
    "MISSING_AUTHENTICATION_TOKEN",
    "NO_SUCH_BUCKET",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
    "HTTP status 403",
    "HTTP status 404",
)
"""How S3 says that another time would be no better, in the words of its SDK."""

T = TypeVar("T")


def ask_again(ask: Callable[[], T], seconds: float, where: str) -> T:
    """What a call answers; while it fails as in an outage it is made again.

    Args:
        ask: the call, which may be made any number of times.
        seconds: after which the failure counts; 0 calls once.
        where: the file, for the log.

    Raises:
        OSError: the last failure, or the first that another call cannot mend.
    """
    if not seconds:
        return ask()
    ends = time.monotonic() + seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return ask()
        except OSError as error:
            if is_final(error) or time.monotonic() + pause > ends:
                raise
            _log.warning("the storage does not answer, %s is asked for again: %s", where, error)
        # Of many that were cut off in the same moment, not all come back in the same one.
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def is_final(error: OSError) -> bool:
    """Whether a failure stays however often it is tried: nothing there, no right to it.

    Example:
        >>> is_final(OSError("AWS Error ACCESS_DENIED during PutObject operation"))
        True
        >>> is_final(OSError("AWS Error NETWORK_CONNECTION during PutObject operation"))
        False
    """
    text = str(error)
    return isinstance(error, _FINAL_TYPES) or any(code in text for code in _FINAL_CODES)
