"""Launch the training loop on Ray Train workers, and follow it."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import distributed, nn

from raysearch.artifacts import OUTAGE_SECONDS, Storage
from raysearch.config import TrainingConfig
from raysearch.determinism import set_reproducible
from raysearch.errors import RaysearchError, StorageError, TrainingError
from raysearch.records import TrainingStatus
from raysearch.training.context import Tell
from raysearch.training.loop import train
from raysearch.training.progress import RUNNING, CheckpointFolder, Progress
from raysearch.training.recipe import Recipe

_log = logging.getLogger(__name__)

TELL_EVERY_SECONDS = 0.5
WAITING_SECONDS = 10.0
"""After which it is told what the workers wait for."""

RAY_RUN = "qat"
"""The name of the Ray Train run below the storage."""

UNUSED = "unused-parameters"
"""A file that says that a batch left parameters without a gradient."""
FAILED = "failure.txt"
"""A file that says why training would fail again."""


def train_on_ray(recipe: Recipe, storage: Storage, tell: Tell) -> Progress:
    """Run `train` on `settings.num_workers` Ray Train workers in one process group.

    The recipe goes to the workers once, through the object store. Rank 0 writes the checkpoints; a lost
    worker, or a killed driver that calls again with the same storage, goes on from the last one, on as many
    workers as there are then.

    Args:
        recipe: what to train and how.
        storage: of the checkpoints; shared by all nodes.
        tell: is given the status of training, from another thread.

    Raises:
        TrainingError: the objective became NaN, or the worker group failed more than
            `settings.max_failures` times.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from raysearch.cluster.shipping import dumps

    settings = recipe.settings
    shipped = ray.put(dumps(recipe, "the training recipe"))
    scaling = ScalingConfig(
        num_workers=group_size(settings),  # type: ignore[arg-type]
        use_gpu=bool(settings.use_gpu),
        resources_per_worker={"CPU": settings.cpus_per_worker},
    )
    run_config = RunConfig(
        name=RAY_RUN,
        storage_path=storage.uri,
        failure_config=FailureConfig(max_failures=settings.max_failures),
    )
    backend = "nccl" if settings.use_gpu else "gloo"
    folder = storage.child(RUNNING)
    if folder.exists(FAILED):
        folder.delete_file(FAILED)
    with _in_own_folder(), _followed(settings, tell) as board:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"recipe": [shipped], "folder": folder.uri, "board": board},
            scaling_config=scaling,
            torch_config=TorchConfig(backend=backend),
            run_config=run_config,
        )
        try:
            result = trainer.fit()
        except Exception as error:
            raise TrainingError(f"Ray Train gave up: {_innermost(error)}") from error
    reason = getattr(result, "return_value", "")
    if reason:
        raise TrainingError(str(reason))
    latest = CheckpointFolder(folder).latest()
    if latest is None:
        raise TrainingError("Ray Train ended without a checkpoint; see its log in the run's folder.")
    return latest[0]


def group_size(settings: TrainingConfig) -> int | tuple[int, int]:
    """How many workers Ray Train is asked for; with the least and the most of them it changes the number."""
    if settings.min_workers in (None, settings.num_workers):
        return settings.num_workers
    return settings.min_workers, settings.num_workers


@contextmanager
def _in_own_folder() -> Iterator[None]:
    """Workers stay in the folder that they start in, as the fleet's do: data may name relative paths."""
    name = "RAY_CHDIR_TO_TRIAL_DIR"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class Board:
    """Where rank 0 writes how far training is, and the driver reads it; an actor."""

    def __init__(self) -> None:
        self._status: TrainingStatus | None = None

    def write(self, status: TrainingStatus) -> None:
        """Replace what was written before."""
        self._status = status

    def read(self) -> TrainingStatus | None:
        """What was written last."""
        return self._status


@contextmanager
def _followed(settings: TrainingConfig, tell: Tell) -> Iterator[Any]:
    """A board that is read, and passed on, while the context lasts."""
    import ray

    board: Any = ray.remote(num_cpus=0)(Board).remote()
    is_over = threading.Event()
    follower = threading.Thread(target=_follow, args=(board, settings, tell, is_over), daemon=True)
    follower.start()
    try:
        yield board
    finally:
        is_over.set()
        follower.join()
        ray.kill(board)


def _follow(board: Any, settings: TrainingConfig, tell: Tell, is_over: threading.Event) -> None:
    """Pass on what the board says until it is over, once more then.

    Args:
        board: the actor.
        settings: what the workers want.
        tell: is given what is new, until it fails.
        is_over: set when training ended.
    """
    import ray

    started = time.monotonic()
    last: TrainingStatus | None = None
    is_told = False
    is_heard = True
    while True:
        ends = is_over.wait(TELL_EVERY_SECONDS)
        try:
            status = ray.get(board.read.remote(), timeout=WAITING_SECONDS)
        except ray.exceptions.RayError:
            # The board may be lost with its node; training goes on without.
            status = last
        if status is not None and status != last:
            last = status
            is_heard = is_heard and _is_told(tell, status)
        if ends:
            return
        if last is None and not is_told and time.monotonic() - started > WAITING_SECONDS:
            is_told = True
            is_heard = is_heard and _is_told(tell, TrainingStatus(message=_waiting(settings)))


