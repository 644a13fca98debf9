"""A process of its own that loads a directory as its users do, and runs it for the process that wrote it.

python -m raysearch.export.pretrained.serve DIRECTORY THREADS
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from raysearch.errors import StorageError
from raysearch.evaluation.calls.call_form import exportable
from raysearch.export.own_process.answer import answer_calls


def load(directory: str) -> Any:
    """The model of the class that config.json names.

    Raises:
        ValueError: tensors are missing or do not fit, so that the model is not the one that was written.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    loader = getattr(transformers, config.architectures[0])
    model, report = loader.from_pretrained(directory, local_files_only=True, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report.get(kind):
            raise ValueError(f"{kind}: {sorted(map(str, report[kind]))[:5]}")
    for part in (model.config, model.config.get_text_config()):
        part.use_cache = False
    return model.eval()


def runner(directory: str) -> Callable[..., Any]:
    """What runs a call in the model of a directory.

    Raises:
        StorageError: it cannot be loaded.
    """
    try:
        model = load(directory)
    except Exception as error:
        raise StorageError(
            f"transformers cannot load {directory}: {type(error).__name__}: {error}. Export it again."
        ) from error

    def run(*args: Any, **kwargs: Any) -> Any:
        with exportable(model):
            return model(*args, **kwargs)

    return run


if __name__ == "__main__":
    directory, threads = sys.argv[1:]
    answer_calls(lambda: runner(directory), int(threads))
