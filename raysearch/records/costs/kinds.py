"""Every kind of cost, once: its formula, its units, its name for people, and what it needs.

The cost model, budgets, the search's integer limits, the settings, the report and the command line all read
`COST_KINDS`. Another kind is one entry there:

    CostKind("energy", "energy", _energy, units={"J": 1.0}, display=Display(((" J", 1.0),)), reference_bits=8)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from raysearch.records.costs.file_size import FileSize, packed_bytes
from raysearch.records.costs.formula import CostFormula, CostSum
from raysearch.records.costs.memory import live_sets, tensor_bytes
from raysearch.records.latency import PICOSECONDS
from raysearch.records.point import FLOAT_BITS, QuantizationPoint
from raysearch.records.setup import LiveTensor, QuantizerSetup


@dataclass(frozen=True)
class Display:
    """How people read a cost.

    Attributes:
        units: ascending: (what is written behind the number, its factor).
        axis: which of them a figure's axis has; "": no unit.
        decimals: digits after the point beyond the first unit; None: five significant digits in all.
    """

    units: tuple[tuple[str, float], ...] = (("", 1.0),)
    axis: str = ""
    decimals: int | None = None


_BYTES = Display(((" B", 1.0), (" KiB", 2.0**10), (" MiB", 2.0**20), (" GiB", 2.0**30)), " KiB", decimals=2)
_OPERATIONS = Display((("", 1.0), (" k", 1e3), (" M", 1e6), (" G", 1e9), (" T", 1e12)), " G", decimals=2)
_SECONDS = Display(((" ns", 1e-9), (" µs", 1e-6), (" ms", 1e-3), (" s", 1.0)), " ms")
_BYTE_UNITS = {
    "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9,
    "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
}  # fmt: skip


def _always(setup: QuantizerSetup) -> bool:
    return True


@dataclass(frozen=True)
class CostKind:
    """One kind of cost.

    Attributes:
        name: as in a budget's expression.
        label: as in a table's row.
        formula: the integers of a setup that the cost is made of.
        units: what may follow the number in a budget, and its factor.
        display: its units for people.
        reference_bits: the width of all points at which the cost is 100 %; None: a budget of this kind takes
            no percentage.
        at_least: whether a budget is the least that the cost may be, since it falls as widths grow.
        is_monotone: whether the cost moves one way from each scheme of a group to the next; where it does
            not, since scales may take more than codes, extremes are made of each group's, see
            `CostModel.lowest`.
        is_known: whether a setup holds what the formula needs.
        needs: what is told when it does not.
    """

    name: str
    label: str
    formula: Callable[[QuantizerSetup], CostFormula]
    units: Mapping[str, float] = field(default_factory=lambda: {"": 1.0})
    display: Display = field(default_factory=Display)
    reference_bits: int | None = None
    at_least: bool = False
    is_monotone: bool = True
    is_known: Callable[[QuantizerSetup], bool] = _always
    needs: str = ""

    @property
    def sign(self) -> str:
        """The comparison in a budget's expression."""
        return ">=" if self.at_least else "<="

    @property
    def is_relative(self) -> bool:
        """Whether a budget may be a percentage."""
        return self.reference_bits is not None

    @property
    def can_be_minimized(self) -> bool:
        """Whether less of it is a smaller or faster model."""
        return not self.at_least


def bit_operations(point: QuantizationPoint, weight_bits: int, input_bits: int) -> int:
    """MACs·w·a of a weight's operation, per sample.

    Args:
        point: the weight; its MACs are those of one sample.
        weight_bits: w.
        input_bits: a.
    """
    return point.macs * weight_bits * input_bits


def weighted_macs(point: QuantizationPoint, weight_bits: int, input_bits: int) -> int:
    """MACs·max(w, a) of a weight's operation: the denominator of NNCF's compression ratio.

    Args:
        point: the weight; its MACs are those of one sample.
        weight_bits: w.
        input_bits: a.
    """
    return point.macs * max(weight_bits, input_bits)


def _mean_bits(kind: Literal["weight", "activation"]) -> Callable[[QuantizerSetup], CostFormula]:
    """Σ nᵢ·bᵢ / Σ nᵢ over the points of a kind, codes only."""

    def formula(setup: QuantizerSetup) -> CostFormula:
        points = tuple(setup.of_kind(kind).values())
        num_elements = sum(point.num_elements for point in points)
        terms = CostSum(points, lambda point, width, _: point.num_elements * width)
        # Without such a point the sum is 0, and so is the mean.
        return CostFormula((terms,), divisor=max(num_elements, 1))

    return formula


def _size(setup: QuantizerSetup) -> CostFormula:
    """Bytes of model.safetensors: the packed weights, all other tensors, and the header; see `FileSize`."""
    file = FileSize(setup)

    def stored_bytes(point: QuantizationPoint, width: int, _: int) -> int:
        return packed_bytes(point, width) if width == FLOAT_BITS else file.part(point, width)

    weights = tuple(setup.of_kind("weight").values())
    return CostFormula((CostSum(weights, stored_bytes, file.constant, exact=file.of),))


