"""What a model's own process does: it loads the model, and answers calls until nobody asks any more."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from raysearch.errors import RaysearchError
from raysearch.evaluation.outputs import plain
from raysearch.export.own_process.protocol import receive, send


def answer_calls(load: Callable[[], Callable[..., Any]], num_threads: int) -> None:
    """Read calls from standard input, and write what the model gives to standard output.

    Args:
        load: gives what is called.
        num_threads: of torch.
    """
    answers = os.fdopen(os.dup(1), "wb")
    # What libraries print must not come between the answers.
    os.dup2(2, 1)
    torch.set_num_threads(num_threads)
    warnings.simplefilter("ignore")
    try:
        model = load()
    except Exception as error:
        send(answers, {"error": _words(error)})
        return
    send(answers, {"ready": True})
    while True:
        try:
            call = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            with torch.no_grad():
                outputs = plain(model(*call["args"], **call["kwargs"]))
            send(answers, {"outputs": outputs})
        except Exception as error:
            send(answers, {"error": _words(error)})


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, RaysearchError) else f"{type(error).__name__}: {error}"
