"""The answer of a run in one sentence."""

from __future__ import annotations

from collections.abc import Mapping

from raysearch.records import (
    BitAssignment,
    CostModel,
    ExportManifest,
    QuantizerSetup,
    RunResult,
    SearchTrial,
)
from raysearch.records.costs.text import cost, number

BUILT_IN = ("divergence", "agreement", "loss")
"""Metrics that every task has; one of its own says more."""


def verdict(
    result: RunResult,
    setup: QuantizerSetup | None = None,
    chosen: SearchTrial | None = None,
    manifest: ExportManifest | None = None,
) -> str:
    """Size, the task's first metric of the float and of the quantized model, and of each baseline.

    Args:
        result: the answer.
        setup: for the float model's size.
        chosen: the trial that is deployed, for how much of each budget is used.
        manifest: for the runtimes that ran the files.

    Example:
        >>> values = {"run_id": "r", "storage": "", "budget": (), "assignment": {}, "model_dir": ""}
        >>> result = RunResult(
        ...     **values,
        ...     costs={"size": 9900},
        ...     float_metrics={"loss": 0.1, "accuracy": 0.983},
        ...     quantized_metrics={"loss": 0.1, "accuracy": 0.981},
        ...     report="",
        ...     seconds={},
        ...     baselines={"uniform 3": {"loss": 0.2, "accuracy": 0.97}},
        ... )
        >>> verdict(result)
        'size 9.67 KiB, accuracy 0.983 → 0.981 (uniform 3: 0.97)'
    """
    parts: list[str] = []
    if "size" in result.costs:
        parts.append(_size_text(result.costs["size"], setup))
    names = sorted(result.quantized_metrics, key=lambda name: name in BUILT_IN)
    if names:
        parts.append(_metric_text(result, names[0]))
    excess = {} if chosen is None else chosen.excess
    parts.extend(f"{text} used to {1 + used:.1%}" for text, used in excess.items())
    checks = () if manifest is None else manifest.checks
    # What follows the first comma is how a runtime was set.
    runtimes = dict.fromkeys(check.runtime.split(",")[0] for check in checks)
    if runtimes:
        parts.append(f"verified in {' and '.join(runtimes)}")
    return ", ".join(parts)


def _size_text(num_bytes: float, setup: QuantizerSetup | None) -> str:
    text = cost("size", num_bytes)
    if setup is None:
        return f"size {text}"
    before = CostModel(setup).costs(BitAssignment({}))["size"]
    return f"size {cost('size', before)} → {text} ({before / num_bytes:.2g}× smaller)"


def _metric_text(result: RunResult, name: str) -> str:
    before = value_text(result.float_metrics, result.standard_errors.get("float", {}), name)
    after = value_text(result.quantized_metrics, result.standard_errors.get("quantized", {}), name)
    beside = [
        f"{label}: {number(metrics[name])}" for label, metrics in result.baselines.items() if name in metrics
    ]
    metric = f"{name} {before} → {after}"
    return f"{metric} ({', '.join(beside)})" if beside else metric


def value_text(values: Mapping[str, float], errors: Mapping[str, float], name: str) -> str:
    """A metric with its standard error, where it has one.

    Args:
        values: metric → value.
        errors: metric → standard error.
        name: of the metric.
    """
    text = number(values.get(name))
    return f"{text} ± {number(errors[name], 2)}" if errors.get(name) else text
