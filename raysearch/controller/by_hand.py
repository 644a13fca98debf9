"""What a controller is made of: quantizers with their places, adjacent groups, and what the stages supply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from raysearch.errors import PlacementError
from raysearch.quantizer import Quantizer
from raysearch.records import (
    BitAssignment,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerRange,
    QuantizerSetup,
    RangeTable,
    Site,
)

if TYPE_CHECKING:
    from raysearch.controller.controller import QuantizationController


@dataclass(frozen=True)
class WeightQuantizer:
    """A weight's quantizer, the module that owns the weight, and where it acts."""

    quantizer: Quantizer
    module: nn.Module
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class NonWeightQuantizer:
    """An activation's quantizer and where it acts."""

    quantizer: Quantizer
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class AdjacentGroups:
    """Quantizers that feed the same operations, and which activation feeds a weight's operation.

    Attributes:
        groups: quantizer ids, each in exactly one group.
        weight_inputs: weight id → activation id; a weight without quantized input is not in it.
    """

    groups: tuple[tuple[str, ...], ...]
    weight_inputs: Mapping[str, str]

    @classmethod
    def of(cls, setup: QuantizerSetup) -> AdjacentGroups:
        """Computed from a setup: an activation, all weights it feeds, and all that shares their width."""
        inputs = {n: p.input_point for n, p in setup.of_kind("weight").items() if p.input_point}
        parent = {name: name for name in setup.points}

        def find(name: str) -> str:
            while parent[name] != name:
                name = parent[name]
            return name

        pairs = [(g.points[0], p) for g in setup.groups.values() for p in g.points]
        for a, b in (*pairs, *inputs.items()):
            parent[find(b)] = find(a)
        members: dict[str, list[str]] = {}
        for name in setup.points:
            members.setdefault(find(name), []).append(name)
        return cls(tuple(map(tuple, members.values())), inputs)


class Stages(Protocol):
    """What a controller cannot do itself, since it knows no stage; `create_compressed_model` supplies it."""

    def find_ranges(
        self, controller: QuantizationController, points: Iterable[str], params: Mapping[str, Any] | None
    ) -> RangeTable:
        """Calibrated ranges of some quantizers at their widths in force, for the weights as they are."""
        ...

    def find_precision(
        self, kind: str, controller: QuantizationController, setup: QuantizerSetup, params: Mapping[str, Any]
    ) -> BitAssignment:
        """The assignment that "hawq" or "search" finds within a setup's widths."""
        ...

    def adapt_norms(self, controller: QuantizationController) -> None:
        """Take BatchNorm statistics anew, with the quantizers as they are, where that was asked for."""
        ...


class NoStages:
    """Stands where no data was given: what needs it says so."""

    def find_ranges(
        self, controller: QuantizationController, points: Iterable[str], params: Mapping[str, Any] | None
    ) -> RangeTable:
        """See `Stages.find_ranges`.

        Raises:
            PlacementError: always.
        """
        raise PlacementError(f"init_range of {', '.join(points)} needs data, and {_NO_DATA}")

    def find_precision(
        self, kind: str, controller: QuantizationController, setup: QuantizerSetup, params: Mapping[str, Any]
    ) -> BitAssignment:
        """See `Stages.find_precision`.

        Raises:
            PlacementError: always.
        """
        raise PlacementError(f"init_precision('{kind}') needs data, and {_NO_DATA}")

    def adapt_norms(self, controller: QuantizationController) -> None:
        """See `Stages.adapt_norms`.

        Raises:
            PlacementError: always.
        """
        raise PlacementError(f"adapting BatchNorm needs data, and {_NO_DATA}")


_NO_DATA = (
    "this controller was given none: make it by raysearch.create_compressed_model(..., data=...), or set "
    "controller.stages = raysearch.compression.initializer.ModelStages(...)."
)


def setup_of(
    weights: Mapping[str, WeightQuantizer],
    others: Mapping[str, NonWeightQuantizer],
    adjacent: AdjacentGroups,
    shapes: Mapping[str, tuple[int, ...]],
) -> QuantizerSetup:
    """The setup of a controller that is built by hand: one group a quantizer, at its present width.

    MACs are not known; statistics leave out what is made of them.

    Raises:
        PlacementError: a quantizer has no shape.
    """
    held: dict[str, tuple[Quantizer, tuple[Site, ...]]] = {
        **{name: (part.quantizer, part.sites) for name, part in weights.items()},
        **{name: (part.quantizer, part.sites) for name, part in others.items()},
    }
    points: dict[str, QuantizationPoint] = {}
    for name, (quantizer, sites) in held.items():
        if name not in shapes:
            raise PlacementError(f"quantizers_input_shapes has no shape for '{name}'; give one for each.")
        points[name] = QuantizationPoint(
            id=name,
            kind="weight" if name in weights else "activation",
            sites=sites,
            shape=tuple(shapes[name]),
            axis=quantizer.axis,
            input_point=adjacent.weight_inputs.get(name, ""),
        )
    groups = {n: QuantizerGroup(n, (n,), (quantizer.num_bits,)) for n, (quantizer, _) in held.items()}
    return QuantizerSetup(points, groups)


def ranges_of(quantizers: Mapping[str, Quantizer]) -> RangeTable:
    """The ranges that quantizers hold, at their present widths."""
    found: dict[tuple[str, int], QuantizerRange] = {}
    for name, quantizer in quantizers.items():
        scale = quantizer.effective_scale().detach().float().cpu().reshape(-1).numpy().copy()
        zero = quantizer.zero_points().cpu().reshape(-1).numpy().astype("int32")
        found[name, quantizer.num_bits] = QuantizerRange(scale, zero, bool(quantizer.signed))
    return RangeTable(found)
