"""One quantizer: where it acts, which elements share a scale, and what a scheme makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from raysearch.records.block_types import BLOCK_TYPES, BlockType
from raysearch.records.granularity import PER_TENSOR, Granularity
from raysearch.records.scale_format import SCALE_FORMATS
from raysearch.records.scheme import Scheme

FLOAT_BITS = 32
"""The bit-width that stands for 'not quantized' in costs."""

Role = Literal["parameter", "input", "add", "call"]

Mode = Literal["symmetric", "asymmetric", "minimum"]


@dataclass(frozen=True)
class Site:
    """One place in the eager model where a quantizer acts.

    Attributes:
        module: dotted path of the module, "" for the root.
        role: "parameter" (the quantizer is a parametrization of `name`), "input" (it acts on the
            module's first argument), "add" (it acts on one operand of the `occurrence`-th addition that the
            module itself executes in one forward) or "call" (the same of another function, `name`).
        name: the parameter's name, or the kind of function: "matmul", "einsum", "attention", "linear",
            "bilinear", "conv", "pool".
        occurrence: index of the call within the module's own forward, among those of its kind.
        argument: the operand, from 0.
    """

    module: str
    role: Role
    name: str = ""
    occurrence: int = 0
    argument: int = 0


@dataclass(frozen=True)
class QuantizerSpec:
    """What kind of quantizer a point gets; the bit-width is not part of it.

    Attributes:
        mode: "symmetric" (levels around 0), "asymmetric" (a zero point, 0 exactly on the grid) or, of weights
            alone, "minimum" (a real number that is taken off every value, as GGUF's types have it).
        signed: of a symmetric quantizer; None takes it from the data.
        narrow_range: one level less: −2^(b−1)+1 …, or … 2^b−2 when unsigned.
        half_range: the levels of b−1 bits in a container of b.
        logarithm_scale: the learned parameter is log(scale).
    """

    mode: Mode = "symmetric"
    signed: bool | None = None
    narrow_range: bool = False
    half_range: bool = False
    logarithm_scale: bool = False


@dataclass(frozen=True)
class QuantizationPoint:
    """One quantizer: a weight, or a tensor that quantizable operations read.

    Attributes:
        id: stable name, such as "conv1.weight", "conv1.input" or "block.add0.input1".
        kind: "weight" or "activation".
        sites: where it acts; several for tied weights, or for a tensor with several readers.
        shape: of the weight, or of one sample of the activation (no batch dimension).
        granularity: which of its elements share a scale.
        macs: multiply-accumulates per sample of all the operations that use this weight; 0 for others.
        input_point: id of the activation point that feeds the weight's operation; "" when it is float.
        spec: the kind of quantizer; None is the default of its kind: signed symmetric for weights (narrow at
            8 bits), asymmetric for activations.
        scale_format: form in which a weight's scales are stored, one of `SCALE_FORMATS`.
    """

    id: str
    kind: Literal["weight", "activation"]
    sites: tuple[Site, ...]
    shape: tuple[int, ...]
    granularity: Granularity = PER_TENSOR
    macs: int = 0
    input_point: str = ""
    spec: QuantizerSpec | None = None
    scale_format: str = "float32"

    @property
    def grid_spec(self) -> QuantizerSpec:
        """`spec`, or the default of the kind: signed symmetric for weights, asymmetric for activations."""
        if self.spec is not None:
            return self.spec
        if self.kind == "weight":
            return QuantizerSpec("symmetric", signed=True)
        return QuantizerSpec("asymmetric")

    @property
    def num_elements(self) -> int:
        """Number of weights, or of activation values per sample."""
        return prod(self.shape)

    @property
    def num_scales(self) -> int:
        """Number of scales the quantizer holds."""
        return self.granularity.num_scales(self.shape)

    @property
    def scale_bytes(self) -> int:
        """Bytes of its scales as they are stored."""
        return SCALE_FORMATS[self.scale_format].num_bytes(self.num_scales)

    @property
    def minimum_bytes(self) -> int:
        """Bytes of the minima that are stored with a weight: as many as of its scales, or none."""
        return self.scale_bytes if self.grid_spec.mode == "minimum" else 0

    @property
    def num_zero_points(self) -> int:
        """Number of zero points that are stored with a weight: one a scale if it is asymmetric, else none."""
        stored = self.kind == "weight" and self.spec is not None and self.spec.mode == "asymmetric"
        return self.num_scales if stored else 0

    @property
    def layer(self) -> str:
        """The module of the first site."""
        return self.sites[0].module

    @property
    def row(self) -> Row | None:
        """What groups of inputs can be made of; None: the point has no scale for each row of a matrix.

        The inputs lie along axis 1 of a weight with its outputs along axis 0, and along axis 0 of a
        transposed one.
        """
        axis = self.granularity.axis
        if self.kind != "weight" or axis is None or len(self.shape) < 2:
            return None
        axis %= len(self.shape)
        group_axis = 1 if axis == 0 else 0
        others = [size for dim, size in enumerate(self.shape) if dim not in (axis, group_axis)]
        return Row(axis, group_axis, self.shape[group_axis], prod(others))

    def holds(self, scheme: Scheme) -> bool:
        """Whether the weight's rows consist of the blocks of a scheme; of one without blocks they do."""
        if not scheme.block_type:
            return True
        is_matrix = self.kind == "weight" and len(self.shape) == 2 and self.granularity.axis in (0, -2)
        return is_matrix and self.shape[1] % BLOCK_TYPES[scheme.block_type].block_size == 0

    def block_type(self, num_bits: int) -> BlockType | None:
        """The type of GGUF that the weight has at a bit-width, as it is stored; None: it is none."""
        granularity, spec = self.granularity, self.grid_spec
        if self.kind != "weight" or len(self.shape) != 2 or granularity.axis not in (0, -2):
            return None
        if spec.mode == "asymmetric" or (spec.mode == "symmetric" and not spec.signed):
            return None
        # A scale a channel is one of a group that is the whole row.
        group_size = granularity.group_size or self.shape[1]
        stored = (num_bits, group_size, self.scale_format, spec.mode == "minimum")
        for block_type in BLOCK_TYPES.values():
            form = (
                block_type.num_bits,
                block_type.group_size,
                block_type.scale_format,
                block_type.has_minima,
            )
            if stored == form and self.shape[1] % block_type.block_size == 0:
                return block_type
        return None

    def at(self, scheme: int | str | Scheme) -> QuantizationPoint:
        """The point as a scheme stores it; of a plain scheme the point itself.

        A group spans neighbouring input channels with all their kernel positions: as many as divide the
        channels evenly and hold no more than `group_size` inputs. The weight is per channel where that is
        less than half the size, or the whole row. A type of GGUF is a grid of its own, with the form of its
        scales; where the rows hold none of its blocks (`holds`), its groups alone are taken.
        """
        scheme = Scheme.of(scheme)
        if scheme.is_plain:
            return self
        if scheme.block_type and self.holds(scheme):
            block_type = BLOCK_TYPES[scheme.block_type]
            granularity = Granularity.per_group(block_type.group_size)
            spec = QuantizerSpec("minimum") if block_type.has_minima else None
            return replace(self, granularity=granularity, spec=spec, scale_format=block_type.scale_format)
        granularity = self.granularity
        row = self.row
        if scheme.group_size and row is not None:
            channels = row.channels_of(scheme.group_size)
            if channels is not None:
                granularity = Granularity.per_group(channels, row.axis, row.group_axis)
        spec = self.spec
        if scheme.is_asymmetric:
            # A zero point takes the place of the sign.
            spec = replace(self.grid_spec, mode="asymmetric", signed=None)
        return replace(self, granularity=granularity, spec=spec)


@dataclass(frozen=True)
class Row:
    """The inputs of one output of a weight.

    Attributes:
        axis: dimension of the outputs.
        group_axis: dimension of the input channels.
        num_channels: input channels.
        num_positions: inputs of a channel: the kernel's positions.
    """

    axis: int
    group_axis: int
    num_channels: int
    num_positions: int

    @property
    def num_inputs(self) -> int:
        """All inputs of the row."""
        return self.num_channels * self.num_positions

    def channels_of(self, group_size: int) -> int | None:
        """Channels of a group of at most `group_size` inputs; None: the row is not divided.

        That is so where the largest divisor that fits is the whole row, or is less than half the size.
        """
        most = min(group_size // self.num_positions, self.num_channels)
        channels = next((c for c in range(most, 0, -1) if self.num_channels % c == 0), 0)
        if channels == self.num_channels or 2 * channels * self.num_positions < group_size:
            return None
        return channels