def _is_told(tell: Tell, status: TrainingStatus) -> bool:
    """Tell a status; False where whoever is told fails, which ends no training.

    Args:
        tell: is given it.
        status: what is told.
    """
    try:
        tell(status)
    except Exception as error:
        _log.warning("training goes on, and nobody is told of it any more: %r", error)
        return False
    return True


def _waiting(settings: TrainingConfig) -> str:
    """What the workers wait for, in numbers."""
    import ray

    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    present: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    kind = "GPU" if settings.use_gpu else "CPU"
    each = 1.0 if settings.use_gpu else settings.cpus_per_worker
    return (
        f"training waits for {settings.num_workers} workers of {each:g} {kind}: the cluster has "
        f"{present.get(kind, 0):g}, {free.get(kind, 0):g} of them free"
    )


def _worker(config: dict[str, Any]) -> Any:
    """The loop of one rank; answers a text: why it stopped, "" when it finished."""
    import ray

    from raysearch.cluster.shipping import loads

    recipe: Recipe = loads(ray.get(config["recipe"][0]))
    torch.set_num_threads(recipe.settings.threads)
    set_reproducible(recipe.deterministic, warn_only=True)
    storage = Storage(config["folder"], OUTAGE_SECONDS)
    if storage.exists(FAILED):
        return storage.read_bytes(FAILED).decode()
    context = RayContext(storage, config["board"])
    try:
        train(recipe, context)
    except RaysearchError as error:
        # It would fail again, so Ray must not try again. In a group the other ranks wait for this one in
        # a collective call: there it must fail, so that Ray ends them all, and starts them once more, when
        # they read why.
        if context.world > 1:
            # Where nothing can be written any more, Ray finds out by trying again.
            with suppress(StorageError):
                storage.write_bytes(FAILED, str(error).encode())
            raise
        return str(error)
    except RuntimeError as error:
        if "finished reduction" in str(error):
            context.remember_unused()
        raise
    return ""


class RayContext:
    """One rank of a Ray Train worker group.

    Args:
        storage: of the checkpoints.
        board: an actor, see `Board`.
    """

    def __init__(self, storage: Storage, board: Any) -> None:
        from ray import train as ray_train
        from ray.train.torch import get_device

        context = ray_train.get_context()
        self.rank = context.get_world_rank()
        self.world = context.get_world_size()
        self.device: torch.device = get_device()
        self.folder = CheckpointFolder(storage)
        self._storage = storage
        self._board = board
        self._told = 0.0

    def prepare(self, objective: nn.Module, has_unused: Callable[[], bool]) -> nn.Module:
        """DistributedDataParallel when there is more than one rank."""
        from ray.train.torch import prepare_model

        options = None
        if self.world > 1:
            # A branch that a batch does not take leaves parameters without a gradient on that rank. To look
            # for them costs a walk of the graph at every step.
            options = {"find_unused_parameters": self._storage.exists(UNUSED) or has_unused()}
        wrapped: nn.Module = prepare_model(objective, parallel_strategy_kwargs=options)
        return wrapped

    def remember_unused(self) -> None:
        """Look for parameters without a gradient from the next start on: a batch left some."""
        self._storage.write_bytes(UNUSED, b"")

    def tell(self, status: TrainingStatus) -> None:
        """Write it on the board, from rank 0 and now and then."""
        now = time.monotonic()
        is_last = status.steps and status.step == status.steps
        if self.rank == 0 and (is_last or now - self._told >= TELL_EVERY_SECONDS):
            self._told = now
            self._board.write.remote(status)

    def gather(self, values: list[Any]) -> list[list[Any]]:
        """What each rank gives, on all of them, in the order of ranks."""
        if self.world == 1:
            return [values]
        gathered: list[list[Any]] = [[] for _ in range(self.world)]
        distributed.all_gather_object(gathered, values)
        return gathered

    def total(self, count: int) -> int:
        """The sum of what all ranks count."""
        if self.world == 1:
            return count
        summed = torch.tensor(count, device=self.device)
        distributed.all_reduce(summed)
        return int(summed)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of rank 0: each has statistics of its own batches."""
        if self.world == 1:
            return
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def _innermost(error: BaseException) -> str:
    """What a worker said, out of the errors that Ray wraps around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = lines[-1].strip() if lines else repr(error)
    # The last line of a traceback names the class with its module; of our own that says nothing to a user.
    return re.sub(rf"^{re.escape(RaysearchError.__module__)}\.\w+: ", "", last)
