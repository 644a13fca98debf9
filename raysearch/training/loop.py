"""The training loop in plain PyTorch; one rank's view of it, with or without Ray."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from raysearch.artifacts.run_record import first_difference
from raysearch.calibration import adapt_batch_norm, apply_batch_norm
from raysearch.errors import DataError, StorageError, TrainingError
from raysearch.evaluation import Batch, training_batches
from raysearch.evaluation.model.copies import private_copy
from raysearch.records import EpochMetrics, TrainingStatus
from raysearch.seeding import derive_seed
from raysearch.training.average import Average
from raysearch.training.context import Context
from raysearch.training.feed import Draws, drawn, in_one
from raysearch.training.norms import alone, synchronise
from raysearch.training.objective import Objective
from raysearch.training.optimizer import Optimizer
from raysearch.training.oscillation import Oscillations
from raysearch.training.phases import Phases, trained_weights
from raysearch.training.progress import CALIBRATED, Progress
from raysearch.training.recipe import Recipe
from raysearch.training.schedule import Schedule
from raysearch.training.state import Buffers, put_state, state_bytes, state_tensors
from raysearch.training.step import DivergedError, Step, Stepper
from raysearch.training.trial_step import be_as_strict_as_possible, leaves_parameters_unused
from raysearch.training.validation import validate

_MODEL, _OPTIMIZER, _AVERAGE, _OSCILLATIONS = "model", "optimizer", "average", "oscillations"

LAYOUT = ("batch_size", "global_batch_size", "num_workers")
"""Settings that say which samples a step sees."""


def train(recipe: Recipe, context: Context) -> Progress:
    """Train the recipe's quantized model; the best epoch may be the calibrated model itself (`CALIBRATED`).

    Every random draw of a batch comes from (seed, epoch, rank, batch), so an interrupted loop that goes on
    from its checkpoint gives what an uninterrupted one gives.

    Cost per batch: one forward and backward of the quantized model; with "distill" one float forward more.

    Args:
        recipe: what to train and how.
        context: the rank that this process is.

    Returns:
        How far it came, with the best state and every epoch's metrics.

    Raises:
        ConfigError: the settings contradict each other or the data.
        StorageError: a checkpoint cannot be written, or is of another setup.
        TrainingError: the objective became NaN, or there is no batch; states the epoch and step.
    """
    return Training(recipe, context).run()


class Training:
    """One training on one rank.

    Args:
        recipe: what to train and how.
        context: the rank that this process is.

    Attributes:
        model: the quantized model.
        progress: how far it is.
    """

    def __init__(self, recipe: Recipe, context: Context) -> None:
        settings = recipe.settings
        self._recipe = recipe
        self._context = context
        controller = recipe.build()
        self.model = controller.model.to(context.device)
        self._teacher = private_copy(recipe.model).to(context.device).eval().requires_grad_(False)
        # Before an earlier state is loaded: a scale's rate is relative to its size at the start.
        self._optimizer = Optimizer(controller, settings)
        self.progress = Progress(settings=settings.fixed(), assignment=recipe.assignment.digest())
        self._average = Average(self.model, settings.ema_decay)
        self._phases = Phases(controller, settings)
        self._oscillations = Oscillations(trained_weights(controller), settings.oscillation_threshold)
        self._resume()
        self._check_one_start()
        if settings.sync_batch_norm:
            synchronise(self.model, context.world)
        if recipe.deterministic and context.device.type != "cpu":
            be_as_strict_as_possible(recipe, self._teacher, context.device)
        objective = context.prepare(
            Objective(recipe, self.model, self._teacher),
            lambda: (
                Phases.leave_unused(settings)
                or leaves_parameters_unused(recipe, self._teacher, context.device)
            ),
        )
        self._buffers = Buffers(self.model)
        seed = derive_seed(recipe.seed, "training", "order")
        share = settings.share_of_one(context.world)
        self._batches = training_batches(
            recipe.train, settings.batch_size, seed, context.rank, context.world, share
        )
        self._schedule = Schedule(settings, self._batches.num_turns)
        self._stepper = Stepper(recipe, context, objective, self._optimizer, self._schedule, self._phases)
        self._saved_at = time.monotonic()

    def run(self) -> Progress:
        """Train until the schedule is over."""
        try:
            return self._run()
        except DivergedError as error:
            raise TrainingError(f"{error} {self._after_divergence()}") from error

    def _after_divergence(self) -> str:
        """What to do when training diverged; a checkpoint whose own next step does so is taken away."""
        rates = "a lower training.learning_rate or training.scale_learning_rate"
        folder, step = self._context.folder, self.progress.step
        if not folder.is_kept:
            return f"Train with {rates}."
        is_spoilt = folder.discard(step)
        last = folder.last_step()
        goes_on = f"goes on from the checkpoint of step {last}"
        if last is None:
            goes_on = "begins the training anew"
        text = f"`--resume` with {rates} (--set) {goes_on}"
        if is_spoilt:
            text += f"; the checkpoint of step {step}, whose next step this was, is deleted"
        return f"{text}."

    def _run(self) -> Progress:
        progress = self.progress
        if not progress.history:
            self._validate(CALIBRATED)
        if progress.next_epoch:
            # Checkpoints of before it was kept have epochs of one length.
            mean_length = (progress.step - progress.epoch_steps) // progress.next_epoch
            self._schedule.see_epoch_of(progress.last_epoch_steps or mean_length)
        while not (self._schedule.is_over(progress.next_epoch, progress.step) or self._has_stalled()):
            self._train_epoch(progress.next_epoch)
            self._validate(progress.next_epoch)
            progress.next_epoch += 1
            progress.last_epoch_steps = progress.epoch_steps
            progress.epoch_steps = 0
            if self._has_stalled():
                progress.remarks.append(
                    f"training stopped after {progress.next_epoch} epochs, the last "
                    f"{self._recipe.settings.patience} without a better validation {self._recipe.monitor} "
                    f"(training.patience)"
                )
            self._save()
        return progress

    def _has_stalled(self) -> bool:
        """Whether the validation has not become better for as many epochs as the patience lasts."""
        progress, patience = self.progress, self._recipe.settings.patience
        return patience is not None and progress.next_epoch - 1 - progress.best_epoch >= patience

    def _train_epoch(self, epoch: int) -> None:
        progress = self.progress
        steps = self._stepper.steps(self._turns(epoch), epoch, progress.step, progress.epoch_steps)
        for step in steps:
            self._oscillations.freeze(self._schedule.share(progress.step))
            progress.step += 1
            progress.epoch_steps += 1
            self._average.update(progress.step)
            self._tell(epoch, step)
            if self._schedule.ends_with(progress.step):
                break
            if self._is_checkpoint_due():
                self._save()
        if not progress.epoch_steps:
            raise TrainingError(
                f"the training data gave no batch to worker {self._context.rank + 1} of "
                f"{self._context.world}; pass data with at least one batch a worker."
            )
        self._schedule.see_epoch_of(progress.epoch_steps)
        self._buffers.put_back_remade()

    def _turns(self, epoch: int) -> Iterable[list[Batch]]:
        """The batches of an epoch, as this rank takes them."""
        turns = self._batches(epoch)
        return in_one(turns) if self._recipe.settings.sync_batch_norm else turns

    def _validate(self, epoch: int) -> None:
        """Evaluate the model as it is after an epoch, and keep its state if it is the best so far."""
        with self._phases.whole(), self._average.in_force():
            self._take_statistics(epoch)
            self._context.share_buffers(self.model)
            self._judge(epoch)
        self._tell(epoch)

    def _take_statistics(self, epoch: int) -> None:
        """Take BatchNorm's statistics anew over the epoch's first samples, where that is asked for."""
        settings = self._recipe.settings
        freeze_after = settings.batch_norm_freeze_after
        # 1 is never, also at the very end.
        is_frozen = freeze_after < 1 and self._schedule.share(self.progress.step) >= freeze_after
        if epoch == CALIBRATED or not settings.batch_norm_samples or is_frozen:
            return
        turns = drawn(self._turns(epoch), Draws(self._recipe.seed, epoch, self._context.rank))
        batches = itertools.chain.from_iterable(turns)
        samples = settings.batch_norm_samples
        try:
            # Ranks may have unequally many batches, and those of rank 0 alone are kept.
            with alone(self.model):
                statistics = adapt_batch_norm(
                    self.model, batches, self._recipe.forward, samples, cumulative=True
                )
        except DataError as error:
            # The data were finite in every step: it is the weights that are not.
            raise DivergedError(f"after step {self.progress.step}: {error}") from error
        apply_batch_norm(self.model, statistics)

    def _judge(self, epoch: int) -> None:
        progress, monitor = self.progress, self._recipe.monitor
        metrics = validate(self._recipe, self._context, self.model, self._teacher)
        monitored = metrics[monitor]
        # NaN compares false with everything: an epoch that has it is never the best, and never blocks
        # another.
        earlier = [entry.metrics[monitor] for entry in progress.history]
        best = min((value for value in earlier if not math.isnan(value)), default=math.inf)
        progress.history.append(EpochMetrics(epoch, metrics))
        if monitored < best or len(progress.history) == 1:
            progress.best_epoch = epoch
            progress.best_step = progress.step
            # Rank 0 alone writes it.
            progress.best_state = b"" if self._context.rank else state_bytes(self.model)

    def _tell(self, epoch: int, step: Step | None = None) -> None:
        settings, progress = self._recipe.settings, self.progress
        status = TrainingStatus(
            epoch=max(epoch, 0),
            epochs=0 if settings.steps else settings.epochs,
            step=progress.step,
            steps=self._schedule.total or 0,
            samples=step.samples if step else 0,
            loss=step.loss if step else None,
            learning_rate=self._optimizer.learning_rate,
            validation=progress.history[-1].metrics if progress.history else {},
        )
        self._context.tell(status)

    def _is_checkpoint_due(self) -> bool:
        settings = self._recipe.settings
        if settings.checkpoint_steps and self.progress.step % settings.checkpoint_steps == 0:
            return True
        return time.monotonic() - self._saved_at >= 60 * settings.checkpoint_minutes

    def _save(self) -> None:
        """Write a checkpoint; rank 0 alone, whose state is everybody's."""
        self._saved_at = time.monotonic()
        if self._context.rank:
            return
        self._buffers.put_back_remade()
        with self._phases.whole():
            state = state_tensors(self.model)
        for name, parameter in self.model.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise DivergedError(
                    f"'{name}' is not finite after step {self.progress.step}, learning rate "
                    f"{self._optimizer.learning_rate:.3g}."
                )
        tensors = _prefixed(_MODEL, state) | _prefixed(_OPTIMIZER, self._optimizer.tensors())
        tensors |= _prefixed(_AVERAGE, self._average.tensors())
        tensors |= _prefixed(_OSCILLATIONS, self._oscillations.tensors())
        self._context.folder.save(self.progress, tensors)

    def _resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        latest = self._context.folder.latest()
        if latest is None:
            return
        settings = self._recipe.settings.fixed()
        assignment = self.progress.assignment
        self.progress, tensors = latest
        # Scales of other widths have the same shapes, and would be taken.
        if self.progress.assignment not in ("", assignment):
            raise StorageError(
                f"the checkpoint of step {self.progress.step} in {self._context.folder.shown()} trains other "
                f"bit-widths than this run's: it belongs to another run. Delete that folder to train anew."
            )
        self.progress.assignment = assignment
        put_state(self.model, _below(_MODEL, tensors))
        self._optimizer.load(_below(_OPTIMIZER, tensors))
        self._average.load(_below(_AVERAGE, tensors))
        self._oscillations.load(_below(_OSCILLATIONS, tensors))
        before = self.progress.settings
        difference = first_difference(before, settings)
        if difference is not None:
            self.progress.remarks.append(
                f"training went on from step {self.progress.step} with other settings: training.{difference}"
            )
        if any(before.get(name) != settings.get(name) for name in LAYOUT):
            self._keep_place(before, settings)
        self.progress.settings = settings

    def _check_one_start(self) -> None:
        """Refuse ranks that read different checkpoints: their gradients would be averaged all the same."""
        steps = [step for (step,) in self._context.gather([self.progress.step])]
        if len(set(steps)) > 1:
            raise TrainingError(
                f"the workers read checkpoints of different steps, {', '.join(map(str, steps))}: the run's "
                f"storage must be one that every node sees whole. Mend it, then run with --resume."
            )

    def _keep_place(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """The place in the epoch, where steps see the same samples as before; else the epoch's beginning."""
        is_kept = "global_batch_size" in now and before.get("global_batch_size") == now["global_batch_size"]
        if not is_kept:
            self.progress.epoch_steps = 0


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}:{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}:"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
