"""Mixed-precision quantization search for PyTorch on Ray.

A model, data and a bit budget in; the best quantized model that fits, trained, stripped, exported and
verified, out. Names are imported when they are first used: `load_model` needs neither Ray nor Optuna.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from raysearch.version import __version__

# torch reads it once, at the first product on a GPU, which may be the user's own before any run: without it
# cuBLAS is refused later wherever results must be the same each time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if TYPE_CHECKING:
    from raysearch.api import inspect, run
    from raysearch.artifacts import list_runs
    from raysearch.callbacks import Callback
    from raysearch.callbacks.mlflow import MLflowCallback
    from raysearch.callbacks.tensorboard import TensorBoardCallback
    from raysearch.callbacks.wandb import WandbCallback
    from raysearch.compression.create import create_compressed_model
    from raysearch.config import Config, load_config
    from raysearch.controller import QuantizationController, create_controller
    from raysearch.errors import BadInputError, RaysearchError, RunError
    from raysearch.evaluation import Metric
    from raysearch.export import load_model
    from raysearch.export import verify_folder as verify
    from raysearch.job import Job, submit
    from raysearch.records import BitAssignment, QuantizerSetup, RunResult, RunStatus
    from raysearch.reporting.live import ProgressLines
    from raysearch.runs import (
        export_run,
        load_sensitivity,
        report,
        resolve,
        resolve_measured,
        retrieve,
        status,
    )
    from raysearch.saved_run import SavedRun, load_run
    from raysearch.task import Task, load_task


_HOME_OF = {
    "BadInputError": "errors.BadInputError",
    "BitAssignment": "records.BitAssignment",
    "Callback": "callbacks.Callback",
    "Config": "config.Config",
    "Job": "job.Job",
    "MLflowCallback": "callbacks.mlflow.MLflowCallback",
    "Metric": "evaluation.Metric",
    "ProgressLines": "reporting.live.ProgressLines",
    "QuantizationController": "controller.QuantizationController",
    "QuantizerSetup": "records.QuantizerSetup",
    "RaysearchError": "errors.RaysearchError",
    "RunError": "errors.RunError",
    "RunResult": "records.RunResult",
    "RunStatus": "records.RunStatus",
    "SavedRun": "saved_run.SavedRun",
    "Task": "task.Task",
    "TensorBoardCallback": "callbacks.tensorboard.TensorBoardCallback",
    "WandbCallback": "callbacks.wandb.WandbCallback",
    "create_compressed_model": "compression.create.create_compressed_model",
    "create_controller": "controller.create_controller",
    "export_run": "runs.export_run",
    "inspect": "api.inspect",
    "list_runs": "artifacts.list_runs",
    "load_config": "config.load_config",
    "load_model": "export.load_model",
    "load_run": "saved_run.load_run",
    "load_sensitivity": "runs.load_sensitivity",
    "load_task": "task.load_task",
    "report": "runs.report",
    "resolve": "runs.resolve",
    "resolve_measured": "runs.resolve_measured",
    "retrieve": "runs.retrieve",
    "run": "api.run",
    "status": "runs.status",
    "submit": "job.submit",
    "verify": "export.verify_folder",
}
"""Public name → the module below this one that defines it, and its name there."""

__all__ = [
    "BadInputError",
    "BitAssignment",
    "Callback",
    "Config",
    "Job",
    "MLflowCallback",
    "Metric",
    "ProgressLines",
    "QuantizationController",
    "QuantizerSetup",
    "RaysearchError",
    "RunError",
    "RunResult",
    "RunStatus",
    "SavedRun",
    "Task",
    "TensorBoardCallback",
    "WandbCallback",
    "__version__",
    "create_compressed_model",
    "create_controller",
    "export_run",
    "inspect",
    "list_runs",
    "load_config",
    "load_model",
    "load_run",
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


if not TYPE_CHECKING:
    # Hidden from type checkers: to them a module with `__getattr__` has every name, also a misspelt one.
    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module 'raysearch' has no attribute '{name}'")
        module, _, attribute = _HOME_OF[name].rpartition(".")
        return getattr(import_module(f"raysearch.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
