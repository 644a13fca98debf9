"""Strip: integer codes instead of float weights, fixed scales instead of learned ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from raysearch.errors import PlacementError
from raysearch.evaluation.model.copies import private_copy
from raysearch.evaluation.model.plain_weights import own_classes
from raysearch.hooks.flat_weights import follow_parametrizations
from raysearch.hooks.locations import quantizer_location
from raysearch.quantizer import AffineForm, Quantizer, dequantize
from raysearch.records import Granularity, QuantizationPoint, QuantizerSetup, Site


class Dequantize(nn.Module):
    """Parametrization of a stripped weight: int8 codes q → (q − z)·scale − minimum, in the dtype it had.

    While exporting to ONNX it emits DequantizeLinear, so that the file holds the codes.

    Args:
        quantizer: that the codes are of.
        grid: its grid, moved to where the codes are int8.
        dtype: of the weight.

    Attributes:
        scale: float32, shape [1, …, C, …, 1], of groups [1, …, C, …, groups, …, 1], or [1].
        zero_point: int8, shape of `scale`; None means 0 everywhere: a symmetric signed weight.
        minimum: float32, shape of `scale`; None but of weights with minima.
        num_bits: width of the codes.
        granularity: which elements share a scale.
        scale_format: form in which the scales are stored.
        dtype: of the weight.
        is_symmetric: whether the zero points follow from the width alone, with minima or without.
    """

    scale: Tensor
    zero_point: Tensor | None
    minimum: Tensor | None

    def __init__(self, quantizer: Quantizer, grid: AffineForm, dtype: torch.dtype) -> None:
        super().__init__()
        self.is_symmetric = quantizer.mode != "asymmetric"
        plain = self.is_symmetric and quantizer.signed
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", None if plain else grid.zero_point.to(torch.int8))
        self.register_buffer("minimum", grid.minimum)
        self.dtype = dtype
        self.num_bits = quantizer.num_bits
        self.granularity = grid.granularity
        self.scale_format = quantizer.scale_format

    def forward(self, codes: Tensor) -> Tensor:
        """The weight."""
        if torch.onnx.is_in_onnx_export():
            return self._onnx(codes).to(self.dtype)
        zero_point = 0 if self.zero_point is None else self.zero_point
        return dequantize(codes, self.scale, zero_point, self.granularity, self.minimum).to(self.dtype)

    def onnx_grid(self) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Attributes, scale and zero point of its DequantizeLinear."""
        axis, scale = self.granularity.axis, self.scale
        attributes: dict[str, Any] = {}
        if self.granularity.group_axis is not None and self.granularity.group_size is not None:
            # The target brings scales of groups of kernels, [O, groups, 1, 1], to a form that ONNX has.
            attributes = {"axis": self.granularity.group_axis, "block_size": self.granularity.group_size}
        else:
            # ONNX takes a scalar per tensor, and one dimension per channel.
            if axis is not None:
                attributes = {"axis": axis}
            scale = scale.reshape(() if axis is None else (-1,))
        if self.zero_point is None:
            return attributes, scale, torch.zeros(scale.shape, dtype=torch.int8)
        return attributes, scale, self.zero_point.reshape(scale.shape)

    def _onnx(self, codes: Tensor) -> Tensor:
        attributes, scale, zero_point = self.onnx_grid()
        result: Tensor = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (codes, scale, zero_point),
            attributes,
            dtype=torch.float32,
            shape=codes.shape,
            version=21,
        )
        return result


@dataclass(frozen=True)
class StrippedWeight:
    """One integer weight of a stripped module.

    Attributes:
        name: quantizer id, the parameter's former qualified name.
        codes: int8, the weight's shape; unsigned ones are moved down by 2^(b−1).
        scale: float32, shape [1, …, C, …, 1], of groups [1, …, C, …, groups, …, 1], or [1] per tensor.
        num_bits: width of the codes.
        granularity: which elements share a scale.
        aliases: further qualified names that share it (tied weights).
        zero_point: int8, shape of `scale`; None of a symmetric signed weight, whose code 0 is the value 0.
        symmetric: whether its zero points follow from the width alone: 0, or −2^(b−1) when it is unsigned,
            as it is where it has minima.
        dtype: of the weight that the codes stand for.
        scale_format: form in which the scales are stored, and minima.
        minimum: float32, shape of `scale`, taken off every value; None: there is none.
    """

    name: str
    codes: Tensor
    scale: Tensor
    num_bits: int
    granularity: Granularity
    aliases: tuple[str, ...]
    zero_point: Tensor | None = None
    symmetric: bool = True
    dtype: torch.dtype = torch.float32
    scale_format: str = "float32"
    minimum: Tensor | None = None


