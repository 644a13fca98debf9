"""The records of a run as Arrow tables of plain columns, for notebooks and other tools."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pyarrow as pa

from raysearch.records import QuantizerSetup, SearchTrial, SensitivityTable
from raysearch.reporting.lanes import Lane


def trials_frame(trials: Iterable[SearchTrial]) -> pa.Table:
    """A row a trial, with a column for each kind of cost."""
    every = list(trials)
    kinds = dict.fromkeys(kind for trial in every for kind in trial.costs)
    columns = {
        "trial": [trial.number for trial in every],
        "state": [str(trial.state) for trial in every],
        "source": [trial.source for trial in every],
        "value": [trial.value for trial in every],
        "predicted": [trial.predicted for trial in every],
        "num_samples": [trial.num_samples for trial in every],
    }
    for kind in kinds:
        columns[kind] = [trial.costs.get(kind, math.nan) for trial in every]
    return pa.table(columns)


def assignments_frame(trials: Iterable[SearchTrial], setup: QuantizerSetup) -> pa.Table:
    """A row a trial, with its scheme for each group as text; null where the group stays float."""
    every = list(trials)
    columns: dict[str, pa.Array] = {"trial": pa.array([trial.number for trial in every], pa.int64())}
    for group in setup.groups:
        schemes = [trial.assignment.schemes.get(group) for trial in every]
        texts = [None if scheme is None else str(scheme) for scheme in schemes]
        columns[group] = pa.array(texts, pa.string())
    return pa.table(columns)


def sensitivity_frame(table: SensitivityTable) -> pa.Table:
    """A row an option: a group at one of its schemes, alone."""
    effects = list(table.effects.values())
    return pa.table(
        {
            "group": [effect.group for effect in effects],
            "kind": [effect.kind for effect in effects],
            "scheme": [str(effect.scheme) for effect in effects],
            "bits": [effect.num_bits for effect in effects],
            "response": [effect.response for effect in effects],
            "divergence": [effect.divergence for effect in effects],
            "perturbation": [effect.perturbation for effect in effects],
            "omega": [effect.omega for effect in effects],
        }
    )


def assignment_frame(lanes: Iterable[Lane]) -> pa.Table:
    """A row a group: what was chosen for it, and its shares."""
    every = list(lanes)
    columns = {
        "group": [lane.group for lane in every],
        "kind": [lane.kind for lane in every],
        "scheme": [None if lane.scheme is None else str(lane.scheme) for lane in every],
        "bits": [None if lane.scheme is None else lane.scheme.num_bits for lane in every],
        "num_elements": [lane.num_elements for lane in every],
        "share_of_size": [lane.shares.get("size") for lane in every],
        "share_of_bops": [lane.shares.get("bops") for lane in every],
        "share_of_loss": [lane.loss_share for lane in every],
        "trace": [None if lane.trace is None else lane.trace.value for lane in every],
        "trace_stderr": [None if lane.trace is None else lane.trace.stderr for lane in every],
    }
    return pa.table(columns)
