"""What every node of a cluster must be able to do for a run, tried there before compute is spent."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from raysearch.artifacts import Storage
from raysearch.cluster.nodes import NodeCheck, Question
from raysearch.cluster.shipping import dumps
from raysearch.cluster.versions import CLIENT_VARIABLE, as_text, differences, from_text, versions_here
from raysearch.config import Config
from raysearch.errors import RaysearchError, StorageError, TaskError
from raysearch.evaluation.model.model_source import ModelFactory, called
from raysearch.task import Task
from raysearch.temporary import temporary_name

_log = logging.getLogger(__name__)

MOST_BYTES = 64 << 20
"""Of training data that are sent to every node for the sake of one sample; larger ones travel later."""


@contextmanager
def asked_cluster(task: Task, config: Config, storage: Storage) -> Iterator[NodeCheck]:
    """Ask every node for the task's code and data, the run's storage, and its versions.

    Args:
        task: the run's, as its factory gave it.
        config: the settings.
        storage: the folder of all runs.

    Yields:
        The answers. A node that has not what the task's code imports, or not the files of its training data,
        is a TaskError there; one that cannot use the storage though it must, or has another one, is a
        StorageError.

    Raises:
        StorageError: the driver cannot use the storage.
    """
    _compare_client()
    trains = task.train is not None and not config.training.is_off
    questions = [_code_question(task)]
    if task.factory is not None and config.cluster.replica != "block":
        # Where workers hold one block at a time, they read what the driver wrote.
        questions.append(_model_question(task.factory))
    if trains and (sample := _sample_question(task.train)) is not None:
        questions.append(sample)
    with _trace_in(storage) as name:
        if trains or config.cluster.replica == "block":
            questions.append(_storage_question(storage, name))
        yield NodeCheck(questions)


def _compare_client() -> None:
    client = from_text(os.environ.get(CLIENT_VARIABLE, ""))
    here = {name: number for name, number in versions_here().items() if name in client}
    if others := differences(here, client):
        _log.warning("the machine that submitted this run has other versions than its driver: %s", others)
    elif client:
        _log.info("the machine that submitted this run has the driver's versions: %s", as_text(client))


def _code_question(task: Task) -> Question:
    """Whether what the task consists of can be put together, without its weights and data."""
    parts: list[Any] = [task.forward, task.loss, task.positions, dict(task.metrics), task.factory]
    for kind in {*map(type, task.model.modules()), type(task.train)}:
        # A class made at run time may travel with its object alone.
        with suppress(TaskError):
            dumps(kind)
            parts.append(kind)
    return Question(
        partial(_nothing, parts),
        "use the task's code",
        "Modules and packages in the task file's folder travel with it; put everything else into the nodes' "
        "image or environment, or submit with --pip.",
        TaskError,
    )


def _model_question(factory: ModelFactory) -> Question:
    return Question(
        partial(_call, factory),
        "make the model",
        "Put what the function reads where every node has it under the same path, or give Task(model=...) "
        "the model itself, which is then sent to them.",
        TaskError,
    )


def _sample_question(train: Any) -> Question | None:
    """Whether a sample can be read there; None of data that have no first one, or are too large for a try."""
    data = getattr(train, "dataset", train)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        return None
    try:
        shipment = dumps(data)
    except TaskError:
        # Told by the preflight, with the place in it.
        return None
    if len(shipment.payload) + sum(array.nbytes for array in shipment.arrays) > MOST_BYTES:
        return None
    return Question(
        partial(_first, data),
        "read the first sample of Task(train=...)",
        "Training workers read the data where they are: put its files where every node has them under the "
        "same path, or into the working directory that is uploaded.",
        TaskError,
    )


def _storage_question(storage: Storage, name: str) -> Question:
    return Question(
        partial(_use_storage, storage.uri, name),
        f"use the storage {storage.shown()}",
        "Training workers write checkpoints there: name a folder that all nodes share, or an object store "
        "whose keys the nodes have.",
        StorageError,
    )


@contextmanager
def _trace_in(storage: Storage) -> Iterator[str]:
    """A file that the driver leaves in the storage meanwhile, by which a node knows that it is the same."""
    storage.clear_abandoned(recursive=False)
    name = temporary_name("preflight")
    storage.write_bytes(name, name.encode(), durable=False)
    try:
        yield name
    finally:
        with suppress(StorageError):
            storage.delete_file(name)


def _nothing(parts: Sequence[Any]) -> None:
    """To have been put together is all."""


def _call(factory: ModelFactory) -> None:
    called(factory)


def _first(data: Any) -> None:
    data[0]


def _use_storage(uri: str, name: str) -> None:
    storage = Storage(uri)
    try:
        is_same = storage.read_bytes(name) == name.encode()
    except RaysearchError:
        is_same = False
        if not storage.is_local:
            raise
    if not is_same:
        raise StorageError("it is another folder there than the driver's, for what that wrote is not in it")
    own = temporary_name("preflight")
    storage.write_bytes(own, b"here", durable=False)
    storage.read_bytes(own)
    storage.delete_file(own)
