"""Modules that are shipped as code; Ray is told of them when something is shipped, not before."""

from __future__ import annotations

import sys
from types import ModuleType

_waiting: list[ModuleType] = []


def register_by_value(module: ModuleType) -> None:
    """Ship what `module` defines as code, not as a name to import.

    Needed for modules that workers cannot import, such as a task file loaded from its path. A run in this
    process ships nothing, and Ray is not imported for it.
    """
    _waiting.append(module)
    if "ray.cloudpickle" in sys.modules:
        tell_ray()


def tell_ray() -> None:
    """Tell Ray's pickler of the modules that wait for it."""
    from ray import cloudpickle

    while _waiting:
        cloudpickle.register_pickle_by_value(_waiting.pop())  # type: ignore[no-untyped-call]
