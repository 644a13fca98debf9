"""CPU time of a quantized file against the same network in float, both in onnxruntime."""

from __future__ import annotations

import copy
import statistics
import time
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from raysearch.export.onnx_model import load_session
from raysearch.quantizer import Quantizer


def float_twin(stripped: nn.Module) -> nn.Module:
    """A copy of a stripped module that computes in float: plain weights, quantizers off."""
    twin = copy.deepcopy(stripped)
    for module in list(twin.modules()):
        if isinstance(module, Quantizer):
            module.enabled = False
        if not parametrize.is_parametrized(module):
            continue
        # A class of its own: deepcopy shares the one that parametrize made, and removal changes it.
        shared = type(module)
        body = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, body)
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            value = getattr(module, name).detach().clone()
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return twin


def paired_seconds(paths: dict[str, Path], feed: dict[str, Any], rounds: int = 20) -> dict[str, float]:
    """Median CPU seconds of one run of each file, taken in turn in this process, one thread each."""
    sessions = {name: load_session(str(path), threads=1) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds + 2):
        for name, session in sessions.items():
            start = time.process_time()
            session.run(None, feed)
            if number > 1:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}
