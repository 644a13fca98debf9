"""What the page's figures draw, as plain values; the page's own script draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raysearch.records import COST_KINDS, BitAssignment, CostModel, QuantizerSetup, SearchResult, SearchTrial
from raysearch.records.costs.text import cost_axis
from raysearch.reporting.interactions import interaction_data
from raysearch.reporting.records import ReportRecords


def chart_data(records: ReportRecords) -> dict[str, Any]:
    """Everything that the figures of one run show; numbers that are not finite are null.

    Args:
        records: of the run.
    """
    data: dict[str, Any] = {"run": records.run_id}
    if records.setup is not None and records.search is not None:
        model = CostModel(records.setup)
        data["budgets"] = [
            {"text": budget.text, "kind": budget.kind, "limit": budget.absolute(model)}
            for budget in records.budgets
            if budget.kind in model.kinds
        ]
        data["search"] = _search_data(records, records.setup, records.search)
    assignment = records.assignment
    if records.sensitivity is not None and assignment is not None and len(assignment.schemes) > 1:
        data["interactions"] = interaction_data(records.sensitivity, assignment)
    tuned = records.fine_tune
    if tuned is not None and tuned.history:
        floats = records.metrics.get("float", {})
        data["training"] = {
            "epochs": [entry.epoch for entry in tuned.history],
            "metrics": _histories(tuned.history),
            "float": {name: _finite(value) for name, value in floats.items()},
            "best": tuned.best_epoch,
            "monitor": tuned.monitor,
        }
    return data


def _histories(history: Sequence[Any]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for entry in history for name in entry.metrics)
    return {name: [_finite(entry.metrics.get(name)) for entry in history] for name in names}


def _search_data(records: ReportRecords, setup: QuantizerSetup, search: SearchResult) -> dict[str, Any]:
    schemes = sorted({scheme for group in setup.groups.values() for scheme in group.schemes})
    places = {scheme: place for place, scheme in enumerate(schemes)}
    uniform = {trial.number: label for label, trial in search.uniform_trials(setup)}
    float_costs = CostModel(setup).costs(BitAssignment({}))
    return {
        "objective": search.objective,
        "maximize": search.maximize,
        "kinds": [_kind(kind) for kind in search.best.costs],
        "front_cost": search.front_cost,
        "groups": list(setup.groups),
        "schemes": [str(scheme) for scheme in schemes],
        "bits": [scheme.num_bits for scheme in schemes],
        "trials": [
            _trial(trial, setup, places) | {"uniform": uniform.get(trial.number)} for trial in search.trials
        ],
        "best": search.best.number if records.chosen is None else records.chosen.number,
        "bound": _finite(search.lower_bound),
        "float": {"costs": float_costs, "value": _float_value(records, search)},
        "trained": _finite(records.metrics.get("quantized", {}).get(search.objective)),
    }


def _kind(kind: str) -> dict[str, Any]:
    label, factor = cost_axis(kind)
    at_least = kind in COST_KINDS and COST_KINDS[kind].at_least
    return {"name": kind, "label": label, "factor": factor, "at_least": at_least}


def _trial(trial: SearchTrial, setup: QuantizerSetup, places: Mapping[Any, int]) -> dict[str, Any]:
    chosen = trial.assignment.schemes
    return {
        "number": trial.number,
        "value": _finite(trial.value),
        "predicted": _finite(trial.predicted),
        "source": trial.source,
        "state": str(trial.state),
        "costs": {kind: _finite(value) for kind, value in trial.costs.items()},
        "schemes": [places[chosen[name]] if name in chosen else None for name in setup.groups],
    }


def _float_value(records: ReportRecords, search: SearchResult) -> float | None:
    """What the float model measures of the objective; its divergence from itself is 0."""
    if search.objective == "divergence":
        return 0.0
    return _finite(records.metrics.get("float", {}).get(search.objective))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
