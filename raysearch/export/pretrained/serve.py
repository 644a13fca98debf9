"""A process of its own that loads a directory as its users do, and runs it for the process that wrote it.

    python -m raysearch.export.pretrained.serve DIRECTORY THREADS

It reads calls from its standard input and writes what the model gives to its standard output.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import torch

from raysearch.evaluation.calls.call_form import exportable
from raysearch.evaluation.outputs import plain
from raysearch.export.pretrained.protocol import receive, send


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


def main(directory: str, threads: str) -> None:
    """Load the directory and answer calls until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "wb")
    # What libraries print must not come between the answers.
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    warnings.simplefilter("ignore")
    try:
        model = load(directory)
    except Exception as error:
        send(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    send(answers, {"ready": type(model).__name__})
    while True:
        try:
            call = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            with torch.no_grad(), exportable(model):
                outputs = plain(model(*call["args"], **call["kwargs"]))
            send(answers, {"outputs": outputs})
        except Exception as error:
            send(answers, {"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(*sys.argv[1:])
