"""The token of a Ray cluster: where it is found, and the header that carries it.

The token lets its holder run any code on the cluster. It is never an argument on a command line, where
other users of the machine could read it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from raysearch.errors import ConfigError, PoolError

DEFAULT_TOKEN_PATH = "~/.ray/auth_token"
_PROBE = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_PROBE_SECONDS = 5.0
_REMEDY = "Put the cluster's token into RAY_AUTH_TOKEN or ~/.ray/auth_token"


def find_token(token_file: str | Path | None = None) -> str | None:
    """The token to authenticate with; the first of these that is set.

    `token_file`, the variables `RAYSEARCH_TOKEN`, `RAY_AUTH_TOKEN` and `RAY_AUTH_TOKEN_PATH`, and the
    file `~/.ray/auth_token`, which Ray itself writes.

    Args:
        token_file: a file that holds nothing but the token.

    Returns:
        The token, or None where none of these exists.

    Raises:
        ConfigError: a file that was named explicitly cannot be read or is empty, or what is set is no token.
    """
    if token_file is not None:
        return _read_token(Path(token_file), "token_file")
    for variable in ("RAYSEARCH_TOKEN", "RAY_AUTH_TOKEN"):
        if token := os.environ.get(variable, "").strip():
            return _one_line(token, variable)
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read_token(Path(path), "RAY_AUTH_TOKEN_PATH")
    default = Path(DEFAULT_TOKEN_PATH).expanduser()
    return default.read_text().strip() or None if default.is_file() else None


def auth_headers(token: str | None) -> dict[str, str]:
    """The HTTP headers that carry `token`; none without one."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def settings_to_start() -> dict[str, str]:
    """What to set so that an embedded Ray is locked without a trace.

    Left alone, Ray writes a token into the user's home, and clusters that are started there later are
    locked because they find it.
    """
    return {} if find_token() else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


def settings_to_join(address: str) -> dict[str, str]:
    """What to set before joining the cluster whose head listens at `address` ("HOST:PORT").

    Ray sends no token to an explicit address unless told so. Told so where none is wanted it joins, but
    then every actor dies before it starts, since the cluster cannot call back. So the head is asked.

    Raises:
        PoolError: the cluster wants a token, and there is none or another.
    """
    is_open = _accepts(address, None)
    if is_open is None:
        return {}
    if is_open:
        return {"RAY_AUTH_MODE": "disabled"}
    token = find_token()
    if token is None:
        raise PoolError(f"the cluster at {address} wants a token, and none was found. {_REMEDY}")
    if not _accepts(address, token):
        raise PoolError(f"the cluster at {address} refuses the token that was found. {_REMEDY}")
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


@contextmanager
def auth_environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set what Ray reads about tokens, and put it back; Ray itself sets some of it on the way."""
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    os.environ.update(settings)
    _reread()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _reread()


def _reread() -> None:
    """Make Ray see these variables again, which it reads once."""
    # What Ray calls itself after it has set them; there is no public way.
    with suppress(ImportError, AttributeError):
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def _accepts(address: str, token: str | None) -> bool | None:
    """Whether a head answers a caller with this token; None where it cannot be asked (say, with TLS)."""
    try:
        import grpc  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None
    metadata = tuple((name.lower(), value) for name, value in auth_headers(token).items())
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_PROBE)(b"", timeout=_PROBE_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            return False if error.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return True


def _read_token(path: Path, source: str) -> str:
    try:
        token = path.expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"{source} names {path}, which cannot be read: {reason}. Name a file that holds the "
            "cluster's token"
        ) from error
    if not token:
        raise ConfigError(
            f"{source} names {path}, which is empty. Name a file that holds the cluster's token"
        )
    return _one_line(token, f"{source} names {path}, which")


def _one_line(token: str, source: str) -> str:
    """What a header can carry; the token itself is not told."""
    if token.isascii() and token.isprintable():
        return token
    raise ConfigError(
        f"{source} holds no token: that is one line of ASCII characters. Name a file that holds nothing but "
        "the cluster's token"
    )
