"""What finds ranges and widths for a controller, which itself knows no data and no stage.

An initializer works on a model, a setup and ranges, and knows no controller: the arrow goes one way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from raysearch.config.precision import PrecisionRequest
from raysearch.errors import PlacementError
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable


@dataclass(frozen=True)
class RangeReport:
    """What `init_range` did.

    Attributes:
        initialised: quantizers whose ranges are calibrated anew.
        loaded: quantizers that keep the ranges which were loaded from a state.
    """

    initialised: tuple[str, ...]
    loaded: tuple[str, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """The former name of `loaded`."""
        return self.loaded


class Initializer(Protocol):
    """Initialises ranges, widths and BatchNorm statistics; `create_compressed_model` supplies one."""

    def find_ranges(
        self,
        model: nn.Module,
        setup: QuantizerSetup,
        points: Collection[str],
        params: Mapping[str, Any] | None,
    ) -> RangeTable:
        """Calibrated ranges of some quantizers, at every width that their groups admit.

        Args:
            model: the quantized model; its weights as they are now are calibrated.
            setup: all quantizers of the model.
            points: ids of the quantizers to calibrate.
            params: settings as in NNCF's `initializer.range`; None: the initializer's own.
        """
        ...

    def find_precision(
        self, model: nn.Module, setup: QuantizerSetup, ranges: RangeTable, request: PrecisionRequest
    ) -> BitAssignment:
        """The best assignment by the request's criterion.

        Args:
            model: the quantized model; its weights as they are now are judged.
            setup: all quantizers, and the widths that are left to each group.
            ranges: their calibrated ranges.
            request: "hawq" or "search" with its parameters.
        """
        ...

    def adapt_batch_norm(self, model: nn.Module) -> None:
        """Take BatchNorm statistics anew, with the model as it is quantized now, where that was set."""
        ...


class NoInitializer:
    """Stands where no data was given: what needs it says so."""

    def find_ranges(
        self,
        model: nn.Module,
        setup: QuantizerSetup,
        points: Collection[str],
        params: Mapping[str, Any] | None,
    ) -> RangeTable:
        """See `Initializer.find_ranges`.

        Raises:
            PlacementError: always.
        """
        raise PlacementError(f"init_range of {', '.join(points)} needs data, and {_NO_DATA}")

    def find_precision(
        self, model: nn.Module, setup: QuantizerSetup, ranges: RangeTable, request: PrecisionRequest
    ) -> BitAssignment:
        """See `Initializer.find_precision`.

        Raises:
            PlacementError: always.
        """
        raise PlacementError(f"init_precision('{request.kind}') needs data, and {_NO_DATA}")

    def adapt_batch_norm(self, model: nn.Module) -> None:
        """See `Initializer.adapt_batch_norm`.

        Raises:
            PlacementError: always.
        """
        raise PlacementError(f"adapting BatchNorm needs data, and {_NO_DATA}")


_NO_DATA = (
    "this controller was given none: make it by raysearch.create_compressed_model(..., data=...), or set "
    "controller.initializer = raysearch.compression.initializer.ModelInitializer(...)."
)