def strip(
    model: nn.Module, setup: QuantizerSetup, *, do_copy: bool, form: Literal["integer", "float"]
) -> nn.Module:
    """Replace fake-quantizers by what they stand for; see `QuantizationController.strip_model`.

    Args:
        model: the quantized model.
        setup: where its quantizers are.
        do_copy: strip a copy and leave the model as it is.
        form: "integer" keeps codes and scales, "float" gives plain parameters on their grid.

    Raises:
        PlacementError: a quantizer is missing; the model is as before.
    """
    weights = setup.of_kind("weight").values()
    for point in weights:
        for site in point.sites:
            _weight_quantizer(model, site)
    for point in setup.of_kind("activation").values():
        activation_quantizer(model, point)
    if do_copy:
        model = private_copy(model)
    own_classes(model)
    for point in weights:
        _strip_weight(model, point, form)
    for point in setup.of_kind("activation").values():
        activation_quantizer(model, point).freeze()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def check_same(model: nn.Module, own: nn.Module) -> None:
    """Refuse to strip a model that is not the controller's own; a wrapper of it will do.

    Raises:
        PlacementError: it is another one.
    """
    unwrapped = (getattr(model, name, None) for name in ("module", "_orig_mod"))
    if model is not own and all(inner is not own for inner in unwrapped):
        raise PlacementError(
            f"strip_model was given a {type(model).__name__} that this controller was not created for; pass "
            f"the model that create_controller changed, or none."
        )


def activation_quantizer(model: nn.Module, point: QuantizationPoint) -> Quantizer:
    """The quantizer of an activation point.

    Raises:
        PlacementError: the model has none there.
    """
    owner, name = quantizer_location(model, point.sites[0])
    quantizer = getattr(owner, name, None)
    if not isinstance(quantizer, Quantizer):
        raise PlacementError(
            f"the model has no quantizer '{point.id}'; it was not made by create_controller."
        )
    return quantizer


def stripped_weights(model: nn.Module, setup: QuantizerSetup) -> dict[str, StrippedWeight]:
    """The integer weights of a stripped module, keyed by quantizer id; float ones are left out."""
    weights: dict[str, StrippedWeight] = {}
    for point in setup.of_kind("weight").values():
        first = point.sites[0]
        module = model.get_submodule(first.module)
        if not parametrize.is_parametrized(module, first.name):
            continue
        entry = _parametrizations(model, first)
        step = entry[0]
        if isinstance(step, Dequantize):
            names = [_name(site) for site in point.sites]
            weights[point.id] = StrippedWeight(
                name=point.id,
                codes=entry.original,
                scale=step.scale,
                num_bits=step.num_bits,
                granularity=step.granularity,
                aliases=tuple(name for name in names if name != point.id),
                zero_point=step.zero_point,
                symmetric=step.is_symmetric,
                dtype=step.dtype,
                scale_format=step.scale_format,
                minimum=step.minimum,
            )
    return weights


def stripped_quantizers(model: nn.Module, setup: QuantizerSetup) -> dict[str, Quantizer]:
    """The enabled activation quantizers of a model, keyed by quantizer id."""
    every = {p.id: activation_quantizer(model, p) for p in setup.of_kind("activation").values()}
    return {name: quantizer for name, quantizer in every.items() if quantizer.enabled}


def _strip_weight(model: nn.Module, point: QuantizationPoint, form: str) -> None:
    quantizer = _weight_quantizer(model, point.sites[0])
    owner = model.get_submodule(point.sites[0].module)
    original = owner.parametrizations[point.sites[0].name].original  # type: ignore[index,union-attr]
    with torch.no_grad():
        # One container for every grid: unsigned codes move down until they fit int8.
        shift = 0 if quantizer.signed else -(2 ** (quantizer.num_bits - 1))
        codes = (quantizer.codes(original).to(torch.int16) + shift).to(torch.int8)
        step = Dequantize(quantizer, quantizer.affine().shifted(shift), original.dtype)
        values = step(codes) if quantizer.enabled else original.detach().clone()
    shared = nn.Parameter(values.to(original.dtype), requires_grad=False)
    for site in point.sites:
        module = model.get_submodule(site.module)
        parametrize.remove_parametrizations(module, site.name, leave_parametrized=False)
        delattr(module, site.name)
        if form == "integer" and quantizer.enabled:
            module.register_buffer(site.name, codes)
            parametrize.register_parametrization(module, site.name, step, unsafe=True)
        else:
            module.register_parameter(site.name, shared)
        follow_parametrizations(module)


def _weight_quantizer(model: nn.Module, site: Site) -> Quantizer:
    module = model.get_submodule(site.module)
    if parametrize.is_parametrized(module, site.name):
        quantizer = _parametrizations(model, site)[0]
        if isinstance(quantizer, Quantizer):
            return quantizer
    raise PlacementError(
        f"'{_name(site)}' has no weight quantizer: the model was stripped before, or was not made by "
        f"create_controller."
    )


def _parametrizations(model: nn.Module, site: Site) -> Any:
    # Typed loosely: torch declares a ParametrizationList's `original` only at run time.
    steps: Any = model.get_submodule(site.module).parametrizations
    return steps[site.name]


def _name(site: Site) -> str:
    return f"{site.module}.{site.name}" if site.module else site.name
