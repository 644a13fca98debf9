"""How many workers a run takes where nobody says: this process, or actors that are worth their start."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace

import torch

from raysearch.config import ClusterConfig
from raysearch.errors import TaskError
from raysearch.evaluation import batch_size
from raysearch.evaluation.forward import frozen_eval
from raysearch.pipeline.inputs import Inputs
from raysearch.pipeline.preflight.preflight import check_travel
from raysearch.pipeline.stages import search_shards

WORTH_SECONDS = 60.0
"""Work that each actor must have: its start takes ten seconds of a core, and its caches are empty."""
WORKER_BYTES = 2**30
"""Of a process with torch, and of the data and outputs that it holds."""
TRACE_FORWARDS = 30
"""Forwards of a sample that the traces are worth."""


def with_workers(inputs: Inputs, address: str) -> Inputs:
    """The inputs with the number of workers in force in place of "auto"; the answer does not depend on it.

    On a cluster that is one, since its owner says how much of it a run may take. On one machine it is this
    process; where a forward says that the work is long, it is as many actors as there are cores with work of
    `WORTH_SECONDS` and memory for each. GPUs have an actor each, where there are several.

    Args:
        inputs: checked.
        address: see `raysearch.run`.
    """
    cluster = inputs.config.cluster
    if cluster.workers != "auto":
        return inputs
    if address != "local":
        return _with_count(inputs, cluster.num_workers)
    if cluster.device != "cpu" and torch.cuda.is_available():
        return _with_count(inputs, at_least_two(torch.cuda.device_count()))
    count = machine_workers(work_seconds(inputs), cluster, worker_bytes(inputs))
    if count:
        try:
            check_travel(inputs)
        except TaskError:
            # What cannot be sent to actors can be used where it is.
            count = 0
    if not count and inputs.config.training.num_workers > 1:
        # Training in several processes takes Ray, whatever comes before it.
        count = 1
    return _with_count(inputs, count)


def _with_count(inputs: Inputs, count: int) -> Inputs:
    cluster = inputs.config.cluster.model_copy(update={"workers": count})
    return replace(inputs, config=inputs.config.model_copy(update={"cluster": cluster}))


def at_least_two(count: int) -> int:
    """Actors where there is room for so many: a single one brings nothing that this process does not.

    Example:
        >>> at_least_two(1), at_least_two(4)
        (0, 4)
    """
    return count if count > 1 else 0


def machine_workers(seconds: float, cluster: ClusterConfig, num_bytes: int) -> int:
    """Actors of an embedded Ray that so much work is worth; 0: this process.

    Args:
        seconds: of one core.
        cluster: says what each worker has.
        num_bytes: that each takes.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with_cores = int(cores / max(cluster.cpus_per_worker, cluster.threads))
    with_memory = int(machine_bytes() / 2 / num_bytes)
    return at_least_two(min(with_cores, with_memory, int(seconds / WORTH_SECONDS)))


def machine_bytes() -> int:
    """Memory of this machine; 0 where it does not tell, so that no actor is thought to fit."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def worker_bytes(inputs: Inputs) -> int:
    """About what an actor takes: the float model, its quantized weights, caches, and the process itself.

    Where it holds one part of the model, that is of the largest, and there are no caches.
    """
    num_weights = sum(parameter.numel() for parameter in inputs.task.model.parameters())
    if inputs.chain is not None:
        num_of_part: Counter[int] = Counter()
        for name, parameter in inputs.task.model.named_parameters():
            num_of_part[inputs.chain.part_of(name)] += parameter.numel()
        return 8 * max(num_of_part.values()) + WORKER_BYTES
    return 8 * num_weights + inputs.cache_bytes + WORKER_BYTES


def work_seconds(inputs: Inputs) -> float:
    """About how long one core takes for what workers share: responses, traces and trials, by one forward."""
    search, _ = search_shards(inputs)
    num_search = sum(map(batch_size, search))
    num_calibration = sum(map(batch_size, inputs.samples.calibration))
    num_options = sum(len(group.schemes) for group in inputs.setup.groups.values())
    num_forwards = num_calibration * (num_options + TRACE_FORWARDS) + num_search * inputs.search.num_trials
    return num_forwards * forward_seconds(inputs)


def forward_seconds(inputs: Inputs) -> float:
    """Of one sample, by a forward of the first shard."""
    shard = inputs.samples.calibration[0]
    started = time.perf_counter()
    with frozen_eval(inputs.task.model), torch.no_grad():
        inputs.task.run(inputs.task.model, shard)
    return (time.perf_counter() - started) / batch_size(shard)
