"""Launch the training loop on Ray Train workers."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysearch.cluster.shipping import dumps, loads
from raysearch.determinism import set_reproducible
from raysearch.errors import RaysearchError, TrainingError
from raysearch.records import EpochMetrics
from raysearch.training.loop import Progress, train
from raysearch.training.recipe import Recipe


def train_on_ray(recipe: Recipe, run_name: str, storage_path: str) -> Progress:
    """Run `train` on `settings.num_workers` Ray Train workers in one process group.

    The recipe goes to the workers once, through the object store. Rank 0 reports a checkpoint an epoch;
    a lost worker, or a killed driver that calls again with the same name, goes on from the last one.

    Args:
        recipe: what to train and how.
        run_name: of the Ray Train run, by which its last checkpoint is found again.
        storage_path: absolute path or URI of the checkpoints; shared by all nodes.

    Raises:
        TrainingError: the objective became NaN, or the worker group failed more than
            `settings.max_failures` times.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    settings = recipe.settings
    shipped = ray.put(dumps(recipe, "the training recipe"))
    scaling = ScalingConfig(
        num_workers=settings.num_workers,
        use_gpu=bool(settings.use_gpu),
        resources_per_worker={"CPU": settings.cpus_per_worker},
    )
    run_config = RunConfig(
        name=run_name,
        storage_path=storage_path,
        failure_config=FailureConfig(max_failures=settings.max_failures),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    )
    backend = "nccl" if settings.use_gpu else "gloo"
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"recipe": [shipped]},
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
    if result.checkpoint is None:
        raise TrainingError("Ray Train ended without a checkpoint; see its log in the run's folder.")
    with result.checkpoint.as_directory() as folder:
        progress = read_progress(Path(folder))
    if settings.steps is None and progress.next_epoch < settings.epochs:
        raise TrainingError(f"Ray Train ended after {progress.next_epoch} of {settings.epochs} epochs.")
    return progress


def _worker(config: dict[str, Any]) -> Any:
    """The loop of one rank; answers a text: why it stopped, "" when it finished."""
    import ray

    recipe: Recipe = loads(ray.get(config["recipe"][0]))
    torch.set_num_threads(recipe.settings.threads)
    set_reproducible(recipe.deterministic, warn_only=True)
    context = RayContext()
    try:
        train(recipe, context)
    except RaysearchError as error:
        # It would fail again, so Ray must not try again. In a group the other ranks wait for this one in
        # a collective call: there it must fail, so that Ray ends them all.
        if context.world > 1:
            raise
        return str(error)
    return ""


class RayContext:
    """One rank of a Ray Train worker group."""

    def __init__(self) -> None:
        from ray import train as ray_train
        from ray.train.torch import get_device

        context = ray_train.get_context()
        self.rank = context.get_world_rank()
        self.world = context.get_world_size()
        self.device: torch.device = get_device()

    def prepare(self, model: nn.Module) -> nn.Module:
        """DistributedDataParallel when there is more than one rank."""
        from ray.train.torch import prepare_model

        # A branch that a batch does not take leaves parameters without a gradient on that rank.
        options = {"find_unused_parameters": True} if self.world > 1 else None
        wrapped: nn.Module = prepare_model(model, parallel_strategy_kwargs=options)
        return wrapped

    def resume(self) -> Progress | None:
        """The last checkpoint of this run, if there is one."""
        from ray import train as ray_train

        checkpoint = ray_train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return read_progress(Path(folder))

    def report(self, progress: Progress) -> None:
        """A barrier: every rank calls it once an epoch, rank 0 with the checkpoint."""
        from ray import train as ray_train

        metrics = dict(progress.history[-1].metrics)
        if self.rank != 0:
            ray_train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_progress(progress, Path(folder))
            ray_train.report(metrics, checkpoint=ray_train.Checkpoint.from_directory(folder))


def write_progress(progress: Progress, folder: Path) -> None:
    """A checkpoint folder: states as safetensors, the rest as JSON."""
    (folder / "state.safetensors").write_bytes(progress.state)
    (folder / "best.safetensors").write_bytes(progress.best_state)
    (folder / "optimizer.safetensors").write_bytes(progress.optimizer)
    history = [asdict(entry) for entry in progress.history]
    summary = {
        "next_epoch": progress.next_epoch,
        "step": progress.step,
        "best_epoch": progress.best_epoch,
        "history": history,
    }
    (folder / "progress.json").write_text(json.dumps(summary))


def read_progress(folder: Path) -> Progress:
    """Read what `write_progress` wrote."""
    summary = json.loads((folder / "progress.json").read_text())
    history = [EpochMetrics(entry["epoch"], entry["metrics"]) for entry in summary["history"]]
    return Progress(
        next_epoch=summary["next_epoch"],
        step=summary["step"],
        history=history,
        best_epoch=summary["best_epoch"],
        best_state=(folder / "best.safetensors").read_bytes(),
        state=(folder / "state.safetensors").read_bytes(),
        optimizer=(folder / "optimizer.safetensors").read_bytes(),
    )


def _innermost(error: BaseException) -> str:
    """What a worker said, out of the errors that Ray wraps around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = lines[-1].strip() if lines else repr(error)
    # The last line of a traceback names the class with its module, which says nothing to a user.
    return last.removeprefix(f"{TrainingError.__module__}.{TrainingError.__name__}: ")
