"""What follows a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysearch.records import RunResult, SearchTrial, TrainingStatus


class Callback:
    """Is told what a run does, in the process that drives it; a method that is not overridden does nothing.

    Nothing is computed from what a callback does: one that fails is left out from then on, with a warning.
    """

    def on_start(self, run_id: str, uri: str, settings: Mapping[str, Any]) -> None:
        """The run has its folder, or goes on.

        Args:
            run_id: its name.
            uri: of its folder.
            settings: section → setting → value, and `task` and `budget`.
        """

    def on_stage(self, stage: str, seconds: float) -> None:
        """A stage is over, or was cut."""

    def on_trial(self, trial: SearchTrial, objective: str) -> None:
        """A trial of the search was measured; `objective` names what its value is."""

    def on_step(self, status: TrainingStatus) -> None:
        """Training took a step."""

    def on_epoch(self, status: TrainingStatus) -> None:
        """Training was validated."""

    def on_result(self, result: RunResult) -> None:
        """The run has its result."""

    def on_end(self, state: str, message: str = "") -> None:
        """The run is "done", "failed" or "cancelled"; the message says why."""
