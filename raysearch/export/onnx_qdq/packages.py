"""The packages that write and run ONNX files, which the extra `onnx` installs."""

from __future__ import annotations

import importlib.util

from raysearch.errors import ExportError

EXTRA = ("onnx", "onnxscript", "onnx_ir", "ml_dtypes", "onnxruntime")
PRECISION = ("session.x64quantprecision", "1")
"""The session option of onnxruntime, and its value, with which CPUs without VNNI do not saturate."""


def missing_packages() -> list[str]:
    """Packages of the extra `onnx` that are not installed."""
    return [name for name in EXTRA if importlib.util.find_spec(name) is None]


def require_onnx() -> None:
    """Refuse to go on without the extra.

    Raises:
        ExportError: names the packages and the command that installs them.
    """
    if missing := missing_packages():
        raise ExportError(
            f"the target 'onnx' needs {', '.join(missing)}; install them with "
            f'`pip install "raysearch[onnx]"`.'
        )
