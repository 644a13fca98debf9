"""A GGUF file in llama.cpp in a fresh process, as a module of this one."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from raysearch.export.gguf.packages import GGUF
from raysearch.export.gguf.runtime import EVERYTHING, Part, read_vocabulary
from raysearch.export.outputs import NamedOutputs
from raysearch.export.own_process.served_model import ServedModel


class ServedGguf(ServedModel):
    """Runs a file, or a part of what is asked of it, as `GgufModel` does.

    Raises:
        ExportError: the extra is missing.
        StorageError: the file is damaged, or llama.cpp cannot load it.
    """

    def __init__(self, path: Path, part: Part = EVERYTHING) -> None:
        GGUF.require("gguf")
        # Damage is told before a process is started for it.
        read_vocabulary(path)
        command = ("raysearch.export.gguf.serve", str(path), json.dumps(asdict(part)))
        # A trace of its own would follow what llama.cpp says of an assertion.
        super().__init__(path, "llama.cpp", command, {"GGML_NO_BACKTRACE": "1"})

    def forward(self, *args: Any, **kwargs: Any) -> NamedOutputs:
        """Log-probabilities in the place of the logits, NaN where they are not computed.

        Raises:
            ExportError: llama.cpp cannot run the call, or ended.
        """
        answer = super().forward(*args, **kwargs)
        is_computed, values = answer["is_computed"], answer["values"]
        logits = torch.full((*is_computed.shape, values.shape[-1]), math.nan)
        logits[is_computed] = values
        return NamedOutputs(logits=logits)
