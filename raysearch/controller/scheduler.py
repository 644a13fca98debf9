"""When quantization starts: at once, or weights and activations at epochs of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch.optim import Optimizer

from raysearch.errors import ConfigError
from raysearch.unknown_keys import refuse_unknown

Kind = Literal["weight", "activation"]
KINDS: tuple[Kind, ...] = ("weight", "activation")


@dataclass(frozen=True)
class ScheduleParams:
    """The keys of `compression.params`; epochs count from 0.

    Attributes:
        activations_quant_start_epoch: epoch from which activations are quantized.
        weights_quant_start_epoch: epoch from which weights are.
        base_lr: learning rate of every parameter group; None: what the optimizer has when attached.
        base_wd: weight decay; None: what the optimizer has.
        batch_multiplier: steps whose gradients are added up before the optimizer steps.
        lr_poly_drop_start_epoch: epoch from which the rate falls linearly to 0; None: never.
        lr_poly_drop_duration_epochs: how many epochs that takes.
        disable_wd_start_epoch: epoch from which weight decay is 0; None: never.
    """

    activations_quant_start_epoch: int = 1
    weights_quant_start_epoch: int = 1
    base_lr: float | None = None
    base_wd: float | None = None
    batch_multiplier: int = 1
    lr_poly_drop_start_epoch: int | None = None
    lr_poly_drop_duration_epochs: int = 30
    disable_wd_start_epoch: int | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ScheduleParams:
        """Read and check a mapping.

        Raises:
            ConfigError: a key is unknown, or a value is negative or no number.
        """
        refuse_unknown(values, [f.name for f in fields(cls)], "compression.params")
        for key, value in values.items():
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"compression.params.{key} is {value!r}; a number is wanted.")
            least = 1 if key in ("batch_multiplier", "lr_poly_drop_duration_epochs") else 0
            if value < least:
                raise ConfigError(f"compression.params.{key} is {value!r}; at least {least} is wanted.")
        return cls(**values)

    @property
    def sets_rates(self) -> bool:
        """Whether it changes learning rates or weight decay, which takes an attached optimizer."""
        rates = (self.base_lr, self.base_wd, self.lr_poly_drop_start_epoch, self.disable_wd_start_epoch)
        return any(value is not None for value in rates)

    def start(self, kind: Kind) -> int:
        """The epoch from which a kind is quantized."""
        return self.weights_quant_start_epoch if kind == "weight" else self.activations_quant_start_epoch


class Scheduler:
    """Counts; `step` and `epoch_step` are called at the START of a step and of an epoch.

    Attributes:
        current_step: −1 before the first step.
        current_epoch: −1 before the first epoch.
    """

    staged = False

    def __init__(self) -> None:
        self.current_step = -1
        self.current_epoch = -1

    def step(self, next_step: int | None = None) -> None:
        """Begin a step; by default the next one."""
        self.current_step = self.current_step + 1 if next_step is None else next_step

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begin an epoch; by default the next one."""
        self.current_epoch = self.current_epoch + 1 if next_epoch is None else next_epoch

    def get_state(self) -> dict[str, Any]:
        """The counters."""
        return {"current_step": self.current_step, "current_epoch": self.current_epoch}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put the counters back; the state is then what stepping there would have given."""
        self.current_step, self.current_epoch = int(state["current_step"]), int(state["current_epoch"])


class StagedScheduler(Scheduler):
    """Starts weights and activations at their epochs, and sets the rates of an attached optimizer.

    What is on follows from the epoch alone, so a jump or a resume gives what stepping gives. A kind is
    initialised once, when it first starts; going back and forth never touches its trained ranges again.

    Args:
        params: the epochs and rates.
        switch: turns a kind on or off.
        initialise: finds the ranges of a kind that starts for the first time after training began.
        adapt: called once after the kinds of an epoch have started, when what is on has changed.
    """

    staged = True

    def __init__(
        self,
        params: ScheduleParams,
        switch: Callable[[Kind, bool], None],
        initialise: Callable[[Kind], None],
        adapt: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.params = params
        self._switch = switch
        self._initialise = initialise
        self._adapt = adapt
        self._optimizer: Optimizer | None = None
        self._base: list[tuple[float, float]] = []
        self.started: set[Kind] = {kind for kind in KINDS if params.start(kind) == 0}
        self.sync()

    @property
    def optimizer_step_due(self) -> bool:
        """Whether the optimizer steps after this step: every `batch_multiplier`-th."""
        return (self.current_step + 1) % self.params.batch_multiplier == 0

    def attach(self, optimizer: Optimizer) -> None:
        """Let the schedule set the learning rate and the weight decay of an optimizer's groups."""
        self._optimizer = optimizer
        self._base = [(g["lr"], g.get("weight_decay", 0.0)) for g in optimizer.param_groups]
        self._set_rates()

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begin an epoch: start the kinds whose epoch has come, and set the rates."""
        super().epoch_step(next_epoch)
        if self.params.sets_rates and self._optimizer is None:
            warnings.warn(
                "compression.params sets learning rates or weight decay, and no optimizer is attached, so "
                "they have no effect; call controller.scheduler.attach(optimizer)",
                stacklevel=2,
            )
        due = [k for k in KINDS if self.current_epoch >= self.params.start(k) and k not in self.started]
        for kind in due:
            self.started.add(kind)
            self._switch(kind, True)
            self._initialise(kind)
        self.sync()
        if due:
            self._adapt()
        self._set_rates()

    def get_state(self) -> dict[str, Any]:
        """The counters, and which kinds have been initialised."""
        return {**super().get_state(), "started": sorted(self.started)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put the counters back; kinds that were on are on, and those to come initialise when they start."""
        super().load_state(state)
        self.started = {kind for kind in KINDS if kind in state.get("started", ())}
        self.sync()
        self._set_rates()

    def sync(self) -> None:
        """Turn on what the epoch says, and off what it does not."""
        epoch = max(self.current_epoch, 0)
        for kind in KINDS:
            self._switch(kind, epoch >= self.params.start(kind))

    def _set_rates(self) -> None:
        if self._optimizer is None:
            return
        params = self.params
        epoch = max(self.current_epoch, 0)
        factor = 1.0
        if params.lr_poly_drop_start_epoch is not None:
            progress = (epoch - params.lr_poly_drop_start_epoch) / params.lr_poly_drop_duration_epochs
            factor = min(1.0, max(0.0, 1.0 - progress))
        has_decay = params.disable_wd_start_epoch is None or epoch < params.disable_wd_start_epoch
        # Not strict: a group that was added after `attach` keeps its own rates.
        for group, (own_rate, own_decay) in zip(self._optimizer.param_groups, self._base, strict=False):
            rate = own_rate if params.base_lr is None else params.base_lr
            decay = own_decay if params.base_wd is None else params.base_wd
            group["lr"] = rate * factor
            group["weight_decay"] = decay if has_decay else 0.0
