"""A process that dies while it loads or runs a model ends nothing but itself, and its end is told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from raysearch.errors import ConfigError, ExportError, StorageError
from raysearch.export.own_process.protocol import send
from raysearch.export.own_process.served_model import LIMIT_VARIABLE, ServedModel

pytestmark = pytest.mark.process

ABORT = "import os; os.write(2, b'GGML_ASSERT failed'); os.abort()"
"""What an assertion of llama.cpp does."""


def served(code: str) -> ServedModel:
    """A process that runs code instead of a model; timeit is a module that runs what it is given."""
    return ServedModel(Path("model.gguf"), "llama.cpp", ("timeit", "-n1", "-r1", "-s", code), {})


def test_a_death_while_it_loads_is_told_with_the_last_that_it_said() -> None:
    words = r"llama\.cpp ended while it loaded model\.gguf \(SIGABRT\): GGML_ASSERT failed\. Export it again"
    with pytest.raises(StorageError, match=words):
        served(ABORT)


def test_a_process_that_neither_answers_nor_dies_is_ended_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.2")
    words = rf"it loaded model\.gguf \(no answer in 0\.2 seconds, the limit that {LIMIT_VARIABLE} sets\)"
    with pytest.raises(StorageError, match=words):
        served("import time; time.sleep(1e6)")
    for text in ("soon", "0", "inf", "nan"):
        monkeypatch.setenv(LIMIT_VARIABLE, text)
        with pytest.raises(ConfigError, match=f"{LIMIT_VARIABLE} is '{text}'.*a number of seconds above 0"):
            served("")


def test_a_death_at_a_call_is_told_and_so_is_every_call_after_it() -> None:
    # Made here: to import torch there takes longer than all the rest.
    ready = io.BytesIO()
    send(ready, {"ready": True})
    answer = f"import sys; sys.stdout.buffer.write({ready.getvalue()!r}); sys.stdout.flush()"
    model = served(f"{answer}; sys.stdin.buffer.read(1); {ABORT}")
    for _ in range(2):
        with pytest.raises(ExportError, match=r"ended while it ran model\.gguf \(SIGABRT\): GGML_ASSERT"):
            model(torch.ones(2))
    model.close()
