"""The answer of a run in one sentence."""

from __future__ import annotations

from raysearch.records import RunResult
from raysearch.reporting.format import cost, number

BUILT_IN = ("divergence", "agreement", "loss")
"""Metrics that every task has; one of its own says more."""


def verdict(result: RunResult) -> str:
    """Size, the task's first metric of the float and of the quantized model, and of each baseline.

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
        parts.append(f"size {cost('size', result.costs['size'])}")
    names = sorted(result.quantized_metrics, key=lambda name: name in BUILT_IN)
    if names:
        name = names[0]
        metric = f"{name} {number(result.float_metrics.get(name))} → {number(result.quantized_metrics[name])}"
        beside = [
            f"{label}: {number(metrics[name])}"
            for label, metrics in result.baselines.items()
            if name in metrics
        ]
        parts.append(f"{metric} ({', '.join(beside)})" if beside else metric)
    return ", ".join(parts)
