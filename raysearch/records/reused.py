"""What a run took over from an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reused:
    """What a run took over from an earlier one.

    Attributes:
        run_id: the earlier run.
        stages: names of the stages whose records they are.
        trial: number of the trial that was taken in place of the earlier winner; None for none.
    """

    run_id: str
    stages: tuple[str, ...]
    trial: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Reused:
        """Read what JSON made of it.

        Raises:
            KeyError, TypeError: it is none.
        """
        return cls(**{**values, "stages": tuple(values["stages"])})

    def describe(self) -> str:
        """One sentence for the notes of the result.

        Example:
            >>> Reused("digits", ("calibration", "sensitivity")).describe()
            "taken over from the run 'digits': calibration, sensitivity"
        """
        text = f"taken over from the run '{self.run_id}': {', '.join(self.stages) or 'nothing'}"
        return text if self.trial is None else f"{text}; the assignment is its trial {self.trial}"
