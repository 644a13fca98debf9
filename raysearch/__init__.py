"""Mixed-precision quantization search for PyTorch on Ray.

A model, data and a bit budget in; the best quantized model that fits, trained, stripped, exported and
verified, out. Names are imported when they are first used: `load_model` needs neither Ray nor Optuna.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raysearch.version import __version__

if TYPE_CHECKING:
    from raysearch.api import inspect, run
    from raysearch.compression.create import create_compressed_model
    from raysearch.config import Config, load_config
    from raysearch.controller import QuantizationController, create_controller
    from raysearch.errors import BadInputError, RaysearchError, RunError
    from raysearch.export import load_model
    from raysearch.export import verify_folder as verify
    from raysearch.job import Job, submit
    from raysearch.records import BitAssignment, QuantizerSetup, RunResult, RunStatus
    from raysearch.saved_run import (
        export_run,
        load_sensitivity,
        report,
        resolve,
        resolve_measured,
        retrieve,
        status,
    )
    from raysearch.task import Task, load_task


_HOMES = {
    "api": ("inspect", "run"),
    "compression.create": ("create_compressed_model",),
    "config": ("Config", "load_config"),
    "controller": ("QuantizationController", "create_controller"),
    "errors": ("BadInputError", "RaysearchError", "RunError"),
    "export": ("load_model", "verify"),
    "job": ("Job", "submit"),
    "records": ("BitAssignment", "QuantizerSetup", "RunResult", "RunStatus"),
    "saved_run": (
        "export_run",
        "load_sensitivity",
        "report",
        "resolve",
        "resolve_measured",
        "retrieve",
        "status",
    ),
    "task": ("Task", "load_task"),
}  # fmt: skip
_NAMED_THERE = {"verify": "verify_folder"}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BadInputError",
    "BitAssignment",
    "Config",
    "Job",
    "QuantizationController",
    "QuantizerSetup",
    "RaysearchError",
    "RunError",
    "RunResult",
    "RunStatus",
    "Task",
    "__version__",
    "create_compressed_model",
    "create_controller",
    "export_run",
    "inspect",
    "load_config",
    "load_model",
    "load_sensitivity",
    "load_task",
    "report",
    "resolve",
    "resolve_measured",
    "retrieve",
    "run",
    "status",
    "submit",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'raysearch' has no attribute '{name}'")
    return getattr(import_module(f"raysearch.{_HOME_OF[name]}"), _NAMED_THERE.get(name, name))


def __dir__() -> list[str]:
    return sorted(__all__)
