"""Short trainings of the search's best assignments, each a unit of work of the fleet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from torch import Tensor

from raysearch.artifacts import OUTAGE_SECONDS, Storage
from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.config.training import GROUP_AND_LIFE
from raysearch.determinism import seeded
from raysearch.errors import TrainingError
from raysearch.evaluation import Replica
from raysearch.records import BitAssignment, EpochMetrics
from raysearch.seeding import derive_seed
from raysearch.training.context import ProcessContext
from raysearch.training.fine_tune import train_here
from raysearch.training.progress import CheckpointFolder
from raysearch.training.recipe import Recipe
from raysearch.training.step import DivergedError

FINALISTS = "finalists"
"""The folder of the checkpoints of finalists that are being trained."""

_RESULT = "result"


@dataclass(frozen=True)
class Start:
    """What one finalist's training starts from.

    Attributes:
        assignment: group id → scheme.
        floats: see `Recipe`.
    """

    assignment: BitAssignment
    floats: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ShortTraining:
    """What a finalist's training gave.

    Attributes:
        history: metrics per epoch, the first before training; empty where it failed.
        failure: why it was given up.
    """

    history: tuple[EpochMetrics, ...] = ()
    failure: str = ""


def train_finalists(
    recipe: Recipe, starts: Mapping[int, Start], pool: Pool, storage: Storage | None = None
) -> dict[int, ShortTraining]:
    """Train each finalist as the recipe says, from the same seed.

    A training that diverges is given up; the others go on. Cost: a training of the recipe's length each, on
    one worker, side by side on as many as there are.

    Args:
        recipe: of a finalist, whichever; its settings are those of the short training.
        starts: trial's number → what differs between them.
        pool: runs the units; its workers' device is the one that is trained on.
        storage: where the checkpoints go from which one that was cut goes on, shared by all nodes; None keeps
            none.

    Returns:
        Trial's number → what its training gave.
    """
    settings = {name: value for name, value in recipe.settings.fixed().items() if name not in GROUP_AND_LIFE}
    # A run that goes on may have other settings of training: those trainings would not compare.
    digest = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
    units: dict[Key, tuple[Start, str]] = {}
    folders: dict[Key, str] = {}
    for number, start in sorted(starts.items()):
        key: Key = (number, start.assignment.digest(), digest)
        folders[key] = f"{FINALISTS}/{'-'.join(map(str, key))}"
        units[key] = (start, "" if storage is None else storage.child(folders[key]).uri)
    trained: dict[int, ShortTraining] = {}
    for key, value in pool.run(train_finalist, units, (recipe,)):
        trained[int(key[0])] = _decoded(value)
        if storage is not None:
            # Only now: what is handed out is kept.
            storage.delete_dir(folders[key])
    if storage is not None:
        # Those of other settings too.
        storage.delete_dir(FINALISTS)
    return trained


def train_finalist(replica: Replica, recipe: Recipe, start: Start, location: str) -> UnitValue:
    """The unit: one finalist's training.

    Args:
        replica: of the worker; says on which device it computes.
        recipe: common to all finalists.
        start: this one's.
        location: of its checkpoints; "" keeps none.
    """
    own = replace(recipe, assignment=start.assignment, floats=start.floats)
    folder = CheckpointFolder(Storage(location, OUTAGE_SECONDS) if location else None)
    context = ProcessContext(use_gpu=replica.device.startswith("cuda"), folder=folder)
    # Whatever the data draw from any generator is the same for all finalists and on every worker.
    with seeded(derive_seed(recipe.seed, "finalists")):
        try:
            progress = train_here(own, context)
        except TrainingError as error:
            # How to go on is no matter here, and depends on when the last checkpoint was written.
            cause = error.__cause__
            reason = cause if isinstance(cause, DivergedError) else error
            return _encoded({"history": [], "failure": str(reason)})
    history = [{"epoch": entry.epoch, "metrics": dict(entry.metrics)} for entry in progress.history]
    return _encoded({"history": history, "failure": ""})


def _encoded(result: dict[str, Any]) -> UnitValue:
    # As bytes of JSON, in which a float keeps every bit; a unit answers arrays.
    return {_RESULT: np.frombuffer(json.dumps(result).encode(), np.uint8)}


def _decoded(value: UnitValue) -> ShortTraining:
    result = json.loads(value[_RESULT].tobytes())
    history = tuple(EpochMetrics(entry["epoch"], entry["metrics"]) for entry in result["history"])
    return ShortTraining(history, result["failure"])
