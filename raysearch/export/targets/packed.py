"""The packed target: bit-packed codes in model.safetensors, config.json, the graph in architecture.pt2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from raysearch.artifacts import Storage
from raysearch.controller import StrippedWeight, stripped_quantizers, stripped_weights
from raysearch.errors import ExportError
from raysearch.evaluation.calls.call_form import argument_names
from raysearch.evaluation.calls.model_calls import NO_OPEN_DIMS, OpenDims
from raysearch.export.file_names import ARCHITECTURE, CONFIG, FILES, WEIGHTS
from raysearch.export.input_spec import InputSpec, input_spec
from raysearch.export.load import load_model
from raysearch.export.model_config import ActivationQuantizer, ModelConfig, PackedWeight, TensorSpec
from raysearch.export.packing import pack_codes
from raysearch.export.program import capture_program, program_bytes, tensor_slots, weight_parts
from raysearch.export.program_template import ProgramTemplate
from raysearch.export.stored_scales import encode_scales
from raysearch.export.targets.capability import EVERY_MODE, EVERY_WIDTH, Capability
from raysearch.export.targets.target import ExportJob, Target, Written
from raysearch.placement.stored_tensors import TORCH_DTYPES
from raysearch.records import FLOAT_BITS, PER_TENSOR, CostModel, QuantizerSetup, packed_bytes
from raysearch.records.dtypes import STORED_DTYPES
from raysearch.version import __version__


class PackedTarget(Target):
    """Codes at their width beside a graph and its configuration; what raysearch itself loads again."""

    name = "packed"
    files = FILES
    capability = Capability(
        {width: width for width in EVERY_WIDTH}, weight_modes=EVERY_MODE, dtypes=STORED_DTYPES
    )
    by_default = True
    exact = True
    fixed_part = "graph"

    def write(self, job: ExportJob) -> Written:
        """Write the three files.

        Raises:
            ExportError: the model cannot be captured, holds a tensor of a type that cannot be stored, or
                gives a larger file than the cost model says.
        """
        model = job.model
        fixed_batch = write_packed(
            model.module,
            model.setup,
            model.example_inputs,
            job.folder,
            job.source,
            model.open_dims,
            job.graphs,
        )
        if model.setup.stored is not None:
            _check_size(job.folder / WEIGHTS, CostModel(model.setup).costs(model.assignment)["size"])
        return Written(fixed_batch)

    def load(self, folder: Path) -> nn.Module:
        """The stored graph with the stored tensors."""
        return load_model(folder)


def write_packed(
    stripped: nn.Module,
    setup: QuantizerSetup,
    example_inputs: tuple[Any, ...],
    directory: Path,
    source: Mapping[str, Any] | None = None,
    open_dims: OpenDims = NO_OPEN_DIMS,
    graphs: dict[str, Any] | None = None,
) -> int | None:
    """Write the three files of the packed target.

    Tied weights are stored once. Everything that is no integer weight, scales of activations included, is
    stored under its own name.

    Args:
        stripped: the stripped module, integer form.
        setup: where its quantizers are.
        example_inputs: positional arguments of its forward; dimension 0 is the batch.
        directory: the model folder.
        source: "run_id" and "budget" of the run that the module is from, for config.json.
        open_dims: dimensions besides the batch that stay open.
        graphs: see `ExportJob`.

    Returns:
        The only batch size the graph takes, or None when any will do.

    Raises:
        ExportError: the model cannot be captured, or holds a tensor of a type that cannot be stored.
    """
    weights = stripped_weights(stripped, setup)
    slots = tensor_slots(stripped, weights)
    integer = {part for weight in weights.values() for part in weight_parts(weight)}
    others = {name: value for name, value in slots.values() if name not in integer}
    _check_types(others)
    template = None if graphs is None else graphs.get(PackedTarget.name)
    captured = None if template is None else template.filled(stripped, slots)
    if captured is None:
        captured = capture_program(stripped, slots, example_inputs, open_dims)
        if graphs is not None:
            graphs[PackedTarget.name] = ProgramTemplate.of(captured, stripped, slots)
    stored = {name: value.detach().cpu().contiguous().clone() for name, value in others.items()}
    for weight in weights.values():
        stream = pack_codes(weight.codes.cpu().numpy(), weight.num_bits, weight.name)
        stored[f"{weight.name}.packed"] = torch.from_numpy(stream)
        stored[f"{weight.name}.scale"] = _stored_scale(weight)
        if weight.minimum is not None:
            stored[f"{weight.name}.minimum"] = _stored_minimum(weight.minimum, weight)
        if weight.zero_point is not None and not weight.symmetric:
            stored[f"{weight.name}.zero_point"] = weight.zero_point.detach().cpu().reshape(-1).clone()
    config = ModelConfig(
        architecture=type(stripped).__name__,
        inputs=input_names(stripped, example_inputs),
        fixed_batch=captured.fixed_batch,
        weights={
            name: PackedWeight(
                w.num_bits,
                w.granularity,
                tuple(w.codes.shape),
                w.aliases,
                _zero_point(w),
                TORCH_DTYPES[w.dtype],
                w.scale_format,
                w.minimum is not None,
            )
            for name, w in weights.items()
        },
        activations=_activations(stripped, setup),
        tensors={n: TensorSpec(tuple(t.shape), TORCH_DTYPES[t.dtype]) for n, t in others.items()},
        example_inputs=_example_inputs(example_inputs),
        versions={"raysearch": __version__, "torch": torch.__version__},
        source=source or {},
    )
    folder = Storage(directory)
    folder.write_bytes(WEIGHTS, save(stored, metadata={"format": "pt"}))
    folder.write_bytes(ARCHITECTURE, program_bytes(captured.program))
    folder.write_bytes(CONFIG, config.to_json().encode())
    return captured.fixed_batch


def weights_bytes(stripped: nn.Module, setup: QuantizerSetup) -> int:
    """Bytes of all quantizable weights: codes, scales, zero points and minima as they are stored.

    Codes are really packed and counted, so that the cost model's formula is checked against the bytes. A
    weight that stays float counts as float32, as it does there, also where it is stored in half precision.
    """
    weights = stripped_weights(stripped, setup)
    total = 0
    for point in setup.of_kind("weight").values():
        if point.id in weights:
            weight = weights[point.id]
            total += pack_codes(weight.codes.cpu().numpy(), weight.num_bits, point.id).nbytes
            total += _stored_scale(weight).nbytes
            if weight.minimum is not None:
                total += _stored_minimum(weight.minimum, weight).nbytes
            if weight.zero_point is not None and not weight.symmetric:
                total += weight.zero_point.nbytes
        else:
            total += packed_bytes(point, FLOAT_BITS)
    return total


def input_names(model: nn.Module, example_inputs: tuple[Any, ...]) -> tuple[str, ...]:
    """Names of the arguments that the example inputs fill; those of `*args` have none and are left out."""
    return argument_names(model)[: len(example_inputs)]


def _activations(stripped: nn.Module, setup: QuantizerSetup) -> dict[str, ActivationQuantizer]:
    enabled = stripped_quantizers(stripped, setup)
    entries = {}
    for point in setup.of_kind("activation").values():
        place = (point.sites, point.shape, point.granularity.axis, point.spec)
        if point.id not in enabled:
            entries[point.id] = ActivationQuantizer(None, 1.0, 0, False, *place)
            continue
        quantizer = enabled[point.id]
        scales = tuple(quantizer.effective_scale().detach().reshape(-1).tolist())
        zeros = tuple(quantizer.zero_points().expand_as(quantizer.effective_scale()).reshape(-1).tolist())
        one = point.granularity == PER_TENSOR
        entries[point.id] = ActivationQuantizer(
            quantizer.num_bits,
            scales[0] if one else scales,
            zeros[0] if one else zeros,
            quantizer.signed,
            *place,
        )
    return entries


def _example_inputs(values: tuple[Any, ...]) -> tuple[InputSpec, ...] | None:
    """What each argument looks like; None where one of them cannot be told in JSON."""
    specs = []
    for value in values:
        spec = input_spec(value)
        if spec is None:
            return None
        specs.append(spec)
    return tuple(specs)


def _stored_scale(weight: StrippedWeight) -> Tensor:
    return encode_scales(weight.scale, weight.scale_format, weight.name)


def _stored_minimum(minimum: Tensor, weight: StrippedWeight) -> Tensor:
    return encode_scales(minimum, weight.scale_format, weight.name)


def _zero_point(weight: StrippedWeight) -> int | Literal["stored"]:
    if weight.zero_point is None:
        return 0
    return int(weight.zero_point.reshape(-1)[0]) if weight.symmetric else "stored"


def _check_types(tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.dtype not in TORCH_DTYPES:
            raise ExportError(
                f"'{name}' is of type {value.dtype}, which the target 'packed' cannot store; allowed: "
                f"{', '.join(sorted(TORCH_DTYPES.values()))}. Convert it, or export other targets."
            )


def _check_size(path: Path, size: float) -> None:
    """The search kept every budget by `size`, so a file that is no larger keeps it too."""
    size_on_disk = path.stat().st_size
    if size_on_disk > size:
        raise ExportError(
            f"{path.name} has {size_on_disk} bytes, more than the {size:.0f} that the search counted: the "
            f"model has tensors that it did not have when its quantizers were placed. Place the quantizers "
            f"anew."
        )
