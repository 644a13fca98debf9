"""Messages between this process and one that runs a model: plain containers of tensors, nothing pickled."""

from __future__ import annotations

import io
import struct
from typing import IO, Any

import torch

_LENGTH = struct.Struct("<Q")


def send(stream: IO[bytes], message: Any) -> None:
    """Write one message.

    Raises:
        OSError: nobody reads it.
    """
    content = io.BytesIO()
    torch.save(message, content)
    stream.write(_LENGTH.pack(content.tell()))
    stream.write(content.getbuffer())
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message.

    Raises:
        EOFError: the other side has ended.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return torch.load(io.BytesIO(content), weights_only=True)
