"""A process of its own that runs a GGUF file in llama.cpp for the process that wrote it.

python -m raysearch.export.gguf.serve FILE PART THREADS
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from raysearch.export.gguf.runtime import GgufModel, Part
from raysearch.export.own_process.answer import answer_calls


def runner(path: str, part: str) -> Callable[..., dict[str, Tensor]]:
    """What runs a call: which tokens of it are computed, and their log-probabilities.

    Args:
        path: the file.
        part: the attributes of a `Part`, as JSON.

    Raises:
        StorageError: llama.cpp cannot load the file.
    """
    model = GgufModel(Path(path), Part(**json.loads(part)))

    def run(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        logits: Tensor = model(*args, **kwargs).logits
        is_computed = logits.isfinite().any(-1)
        # The others are the greatest part of a batch.
        return {"is_computed": is_computed, "values": logits[is_computed]}

    return run


if __name__ == "__main__":
    path, part, threads = sys.argv[1:]
    answer_calls(lambda: runner(path, part), int(threads))