def _stored_bits(setup: QuantizerSetup) -> CostFormula:
    """Σ 8·`packed_bytes` / Σ nᵢ: all bits stored for the quantizable weights, scales included, per weight."""
    weights = tuple(setup.of_kind("weight").values())
    num_elements = sum(point.num_elements for point in weights)
    terms = CostSum(weights, lambda point, width, _: 8 * packed_bytes(point, width))
    return CostFormula((terms,), divisor=max(num_elements, 1))


def _bops(setup: QuantizerSetup) -> CostFormula:
    """Σ MACsᵢ·wᵢ·aᵢ per sample, aᵢ the width of the activation that feeds the weight's operation."""
    weights = tuple(setup.of_kind("weight").values())
    return CostFormula((CostSum(weights, bit_operations, is_coupled=True),))


def _effective(setup: QuantizerSetup) -> CostFormula:
    """8·Σ MACsᵢ / Σ MACsᵢ·max(wᵢ, aᵢ), NNCF's compression ratio: all at 8 bits gives 1."""
    weights = tuple(setup.of_kind("weight").values())
    at_8_bits = 8 * sum(point.macs for point in weights)
    return CostFormula((CostSum(weights, weighted_macs, is_coupled=True),), dividend=at_8_bits)


def _has_macs(setup: QuantizerSetup) -> bool:
    return any(point.macs for point in setup.of_kind("weight").values())


def _activation_memory(setup: QuantizerSetup) -> CostFormula:
    """The most bytes that live tensors take at once, per sample; one sum a set of them, see `live_sets`."""
    return CostFormula(tuple(_live_bytes(setup, live) for live in live_sets(setup)))


def _live_bytes(setup: QuantizerSetup, live: tuple[LiveTensor, ...]) -> CostSum:
    tensors_of: dict[str, list[LiveTensor]] = {}
    float_bytes = 0
    for tensor in live:
        if tensor.point in setup.points:
            tensors_of.setdefault(tensor.point, []).append(tensor)
        else:
            float_bytes += tensor_bytes(tensor, FLOAT_BITS)

    def kept_bytes(point: QuantizationPoint, width: int, _: int) -> int:
        return sum(tensor_bytes(tensor, width) for tensor in tensors_of[point.id])

    points = tuple(setup.points[name] for name in tensors_of)
    return CostSum(points, kept_bytes, float_bytes)


def _latency(setup: QuantizerSetup) -> CostFormula:
    """Seconds, the sum of the setup's measured times as whole picoseconds; see `LatencyProfile`."""
    profile = setup.latency
    if profile is None:
        raise ValueError("latency has a formula only where the setup holds a latency profile")

    def picoseconds(point: QuantizationPoint, weight_bits: int, input_bits: int) -> int:
        return profile.picoseconds(point.id, weight_bits, input_bits)

    weights = tuple(setup.of_kind("weight").values())
    others = round(profile.other_seconds * PICOSECONDS)
    return CostFormula((CostSum(weights, picoseconds, others, is_coupled=True),), divisor=PICOSECONDS)


_KINDS = (
    CostKind("avg_bits", "bits per weight", _mean_bits("weight")),
    CostKind("act_bits", "bits per activation", _mean_bits("activation")),
    CostKind(
        "size",
        "size",
        _size,
        units=_BYTE_UNITS,
        display=_BYTES,
        reference_bits=FLOAT_BITS,
        is_monotone=False,
    ),
    CostKind("bpw", "bits stored per weight", _stored_bits, is_monotone=False),
    CostKind(
        "bops",
        "bit operations",
        _bops,
        units={"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
        display=_OPERATIONS,
        reference_bits=8,
    ),
    CostKind(
        "effective",
        "effective compression",
        _effective,
        units={"": 1.0, "x": 1.0},
        display=Display((("x", 1.0),)),
        at_least=True,
        is_known=_has_macs,
        needs="it weighs layers by their MACs, and this setup holds none. Leave it out.",
    ),
    CostKind(
        "activation_memory",
        "activation memory",
        _activation_memory,
        units=_BYTE_UNITS,
        display=_BYTES,
        reference_bits=FLOAT_BITS,
        is_known=lambda setup: bool(setup.tensors),
        needs="this setup does not say how long tensors are kept: an earlier version placed it, or it was "
        "made by hand. Start the run anew.",
    ),
    CostKind(
        "latency",
        "latency",
        _latency,
        units={"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
        display=_SECONDS,
        reference_bits=FLOAT_BITS,
        is_monotone=False,
        is_known=lambda setup: setup.latency is not None,
        needs="it adds up measured times, and none are given. Give --latency-profile FILE "
        "(search.latency_profile).",
    ),
)

COST_KINDS: dict[str, CostKind] = {kind.name: kind for kind in _KINDS}
"""Every kind of cost by name."""
